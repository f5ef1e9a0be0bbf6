"""The one thread of a stepped engine: who goes first, what is aborted, what a failed step costs. Imports no driver.

Who waits for vectors never waits for the thread itself: a step may hang, and then whoever wanted it aborted says so.
"""

import contextlib
import heapq
import itertools
import logging
import queue
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from embedfleet.errors import DeadlineExceeded, EngineFailed, EngineUnavailable
from embedfleet.store import first_line
from embedfleet_worker.engine.base import Embedded, Priority, Tokens

log = logging.getLogger(__name__)

Vector = np.ndarray[Any, Any]

HUNG_S = 10.0
"""The thread comes by after every step. A step of a GPU takes under a second, so ten mean that none will end."""
_SLOWER = 10  # times the longest step so far, and it hangs too: a large model on a CPU may step for minutes
_PROBE_STEPS = 10  # one is enough when nothing else is inside
_PROBE_TOLERANCE = 0.01  # of the probe's norm: bfloat16 rounds to 0.004, a broken state gives another vector


class Stepped(Protocol):
    """An engine that is given requests and is stepped, all by one thread."""

    def add(self, request: str, ids: list[int], priority: Priority) -> None:
        """Take a prompt in. Raises ValueError for one it refuses."""

    def step(self) -> Sequence[tuple[str, Vector]]:
        """Compute some more; what is finished, by request."""

    def abort(self, requests: list[str]) -> None:
        """Forget the requests. Those it does not know are no error."""


@dataclass(eq=False)
class Work:
    """One request for vectors, being filled."""

    prompts: Sequence[Tokens]
    priority: Priority
    vectors: Vector
    future: "Future[Embedded]" = field(default_factory=Future)
    errors: dict[int, str] = field(default_factory=dict)
    fed: int = 0
    done: int = 0

    def begin(self) -> None:
        """It waits no more: its time counts from now on."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_running_or_notify_cancel()

    def fail(self, reason: Exception) -> None:
        """Only the first to say so counts: two threads may."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(reason)

    def finish_if_complete(self) -> None:
        """Hand the vectors over, unless the work has failed already."""
        if self.done == len(self.prompts):
            with contextlib.suppress(InvalidStateError):
                self.future.set_result(Embedded(self.vectors, self.errors))


class Loop:
    """Feeds and steps the engine. Only what the next two steps need is inside it, so that priority still counts."""

    def __init__(self, engine: Stepped, probe: list[int], step_texts: int, hung_s: float = HUNG_S) -> None:
        """In the engine's thread. ``probe``: ids of a short text; its vector is how a sound engine is known."""
        self.dead = threading.Event()
        self._engine = engine
        self._probe_ids = probe
        self._limit = 2 * step_texts
        self._least_hung_s = hung_s
        self._inbox: queue.SimpleQueue[Work | Future[Embedded] | None] = queue.SimpleQueue()
        self._unfinished: dict[Future[Embedded], Work] = {}
        self._reason: EngineUnavailable | None = None
        self._ended = threading.Event()
        self._waiting: list[tuple[int, int, Work]] = []
        self._numbers = itertools.count()
        self._inside: dict[str, tuple[Work, int]] = {}
        self._longest_s = 0.0
        self._expected = self._probe()

    # Called by any thread

    def submit(self, work: Work) -> None:
        """Queue the work. Its future fails with EngineUnavailable, EngineFailed, or what :meth:`abort` says."""
        self._unfinished[work.future] = work
        work.future.add_done_callback(lambda future: self._unfinished.pop(future, None))
        if self._reason is None:
            self._inbox.put(work)
        if self._reason is not None:  # perhaps it ended just now, and did not see this work
            work.fail(self._reason)

    def abort(self, future: "Future[Embedded]") -> None:
        """Take the work out of the engine; its future is done when this returns.

        It fails with DeadlineExceeded, unless it finished meanwhile. A thread that does not do it in time hangs: then
        the engine is dead, and every future fails with EngineUnavailable.
        """
        self._inbox.put(future)
        hung_s = self._hung_s()
        if not wait([future], hung_s).done:
            log.error("engine: hung: its thread is in a step for more than %g s", hung_s)
            self.dead.set()
            self._end(EngineUnavailable("engine: it hung"))

    def close(self) -> None:
        """Stop after the step it is in; a thread that hangs is left behind."""
        self._inbox.put(None)
        if not self._ended.wait(self._hung_s()):
            log.error("engine: hung: its thread is left behind in a step")
            self._end(EngineUnavailable("engine: it was closed, and hung"))

    def _hung_s(self) -> float:
        return max(self._least_hung_s, _SLOWER * self._longest_s)

    def _end(self, reason: EngineUnavailable) -> None:
        """Fail everything that was not finished, and what will come."""
        self._reason = self._reason or reason
        for work in self._unfinished.copy().values():
            work.fail(reason)

    # Called by the engine's thread

    def run(self) -> None:
        """Until it is closed, or breaks beyond repair."""
        reason = EngineUnavailable("engine: it was closed")
        try:
            while self._take():
                self._turn()
        except BaseException as exc:
            _log_failure("broken", exc)
            reason = EngineUnavailable(f"engine: it broke ({type(exc).__name__})")
            self.dead.set()
        self._end(reason)
        self._ended.set()

    def _take(self) -> bool:
        """Do what the inbox says; block only when there is nothing to do. False when it is time to stop."""
        block = not self._inside and not self._waiting
        while block or not self._inbox.empty():
            order = self._inbox.get()
            if order is None:
                return False
            if isinstance(order, Future):
                self._drop(order)
            else:
                heapq.heappush(self._waiting, (order.priority, next(self._numbers), order))
            block = False
        return self._reason is None  # somebody may have found it hung

    def _drop(self, future: "Future[Embedded]") -> None:
        work = self._unfinished.get(future)
        if work is not None:  # else it finished meanwhile
            self._remove({work})
            work.fail(DeadlineExceeded("engine: it took too long and was aborted"))

    def _turn(self) -> None:
        """Feed and step once; mend what that broke."""
        begun = time.monotonic()
        failure = self._advance()
        self._longest_s = max(self._longest_s, time.monotonic() - begun)
        if failure is not None:
            self._recover(failure)

    def _advance(self) -> str | None:
        """Feed and step. What was raised, by its name: the exception would keep the memory of the step's tensors."""
        try:
            self._feed()
            if self._inside:
                for request, vector in self._engine.step():
                    self._receive(request, vector)
        except Exception as exc:
            _log_failure("a step failed", exc)
            return type(exc).__name__
        return None

    def _recover(self, failure: str) -> None:
        """What was inside fails; what was wholly outside goes on, if the engine still gives the probe's vector."""
        works = {work for work, _ in self._inside.values()}
        self._remove(works)
        found = self._probe()
        if not np.linalg.norm(found - self._expected) <= _PROBE_TOLERANCE * np.linalg.norm(self._expected):
            raise EngineFailed("the probe has another vector than at the start")
        log.warning("engine: it goes on after a failed step, without the %d batches that were in it", len(works))
        for work in works:
            work.fail(EngineFailed(f"a step of the engine failed ({failure})"))

    def _probe(self) -> Vector:
        """The vector of the probe, alone in the engine. Raises whatever the engine does, and if none comes."""
        request = str(next(self._numbers))
        self._engine.add(request, self._probe_ids, Priority.INTERACTIVE)
        for _ in range(_PROBE_STEPS):
            for answered, vector in self._engine.step():
                if answered == request:
                    return vector.copy()
        raise EngineFailed(f"the probe has no vector after {_PROBE_STEPS} steps")

    def _remove(self, works: set[Work]) -> None:
        """Take works out of the engine and the queue."""
        requests = [request for request, (work, _) in self._inside.items() if work in works]
        self._engine.abort(requests)
        for request in requests:
            del self._inside[request]
        self._waiting = [entry for entry in self._waiting if entry[2] not in works]
        heapq.heapify(self._waiting)

    def _feed(self) -> None:
        while self._waiting and len(self._inside) < self._limit:
            _, _, work = self._waiting[0]
            if work.fed == 0:
                work.begin()
            self._add(work, work.fed)
            work.fed += 1
            if work.fed == len(work.prompts):
                heapq.heappop(self._waiting)
                work.finish_if_complete()

    def _add(self, work: Work, row: int) -> None:
        request = str(next(self._numbers))
        self._inside[request] = work, row  # before it is tried: what breaks the engine here is this work's failure
        try:
            self._engine.add(request, work.prompts[row].ids, work.priority)
        except ValueError as exc:  # of this prompt; the engine itself is sound
            del self._inside[request]
            work.errors[row] = f"the engine refused the text ({first_line(exc)})"
            work.done += 1

    def _receive(self, request: str, vector: Vector) -> None:
        work, row = self._inside.pop(request)
        if vector.shape == work.vectors[row].shape:
            work.vectors[row] = vector
        else:
            work.errors[row] = (
                f"the engine gave an array of {vector.shape} and the model's profile says {work.vectors.shape[1]}"
            )
        work.done += 1
        work.finish_if_complete()


def _log_failure(what: str, exc: BaseException) -> None:
    """Without the exception's message, which may quote a text."""
    log.error("engine: %s (%s)\n%s", what, type(exc).__name__, "".join(traceback.format_tb(exc.__traceback__)))
