"""Batches that end their worker: who runs alone, and when it is a dead letter. Not what becomes of it.

Only a start counts: what waits, is given back, or meets an outage is never charged. A batch that was in the engine
when its worker died, or when the engine failed, is a suspect and runs alone the next time. So what is not at fault
is cleared, and what ends a worker again and again while nothing else runs in it is known.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from embedfleet.errors import BrokerUnavailable, Permanent, StoreUnavailable
from embedfleet_worker.settling import BLAMED, GiveBack
from embedfleet_worker.transport.counts import Count, Counts

ALONE_STARTS = 4
"""Starts alone that ended the worker until a batch is a dead letter.

A worker may be killed by chance while a suspect runs: with one chance in thirty, which takes a kill every few
seconds, one suspect in a million would be wronged. Each start costs the load of a model.
"""
_WAIT_S = 5.0  # for a suspect to be done; then the message goes to another worker
_SUSPECT_WAIT_S = 600.0


class Hopeless(Permanent):
    """The batch ended its worker too often."""


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
            try:
                counts.add(alone=suspect)
            except BaseException:  # it may have been done though its answer was lost
                _try(partial(counts.undo, alone=suspect))
                raise
            self._under_way[counts] = suspect
            try:
                if self._over:  # forgiven before, or by whoever took it out of what is under way
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


def _try(tell: Callable[[], None]) -> None:
    with suppress(BrokerUnavailable, StoreUnavailable):  # at worst it runs alone once more
        tell()
