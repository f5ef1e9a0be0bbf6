"""Scenario 1: kill -9 at each step of the way of a batch, and of the way down."""

import random
import signal
import time
from collections.abc import Iterator

import pytest

from embedfleet import Webhook
from tests import receiver
from tests.chaos.conftest import KILLS
from tests.chaos.fleet import ChaosFleet
from tests.chaos.invariant import check, check_recovery
from tests.chaos.journal import DRAINING, GIVING_BACK, POINTS, SWEEPING
from tests.chaos.producing import LiveProducer
from tests.waiting import wait_until

ROUNDS = max(1, KILLS // 100)
TEXTS = {f"t{number}": f"text {number}" for number in range(3000)}


@pytest.fixture
def hook() -> Iterator[receiver.Receiver]:
    with receiver.receiver() as running:
        yield running


@pytest.fixture
def busy(fleet: ChaosFleet, hook: receiver.Receiver) -> ChaosFleet:
    """Two workers that deliver to a webhook what they embed."""
    origin = hook.url.removesuffix("/hook")
    fleet.environment |= {"EMBEDFLEET_WEBHOOK_ORIGINS": origin, "EMBEDFLEET_WEBHOOK_NETWORKS": "127.0.0.1"}
    fleet.environment |= {"EMBEDFLEET_WEBHOOK_SECRET": "whsec_" + "A" * 40}
    fleet.environment["EMBEDFLEET_GRACE_S"] = "0.2"  # less than what is under way takes
    fleet.keep(3)
    return fleet


def test_kills_at_each_step(busy: ChaosFleet, hook: receiver.Receiver) -> None:
    busy.ready(2)
    producer = LiveProducer(busy, deliver_to=[Webhook(url=hook.url)])
    try:
        points = POINTS * ROUNDS
        for pair in zip(points[::2], points[1::2], strict=True):
            for point in pair:
                busy.ready(2)
                busy.kill_at(point)
            # Not the same batch again and again: it would be taken for the cause.
            wait_until(lambda: busy.interrupted() <= producer.parts(), "what was interrupted to be done")
    finally:
        job = producer.finish()
    check(busy, job, producer.given, timeout_s=120 + 10 * ROUNDS)
    check_recovery(busy, len(POINTS) * ROUNDS * 9 // 10)
    assert {delivery.confirmed for delivery in job.status().deliveries} == {job.status().batches}


def test_kills_while_draining(busy: ChaosFleet) -> None:
    """Told to stop, and killed at once or some moments later, as when the time of a spot instance is over."""
    chance = random.Random(4)
    job = busy.submit(TEXTS.items())
    for turn in range(3 * ROUNDS):
        busy.ready(2)
        worker = chance.choice(busy.consuming())
        if turn % 3:
            (busy.folder / f"kill at {(DRAINING, GIVING_BACK)[turn % 2]}").touch()
            worker.signal(signal.SIGTERM)
            wait_until(lambda worker=worker: not worker.alive, "its end")
        else:
            worker.signal(signal.SIGTERM)
            time.sleep(chance.uniform(0, 0.5))
            busy.kill(worker)
    check(busy, job, TEXTS.keys())
    if busy.figures.recoveries_s:
        check_recovery(busy, 1)


def test_kill_in_the_middle_of_a_sweep(fleet: ChaosFleet) -> None:
    """A janitor dies after it published some of what was lost: the next one publishes the rest."""
    jobs = [fleet.submit(list(TEXTS.items())[:500], key=f"job {number}") for number in range(2)]
    fleet.forget_messages()
    (fleet.folder / f"kill at {SWEEPING}").touch()
    fleet.keep(2)
    wait_until(lambda: not (fleet.folder / f"kill at {SWEEPING}").exists(), "a janitor's end", 90)
    for job in jobs:
        check(fleet, job, list(TEXTS)[:500])
