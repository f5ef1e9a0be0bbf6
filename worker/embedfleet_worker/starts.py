"""Batches that end their worker: who runs alone, and when it is a dead letter. Not what becomes of it.

Only a start counts: what waits, is given back, or meets an outage is never charged. A batch that was in the engine
when its worker died, or when the engine failed, is a suspect and runs alone the next time. So what is not at fault
is cleared, and what ends a worker again and again while nothing else runs in it is known.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from embedfleet.errors import (
    BrokerUnavailable,
    Permanent,
    StoreUnavailable,
)
from embedfleet.jobfolder import JobFolder
from embedfleet.redis import RedisBroker
from embedfleet_worker.settling import BLAMED, GiveBack

ALONE_STARTS = 4
"""Starts alone that ended the worker until a batch is a dead letter.

A worker may be killed by chance while a suspect runs: with one chance in thirty, which takes a kill every few
seconds, one suspect in a million would be wronged. Each start costs the load of a model.
"""
_WAIT_S = 5.0  # for a suspect to be done; then the message goes to another worker
_SUSPECT_WAIT_S = 600.0


class Hopeless(Permanent):
    """The batch ended its worker too often."""


@dataclass(frozen=True)
class Count:
    """Starts that ended a worker or broke its engine."""

    in_company: int = 0
    alone: int = 0


class Counts(Protocol):
    """Where the starts of a batch are counted. Raises BrokerUnavailable or StoreUnavailable."""

    def get(self) -> Count:
        """Those of which the end is not known to be a good one."""

    def add(self, *, alone: bool) -> None:
        """One more begins."""

    def undo(self, *, alone: bool) -> None:
        """The one that began is to count for nothing."""

    def clear(self) -> None:
        """It ended well: those before were somebody else's fault."""


class Starts:
    """Of one process. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = False
        self._suspects = 0
        self._under_way: dict[Counts, bool] = {}
        self._over = False

    def forgive(self) -> None:
        """Charge nothing of what is under way, and begin nothing: the process ends for another reason."""
        self._over = True
        for counts in list(self._under_way):
            self._undo(counts)

    @contextmanager
    def start(self, counts: Counts) -> Iterator[bool]:
        """Inside, a batch is read and embedded; yields whether it is alone. Raises Hopeless, and GiveBack."""
        before = counts.get()
        if before.alone >= ALONE_STARTS:
            raise Hopeless(f"it ended its worker {before.alone} times while nothing else ran there")
        suspect = before != Count()
        with self._room(suspect=suspect):
            self._under_way[counts] = suspect
            try:
                counts.add(alone=suspect)  # inside: it may have been done though its answer was lost
                if self._over:
                    raise GiveBack("the worker stops")
                yield suspect
            except BLAMED:
                raise  # charged
            except BaseException:
                self._undo(counts)
                raise
            else:
                _try(counts.clear)
            finally:
                self._under_way.pop(counts, None)

    def _undo(self, counts: Counts) -> None:
        """Once: what is forgiven may still end."""
        alone = self._under_way.pop(counts, None)
        if alone is not None:
            _try(partial(counts.undo, alone=alone))

    @contextmanager
    def _room(self, *, suspect: bool) -> Iterator[None]:
        with self._changed:
            if suspect:
                self._wait_alone()
            elif not self._changed.wait_for(lambda: not (self._alone or self._suspects), _WAIT_S):
                raise GiveBack("another batch has to run alone here")
            self._inside += 1
            self._alone = suspect
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._alone = False
                self._changed.notify_all()

    def _wait_alone(self) -> None:
        """Newcomers wait meanwhile, or others would always be inside."""
        self._suspects += 1
        try:
            if not self._changed.wait_for(lambda: not self._inside, _SUSPECT_WAIT_S):
                raise GiveBack("it has to run alone, and there was other work all the time")
        finally:
            self._suspects -= 1
            self._changed.notify_all()


class RedisCounts:
    """In a hash beside the queue."""

    def __init__(self, broker: RedisBroker, queue: str, name: str) -> None:
        self._broker = broker
        self._key = f"{queue}-starts"
        self._fields = (name, f"{name}!")
        self._add = broker.redis.register_script(_ADD)
        self._undo = broker.redis.register_script(_UNDO)

    def get(self) -> Count:
        """Two numbers, one question."""
        found = self._broker.call(self._broker.redis.hmget, self._key, self._fields)
        return Count(*(int(value or 0) for value in found))

    def add(self, *, alone: bool) -> None:
        """Also at the server's memory limit."""
        self._broker.call(self._add, keys=[self._key], args=[self._fields[alone]])

    def undo(self, *, alone: bool) -> None:
        """One less; none is no entry."""
        self._broker.call(self._undo, keys=[self._key], args=[self._fields[alone]])

    def clear(self) -> None:
        """Both."""
        self._broker.call(self._broker.redis.hdel, self._key, *self._fields)


# A command first that frees memory: Redis at its limit refuses scripts that begin with another.
_ADD = "redis.call('HDEL', KEYS[1], '') return redis.call('HINCRBY', KEYS[1], ARGV[1], 1)"
_UNDO = """
redis.call('HDEL', KEYS[1], '')
if redis.call('HINCRBY', KEYS[1], ARGV[1], -1) <= 0 then
  redis.call('HDEL', KEYS[1], ARGV[1])
end
"""


class FolderCounts:
    """For SQS, which counts how often it gave a message out and keeps nothing else: starts alone are in the job folder.

    Whose lease was over, whether it was begun or waited, is taken for a suspect: that costs a run alone, and no more.
    """

    def __init__(self, folder: JobFolder, batch: int, times: int) -> None:
        self._folder = folder
        self._batch = batch
        self._times = times
        self._begun: str | None = None

    def get(self) -> Count:
        """The folder is asked only for a message that comes again."""
        alone = self._folder.starts(self._batch) if self._times > 1 else 0
        # One that is only noted may have ended well while the store could not be told: SQS saw none come to nothing.
        return Count(self._times - 1, min(alone, self._times - 1))

    def add(self, *, alone: bool) -> None:
        """Written before it starts."""
        if alone:
            self._begun = self._folder.begin_start(self._batch)

    def undo(self, *, alone: bool) -> None:
        """The others in the folder stay."""
        if alone and self._begun is not None:
            self._folder.end_start(self._begun)

    def clear(self) -> None:
        """What ended well needs no word: its part has the last one."""
        self.undo(alone=True)


def _try(tell: Callable[[], None]) -> None:
    with suppress(BrokerUnavailable, StoreUnavailable):  # at worst it runs alone once more
        tell()
