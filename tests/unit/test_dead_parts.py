"""Batches that can't be done end as parts too: nobody waits for them, and what read the outcomes before still does."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from embedfleet import Fleet, Pgvector
from embedfleet.contract import Batch
from embedfleet.errors import BrokerUnavailable, DeadlineExceeded, EngineFailed, EngineUnavailable
from embedfleet.job import Job
from embedfleet.models import DEFAULT_MODEL, profile_of
from embedfleet.redis import RedisBroker
from embedfleet_worker import tasks
from embedfleet_worker.pipeline import NoCache, Pipeline
from embedfleet_worker.settling import GiveBack
from embedfleet_worker.starts import ALONE_STARTS, Starts
from embedfleet_worker.tasks import Tasks
from embedfleet_worker.transport.counts import Count, RedisCounts
from tests.unit.fake_engine import FakeEngine
from tests.unit.redis_server import RedisServer

TABLE = Pgvector(table="docs")
IN_BATCH = 512  # texts


class World:
    """A fleet, and a worker that does what it is told to."""

    def __init__(self, server: RedisServer, store: Path) -> None:
        self.server = server
        self.fleet = Fleet(broker_url=server.url, store=str(store))
        self.engine = FakeEngine(dimensions=384)
        self.tasks = self.worker()

    def worker(self) -> Tasks:
        """A worker's process: what it knows of starts is its own."""
        pipeline = Pipeline(self.engine, profile_of(DEFAULT_MODEL), NoCache())
        return Tasks(pipeline, self.fleet.broker, DEFAULT_MODEL, self.fleet.settings.stores, starts=Starts())

    def submit(self, texts: int = 3, **options: Any) -> Job:
        return self.fleet.submit([f"text {number}" for number in range(texts)], **options)

    def embed(self, job: Job, number: int = 0) -> None:
        batch = Batch(to=job.folder.store.uri, job=job.id, batch=number, tokens=1)
        self.tasks.embed(batch.model_dump(mode="json"))

    def counts(self, job: Job, number: int = 0) -> RedisCounts:
        broker = self.fleet.broker
        assert isinstance(broker, RedisBroker)
        return RedisCounts(broker, broker.queue(DEFAULT_MODEL, "bulk"), f"{job.id}/{number}")

    def input(self, job: Job, number: int = 0) -> Path:
        return Path(job.uri.removeprefix("file://")) / f"input/{number:08d}.parquet"

    def letters(self) -> list[dict[str, Any]]:
        return [json.loads(letter) for letter in self.server.client.lrange("embedfleet-dead", 0, -1)]

    def kill_workers(self, job: Job, times: int = ALONE_STARTS) -> None:
        """As if the batch had ended so many workers while it was alone."""
        for _ in range(times):
            self.counts(job).add(alone=True)


@pytest.fixture
def world(redis_server: RedisServer, tmp_path: Path) -> Any:
    made = World(redis_server, tmp_path / "store")
    yield made
    made.fleet.close()


# Batches that end their worker


def test_what_ends_its_worker_again_and_again_is_a_part_and_a_letter(world: World) -> None:
    job = world.submit(deliver_to=[TABLE])
    world.kill_workers(job)
    world.embed(job)
    rows = list(job.rows())
    assert [(row["id"], row["error"]) for row in rows] == [(str(number), "dead_letter") for number in range(3)]
    assert "ended its worker 4 times while nothing else ran there" in rows[0]["error_message"]
    assert world.engine.asked == []
    [letter] = world.letters()
    assert "ended its worker" in letter["reason"]
    assert job.status().state == "embedded"
    assert world.server.client.llen(world.fleet.broker.deliver_queue) == 1, "its errors are delivered as others' are"


def test_a_letter_that_can_not_be_kept_leaves_no_part(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who found the part would write none."""
    job = world.submit()
    world.kill_workers(job)

    def gone(*_: object) -> None:
        raise BrokerUnavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(world.fleet.broker, "dead_letter", gone)
        with pytest.raises(GiveBack):
            world.embed(job)
    assert not job.folder.has_part(0)
    world.embed(job)
    assert len(world.letters()) == 1
    assert job.folder.has_part(0)
    assert world.counts(job).get() == Count()


def test_one_start_less_is_another_try_and_leaves_no_count(world: World) -> None:
    job = world.submit()
    world.kill_workers(job, ALONE_STARTS - 1)
    world.embed(job)
    assert [row["error"] for row in job.rows()] == [None] * 3
    assert world.counts(job).get() == Count()


@pytest.mark.parametrize(
    "error", [EngineUnavailable("broke"), EngineFailed("a step"), DeadlineExceeded("long")], ids=repr
)
def test_a_batch_that_meets_a_broken_engine_is_given_back_and_charged(world: World, error: Exception) -> None:
    job = world.submit()
    world.engine.failure = error
    with pytest.raises(GiveBack) as given_back:
        world.embed(job)
    assert (given_back.value.outage, given_back.value.blamed) == (False, True)
    assert world.counts(job).get() == Count(1, 0)


def test_what_breaks_the_engine_alone_is_charged_again(world: World) -> None:
    job = world.submit()
    world.engine.failure = EngineUnavailable("broke")
    for expected in (Count(1, 0), Count(1, 1)):
        with pytest.raises(GiveBack):
            world.embed(job)
        assert world.counts(job).get() == expected


@pytest.mark.parametrize("error", [EngineFailed("a step"), DeadlineExceeded("long")], ids=repr)
def test_an_engine_that_does_no_text_of_a_batch_that_is_alone_is_not_their_fault(
    world: World, error: Exception
) -> None:
    job = world.submit()
    world.engine.failure = error
    for _ in range(2):
        with pytest.raises(GiveBack):
            world.embed(job)
    assert world.counts(job).get() == Count(1, 1)
    world.engine.failure = None
    world.embed(job)
    assert [row["error"] for row in job.rows()] == [None] * 3


def test_an_outage_of_the_store_charges_nobody(world: World, tmp_path: Path) -> None:
    job = world.submit()
    store, away = tmp_path / "store", tmp_path / "away"

    def break_store() -> None:
        store.rename(away)
        store.write_text("a file in its place")

    world.engine.before = break_store
    with pytest.raises(GiveBack) as given_back:
        world.embed(job)
    assert given_back.value.outage
    assert world.counts(job).get() == Count()


# The same message twice


def test_the_same_batch_twice_in_one_worker_is_done_once(world: World) -> None:
    """After an outage a message may come while it is still worked on."""
    job = world.submit()
    inside, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        go_on.wait(10)

    world.engine.before = wait
    both = [threading.Thread(target=world.embed, args=(job,)) for _ in range(2)]
    for each in both:
        each.start()
    assert inside.wait(5)
    both[1].join(0.3)
    assert both[1].is_alive() or both[0].is_alive()
    go_on.set()
    for each in both:
        each.join(10)
    assert len(world.engine.asked) == 1
    assert job.status().state == "done"


def test_another_batch_does_not_wait(world: World) -> None:
    job = world.submit(IN_BATCH + 1)
    both_inside = threading.Barrier(2)
    world.engine.before = lambda: both_inside.wait(5)
    both = [threading.Thread(target=world.embed, args=(job, number)) for number in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(10)
    assert job.status().state == "done"


# Inputs that can't be read


@pytest.fixture(params=["missing", "corrupt"])
def spoiled(request: pytest.FixtureRequest, world: World) -> Job:
    """A job of two batches, of which nobody can read the second's input."""
    job = world.submit(IN_BATCH + 5)
    if request.param == "missing":
        world.input(job, 1).unlink()
    else:
        world.input(job, 1).write_bytes(b"PAR1 no more PAR1")
    return job


def test_an_input_that_can_not_be_read_is_one_row_of_its_name(world: World, spoiled: Job) -> None:
    for number in (0, 1):
        world.embed(spoiled, number)
    status = spoiled.status()
    assert (status.state, status.totals.errors) == ("done", 1)
    *_, last = spoiled.rows()
    assert (last["id"], last["error"]) == ("input/00000001.parquet", "dead_letter")
    assert "00000001.parquet" in last["error_message"]
    [letter] = world.letters()
    assert "00000001.parquet" in letter["reason"]
    assert world.counts(spoiled, 1).get() == Count()


def test_a_retry_leaves_out_what_nobody_can_read(world: World, spoiled: Job) -> None:
    """There is no text to try again; the others that failed are tried."""
    world.engine.spoiled["text 7"] = world.engine.vector("text 7") * 2
    for number in (0, 1):
        world.embed(spoiled, number)
    world.engine.spoiled.clear()
    child = spoiled.retry()
    assert child is not None
    world.embed(child)
    errors = {row["id"]: row["error"] for row in child.rows() if row["error"]}
    assert errors == {"input/00000001.parquet": "dead_letter"}
    assert sum(child.errors_left().values()) == 1
    assert child.results().count_rows() == IN_BATCH + 1


def test_a_retry_whose_own_input_can_not_be_read_supersedes_nothing(world: World) -> None:
    job = world.submit()
    world.engine.spoiled["text 1"] = world.engine.vector("text 1") * 2
    world.embed(job)
    child = job.retry()
    assert child is not None
    path = world.input(child)
    path.unlink()
    world.embed(child)
    errors = sorted((row["id"], row["error"]) for row in child.rows() if row["error"])
    assert errors == [("1", "not_unit_norm"), ("input/00000000.parquet", "dead_letter")]
    assert child.results().count_rows() == 4


def test_a_retry_tries_what_can_be_read_again(world: World) -> None:
    job = world.submit()
    given = world.input(job).read_bytes()
    world.input(job).write_bytes(b"")
    world.embed(job)
    world.input(job).write_bytes(given)
    child = job.retry()
    assert child is not None
    world.embed(child)
    assert sorted(row["id"] for row in child.rows() if not row["error"]) == ["0", "1", "2"]


def test_an_input_of_a_job_that_is_still_written_is_a_letter_only(world: World) -> None:
    """It may only not be there yet."""
    job = world.submit(IN_BATCH + 5)
    world.input(job, 1).unlink()
    (Path(job.uri.removeprefix("file://")) / "sealed.json").unlink()
    world.embed(job, 1)
    assert list(job.folder.parts()) == []
    assert len(world.letters()) == 1


@pytest.mark.parametrize("number", [2, 99_999_999])
def test_a_batch_that_the_job_does_not_have_is_a_letter_and_touches_nothing(world: World, number: int) -> None:
    job = world.submit(IN_BATCH + 5)

    def files() -> list[Path]:
        return sorted(Path(job.uri.removeprefix("file://")).rglob("*"))

    before = files()
    world.embed(job, number)
    assert files() == before
    [letter] = world.letters()
    assert f"{number:08d}.parquet" in letter["reason"]


def test_what_ends_the_worker_while_the_part_is_written_is_charged_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.submit()

    def no_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(tasks, "write_part", no_memory)
        with pytest.raises(GiveBack):
            world.embed(job)
    assert world.counts(job).get() == Count(in_company=1)


def test_a_part_that_is_found_leaves_no_count(world: World) -> None:
    """Its writer was killed before it could clear it."""
    job = world.submit()
    world.embed(job)
    world.kill_workers(job, times=1)
    world.embed(job)
    assert world.counts(job).get() == Count()
