"""Scenario 3: random kills under a live producer, and one with a poison batch among good ones."""

import random
import time

from tests.chaos.conftest import KILLS
from tests.chaos.fleet import ChaosFleet
from tests.chaos.invariant import check, check_recovery
from tests.chaos.producing import LiveProducer

SHARE = {"redis": 0.4, "sqs": 0.15}
KILLS_A_JOB = 6  # beside those that the poison has
POISON_SHARE = {"redis": 0.1, "sqs": 0.05}
SHORT = {"redis": 20, "sqs": 6}


def wanted(kind: str, share: dict[str, float]) -> int:
    return int(KILLS * share[kind]) or int(SHORT[kind] * share[kind] / SHARE[kind])


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
    chance, kills = random.Random(12), wanted(kind, POISON_SHARE)
    poisoned = [f"t{number}" for number in range(1000, 1010)]
    texts = {f"t{number}": f"text {number}" for number in range(2010)} | {"t1005": "chaos:kill"}
    fleet.keep(3)
    while kills > 0:
        job = fleet.submit(texts.items(), key=f"{kills} to go")
        for _ in range(min(kills, KILLS_A_JOB)):
            if job.status().batches_done > 150:  # there has to be work that a kill interrupts
                break
            kills -= 1
            fleet.kill_somebody(chance)
            time.sleep(chance.uniform(0, 1))
        check(fleet, job, texts, bad=poisoned, timeout_s=180)
