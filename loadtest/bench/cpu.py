"""Processor time from /proc: of processes, and of everything else on the machine. Linux only."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Shares:
    """How busy something was over a stretch of time, in processors: 1.0 is one of them all the time."""

    idle: float
    """Used by the processes that were to stand by."""
    foreign: float
    """Used by processes that are not ours, and by the hypervisor's other guests."""


class Meter:
    """Watches from its making to :meth:`stop`, while the processes ``idle`` are to do nothing."""

    def __init__(self, idle: Iterable[int]) -> None:
        self._idle = list(idle)
        self._begun = self._now()

    def stop(self) -> Shares:
        """The shares since the beginning."""
        wall, idle, ours, machine = (now - then for now, then in zip(self._now(), self._begun, strict=True))
        return Shares(idle / wall, max(0.0, machine - ours) / wall)

    def _now(self) -> tuple[float, float, float, float]:
        used = _used_s()
        ours = _family(os.getpid(), used)
        return (
            time.perf_counter(),
            sum(used[pid][1] for pid in self._idle),
            sum(used[pid][1] for pid in ours),
            _machine_s(),
        )


def children() -> set[int]:
    """Every process that this one started and that still runs, and what those started."""
    return _family(os.getpid(), _used_s()) - {os.getpid()}


def _used_s() -> dict[int, tuple[int, float]]:
    """By process: its parent, and the seconds of processor it used."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
            fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces
            found[int(folder.name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) * _TICK_S
    return found


def _family(root: int, used: dict[int, tuple[int, float]]) -> set[int]:
    family = {root}
    while more := {pid for pid, (parent, _) in used.items() if parent in family} - family:
        family |= more
    return family


def _machine_s() -> float:
    """Seconds of processor used since boot, all processors together, those stolen by the hypervisor included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) * _TICK_S
