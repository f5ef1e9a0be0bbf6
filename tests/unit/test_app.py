"""The worker's Celery app: what a task gives Celery, whatever is in the message."""

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Reject

from embedfleet.contract import TASK_ANSWER, TASK_EMBED
from embedfleet_worker import app as module
from embedfleet_worker.settling import GiveBack
from embedfleet_worker.transport import Back, channel, given_back
from tests.unit.transports import restored


class RecordedTasks:
    """Stands in for Tasks: keeps what it was given."""

    def __init__(self) -> None:
        self.given: list[tuple[str, object, int]] = []
        self.outcome: Exception | None = None

    def embed(self, message: object, times: int) -> None:
        self._take("embed", message, times)

    def answer(self, message: object, times: int) -> None:
        self._take("answer", message, times)

    def _take(self, task: str, message: object, times: int) -> None:
        self.given.append((task, message, times))
        if self.outcome is not None:
            raise self.outcome


class FakeHolding:
    """Knows how often one message was given out."""

    def times(self, tag: str) -> int:
        return {"a tag": 7}.get(tag, 1)


@pytest.fixture
def tasks() -> RecordedTasks:
    return RecordedTasks()


@pytest.fixture
def celery(tasks: RecordedTasks, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    holding: Any = FakeHolding()
    with restored(monkeypatch):
        yield module.build({TASK_EMBED: tasks.embed, TASK_ANSWER: tasks.answer}, holding, 14)


def call(celery: Celery, *args: object, **kwargs: object) -> None:
    """As Celery does, with the message's tag."""
    task = celery.tasks[TASK_EMBED]
    task.push_request(properties={"delivery_tag": "a tag"})
    try:
        task.run(*args, **kwargs)
    finally:
        task.pop_request()


def test_each_task_gets_the_message(celery: Celery, tasks: RecordedTasks) -> None:
    celery.tasks[TASK_EMBED]({"batch": 1})
    celery.tasks[TASK_ANSWER]({"texts": []})
    assert tasks.given == [("embed", {"batch": 1}, 1), ("answer", {"texts": []}, 1)]


def test_a_task_knows_how_often_its_message_was_given_out(celery: Celery, tasks: RecordedTasks) -> None:
    call(celery, {"batch": 1})
    assert tasks.given == [("embed", {"batch": 1}, 7)]


@pytest.mark.parametrize(
    ("outcome", "back"),
    [
        (GiveBack("the engine is gone"), Back()),
        (GiveBack("come again", delay_s=7.5), Back(7.5)),
        (GiveBack("the store is gone", outage=True), Back(None, outage=True)),
    ],
    ids=str,
)
def test_what_is_given_back_is_requeued_as_it_was_said(
    celery: Celery, tasks: RecordedTasks, outcome: GiveBack, back: Back
) -> None:
    tasks.outcome = outcome
    with pytest.raises(Reject) as rejected:
        call(celery, {})
    assert rejected.value.requeue
    assert given_back.pop("a tag") == back


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2), {}), ((), {"message": {}}), (({},), {"more": 1})])
def test_a_call_of_another_shape_reaches_the_task_too(
    celery: Celery, tasks: RecordedTasks, args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    """Celery would lose it: what does not fit the function's arguments raises TypeError there."""
    celery.tasks[TASK_EMBED](*args, **kwargs)
    assert [message for _, message, _ in tasks.given] == [{"args": list(args), "kwargs": kwargs}]


def test_messages_are_acknowledged_late_and_each_has_a_thread(celery: Celery) -> None:
    assert all(celery.tasks[name].acks_late for name in (TASK_EMBED, TASK_ANSWER))
    assert (celery.conf.worker_concurrency, celery.conf.worker_prefetch_multiplier) == (14, 1)
    assert celery.conf.worker_enable_remote_control is False
    assert celery.conf.accept_content == ["json"]
    assert celery.conf.broker_url == channel.URL, "Celery is not told what is secret"


def test_a_keyword_of_any_name_reaches_the_task(celery: Celery, tasks: RecordedTasks) -> None:
    """Else Celery would drop the message: a task that raises is acknowledged."""
    call(celery, "a message", **{"self": 1})
    assert tasks.given == [("embed", {"args": ["a message"], "kwargs": {"self": 1}}, 7)]
