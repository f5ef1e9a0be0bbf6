"""Scenario 4: the broker dies and comes back, forgets its last second, throws its clients out."""

import time
from pathlib import Path

import pytest

from embedfleet import Job
from tests.chaos.brokers import Redis
from tests.chaos.conftest import KILLS, StartFleet
from tests.chaos.fleet import ChaosFleet
from tests.chaos.invariant import check
from tests.sentinel import watched
from tests.waiting import wait_until

TURNS = 10 if KILLS else 2
TEXTS = {f"t{number}": f"text {number}" for number in range(2000)}


@pytest.fixture
def working(redis: Redis, start_fleet: StartFleet) -> tuple[ChaosFleet, Job]:
    """Two workers in the middle of a job."""
    fleet = start_fleet(redis)
    fleet.keep(2)
    fleet.ready(2)
    job = fleet.submit(TEXTS.items())
    wait_until(lambda: job.status().batches_done >= 3, "some parts")
    return fleet, job


def test_broker_killed_and_restarted(redis: Redis, working: tuple[ChaosFleet, Job]) -> None:
    fleet, job = working
    for _ in range(TURNS):
        redis.kill()
        time.sleep(1.5)
        redis.start()
        progress(fleet, job)
    check(fleet, job, TEXTS)
    assert fleet.exits == []  # a broker that is down is waited for


def test_clients_thrown_out(redis: Redis, working: tuple[ChaosFleet, Job]) -> None:
    fleet, job = working
    for _ in range(5 * TURNS):
        redis.client.client_kill_filter(_type="normal", skipme=True)
        time.sleep(0.2)
    check(fleet, job, TEXTS)
    assert fleet.exits == []


def test_broker_loses_its_last_second(redis: Redis, working: tuple[ChaosFleet, Job]) -> None:
    """It had said yes to leases and settlements, and to a whole job: the job folder knows, and the janitor asks."""
    fleet, job = working
    time.sleep(1.1)  # what was published is on its disk
    saved = redis.saved()
    late = fleet.submit({f"late-{name}": text for name, text in list(TEXTS.items())[:200]}.items())
    time.sleep(0.5)
    redis.lose_since(saved)
    check(fleet, job, TEXTS)
    check(fleet, late, [f"late-{name}" for name in list(TEXTS)[:200]], timeout_s=180)


def test_sentinel_failover(start_fleet: StartFleet, tmp_path: Path) -> None:
    """The master dies with what its replica had not heard of yet."""
    folder = tmp_path / "watched"
    folder.mkdir()
    with watched(folder) as servers:
        fleet = start_fleet(servers.url)
        fleet.keep(2)
        fleet.ready(2)
        job = fleet.submit(TEXTS.items())
        wait_until(lambda: job.status().batches_done >= 3, "some parts")
        before = servers.master
        before.kill()
        wait_until(lambda: servers.master is not before, "the failover", timeout_s=30)
        check(fleet, job, TEXTS, timeout_s=180)
        assert fleet.exits == []


def progress(fleet: ChaosFleet, job: Job) -> None:
    """Wait until more is done, or all is."""
    before = job.status().batches_done
    wait_until(lambda: job.status().finished or job.status().batches_done > before, "progress", 60)
