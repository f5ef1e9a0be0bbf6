"""Scenario 7: a store that is full or read-only, and Redis at its memory limit. A slow store: test_network.py."""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from embedfleet_worker.app import HELD
from tests.chaos.brokers import Redis
from tests.chaos.conftest import KILLS, StartFleet
from tests.chaos.faults import SmallDisk, can_mount
from tests.chaos.invariant import check
from tests.waiting import wait_until

FAULT_S = 30.0 if KILLS else 6.0
TEXTS = {f"t{number}": f"text {number}" for number in range(1500)}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A file system of its own for the store."""
    if not can_mount():
        reason = "needs root that may mount a tmpfs"
        pytest.fail(reason) if os.environ.get("CI") and os.geteuid() == 0 else pytest.skip(reason)
    made = SmallDisk(tmp_path / "disk", megabytes=64)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (SmallDisk.fill, SmallDisk.free),
        (partial(SmallDisk.read_only, yes=True), partial(SmallDisk.read_only, yes=False)),
    ],
    ids=["full", "read-only"],
)
def test_store_that_takes_nothing(
    redis: Redis,
    start_fleet: StartFleet,
    disk: SmallDisk,
    begin: Callable[[SmallDisk], None],
    end: Callable[[SmallDisk], None],
) -> None:
    fleet = start_fleet(redis, store=str(disk.folder / "store"))
    fleet.keep(2)
    fleet.ready(2)
    job = fleet.submit(TEXTS.items())
    wait_until(lambda: job.status().batches_done >= 3, "some parts")
    begin(disk)
    under_way = 2 * HELD["bulk"]  # parts of which some may still have been written
    before = job.status().batches_done
    time.sleep(FAULT_S)
    assert job.status().batches_done <= before + under_way
    end(disk)
    check(fleet, job, TEXTS)
    assert fleet.exits == []


def test_redis_at_its_memory_limit_with_a_deep_queue(redis: Redis, start_fleet: StartFleet) -> None:
    """Nothing more can be published; what is there is taken, done and settled, and so there is room again."""
    fleet = start_fleet(redis, synthetic_texts_per_s=2000)
    job = fleet.submit(({"id": name, "text": text} for name, text in TEXTS.items()))
    filler = b"x" * 1000
    redis.client.rpush("filler", *([filler] * 5000))  # what is deep is deep for somebody else too
    redis.client.config_set("maxmemory", int(redis.client.info("memory")["used_memory"]))
    fleet.keep(2)
    check(fleet, job, TEXTS)
    wait_until(lambda: fleet.is_idle(), "every lease to be settled")
    assert fleet.figures.redelivered == 0
    assert fleet.exits == []
