"""A worker's tasks on a real store and a real Redis: a message ends as a part, a reply, a dead letter or a give-back.

Nothing but GiveBack ever leaves a task, because Celery loses the message of a task that raises.
"""

import base64
import dataclasses
import json
import math
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tenacity import wait_none

from embedfleet import models, policies
from embedfleet.broker import Broker, connect
from embedfleet.contract import Batch, Batching, Chunking, EmbedSettings, JobSpec, Request
from embedfleet.errors import BrokerUnavailable, EngineUnavailable, StoreUnavailable
from embedfleet.folder import Folder
from embedfleet.jobfolder import JobFolder
from embedfleet.models import DEFAULT_MODEL, profile_of, resolve
from embedfleet.records import Record
from embedfleet.redis import RedisBroker
from embedfleet.settings import load
from embedfleet.submission import submit
from embedfleet.tables import read_part, vectors_of
from embedfleet_worker import settling, tasks
from embedfleet_worker.engine.base import Priority
from embedfleet_worker.pipeline import NoCache, Pipeline
from embedfleet_worker.settling import GiveBack
from embedfleet_worker.tasks import Tasks
from tests.unit.fake_engine import FakeEngine
from tests.unit.redis_server import RedisServer, running_redis

JOB = "j-1"
REPLY_KEY = "embedfleet-reply-" + "0" * 32
TEXTS = ["a", "", "b", "c"]
SETTINGS = resolve(EmbedSettings(), DEFAULT_MODEL)
ANY_EXCEPTION = [
    ValueError("a text"),
    KeyError("a text"),
    MemoryError(),
    RecursionError("maximum recursion depth exceeded"),
    AssertionError(),
    OSError(28, "No space left on device"),
    UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
    TimeoutError(),
    CancelledError(),
    StopIteration(),
    ZeroDivisionError(),
    type("SomebodyElses", (Exception,), {})("?"),
]


class Worker:
    """Tasks with a fake engine, and what can be seen of them from outside."""

    def __init__(self, store: Folder, broker: Broker, server: RedisServer, weights: str = "0" * 64) -> None:
        self.store = store
        self.server = server
        self.folder = JobFolder(store, JOB)
        self.engine = FakeEngine(dimensions=384, weights=weights)
        self.tasks = Tasks(
            Pipeline(self.engine, profile_of(DEFAULT_MODEL), NoCache()), broker, DEFAULT_MODEL, (store.uri,)
        )

    def submit(
        self, settings: EmbedSettings = SETTINGS, texts: list[Any] = TEXTS, **spec_fields: Any
    ) -> dict[str, Any]:
        """Submit a job of one batch; its message."""
        created_at = "2026-11-20T14:00:00+00:00"
        spec = JobSpec(job=JOB, created_at=created_at, settings=settings, batching=Batching(), **spec_fields)
        messages: list[Batch] = []
        submit(self.folder, spec, [Record(f"id-{row}", text) for row, text in enumerate(texts)], messages.append)
        return messages[0].model_dump(mode="json")

    def part(self) -> list[dict[str, Any]]:
        return read_part(self.store.get(self.folder.part_path(0)), "part")[0].to_pylist()

    def errors(self) -> list[str | None]:
        return [row["error"] for row in self.part()]

    def dead_letters(self) -> list[dict[str, Any]]:
        return [json.loads(letter) for letter in self.server.client.lrange("embedfleet-dead", 0, -1)]

    def files(self) -> dict[str, bytes]:
        """Everything below the store's parent: nothing outside the store is to change either."""
        root = self.store.folder.parent
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def reason(self) -> str:
        (letter,) = self.dead_letters()
        return str(letter["reason"])


@pytest.fixture
def worker(store: Folder, broker: Broker, redis_server: RedisServer) -> Worker:
    return Worker(store, broker, redis_server)


@pytest.fixture(autouse=True)
def _no_waiting_between_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies.STORE, "wait", wait_none())


# A batch


def test_a_batch_becomes_a_part_with_an_outcome_for_every_text(worker: Worker) -> None:
    worker.tasks.embed(worker.submit())
    assert [row["id"] for row in worker.part()] == ["id-0", "id-1", "id-2", "id-3"]
    assert worker.errors() == [None, "empty", None, None]
    assert worker.part()[2]["embedding"] == worker.engine.vector("b").tolist()
    assert worker.dead_letters() == []
    assert worker.engine.priorities == [Priority.BULK]


def test_a_part_says_which_job_and_batch_it_is_and_what_made_it(worker: Worker) -> None:
    worker.tasks.embed(worker.submit())
    info = worker.folder.part_info(0)
    assert (info.job, info.batch, info.totals.texts, info.totals.errors) == (JOB, 0, 4, 1)
    assert info.provenance["model"] == "a model"
    assert info.provenance["dimensions"] == 384


def test_a_batch_in_chunks_becomes_a_part_with_a_row_for_each(worker: Worker) -> None:
    chunked = resolve(EmbedSettings(on_overflow="chunk"), DEFAULT_MODEL)
    worker.tasks.embed(worker.submit(chunked, ["a", "word " * 20, "", "b"]))
    assert [(row["id"], row["chunk"], row["error"]) for row in worker.part()] == [
        ("id-0", 0, None), ("id-1", 0, None), ("id-1", 1, None), ("id-2", 0, "empty"), ("id-3", 0, None),
    ]  # fmt: skip
    assert worker.part()[4]["embedding"] == worker.engine.vector("b").tolist()
    assert worker.folder.part_info(0).totals.texts == 4


def test_chunks_that_only_the_engine_knows_to_be_too_long_are_each_texts_error(worker: Worker) -> None:
    """Its limit may be lower than the profile's."""
    chunked = EmbedSettings(on_overflow="chunk", chunking=Chunking(max_tokens=100))
    worker.tasks.embed(worker.submit(resolve(chunked, DEFAULT_MODEL)))
    assert worker.errors() == ["dead_letter"] * 4
    assert "chunking.max_tokens=100: the limit of " in worker.part()[0]["error_message"]
    assert worker.dead_letters() == [], "there is a part: the job is told"


def test_a_part_that_is_there_means_that_nothing_is_left_to_do(worker: Worker) -> None:
    message = worker.submit()
    worker.folder.write_part(0, b"another worker's")
    before = worker.files()
    worker.tasks.embed(message)
    assert worker.files() == before
    assert worker.engine.asked == []
    assert worker.dead_letters() == []


def test_a_cancelled_job_ends_with_that_error_for_every_text(worker: Worker) -> None:
    message = worker.submit()
    worker.folder.cancel()
    worker.tasks.embed(message)
    assert worker.errors() == ["cancelled"] * 4
    assert worker.engine.asked == []


def test_a_job_that_expired_ends_with_that_error_for_every_text(worker: Worker) -> None:
    worker.tasks.embed(worker.submit(expires_at=worker.tasks.broker.clock() - 0.001))
    assert worker.errors() == ["expired"] * 4
    assert worker.engine.asked == []
    assert worker.dead_letters() == []


def test_a_job_that_has_not_expired_is_embedded(worker: Worker) -> None:
    worker.tasks.embed(worker.submit(expires_at=worker.tasks.broker.clock() + 60))
    assert worker.errors() == [None, "empty", None, None]


def test_what_is_begun_in_time_is_finished(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    message = worker.submit(expires_at=worker.tasks.broker.clock() + 60)
    worker.engine.before = lambda: monkeypatch.setattr(RedisBroker, "clock", lambda _: math.inf)
    worker.tasks.embed(message)
    assert worker.errors() == [None, "empty", None, None]


def test_when_a_job_expires_is_told_by_the_brokers_clock(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RedisBroker, "clock", lambda _: 1000.5)
    worker.tasks.embed(worker.submit(expires_at=1000.0))
    assert worker.errors() == ["expired"] * 4


def test_a_broker_whose_clock_can_not_be_asked_gives_the_batch_back(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = worker.submit(expires_at=1.0)
    monkeypatch.setattr(RedisBroker, "clock", raising(BrokerUnavailable("gone")))
    with pytest.raises(GiveBack):
        worker.tasks.embed(message)
    assert not worker.folder.has_part(0)


def test_texts_the_producer_could_not_store_keep_their_reasons(worker: Worker) -> None:
    worker.tasks.embed(worker.submit(texts=["a", None, "\ud800", 5]))
    assert worker.errors() == [None, "not_a_string", "lone_surrogate", "not_a_string"]
    assert worker.part()[3]["error_message"] == "the text is int; a string was expected"


def test_settings_this_worker_cannot_satisfy_are_each_texts_error(worker: Worker) -> None:
    worker.tasks.embed(worker.submit(SETTINGS.model_copy(update={"dimensions": 17})))
    assert worker.errors() == ["dead_letter"] * 4
    assert "gives only 384" in worker.part()[0]["error_message"]
    assert worker.dead_letters() == []


def test_two_workers_with_the_same_batch_leave_one_part(
    store: Folder, broker: Broker, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    workers = [Worker(store, broker, redis_server, weights=digit * 64) for digit in "01"]
    message = workers[0].submit()
    both_compute = threading.Barrier(2)
    for one in workers:
        one.engine.before = both_compute.wait
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(one.tasks.embed, message) for one in workers]:
            done.result(timeout=30)
    part = workers[0].part()
    expected = [[one.engine.vector(text).tolist() for text in ("a", "b", "c")] for one in workers]
    assert [row["embedding"] for row in part if row["error"] is None] in expected, "one worker's, and all of it"
    assert list(workers[0].folder.parts()) == [0]
    assert caplog.text.count("another worker was first") == 1
    assert workers[0].dead_letters() == []


# Messages nobody can do


OTHER = "Qwen/Qwen3-Embedding-8B"


def waiting(worker: Worker, queue: str) -> list[dict[str, Any]]:
    """What the messages in a queue say."""
    bodies = [json.loads(message)["body"] for message in worker.server.client.lrange(queue, 0, -1)]
    return [json.loads(base64.b64decode(body))[0][0] for body in bodies]


@pytest.mark.parametrize(
    ("model", "spec_fields"),
    [(OTHER, {}), (DEFAULT_MODEL, {"revision": "another"}), (DEFAULT_MODEL, {"synthetic": True})],
)
def test_a_batch_in_another_models_queue_moves_on_to_its_own(
    worker: Worker, caplog: pytest.LogCaptureFixture, model: str, spec_fields: dict[str, Any]
) -> None:
    message = worker.submit(SETTINGS.model_copy(update={"model": model}), **spec_fields)
    before, queue = worker.files(), worker.tasks.broker.queue_of(worker.folder.spec())
    worker.tasks.embed(message)
    assert waiting(worker, queue) == [message]
    assert worker.files() == before, "no part, and nothing is delivered"
    assert worker.engine.asked == []
    assert worker.dead_letters() == []
    assert f"moved on to {queue}, for {model}; no worker is running there" in caplog.text


def test_nothing_is_said_of_workers_that_are_there(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    message = worker.submit(SETTINGS.model_copy(update={"model": OTHER}))
    worker.tasks.broker.announce(worker.tasks.broker.queue(OTHER, "bulk"), "another", 60)
    worker.tasks.embed(message)
    assert "moved on to" in caplog.text
    assert "no worker" not in caplog.text


def test_what_moved_is_done_there_and_does_not_move_again(worker: Worker) -> None:
    message = worker.submit(SETTINGS.model_copy(update={"model": OTHER}))
    worker.tasks.embed(message)
    others = dataclasses.replace(worker.tasks, model=OTHER)
    others.embed(waiting(worker, worker.tasks.broker.queue(OTHER, "bulk"))[0])
    assert worker.errors() == [None, "empty", None, None]
    assert worker.server.client.llen(worker.tasks.broker.queue(DEFAULT_MODEL, "bulk")) == 0


def test_a_message_in_its_own_queue_that_names_no_model_is_a_dead_letter(worker: Worker) -> None:
    message = worker.submit(SETTINGS.model_copy(update={"model": None}))
    before = worker.files()
    worker.tasks.embed(message)
    assert worker.files() == before
    assert worker.dead_letters()[0]["message"] == message
    assert "model None: this worker runs" in worker.reason()


def test_a_batch_that_can_not_be_moved_goes_back(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    message = worker.submit(SETTINGS.model_copy(update={"model": OTHER}))

    def gone(*_: object) -> None:
        raise BrokerUnavailable("gone")

    monkeypatch.setattr(worker.tasks.broker, "hand_over", gone)
    with pytest.raises(GiveBack):
        worker.tasks.embed(message)
    assert worker.dead_letters() == []


def test_a_request_in_another_models_queue_moves_on_if_somebody_is_there(worker: Worker) -> None:
    queue = worker.tasks.broker.queue(OTHER, "interactive")
    worker.tasks.broker.announce(queue, "another", 60)
    message = request(worker, model=OTHER, dimensions=4096)
    worker.tasks.answer(message)
    assert reply(worker) is None
    assert waiting(worker, queue) == [message]


FOREIGN_STORES = {
    "elsewhere": "{root}/outside",
    "its parent": "{root}",
    "dots": "{root}/store/../outside",
    "dots in a URI": "file://{root}/store/../outside",
    "dots in percent signs": "file://{root}/store/%2e%2e/outside",
    "a slash in percent signs": "file://{root}/store%2f..%2foutside",
    "more after the name": "{root}/store-evil",
    "more after the name in a URI": "file://{root}/store-evil",
    "through a link inside": "{root}/store/link",
    "through a link and back": "{root}/store/link/../store-evil",
    "upper case": "{root}/STORE",
    "a URI without an authority": "file:{root}/outside",
    "a URI with an authority": "file://localhost{root}/outside",
    "a query": "file://{root}/outside?/store",
    "nothing": "",
    "another scheme": "s3://bucket/vectors",
    "another scheme with credentials": "s3://key:secret@bucket/vectors",
    "the root": "/",
    "no URI": "file://[",
    "a NUL": "{root}/store/\0",
    "a home that is not there": "~nosuchuser/store",
    "a lone surrogate": "{root}/store/\ud800",
    "a long name": "{root}/" + "a" * 5000,
}


@pytest.mark.parametrize("kind", FOREIGN_STORES)
def test_a_store_outside_the_allowed_ones_is_a_dead_letter_and_is_not_touched(
    worker: Worker, tmp_path: Path, kind: str
) -> None:
    """The job is really there, so that only the refusal keeps the worker from writing a part."""
    message = worker.submit()
    for name in ("outside", "store-evil", "STORE"):
        (tmp_path / name).mkdir()
        (tmp_path / name / JOB).symlink_to(tmp_path / "store" / JOB)
    (tmp_path / "store" / "link").symlink_to(tmp_path / "outside")
    before, folders = worker.files(), sorted(tmp_path.rglob("*"))
    worker.tasks.embed({**message, "to": FOREIGN_STORES[kind].format(root=tmp_path)})
    assert worker.files() == before
    assert sorted(tmp_path.rglob("*")) == folders, "no folder was made either"
    assert worker.engine.asked == []
    assert len(worker.dead_letters()) == 1


@pytest.mark.parametrize(
    "to", ["{root}/store", "{root}/store/", "file://{root}/store", "{root}/./store", "{root}/outside/../store"]
)
def test_the_allowed_store_may_be_spelt_in_other_ways(worker: Worker, tmp_path: Path, to: str) -> None:
    worker.tasks.embed({**worker.submit(), "to": to.format(root=tmp_path)})
    assert worker.errors() == [None, "empty", None, None]


def test_a_folder_below_the_allowed_store_is_allowed(worker: Worker, tmp_path: Path) -> None:
    below = Worker(Folder(str(tmp_path / "store" / "team" / "a"), make=True), worker.tasks.broker, worker.server)
    worker.tasks.embed(below.submit())
    assert below.errors() == [None, "empty", None, None]


UNDECODABLE: dict[str, object] = {
    "nothing": None,
    "a number": 5,
    "a string": "batch 7",
    "a list": [1, 2],
    "an empty object": {},
    "another version": {"version": 2, "to": "/", "job": "j-1", "batch": 0, "tokens": 1},
    "an unknown field": {"version": 1, "to": "/", "job": "j-1", "batch": 0, "tokens": 1, "settings": {}},
    "a field too few": {"version": 1, "to": "/", "job": "j-1", "batch": 0},
    "a path for a job": {"version": 1, "to": "/", "job": "../j-1", "batch": 0, "tokens": 1},
    "JSON in JSON": "[" * 100_000,
}


@pytest.mark.parametrize("kind", UNDECODABLE)
@pytest.mark.parametrize("task", ["embed", "answer"])
def test_a_message_nobody_can_read_is_a_dead_letter(worker: Worker, task: str, kind: str) -> None:
    getattr(worker.tasks, task)(UNDECODABLE[kind])
    assert worker.reason().startswith("message: ")
    assert worker.engine.asked == []


def test_a_job_that_is_not_there_is_a_dead_letter(worker: Worker) -> None:
    message = worker.submit()
    worker.tasks.embed({**message, "job": "j-2"})
    assert "job j-2: there is none" in worker.reason()


def test_a_batch_that_is_not_there_is_a_dead_letter(worker: Worker) -> None:
    worker.tasks.embed({**worker.submit(), "batch": 5})
    assert "00000005.parquet" in worker.reason()


UNREADABLE = [b"", b"{", b'{"version":2}', b"\xff", b"[" * 100_000, b"PAR1PAR1", b"null"]


@pytest.mark.parametrize("content", UNREADABLE)
def test_a_job_json_nobody_can_read_is_a_dead_letter(worker: Worker, content: bytes) -> None:
    message = worker.submit()
    (worker.store.folder / JOB / "job.json").write_bytes(content)
    worker.tasks.embed(message)
    assert "job.json" in worker.reason()
    assert not worker.folder.has_part(0)


@pytest.mark.parametrize("content", UNREADABLE)
def test_an_input_nobody_can_read_ends_as_a_part_that_names_it(worker: Worker, content: bytes) -> None:
    """Else its job would never end. Which texts it held, nobody can say any more."""
    message = worker.submit()
    (worker.store.folder / JOB / "input/00000000.parquet").write_bytes(content)
    worker.tasks.embed(message)
    assert "input/00000000.parquet" in worker.reason()
    [row] = worker.part()
    assert (row["id"], row["error"]) == ("input/00000000.parquet", "dead_letter")
    assert starts(worker) == {}


# Give-backs: another try, here or elsewhere, may succeed


def test_an_engine_that_is_gone_gives_the_batch_back(worker: Worker) -> None:
    message = worker.submit()
    worker.engine.failure = EngineUnavailable("it broke")
    with pytest.raises(GiveBack, match="it broke"):
        worker.tasks.embed(message)
    assert not worker.folder.has_part(0)
    assert worker.dead_letters() == []


@pytest.mark.parametrize("kind", ["breaking", "slow", "untokenisable"])
def test_what_breaks_the_engine_or_takes_too_long_gives_the_batch_back(worker: Worker, kind: str) -> None:
    """Among others; alone, the pipeline finds the texts that do."""
    getattr(worker.engine, kind).add("b")
    with pytest.raises(GiveBack):
        dataclasses.replace(worker.tasks, deadline_s=0.1).embed(worker.submit())
    assert not worker.folder.has_part(0)
    assert worker.dead_letters() == []


def test_a_store_that_is_gone_gives_the_batch_back(worker: Worker, tmp_path: Path) -> None:
    message = worker.submit()
    (tmp_path / "store").rename(tmp_path / "away")
    (tmp_path / "store").write_text("a file in its place")
    with pytest.raises(GiveBack):
        worker.tasks.embed(message)
    assert worker.dead_letters() == []


@pytest.mark.parametrize("in_the_way", ["a file", "a link to nowhere"])
def test_a_batch_is_never_taken_for_committed_because_something_is_in_the_way(worker: Worker, in_the_way: str) -> None:
    message = worker.submit()
    parts = worker.store.folder / JOB / "parts"
    if in_the_way == "a file":
        parts.write_text("a file in its place")
    else:
        parts.symlink_to("nowhere")
    with pytest.raises(GiveBack):
        worker.tasks.embed(message)


def test_a_store_that_refuses_for_a_moment_is_asked_again(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    message = worker.submit()
    refusals = iter([StoreUnavailable("busy"), StoreUnavailable("busy")])
    write = JobFolder.write_part

    def busy_at_first(folder: JobFolder, batch: int, data: bytes) -> bool:
        for refusal in refusals:
            raise refusal
        return write(folder, batch, data)

    monkeypatch.setattr(JobFolder, "write_part", busy_at_first)
    worker.tasks.embed(message)
    assert worker.errors() == [None, "empty", None, None]


def test_a_part_whose_answer_was_lost_is_found_and_kept(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    message = worker.submit()
    write = JobFolder.write_part

    def written_but_not_heard(folder: JobFolder, batch: int, data: bytes) -> bool:
        if write(folder, batch, data):
            raise StoreUnavailable("the answer was lost")
        return False

    monkeypatch.setattr(JobFolder, "write_part", written_but_not_heard)
    worker.tasks.embed(message)
    assert worker.errors() == [None, "empty", None, None]
    assert len(worker.engine.asked) == 1


def test_a_dead_letter_that_cannot_be_kept_gives_the_message_back(store: Folder, tmp_path: Path) -> None:
    with running_redis(tmp_path) as server:
        broker = connect(load(broker_url=server.url))
        worker = Worker(store, broker, server)
        server.kill()
        with pytest.raises(GiveBack):
            worker.tasks.embed({"version": 9})
        with pytest.raises(GiveBack):
            worker.tasks.answer({"version": 9})
        broker.close()


# Whatever breaks


def test_memory_that_is_short_is_nobodys_error(worker: Worker) -> None:
    """Another batch may have taken it. It is charged, and tried alone."""
    worker.engine.failure = MemoryError("a text")
    with pytest.raises(GiveBack) as given_back:
        worker.tasks.embed(worker.submit())
    assert given_back.value.blamed
    assert len(starts(worker)) == 1
    assert worker.dead_letters() == []


@pytest.mark.parametrize(
    "exception",
    [each for each in ANY_EXCEPTION if not isinstance(each, MemoryError)],
    ids=lambda found: type(found).__name__,
)
def test_a_defect_in_the_pipeline_is_every_texts_error_and_no_text_is_logged(
    worker: Worker, exception: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    worker.engine.failure = exception
    worker.tasks.embed(worker.submit())
    assert worker.errors() == ["internal_error"] * 4
    assert type(exception).__name__ in worker.part()[0]["error_message"]
    assert "batch failed" in caplog.text
    assert "a text" not in caplog.text


PLACES = {
    "asking for the part": ("JobFolder", "has_part"),
    "reading job.json": ("JobFolder", "spec"),
    "asking whether it is cancelled": ("JobFolder", "is_cancelled"),
    "reading the input": ("JobFolder", "input"),
    "resolving the settings": ("models", "resolve"),
    "encoding the part": ("module", "write_part"),
    "writing the part": ("JobFolder", "write_part"),
    "opening the store": ("module", "open_store"),
    "checking the store": ("module", "check_allowed"),
    "reading the message": ("Batch", "parse"),
}
OWNERS = {"JobFolder": JobFolder, "module": tasks, "models": models, "Batch": Batch}


@pytest.mark.parametrize("exception", [MemoryError(), RecursionError(), ValueError(), OSError()], ids=repr)
@pytest.mark.parametrize("place", PLACES)
def test_whatever_breaks_wherever_a_message_is_never_lost(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, place: str, exception: Exception
) -> None:
    message = worker.submit()
    owner, name = PLACES[place]
    with monkeypatch.context() as patched:
        patched.setattr(OWNERS[owner], name, raising(exception))
        given_back = gives_back(worker, message)
    assert given_back or worker.dead_letters() or worker.folder.has_part(0)


@pytest.mark.parametrize("exception", [MemoryError(), RecursionError(), ValueError()], ids=repr)
@pytest.mark.parametrize("name", ["write_part", "the engine", "resolve", "reply"])
def test_whatever_breaks_nothing_leaves_the_answering_task(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, name: str, exception: Exception
) -> None:
    if name == "write_part":
        monkeypatch.setattr(tasks, "write_part", raising(exception))
    elif name == "resolve":
        monkeypatch.setattr(models, "resolve", raising(exception))
    elif name == "reply":
        monkeypatch.setattr(RedisBroker, "reply", raising(exception))
    else:
        worker.engine.failure = exception
    try:
        worker.tasks.answer(request(worker))
    except GiveBack:
        return
    assert worker.dead_letters() or reply(worker)


def raising(exception: Exception) -> Any:
    def broken(*_: object, **__: object) -> None:
        raise exception

    return broken


def gives_back(worker: Worker, message: object) -> bool:
    try:
        worker.tasks.embed(message)
    except GiveBack:
        return True
    return False


# Round trips


def request(worker: Worker, in_s: float = 60, texts: list[str] | None = None, **settings: object) -> dict[str, Any]:
    asked = Request(
        reply_to=REPLY_KEY,
        settings=SETTINGS.model_copy(update=settings),
        texts=["a", "b"] if texts is None else texts,
        expires_at=worker.tasks.broker.clock() + in_s,
    )
    return asked.model_dump(mode="json")


def reply(worker: Worker) -> bytes | None:
    found: bytes | None = worker.server.client.lindex(REPLY_KEY, 0)
    return found


def test_a_request_is_answered_with_its_vectors(worker: Worker) -> None:
    worker.tasks.answer(request(worker))
    answer = reply(worker)
    assert answer is not None
    table, info = read_part(answer, "answer")
    assert np.array_equal(vectors_of(table), [worker.engine.vector("a"), worker.engine.vector("b")])
    assert info.provenance["model"] == "a model"
    assert worker.engine.priorities == [Priority.INTERACTIVE]


def test_a_bad_text_of_a_request_is_its_own_error(worker: Worker) -> None:
    worker.tasks.answer(request(worker, texts=["a", "", "word " * 20]))
    table, _ = read_part(reply(worker) or b"", "answer")
    assert table["error"].to_pylist() == [None, "empty", "too_long"]


def test_an_expired_request_is_not_answered(worker: Worker) -> None:
    worker.tasks.answer(request(worker, in_s=-0.001))
    assert reply(worker) is None
    assert worker.engine.asked == []
    assert worker.dead_letters() == []


def test_a_request_for_more_dimensions_than_there_is_memory_is_answered(worker: Worker) -> None:
    asked = request(worker)
    asked["settings"]["dimensions"] = 10**15
    worker.tasks.answer(asked)
    answer = reply(worker)
    assert answer is not None
    assert set(read_part(answer, "answer")[0]["error"].to_pylist()) == {"dead_letter"}


def test_what_expires_is_told_by_the_brokers_clock(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request(worker)
    monkeypatch.setattr(RedisBroker, "clock", lambda _: asked["expires_at"] + 0.001)
    worker.tasks.answer(asked)
    assert reply(worker) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "Qwen/Qwen3-Embedding-8B"},
        {"dimensions": 17},
        {"instruction": "x"},
        {"on_overflow": "chunk"},  # a text may have several vectors then
        {"on_overflow": "chunk", "chunking": Chunking(output="mean", max_tokens=100)},  # the engine's limit is 12
    ],
)
def test_a_request_that_can_not_be_done_is_answered_with_the_reason(
    worker: Worker, settings: dict[str, object]
) -> None:
    """Its caller waits; a dead letter would let it wait to the end."""
    worker.tasks.answer(request(worker, texts=["a", "b"], **settings))
    answered = reply(worker)
    assert answered is not None
    table, _ = read_part(answered, "the answer")
    assert table["error"].to_pylist() == ["dead_letter", "dead_letter"]
    assert worker.dead_letters() == []


def test_a_request_nobody_can_read_is_a_dead_letter_without_its_texts(worker: Worker) -> None:
    worker.tasks.answer({**request(worker, texts=["a secret"]), "version": 2})
    assert worker.reason()
    assert "a secret" not in json.dumps(worker.dead_letters())
    assert reply(worker) is None


def test_a_request_is_in_the_engine_no_longer_than_a_batch_may(worker: Worker) -> None:
    worker.engine.slow = {"a"}
    with pytest.raises(GiveBack):
        dataclasses.replace(worker.tasks, deadline_s=0.2).answer(request(worker))
    assert len(starts(worker)) == 1


def test_a_request_is_in_the_engine_no_longer_than_somebody_waits(worker: Worker) -> None:
    """Which is nobody's fault, and is not tried again."""
    worker.engine.slow = {"a"}
    worker.tasks.answer(request(worker, in_s=0.3))
    assert starts(worker) == {}
    found = reply(worker)
    assert found is not None
    assert set(read_part(found, "reply")[0]["error"].to_pylist()) == {"expired"}


def starts(worker: Worker) -> dict[bytes, bytes]:
    """Starts that were charged."""
    return worker.server.client.hgetall(f"{worker.tasks.broker.lane('bulk')}-starts")


def test_a_request_is_given_back_by_an_engine_that_is_gone(worker: Worker) -> None:
    worker.engine.failure = EngineUnavailable("it broke")
    with pytest.raises(GiveBack):
        worker.tasks.answer(request(worker))
    assert reply(worker) is None


def test_a_request_is_given_back_when_the_broker_takes_no_answer(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RedisBroker, "reply", raising(BrokerUnavailable("gone")))
    with pytest.raises(GiveBack):
        worker.tasks.answer(request(worker))


def test_a_worker_that_only_delivers_keeps_other_work_for_a_person(worker: Worker) -> None:
    """Celery would drop a task that it does not know."""
    settling.refuse(worker.tasks.broker, {"job": "j-1", "batch": 0, "texts": ["a secret text"]})
    [letter] = worker.dead_letters()
    assert letter["message"] == {"job": "j-1", "batch": 0}
    assert "only delivers" in letter["reason"]


def test_a_refused_request_of_absurd_dimensions_takes_no_memory_for_them(worker: Worker) -> None:
    worker.tasks.answer(request(worker, texts=["a"] * 1000, dimensions=60_000))
    answer = worker.server.client.lpop(REPLY_KEY)
    table, _ = read_part(answer, "answer")
    assert (table.num_rows, table.schema.field("embedding").type.list_size) == (1000, 1)
    assert "dimensions=60000" in table["error_message"][0].as_py()


def test_a_request_is_answered_also_at_the_brokers_memory_limit(worker: Worker) -> None:
    asked = request(worker)
    worker.server.client.config_set("maxmemory", 1)
    try:
        worker.tasks.answer(asked)
    finally:
        worker.server.client.config_set("maxmemory", 0)
    assert worker.server.client.llen(REPLY_KEY) == 1
    assert 0 < worker.server.client.ttl(REPLY_KEY) <= 600
