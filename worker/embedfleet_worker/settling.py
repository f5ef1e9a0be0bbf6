"""How every task ends: done, given back, or a dead letter. Not what it does (tasks.py, deliveries.py).

Celery loses what raises: a failed task is acknowledged or stuck. So every way out is written down here: a return
acknowledges, ``GiveBack`` puts the message back, everything else has become a dead letter.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from embedfleet.broker import Broker
from embedfleet.errors import (
    BrokerUnavailable,
    DeadlineExceeded,
    EngineFailed,
    EngineUnavailable,
    EngineUnreachable,
    Permanent,
    Retryable,
    StoreUnavailable,
)
from embedfleet.letters import Letter
from embedfleet_worker import logs, telemetry

log = logging.getLogger(__name__)


BLAMED = (EngineFailed, DeadlineExceeded, EngineUnavailable, MemoryError)
"""What may be a batch's own fault: it is charged with the start, and runs alone the next time."""


class GiveBack(Exception):
    """The message is to go back to the queue: another try, here or elsewhere, may succeed. ``delay_s``: not before.

    ``outage``: what other messages of its lane need too is down, so that no more of them is taken for a while.
    ``blamed``: it may be its own fault.
    """

    def __init__(
        self, message: str, delay_s: float | None = None, *, outage: bool = False, blamed: bool = False
    ) -> None:
        super().__init__(message)
        self.delay_s = delay_s
        self.outage = outage
        self.blamed = blamed


class Turns:
    """The same work is done once at a time in a process: after an outage its message may come while it still runs.

    The second finds what the first did.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: set[str] = set()

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Inside, nothing else of this name runs."""
        with self._changed:
            self._changed.wait_for(lambda: name not in self._running)
            self._running.add(name)
        try:
            yield
        finally:
            with self._changed:
                self._running.discard(name)
                self._changed.notify_all()


def settle(broker: Broker, work: Callable[[object], None], message: object, queue: str) -> None:
    """Do the work; whatever goes wrong becomes GiveBack, or a dead letter. ``queue``: where the message was."""
    try:
        work(message)
    except GiveBack:
        raise
    except Retryable as exc:
        log.warning("given back: %s", exc)
        outage = isinstance(exc, StoreUnavailable | BrokerUnavailable | EngineUnreachable)
        raise GiveBack(str(exc), outage=outage, blamed=isinstance(exc, BLAMED)) from None
    except MemoryError:  # whoever took it
        log.error("given back: out of memory")
        raise GiveBack("out of memory", blamed=True) from None
    except Permanent as exc:
        dead_letter(broker, message, str(exc), queue)
    except Exception as exc:
        log_defect("task", exc)
        dead_letter(broker, message, f"a defect of the worker ({type(exc).__name__}); see its log", queue)


def refuse(broker: Broker, message: object, times: int = 1) -> None:  # noqa: ARG001 - that of every work
    """For work that this worker has no engine for."""
    reason = "this worker only delivers (EMBEDFLEET_QUEUES), and its queue held other work"
    dead_letter(broker, message, reason, broker.deliver_queue)


def log_defect(what: str, exc: Exception) -> None:
    """Where it happened, without the exception's message, which may quote a text."""
    found = {"error": type(exc).__name__, "frames": logs.frames(exc.__traceback__)}
    log.error("%s failed: %s", what, type(exc).__name__, extra=found)


def dead_letter(broker: Broker, message: object, reason: str, queue: str, *, part: bool = False) -> None:
    """Keep it for a person; ``part``: whether its job was told. Raises GiveBack."""
    log.error("dead letter: %s", reason)
    try:
        broker.dead_letter(Letter.of(message, reason, queue, broker.now(), part=part))
        telemetry.ended(telemetry.DEAD_LETTER)
    except (BrokerUnavailable, Permanent) as exc:
        raise GiveBack(str(exc), outage=True) from None
