"""Workers that are told to stop: they finish what fits in the grace time, give the rest back at once, and exit 0."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedfleet import Fleet
from embedfleet.job import Job
from tests.integration.command import environment
from tests.waiting import wait_until

IN_BATCH = 512
LEASE_S = 60  # far longer than any test: what is back earlier was given back

# Each runs the worker as it is, with another synthetic engine.
HANGS = """
import runpy, time
from embedfleet_worker.engine.synthetic import SyntheticEngine
SyntheticEngine._embed = lambda *_: time.sleep(600)
runpy.run_module("embedfleet_worker", run_name="__main__")
"""


class Drained:
    """A fleet with one worker of a set speed, and what is left when it was told to stop."""

    def __init__(self, url: str, folder: Path) -> None:
        self._folder = folder
        self._settings = {"broker_url": url, "store": str(folder / "store"), "lease_s": str(LEASE_S)}
        self.fleet = Fleet(engine="synthetic", **self._settings)
        self.redis: Any = self.fleet.broker.redis
        self.bulk = self.fleet.broker.lane("bulk")
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, script: str | None = None, **settings: object) -> "subprocess.Popen[bytes]":
        command = [sys.executable, *(["-m", "embedfleet_worker"] if script is None else ["-c", script])]
        variables = environment(**{"engine": "synthetic", **self._settings, **settings})
        with (self._folder / "log").open("ab") as log:
            self.running.append(subprocess.Popen(command, cwd=self._folder, env=variables, stderr=log))
        wait_until(lambda: self.fleet.broker.workers(self.bulk), "the worker to consume")
        return self.running[-1]

    def submit(self, batches: int) -> Job:
        return self.fleet.submit(f"text {number}" for number in range(batches * IN_BATCH))

    def held(self) -> int:
        return int(self.redis.hlen(f"{self.bulk}-leases"))

    def messages(self) -> list[str]:
        """What the workers said, all of it as JSON."""
        lines = (self._folder / "log").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["message"] for line in lines]

    def check_nothing_is_left(self) -> None:
        """No lease, no charge, no worker that is thought to be there."""
        keys = [f"{self.bulk}-{name}" for name in ("leases", "ends", "starts")]
        assert [key for key in keys if self.redis.exists(key)] == []
        assert self.fleet.broker.workers(self.bulk) == []


@pytest.fixture
def drained(redis_url: str, tmp_path: Path) -> Iterator[Drained]:
    made = Drained(redis_url, tmp_path)
    yield made
    made.fleet.close()
    for worker in made.running:
        worker.kill()
        worker.wait()


def stop(worker: "subprocess.Popen[bytes]", number: int = signal.SIGTERM) -> float:
    """Tell it to; how long it took to exit, with 0."""
    begun = time.monotonic()
    worker.send_signal(number)
    assert worker.wait(30) == 0
    return time.monotonic() - begun


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_what_fits_in_the_grace_time_is_finished_and_the_rest_given_back_at_once(
    drained: Drained, number: signal.Signals
) -> None:
    worker = drained.start(synthetic_texts_per_s=IN_BATCH, grace_s=2.5)  # a batch a second
    job = drained.submit(10)
    wait_until(lambda: drained.held() == 6 and job.status().batches_done, "the lane to be full")
    done = job.status().batches_done
    assert 2.4 < stop(worker, number) < 5
    finished = job.status().batches_done - done
    assert 2 <= finished <= 4
    drained.check_nothing_is_left()
    left = 10 - done - finished
    assert left <= drained.fleet.broker.depth(drained.bulk) <= left + 1  # one may be done just when it is given back
    assert any(said.startswith("stopped: ") and "given back" in said for said in drained.messages())
    drained.start()
    assert job.wait(timeout_s=30).state == "done"


def test_a_worker_whose_work_fits_is_gone_as_soon_as_it_is_done(drained: Drained) -> None:
    worker = drained.start(synthetic_texts_per_s=IN_BATCH, grace_s=30)
    job = drained.submit(2)
    wait_until(lambda: drained.redis.hlen(f"{drained.bulk}-starts") == 2, "both to be begun")
    assert stop(worker) < 10
    assert job.status().state == "done"
    drained.check_nothing_is_left()


def test_an_idle_worker_is_gone_at_once(drained: Drained) -> None:
    worker = drained.start(grace_s=30)
    assert stop(worker) < 2
    drained.check_nothing_is_left()


def test_nothing_new_is_begun_in_the_grace_time(drained: Drained) -> None:
    """Though a look for it is under way."""
    worker = drained.start(synthetic_texts_per_s=IN_BATCH / 2, grace_s=30)
    first = drained.submit(1)
    wait_until(lambda: drained.held() == 1, "it to be held")
    worker.terminate()
    wait_until(lambda: any("stopping" in said for said in drained.messages()), "it to stop")
    second = drained.fleet.submit(["a text"])
    assert worker.wait(30) == 0
    assert (first.status().batches_done, second.status().batches_done) == (1, 0)
    assert drained.fleet.broker.depth(drained.bulk) == 1
    drained.check_nothing_is_left()


def test_a_second_signal_makes_it_quick(drained: Drained) -> None:
    worker = drained.start(synthetic_texts_per_s=1, grace_s=600)
    drained.submit(3)
    wait_until(lambda: drained.held() == 3, "the batches to be held")
    worker.terminate()
    wait_until(lambda: any("stopping" in said for said in drained.messages()), "it to stop")
    assert stop(worker, signal.SIGINT) < 3
    drained.check_nothing_is_left()
    assert drained.fleet.broker.depth(drained.bulk) == 3


def test_many_signals_at_once_are_one(drained: Drained) -> None:
    worker = drained.start(synthetic_texts_per_s=1, grace_s=600)
    drained.submit(1)
    wait_until(lambda: drained.held() == 1, "the batch to be held")
    for _ in range(200):
        worker.send_signal(signal.SIGTERM)
        worker.send_signal(signal.SIGINT)
    wait_until(lambda: any("stopping" in said for said in drained.messages()), "it to stop")
    worker.send_signal(signal.SIGINT)  # a process that was slow to look has seen the others as one
    assert worker.wait(10) == 0
    assert drained.messages().count("stopped: 1 messages given back") == 1
    drained.check_nothing_is_left()


def test_work_that_hangs_blocks_no_exit(drained: Drained) -> None:
    """And what the drain gives back, the worker's own look does not take again."""
    worker = drained.start(HANGS, grace_s=1)
    drained.submit(2)
    wait_until(lambda: drained.redis.hlen(f"{drained.bulk}-starts") == 2, "both to be begun")
    assert stop(worker) < 5
    drained.check_nothing_is_left()
    assert drained.fleet.broker.depth(drained.bulk) == 2


def test_a_broker_that_is_gone_blocks_no_exit(drained: Drained) -> None:
    worker = drained.start(synthetic_texts_per_s=1, grace_s=1)
    drained.submit(1)
    wait_until(lambda: drained.held() == 1, "the batch to be held")
    drained.redis.shutdown(nosave=True)
    assert stop(worker) < 15
