"""Scenario 2: a worker that stands still. And the proof that this suite can fail: kombu's own transport loses."""

import signal
import time

from embedfleet import Job
from tests.chaos.brokers import Redis
from tests.chaos.conftest import KILLS, LEASE_S, StartFleet
from tests.chaos.fleet import ChaosFleet
from tests.chaos.invariant import check
from tests.chaos.outcomes import outcomes
from tests.waiting import wait_until

ROUNDS = 10 if KILLS else 3
TEXTS = {f"t{number}": f"text {number}" for number in range(300)}


def stop_publish_kill(fleet: ChaosFleet, rounds: int = ROUNDS) -> list[Job]:
    """SIGSTOP the one worker while it waits for messages, publish, SIGKILL it, start another one; again and again."""
    jobs = []
    for turn in range(rounds):
        worker = fleet.start()
        wait_until(lambda worker=worker: b'"consuming ' in worker.log.read_bytes(), "the worker to consume")
        time.sleep(0.5)  # it is waiting in the broker by now
        worker.signal(signal.SIGSTOP)
        mine = {f"{turn}-{name}": text for name, text in list(TEXTS.items())[:40]}
        jobs.append(fleet.submit(mine.items(), key=f"turn {turn}"))
        time.sleep(0.2)  # the broker has answered the one that does not hear it
        fleet.journal.write(worker.name, "killed")
        worker.end()
    return jobs


def test_stop_publish_kill(fleet: ChaosFleet) -> None:
    jobs = stop_publish_kill(fleet)
    fleet.keep(1)
    for turn, job in enumerate(jobs):
        check(fleet, job, [f"{turn}-{name}" for name in list(TEXTS)[:40]], timeout_s=60)


def test_the_suite_can_fail(start_fleet: StartFleet, redis: Redis) -> None:
    """With the transport that Celery brings, the same loses messages: neither a queue nor a lease has them."""
    fleet = start_fleet(redis, {"CHAOS_STOCK": "1"})
    fleet.figures.scenario, fleet.figures.ours = "(kombu's own transport has to lose)", False
    jobs = stop_publish_kill(fleet)
    published = sum(job.status().batches or 0 for job in jobs)
    left = int(redis.client.llen(fleet.bulk)) + int(redis.client.hlen("unacked"))
    assert left < published
    fleet.keep(1)
    fleet.ready(1)
    wait_until(lambda: fleet.broker.depth(fleet.bulk) == redis.client.hlen("unacked") == 0, "all that is left", 30)
    wait_until(lambda: sum(job.status().batches_done for job in jobs) >= left, "the parts of what is left", 30)
    fleet.figures.lost = sum(job.status().texts or 0 for job in jobs) - sum(len(outcomes(job)) for job in jobs)
    assert fleet.figures.lost > 0


def test_stopped_for_longer_than_its_lease(fleet: ChaosFleet) -> None:
    """It comes back and finds that others have done its work: it undoes none of it."""
    fleet.keep(2)
    fleet.ready(2)
    job = fleet.submit(TEXTS.items())
    for _ in range(2):
        wait_until(fleet.holding, "a worker that holds something")
        stopped = fleet.holding()[0]
        stopped.signal(signal.SIGSTOP)
        had = fleet.journal.held(stopped.name)
        time.sleep(LEASE_S + 2)
        stopped.signal(signal.SIGCONT)
        wait_until(lambda had=had: had <= _taken_twice(fleet), "another worker to have taken it over")
        if job.status().finished:
            break
    check(fleet, job, TEXTS)
    # What came back after the others had done it left nothing behind.
    wait_until(lambda: fleet.is_idle(), "the queue to be empty, and no lease left")


def _taken_twice(fleet: ChaosFleet) -> set[tuple[str, int]]:
    workers: dict[tuple[str, int], set[str]] = {}
    for event in fleet.journal.events():
        if event.what == "taken":
            workers.setdefault(event.about, set()).add(event.worker)
    return {batch for batch, found in workers.items() if len(found) > 1}
