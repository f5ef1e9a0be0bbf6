"""The worker's Celery app: what a task gives Celery, whatever is in the message."""

from types import SimpleNamespace
from typing import Any

import kombu.transport
import pytest
from celery import Celery
from celery.exceptions import Reject

from embedfleet.broker import Broker
from embedfleet.contract import TASK_ANSWER, TASK_EMBED
from embedfleet.errors import ConfigurationError
from embedfleet_worker import app as module
from embedfleet_worker.settling import GiveBack
from embedfleet_worker.transport import TAKEN, running
from tests.waiting import wait_until


class RecordedTasks:
    """Stands in for Tasks: keeps what it was given."""

    def __init__(self) -> None:
        self.given: list[tuple[str, object]] = []
        self.outcome: Exception | None = None

    def embed(self, message: object) -> None:
        self._take("embed", message)

    def answer(self, message: object) -> None:
        self._take("answer", message)

    def _take(self, task: str, message: object) -> None:
        self.given.append((task, message))
        if self.outcome is not None:
            raise self.outcome


@pytest.fixture
def tasks() -> RecordedTasks:
    return RecordedTasks()


@pytest.fixture
def celery(broker: Broker, tasks: RecordedTasks, monkeypatch: pytest.MonkeyPatch) -> Celery:
    monkeypatch.setattr(kombu.transport, "_transport_cache", dict(kombu.transport._transport_cache))
    monkeypatch.setattr(kombu.transport, "TRANSPORT_ALIASES", dict(kombu.transport.TRANSPORT_ALIASES))
    for name in ("broker", "queues", "lease_s"):
        monkeypatch.setattr(module.Heartbeat, name, None, raising=False)
    return module.build(broker, {TASK_EMBED: tasks.embed, TASK_ANSWER: tasks.answer}, {"interactive": 8, "bulk": 6})


def test_each_task_gets_the_message(celery: Celery, tasks: RecordedTasks) -> None:
    celery.tasks[TASK_EMBED]({"batch": 1})
    celery.tasks[TASK_ANSWER]({"texts": []})
    assert tasks.given == [("embed", {"batch": 1}), ("answer", {"texts": []})]


def test_a_thread_says_what_it_works_on_while_it_does(celery: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    task, seen = celery.tasks[TASK_EMBED], []

    def take(*_: object) -> None:
        seen.extend(running.values())
        raise GiveBack("later")

    monkeypatch.setattr(RecordedTasks, "_take", take)
    task.push_request(properties={TAKEN: ("bulk", 7), "delivery_tag": "t"})
    with pytest.raises(Reject):
        task.run({})
    task.pop_request()
    assert (seen, running) == ([("bulk", 7)], {})


def test_what_is_given_back_is_requeued(celery: Celery, tasks: RecordedTasks) -> None:
    tasks.outcome = GiveBack("the engine is gone")
    with pytest.raises(Reject) as rejected:
        celery.tasks[TASK_EMBED]({})
    assert rejected.value.requeue


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2), {}), ((), {"message": {}}), (({},), {"more": 1})])
def test_a_call_of_another_shape_reaches_the_task_too(
    celery: Celery, tasks: RecordedTasks, args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    """Celery would lose it: what does not fit the function's arguments raises TypeError there."""
    celery.tasks[TASK_EMBED](*args, **kwargs)
    assert len(tasks.given) == 1


def test_messages_are_acknowledged_late_and_taken_one_at_a_time(celery: Celery) -> None:
    assert all(celery.tasks[name].acks_late for name in (TASK_EMBED, TASK_ANSWER))
    assert celery.conf.worker_prefetch_multiplier == 1
    assert celery.conf.worker_enable_remote_control is False
    assert celery.conf.accept_content == ["json"]
    assert celery.conf.broker_transport_options["visibility_timeout"] == 30.0


def test_the_heartbeat_goes_on_whatever_a_beat_meets(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it no lease would be renewed again, and long batches be done again and again."""
    for name, value in {"broker": broker, "queues": ["bulk"], "lease_s": 0.03}.items():
        monkeypatch.setattr(module.Heartbeat, name, value, raising=False)
    beats: list[int] = []

    def renew() -> None:
        beats.append(1)
        if len(beats) == 1:
            raise ConfigurationError("the queue is not there")

    consumer: Any = SimpleNamespace(task_consumer=SimpleNamespace(channel=SimpleNamespace(renew=renew)))
    step = module.Heartbeat(consumer)
    step.start(consumer)
    wait_until(lambda: len(beats) > 2, "the next beats")
    step.stop(consumer)
