"""One Fleet in many threads, coroutines and processes: each gets its own answers, and nothing is lost."""

import asyncio
import base64
import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedfleet import AsyncFleet, EmbedSettings, Fleet, Job
from embedfleet.errors import BrokerUnavailable, NotFound, WaitTimeout
from embedfleet.local import LocalFleet
from embedfleet.synthetic import synthetic_vectors

DIMENSIONS = 384


@pytest.fixture(scope="module")
def local(start_fleet: Callable[..., LocalFleet], tmp_path_factory: pytest.TempPathFactory) -> LocalFleet:
    return start_fleet(tmp_path_factory.mktemp("store"), engine="synthetic", health_port=0)


@pytest.fixture
def fleet(local: LocalFleet) -> Iterator[Fleet]:
    with Fleet(**dict(local.settings)) as connected:
        yield connected


@pytest.fixture
def without_worker(redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """A broker, and nobody who takes from it."""
    with Fleet(broker_url=redis_url, store=str(tmp_path / "store"), engine="synthetic") as connected:
        yield connected


def right(texts: list[str], vectors: Any) -> bool:
    """Whether these are the vectors of these texts, in order."""
    return bool(np.array_equal(vectors, synthetic_vectors(texts, DIMENSIONS)))


def check_job(job: Job, texts: list[str]) -> None:
    assert job.wait(timeout_s=60).state == "done"
    rows = list(job.rows())
    assert [row["id"] for row in rows] == [f"id of {text}" for text in texts]
    assert right(texts, [row["embedding"] for row in rows])


# Threads


def test_sixteen_threads_get_their_own_vectors_from_one_fleet(fleet: Fleet) -> None:
    together = threading.Barrier(16)  # the first call makes the connection: all make it at once

    def work(thread: int) -> None:
        together.wait()
        for turn in range(8):
            texts = [f"thread {thread} turn {turn} text {n}" for n in range(1 + (thread + turn) % 4)]
            job = fleet.enqueue(texts, ids=[f"id of {text}" for text in texts])
            assert right(texts, fleet.embed(texts))
            check_job(job, texts)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(work, range(16)))


def test_as_many_threads_may_wait_as_there_are(without_worker: Fleet) -> None:
    """The driver's pool has an end, at 100, where a call would fail because others wait."""
    calls = 150
    together = threading.Barrier(calls)

    def ask() -> None:
        together.wait()
        with pytest.raises(WaitTimeout):
            without_worker.embed(["a text"], timeout_s=1.5)

    with ThreadPoolExecutor(calls) as threads:
        for call in [threads.submit(ask) for _ in range(calls)]:
            call.result()


# Forks

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # of Python 3.12, where there are threads


def test_a_fleet_that_was_used_before_a_fork_works_on_both_sides(fleet: Fleet) -> None:
    """As under gunicorn --preload, or in a Celery prefork pool: the parent's connection is not the child's."""
    texts = ["before the fork"]
    check_job(fleet.enqueue(texts, ids=["id of before the fork"]), texts)
    assert right(texts, fleet.embed(texts))

    parents = fleet.broker

    def work(who: str) -> None:
        assert (fleet.broker is parents) == (who != "child")
        for n in range(200):
            assert right([f"{who} {n}"], fleet.embed([f"{who} {n}"]))
        texts = [f"{who} at last"]
        check_job(fleet.enqueue(texts, ids=[f"id of {who} at last"]), texts)

    with forked(lambda: work("child")):
        work("parent")
    work("the parent, afterwards")


def test_both_sides_of_a_fork_publish_at_once_and_nothing_is_lost_or_mixed_up(without_worker: Fleet) -> None:
    fleet = without_worker
    fleet.enqueue(["before the fork"], key="before")

    def work(who: str) -> None:
        for n in range(300):
            fleet.enqueue([f"{who} {n}"], key=f"{who} {n}")

    with forked(lambda: work("child")):
        work("parent")

    keys = ["before", *(f"{who} {n}" for who in ("parent", "child") for n in range(300))]
    jobs = published(fleet)
    assert len(jobs) == 601
    assert {fleet.enqueue([text_of(key)], key=key).id for key in keys} == set(jobs), "and with these texts"


def text_of(key: str) -> str:
    return "before the fork" if key == "before" else key


def published(fleet: Fleet) -> list[str]:
    """The jobs of all messages in the queue, each of which must be whole."""
    queue = fleet.broker.queue(fleet.settings.model, "bulk")
    bodies = [json.loads(raw)["body"] for raw in fleet.broker.redis.lrange(queue, 0, -1)]  # type: ignore[attr-defined]
    return [json.loads(base64.b64decode(body))[0][0]["job"] for body in bodies]


@contextmanager
def forked(work: Callable[[], object]) -> Iterator[None]:
    """Do the work in a forked child beside the block; fails with the child's traceback."""
    told, tells = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os.write(tells, traceback.format_exc().encode()[:4000])
        finally:
            os._exit(0)
    os.close(tells)
    try:
        yield
    finally:
        with os.fdopen(told, encoding="utf-8") as said:
            failure = said.read()  # until the child is gone
        os.waitpid(child, 0)
    assert not failure, failure


# Event loops


def test_a_hundred_coroutines_get_their_own_vectors(local: LocalFleet) -> None:
    async def work(fleet: AsyncFleet, n: int) -> None:
        texts = [f"coroutine {n} text {row}" for row in range(1 + n % 3)]
        assert right(texts, await fleet.embed(texts))
        if n % 10 == 0:
            job = await fleet.enqueue(texts)
            assert (await job.wait(timeout_s=60)).state == "done"
            assert right(texts, [row["embedding"] async for row in job.rows()])

    async def main() -> None:
        async with AsyncFleet(**dict(local.settings)) as fleet:
            await asyncio.gather(*(work(fleet, n) for n in range(100)))

    asyncio.run(main())


def test_cancelled_calls_leave_the_fleet_usable(local: LocalFleet) -> None:
    """Also when there were more than there are threads: an application's deadline is shorter than ours."""
    nobody = EmbedSettings(model="Qwen/Qwen3-Embedding-0.6B")

    async def main() -> float:
        async with AsyncFleet(**dict(local.settings)) as fleet:
            calls = [asyncio.create_task(fleet.embed(["a text"], settings=nobody)) for _ in range(100)]
            queue = fleet.fleet.broker.queue("Qwen/Qwen3-Embedding-0.6B", "interactive")
            while fleet.fleet.broker.depth(queue) < 64:
                await asyncio.sleep(0.01)
            assert await asyncio.wait_for(fleet.enqueue(["a text"]), 10), "they leave room for other calls"
            for call in calls:
                call.cancel()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
            begun = time.monotonic()
            assert right(["what is a lease?"], await fleet.embed(["what is a lease?"]))
            assert (await (await fleet.enqueue(["a text"])).wait(timeout_s=30)).state == "done"
            return time.monotonic() - begun

    assert asyncio.run(main()) < 10, "they ask in vain for 60 s"


def test_waiting_ends_in_time_and_can_go_on(without_worker: Fleet) -> None:
    async def main() -> None:
        async with AsyncFleet(without_worker) as fleet:
            job = await fleet.enqueue(["a text"])
            begun = time.monotonic()
            with pytest.raises(WaitTimeout, match=r"0 of 1 batches are done after 0\.2 s"):
                await job.wait(timeout_s=0.2)
            with pytest.raises(WaitTimeout, match=r"no answer within 0\.2 s"):
                await fleet.embed(["a text"], timeout_s=0.2)
            assert time.monotonic() - begun < 5
            assert (await job.status()).state == "running"
            assert (await job.cancel()).state == "cancelled"
            with pytest.raises(NotFound):
                await fleet.job("j-0")

    asyncio.run(main())


# A broker that is down


def test_a_silent_broker_is_named_in_bounded_time(tmp_path: Path) -> None:
    """It takes the connection and never says a word: the worst that can happen to a request handler."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://me:hunter2@127.0.0.1:{silent.getsockname()[1]}/0"
        with Fleet(broker_url=url, store=str(tmp_path), engine="synthetic") as fleet, ThreadPoolExecutor(3) as threads:
            begun = time.monotonic()
            calls = (fleet.enqueue, fleet.submit, fleet.embed)
            failures = [call.exception() for call in [threads.submit(verb, ["a text"]) for verb in calls]]
            took_s = time.monotonic() - begun
    for failure in failures:
        assert isinstance(failure, BrokerUnavailable)
        assert "redis://me:***@127.0.0.1" in str(failure)
        assert "hunter2" not in str(failure)
    assert took_s < 15
    assert not list(tmp_path.rglob("job.json"))
