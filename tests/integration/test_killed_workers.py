"""kill -9 again and again: nothing is lost, nothing counts twice."""

import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.dataset as ds

from embedfleet import Fleet
from embedfleet.local import LocalFleet
from tests.waiting import wait_until

_KILLS = 12


def test_every_text_has_one_outcome_after_many_kills(start_fleet: Callable[..., LocalFleet], tmp_path: Path) -> None:
    """The worker restarts in a second; its lost leases come back by themselves, nobody publishes again."""
    local = start_fleet(tmp_path, engine="synthetic", synthetic_texts_per_s=20_000, lease_s=1)
    chance = random.Random(7)
    with Fleet(**dict(local.settings)) as fleet:
        job = fleet.submit(f"text {n}" for n in range(100_000))
        for _ in range(_KILLS):
            least = job.status().batches_done + chance.randint(1, 6)
            wait_until(lambda least=least: job.status().batches_done >= least, "progress")
            os.kill(local.worker_pid, signal.SIGKILL)
            wait_until(local.check, "the worker to be started again")
            local.progressed()
        status = job.wait(timeout_s=60)

    assert status.batches_done == status.batches
    outcomes = Counter(ds.dataset(str(tmp_path / job.id / "parts")).to_table(columns=["id"])["id"].to_pylist())
    assert len(outcomes) == 100_000
    assert set(outcomes.values()) == {1}
    assert status.totals.errors == 0
