"""Where the starts of a batch are counted: beside the queue, or in its job folder. Not what follows (starts.py)."""

from dataclasses import dataclass
from typing import Protocol

from embedfleet.broker import Broker
from embedfleet.jobfolder import JobFolder
from embedfleet.redis import RedisBroker


@dataclass(frozen=True)
class Count:
    """Starts of a batch that ended a worker or broke its engine."""

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


def counts_of_batch(broker: Broker, queue: str, folder: JobFolder, batch: int, times: int) -> Counts:
    """``times``: how often the broker gave its message out."""
    if isinstance(broker, RedisBroker):
        return RedisCounts(broker, queue, f"{folder.job}/{batch}")
    return FolderCounts(folder, batch, times)


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
