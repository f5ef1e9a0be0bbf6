"""Scenario 3: random kills under a live producer, and one with a poison batch among good ones."""

import random
import threading
import time
from collections.abc import Iterator


from embedfleet import Job
from tests.chaos.conftest import KILLS
from tests.chaos.fleet import ChaosFleet
from tests.chaos.invariant import check, check_recovery

SHARE = {"redis": 0.4, "sqs": 0.15}
POISON_SHARE = {"redis": 0.15, "sqs": 0.05}
SHORT = {"redis": 20, "sqs": 8}
TEXTS_PER_S = 200.0


class LiveProducer:
    """Submits one stream, at a pace, until told to stop; knows what it gave."""

    def __init__(self, fleet: ChaosFleet) -> None:
        self.given: list[str] = []
        self.job: Job | None = None
        self._fleet = fleet
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def finish(self) -> Job:
        """End the stream; the job, sealed."""
        self._stop.set()
        self._thread.join()
        assert self.job is not None
        return self.job

    def _run(self) -> None:
        self.job = self._fleet.submit(self._stream())

    def _stream(self) -> Iterator[tuple[str, str]]:
        begun = time.monotonic()
        while not self._stop.is_set():
            number = len(self.given)
            self._stop.wait(max(0.0, begun + number / TEXTS_PER_S - time.monotonic()))
            # A queue that is never empty and never long: a kill counts only when a lease is held.
            while self._fleet.broker.depth(self._fleet.bulk) > 200 and not self._stop.wait(0.05):
                pass
            self.given.append(f"t{number}")
            yield f"t{number}", f"text {number}"


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
            time.sleep(chance.uniform(0, 0.5))
    finally:
        job = producer.finish()
    check(fleet, job, producer.given, timeout_s=180 + kills)
    check_recovery(fleet, kills)


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
        time.sleep(chance.uniform(0, 0.5))
    check(fleet, job, texts, bad=poisoned, timeout_s=180)
