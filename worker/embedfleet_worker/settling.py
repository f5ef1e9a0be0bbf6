"""How every task ends: done, given back, or a dead letter. Not what it does (tasks.py, deliveries.py).

Celery loses what raises: a failed task is acknowledged or stuck. So every way out is written down here: a return
acknowledges, ``GiveBack`` puts the message back, everything else has become a dead letter.
"""

import logging
import time
from collections.abc import Callable

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, stop_after_delay, wait_exponential_jitter

from embedfleet.broker import Broker
from embedfleet.errors import BrokerUnavailable, ConfigurationError, Permanent, Retryable, StoreUnavailable
from embedfleet.letters import Letter
from embedfleet_worker import logs, telemetry

log = logging.getLogger(__name__)

# Creating a part again is safe: it either wins or finds that it is there.
STORE_POLICY = Retrying(
    retry=retry_if_exception_type(StoreUnavailable),
    stop=stop_after_attempt(5) | stop_after_delay(20),
    wait=wait_exponential_jitter(multiplier=0.2, max=5),
    reraise=True,
)


class GiveBack(Exception):
    """The message is to go back to the queue: another try, here or elsewhere, may succeed. ``delay_s``: not before."""

    def __init__(self, message: str, delay_s: float | None = None) -> None:
        super().__init__(message)
        self.delay_s = delay_s


def settle(broker: Broker, work: Callable[[object], None], message: object, queue: str) -> None:
    """Do the work; whatever goes wrong becomes GiveBack, or a dead letter. ``queue``: where the message was."""
    try:
        work(message)
    except GiveBack:
        raise
    except Retryable as exc:
        log.warning("given back: %s", exc)
        raise GiveBack(str(exc)) from None
    except Permanent as exc:
        _dead_letter(broker, message, str(exc), queue)
    except Exception as exc:
        log_defect("task", exc)
        _dead_letter(broker, message, f"a defect of the worker ({type(exc).__name__}); see its log", queue)


def refuse(broker: Broker, message: object) -> None:
    """For work that this worker has no engine for."""
    reason = "this worker only delivers (EMBEDFLEET_QUEUES), and its queue held other work"
    _dead_letter(broker, message, reason, broker.deliver_queue)


def log_defect(what: str, exc: Exception) -> None:
    """Where it happened, without the exception's message, which may quote a text."""
    found = {"error": type(exc).__name__, "frames": logs.frames(exc.__traceback__)}
    log.error("%s failed: %s", what, type(exc).__name__, extra=found)


def _dead_letter(broker: Broker, message: object, reason: str, queue: str) -> None:
    log.error("dead letter: %s", reason)
    try:
        broker.dead_letter(Letter.of(message, reason, queue, clock(broker)))
        telemetry.ended(telemetry.DEAD_LETTER)
    except (BrokerUnavailable, Permanent) as exc:
        raise GiveBack(str(exc)) from None


def clock(broker: Broker) -> float:
    """The broker's time, or where it has none, this machine's."""
    try:
        return broker.clock()
    except ConfigurationError:
        return time.time()
