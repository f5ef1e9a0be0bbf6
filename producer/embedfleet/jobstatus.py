"""A job at one moment, and what was read of it so far. Not how it is read (job.py)."""

from dataclasses import dataclass, field
from typing import Any, Literal

from embedfleet.contract import Totals
from embedfleet.delivering import DeliveryStatus
from embedfleet.tables import PartInfo

State = Literal["open", "running", "embedded", "done", "cancelled"]


@dataclass(frozen=True)
class JobStatus:
    """A job at one moment."""

    job: str
    state: State
    batches_done: int
    batches: int | None
    """None until the producer has sealed the job."""
    texts: int | None
    """None until sealed; ``totals.texts`` counts those with an outcome."""
    totals: Totals
    embedded: bool
    """Whether every batch has its outcome."""
    finished: bool
    """Whether, beside that, every delivery has ended."""
    deliveries: tuple[DeliveryStatus, ...] = ()
    """One a destination, once every batch has its outcome."""

    @property
    def dead_deliveries(self) -> int:
        """How many parts will not reach a destination of theirs."""
        return sum(delivery.dead for delivery in self.deliveries)


@dataclass
class PartsSeen:
    """What was read of the parts so far, so that watching reads each part's end once."""

    numbers: set[int] = field(default_factory=set)
    low: int = -1
    """Every part up to this number was seen: listings start behind it."""
    totals: Totals = field(default_factory=Totals)
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, number: int, info: PartInfo) -> None:
        """Count a part."""
        self.numbers.add(number)
        self.totals.add(info.totals)
        if info.provenance:  # of a part without a vector nobody knows what would have made them
            self.provenance.setdefault(repr(sorted(info.provenance.items())), info.provenance)
        while self.low + 1 in self.numbers:
            self.low += 1


def unfinished(job: str, status: JobStatus | None, timeout_s: float | None) -> str:
    """What to say when the time to wait for a job is over."""
    if status and status.embedded:
        left = sum(status.batches_done - each.confirmed - each.dead for each in status.deliveries)
        done, worker = f"{left} deliveries have not ended", "that delivers"
    else:
        done = f"{status.batches_done} of {status.batches or '?'} batches are done" if status else "it is not done"
        worker = "for its model"
    return f"job {job}: {done} after {timeout_s:g} s. It goes on; wait again, or see that a worker {worker} runs."
