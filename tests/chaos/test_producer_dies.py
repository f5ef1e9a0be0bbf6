"""Scenario 8: a producer is killed in the middle of `submit`; the same again goes on, another input is refused."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from embedfleet import Job
from embedfleet.errors import JobMismatch
from embedfleet.jobfolder import JobFolder, job_id_of
from embedfleet.store import open_store
from tests.chaos.conftest import KILLS
from tests.chaos.fleet import ChaosFleet
from tests.chaos.invariant import check
from tests.waiting import wait_until

TURNS = 10 if KILLS else 3
COUNT = 3000
_SUBMIT = """
import sys, time
from tests.chaos.fleet import SmallBatches
from tests.chaos.test_producer_dies import records
def slowly():
    for number, record in enumerate(records()):
        if number % 100 == 0:
            time.sleep(0.02)
        yield record
with SmallBatches() as fleet:
    fleet.submit(slowly(), key="killed")
"""


def records(changed: int = -1) -> Iterator[tuple[str, str]]:
    """The input, or one that differs in one text."""
    return ((f"t{number}", f"{'another' if number == changed else 'text'} {number}") for number in range(COUNT))


@contextmanager
def producer(fleet: ChaosFleet) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that submits."""
    running = subprocess.Popen([sys.executable, "-c", _SUBMIT], env={**os.environ, **fleet.settings.environment()})
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def test_producer_killed_while_submitting(fleet: ChaosFleet) -> None:
    fleet.keep(2)
    folder = JobFolder(open_store(str(fleet.settings.store), make=True), job_id_of("killed"))
    for turn in range(TURNS):
        with producer(fleet) as running:
            least = (turn + 1) * 240 // TURNS  # of 300
            wait_until(lambda least=least: running.poll() is not None or len(folder.inputs()) >= least, "inputs")
            running.send_signal(signal.SIGKILL)
    assert folder.sealed() is None  # it was killed before it was done
    changed = 45  # of a batch that is written
    with pytest.raises(JobMismatch, match=f"differs at id 't{changed}'"):
        fleet.submit(records(changed), key="killed")
    job: Job = fleet.submit(records(), key="killed")
    check(fleet, job, [f"t{number}" for number in range(COUNT)])
    with pytest.raises(JobMismatch, match=f"differs at id 't{COUNT - 1}'"):
        fleet.submit(records(COUNT - 1), key="killed")
