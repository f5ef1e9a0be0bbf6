"""What must hold after every fault: each accepted id has one outcome, no good text failed, recovery was quick."""

from collections.abc import Collection

from embedfleet import Job
from embedfleet.errors import WaitTimeout
from tests.chaos.fleet import ChaosFleet
from tests.chaos.outcomes import wrong


def check(
    fleet: ChaosFleet, job: Job, accepted: Collection[str], bad: Collection[str] = (), timeout_s: float = 120
) -> None:
    """Wait for a job, and hold it to the promise; what recovery took is held to it too."""
    try:
        job.wait(timeout_s=timeout_s)
    except WaitTimeout as exc:
        late = str(exc)
    else:
        late = ""
    found = wrong(job, accepted, bad)
    fleet.figures.add(found)
    fleet.figures.measure(fleet.journal.events())
    assert not found, f"{found}\n{late}\n{fleet.logs()}"
    assert not late, f"{late}\n{fleet.logs()}"


def check_recovery(fleet: ChaosFleet, kills: int) -> None:
    """So many kills counted, and what they interrupted was taken up again in time."""
    figures = fleet.figures
    assert figures.kills >= kills, f"{figures.kills} kills counted, of {kills}"
    assert figures.p(99) <= figures.bound_s, f"recovery: {sorted(figures.recoveries_s)[-10:]}, bound {figures.bound_s}"
