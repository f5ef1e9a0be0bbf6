"""Scenario 5: the network between a worker and its broker, its cache, its store breaks in every way."""

import time
from collections.abc import Sequence
from urllib.parse import urlsplit

import pytest

from tests import aws
from tests.chaos.brokers import Redis
from tests.chaos.conftest import KILLS, StartFleet
from tests.chaos.faults import FAULTS, Mode, TcpProxy, tcp_proxy
from tests.chaos.fleet import ChaosFleet
from tests.chaos.invariant import check
from tests.waiting import wait_until

FAULT_S = 30.0 if KILLS else 3.0
TEXTS = {f"t{number}": f"text {number}" for number in range(2000 if KILLS else 600)}


def break_and_mend(fleet: ChaosFleet, proxy: TcpProxy, faults: Sequence[Mode] = FAULTS) -> None:
    """Each fault for a while, in the middle of a job each time."""
    fleet.keep(2)
    fleet.ready(2)
    for mode in faults:
        texts = {f"{mode}-{name}": f"{mode} {text}" for name, text in TEXTS.items()}
        job = fleet.submit(texts.items(), key=mode)
        wait_until(lambda job=job: job.status().batches_done >= 3, "some parts")
        proxy.mode = mode
        time.sleep(FAULT_S)
        proxy.mode = "pass"
        check(fleet, job, texts, timeout_s=150)
    assert fleet.exits == []  # what is down is waited for, with the model loaded


def test_network_to_the_broker(redis: Redis, start_fleet: StartFleet) -> None:
    fleet = start_fleet(redis)
    with tcp_proxy(redis.port) as proxy:
        fleet.environment["EMBEDFLEET_BROKER_URL"] = f"redis://127.0.0.1:{proxy.port}/0"
        break_and_mend(fleet, proxy)


def test_network_to_the_cache(redis: Redis, start_fleet: StartFleet) -> None:
    """It costs speed, never a task."""
    fleet = start_fleet(redis)
    with tcp_proxy(redis.port) as proxy:
        fleet.environment["EMBEDFLEET_CACHE_URL"] = f"redis://127.0.0.1:{proxy.port}/1"
        break_and_mend(fleet, proxy)


@pytest.fixture
def s3(moto: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its endpoint; the environment leads there."""
    for name, value in aws.environment(moto).items():
        monkeypatch.setenv(name, value)
    aws.put_bucket(moto)
    return moto


def test_network_to_the_store(redis: Redis, start_fleet: StartFleet, s3: str) -> None:
    fleet = start_fleet(redis, store=f"s3://{aws.BUCKET}/network")
    with tcp_proxy(urlsplit(s3).port or 0) as proxy:
        fleet.environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxy.port}"
        # A request to a store that has gone silent for good is given up after a minute: not in the short run.
        break_and_mend(fleet, proxy, FAULTS if KILLS else ("reset", "stall"))


def test_slow_store(redis: Redis, start_fleet: StartFleet, s3: str) -> None:
    """Scenario 7, its slow store: leases last, so nothing is done twice."""
    fleet = start_fleet(redis, store=f"s3://{aws.BUCKET}/slow", lease_s=6.0)
    texts = dict(list(TEXTS.items())[:300])
    with tcp_proxy(urlsplit(s3).port or 0) as proxy:
        fleet.environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxy.port}"
        proxy.mode = "slow"
        fleet.keep(2)
        fleet.ready(2)
        check(fleet, fleet.submit(texts.items()), texts)
    assert fleet.figures.redelivered == 0
