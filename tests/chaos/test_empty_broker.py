"""Scenario 9: no worker runs, the broker has lost everything; `embedfleet reconcile --all` has every job completed."""

import os
import subprocess
import sys
import time

import pytest

from tests.chaos.fleet import ChaosFleet
from tests.chaos.invariant import check
from tests.waiting import wait_until

JOBS = 4
# The command; between two looks at SQS, whose counts are approximate, there is a minute, which moto does without.
_RECONCILE = """
from embedfleet import operate
from embedfleet.entry import main
operate.LOOKS_APART_S = 2.0
main()
"""


@pytest.mark.timeout(600)
def test_every_job_completes_after_the_broker_was_emptied(fleet: ChaosFleet) -> None:
    fleet.keep(2)
    fleet.ready(2)
    texts = {number: {f"j{number}-{n}": f"text {n}" for n in range(200)} for number in range(JOBS)}
    jobs = [fleet.submit(texts[number].items(), key=f"job {number}") for number in range(JOBS - 1)]
    few = fleet.producer.enqueue(list(texts[JOBS - 1].values())[:20], ids=list(texts[JOBS - 1])[:20])
    wait_until(lambda: jobs[0].status().batches_done >= 3, "some parts")
    fleet.keep(0)
    fleet.forget_messages()
    time.sleep(2)  # of what was published within a second of this command's own messages, it can't tell
    done = subprocess.run(
        [sys.executable, "-c", _RECONCILE, "reconcile", "--all"],
        env={**os.environ, **fleet.settings.environment()},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode in (0, 3), done.stderr.decode()
    fleet.keep(2)
    for number, job in enumerate(jobs):
        check(fleet, job, texts[number])
    check(fleet, few, list(texts[JOBS - 1])[:20])
