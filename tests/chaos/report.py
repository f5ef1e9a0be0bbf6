"""The figures of a scenario, from the journal and the parts: kills that counted, losses, how long recovery took."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.chaos.journal import Batch, Event
from tests.chaos.outcomes import Found

SWEEP_S = 1.0
"""Expired leases are looked for so often."""
SLACK_S = 1.0
"""What a busy machine and a worker that has no room at the moment may add."""

HEADINGS = ("scenario", "kills", "lost", "double", "wrongly failed", "redelivered", "p50 s", "p99 s", "bound s")


@dataclass
class Figures:
    """Of one scenario, or of one broker of it."""

    scenario: str
    lease_s: float
    kills: int = 0
    """Of workers that held a lease."""
    lost: int = 0
    double: int = 0
    wrongly_failed: int = 0
    redelivered: int = 0
    recoveries_s: list[float] = field(default_factory=list)
    """From a SIGKILL to another worker's start of the same batch."""
    ours: bool = True
    """Of our transports; the others have to lose."""

    def add(self, found: Found) -> None:
        """Count what is wrong with a job."""
        self.lost += len(found.lost)
        self.double += len(found.double) + len(found.unheard_of)
        self.wrongly_failed += len(found.wrongly_failed)

    def measure(self, events: Sequence[Event]) -> None:
        """Count what the journal says."""
        self.kills = sum(1 for _, held in kills(events) if held)
        self.recoveries_s = recoveries_s(events, self.lease_s)
        starts = Counter(event.about for event in events if event.what == "taken")
        self.redelivered = sum(starts.values()) - len(starts)

    @property
    def bound_s(self) -> float:
        """The promise."""
        return self.lease_s + SWEEP_S + SLACK_S

    def p(self, percent: float) -> float:
        """A percentile of the recovery times: the smallest that so many are not above."""
        found = sorted(self.recoveries_s)
        return found[max(0, math.ceil(len(found) * percent / 100) - 1)] if found else math.nan

    def row(self) -> tuple[str, ...]:
        """As in :data:`HEADINGS`."""
        counts = (self.kills, self.lost, self.double, self.wrongly_failed, self.redelivered)
        times = (f"{self.p(50):.2f}", f"{self.p(99):.2f}", f"{self.bound_s:.1f}") if self.recoveries_s else ("–",) * 3
        return (self.scenario, *map(str, counts), *times)


def kills(events: Iterable[Event]) -> list[tuple[int, frozenset[Batch]]]:
    """Each kill: its position, and what the worker had leased and not settled."""
    held: defaultdict[str, Counter[Batch]] = defaultdict(Counter)
    found = []
    for position, event in enumerate(events):
        if event.what == "leased":
            held[event.worker][event.about] += 1
        elif event.what == "settled":
            held[event.worker][event.about] -= 1
        elif event.what.startswith("killed"):
            found.append((position, frozenset(batch for batch, count in held[event.worker].items() if count > 0)))
    return found


def recoveries_s(events: Sequence[Event], lease_s: float) -> list[float]:
    """For each batch that a killed worker held: seconds until another one took it, if none of those was killed too.

    A worker that ends while it asks for messages may have been given any that were free: nobody knows which.
    """
    killed = dict(kills(events))
    waiting: defaultdict[Batch, list[tuple[float, str]]] = defaultdict(list)
    leased: dict[Batch, str] = {}
    asking: dict[tuple[str, str], float] = {}
    found: list[float] = []
    for position, event in enumerate(events):
        if event.what.startswith("asking"):
            asking[event.worker, event.what.split()[1]] = event.at
        elif event.what.startswith("answered"):
            asking.pop((event.worker, event.what.split()[1]), None)
        ended = position in killed or event.what == "left"
        if ended and any(worker == event.worker for worker, _ in asking):
            for batch, kills_of in list(waiting.items()):
                waiting[batch] = [(at, worker) for at, worker in kills_of if event.at < at + lease_s - 1]
        for batch in killed.get(position, ()):
            if leased.get(batch) == event.worker:
                waiting.pop(batch, None)  # who was to take it over died first: that is another recovery
            waiting[batch].append((event.at, event.worker))
        if event.what == "leased":
            leased[event.about] = event.worker
        elif event.what == "taken":
            found += [event.at - at for at, worker in waiting.pop(event.about, []) if worker != event.worker]
    return found


def total(figures: Iterable[Figures]) -> Figures:
    """Of all that is ours."""
    added = Figures("all of ours", 0)
    for each in figures:
        if each.ours:
            added.lease_s = max(added.lease_s, each.lease_s if each.recoveries_s else 0)
            for name in ("kills", "lost", "double", "wrongly_failed", "redelivered", "recoveries_s"):
                setattr(added, name, getattr(added, name) + getattr(each, name))
    return added


def table(figures: Sequence[Figures]) -> list[str]:
    """Lines, in columns."""
    rows = [HEADINGS, *(each.row() for each in [*figures, total(figures)])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
