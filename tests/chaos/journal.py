"""What workers under test did and when: an append-only file of lines. Not what follows from it (report.py)."""

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

Batch = tuple[str, int]
"""Job and number."""

POINTS = (
    "before a lease",  # nothing was asked of the broker
    "lease asked",  # and its answer was not read: stock kombu loses messages here
    "leased",  # and not handed to a thread
    "started",  # its input is about to be read
    "before the part",
    "part written",
    "before hand over",
    "handed over",
    "before acknowledge",
    "acknowledged",  # and the broker was not told yet
    "before a settlement",
    "settlement asked",  # and its answer was not read
    "before a sweep",
    "sweep asked",
)
"""Steps of the way of a batch at which a worker can be told to kill itself."""
DRAINING, GIVING_BACK = "draining", "giving back"
"""Told to stop; and the grace time is over."""
SWEEPING = "sweeping"
"""In the middle of what the janitor publishes again."""


@dataclass(frozen=True)
class Event:
    """Something a worker did to a batch, or that was done to a worker; ``at`` on a clock that all processes share."""

    at: float
    worker: str
    what: str
    job: str = ""
    batch: int = -1

    @property
    def about(self) -> Batch:
        """The batch, as a key."""
        return self.job, self.batch


class Journal:
    """Written by many processes: each line is one write to a file opened for appending."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._read = 0
        self._events: list[Event] = []
        self._held: defaultdict[str, Counter[Batch]] = defaultdict(Counter)

    def write(self, worker: str, what: str, about: Batch | None = None) -> None:
        """Add a line."""
        event = Event(time.monotonic(), worker, what, *(about or ()))
        os.write(self._file, (json.dumps(asdict(event)) + "\n").encode())

    def events(self) -> Sequence[Event]:
        """Every event so far, in order."""
        with self._path.open("rb") as file:
            file.seek(self._read)
            lines = file.read().split(b"\n")
        for line in lines[:-1]:
            event = Event(**json.loads(line))
            self._events.append(event)
            if event.what in ("leased", "settled"):
                self._held[event.worker][event.about] += 1 if event.what == "leased" else -1
            self._read += len(line) + 1
        return self._events

    def held(self, worker: str) -> set[Batch]:
        """What a worker has leased and not settled."""
        self.events()
        return {batch for batch, count in self._held[worker].items() if count > 0}

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
