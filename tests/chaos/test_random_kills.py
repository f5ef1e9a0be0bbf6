"""Scenario 3: random kills under a live producer, and one with a poison batch among good ones."""

import random
import time

from tests.chaos.conftest import KILLS
from tests.chaos.fleet import ChaosFleet
from tests.chaos.invariant import check, check_recovery
from tests.chaos.producing import LiveProducer

SHARE = {"redis": 0.4, "sqs": 0.15}
POISON_SHARE = {"redis": 0.15, "sqs": 0.05}
SHORT = {"redis": 20, "sqs": 8}


def wanted(kind: str, share: dict[str, float]) -> int:
    return int(KILLS * share[kind]) or SHORT[kind]


def test_random_kills(fleet: ChaosFleet, kind: str) -> None:
    chance, kills = random.Random(11), wanted(kind, SHARE)
    fleet.keep(3)
    fleet.ready(2)
    producer = LiveProducer(fleet)
    try:
        for _ in range(kills):
            fleet.kill_somebody(chance)
            time.sleep(chance.uniform(0, 1))
    finally:
        job = producer.finish()
    check(fleet, job, producer.given, timeout_s=180 + kills)
    check_recovery(fleet, kills * 9 // 10)


def test_poison_beside_random_kills(fleet: ChaosFleet, kind: str) -> None:
    """Only the texts of the batch that kills its worker fail, whatever else is killed meanwhile."""
    chance, kills = random.Random(12), wanted(kind, POISON_SHARE) // 2
    texts = {f"t{number}": f"text {number}" for number in range(2010)}
    texts["t1005"] = "chaos:kill"
    poisoned = [f"t{number}" for number in range(1000, 1010)]
    fleet.keep(3)
    fleet.ready(2)
    job = fleet.submit(texts.items())
    for _ in range(kills):
        if job.status().finished:
            break
        fleet.kill_somebody(chance)
        time.sleep(chance.uniform(0, 1))
    check(fleet, job, texts, bad=poisoned, timeout_s=180)
