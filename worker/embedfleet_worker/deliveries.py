"""The deliver lane's tasks: a part to a destination, a job's end to its callback; then the receipt.

How it is brought there is in destinations/.
"""

import logging
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, cast

from embedfleet import policies
from embedfleet.broker import Broker
from embedfleet.contract import Completion, Delivery, Receipt
from embedfleet.destinations import CALLBACK
from embedfleet.errors import ContractError, DestinationUnavailable, Permanent, Retryable
from embedfleet.job import Job
from embedfleet.jobfolder import JobFolder, now, waiting
from embedfleet.settings import FleetSettings
from embedfleet.store import check_allowed, open_store
from embedfleet_worker import logs, telemetry
from embedfleet_worker.destinations.base import Destination, Parcel
from embedfleet_worker.settling import GiveBack, Turns, log_defect, settle
from embedfleet_worker.telemetry import Metrics

if TYPE_CHECKING:
    from embedfleet_worker.destinations.webhook import WebhookDestination

log = logging.getLogger(__name__)

_GIVE_UP_S = 24 * 3600  # a receiver that is down over night gets everything in the morning
_AGAIN_S, _AGAIN_MAX_S = 2.0, 900.0
_AT_ONCE = 3  # deliveries to one destination, of the four that a worker has room for: one stays for the others
_TURN_S = 1.0  # what a delivery waits for its turn; who never has one so long is slow, and its messages go back


class Deliveries:
    """Brings parts to destinations. Thread-safe."""

    def __init__(self, broker: Broker, settings: FleetSettings, metrics: Metrics) -> None:
        self._broker = broker
        self._metrics = metrics
        self._settings = settings
        self._open: dict[str, Destination[Any]] = {}
        self._under_way: Counter[str] = Counter()
        self._slow: set[str] = set()
        self._turns = threading.Condition()
        self._once = Turns()
        self._lock = threading.Lock()

    def deliver(self, message: object, times: int = 1) -> None:  # noqa: ARG002 - it is counted by the clock
        """One delivery: a receipt when this returns, or a dead letter. Raises GiveBack only."""
        with self._metrics.batch("deliver"), logs.about():
            settle(self._broker, self._deliver, message, self._broker.deliver_queue)

    def complete(self, message: object, times: int = 1) -> None:  # noqa: ARG002 - as with deliver
        """A job's callback; ends as :meth:`deliver` does."""
        with self._metrics.batch("deliver"), logs.about():
            settle(self._broker, self._complete, message, self._broker.deliver_queue)

    def close(self) -> None:
        """Close the connections to destinations."""
        for destination in self._open.values():
            destination.close()

    def _deliver(self, message: object) -> None:
        delivery = Delivery.parse(message, "message")
        logs.bind(job=delivery.job, batch=delivery.batch, destination=delivery.destination)
        parcel = Parcel(self._folder(delivery.to, delivery.job), delivery.batch, delivery.destination)
        with self._once.turn(delivery.dumps()):
            if _is_confirmed(parcel):
                return
            target = parcel.folder.destination(delivery.destination)
            if not parcel.folder.has_part(delivery.batch):  # no receipt: the part, when it comes, is to be delivered
                raise ContractError(f"job {delivery.job}: batch {delivery.batch} has no part to deliver yet.")
            with self._turn(delivery.destination):
                self._try(parcel, target.kind, lambda: self._destination(target.kind).deliver(target, parcel))

    def _complete(self, message: object) -> None:
        completion = Completion.parse(message, "message")
        logs.bind(job=completion.job, destination=CALLBACK)
        parcel = Parcel(self._folder(completion.to, completion.job), 0, CALLBACK)
        callback = parcel.folder.spec().callback
        if callback is None:
            raise ContractError(f"job {completion.job}: it has no callback.")
        # A message alone does not finish a job. Where deliveries were added meanwhile, the janitor comes again.
        status = Job(parcel.folder, cast(Any, None)).status()
        with self._once.turn(completion.dumps()):
            if _is_confirmed(parcel) or not status.finished:
                return
            with self._turn(callback.name):
                self._try(parcel, CALLBACK, lambda: self._webhook().complete(callback, parcel.folder, status))

    def _folder(self, store: str, job: str) -> JobFolder:
        return JobFolder(open_store(check_allowed(store, self._settings.stores)), job)

    @contextmanager
    def _turn(self, destination: str) -> Iterator[None]:
        """Inside, one of the tries at this destination: one that hangs must not keep the others waiting."""
        with self._turns:
            wait_s = 0 if destination in self._slow else _TURN_S
            if not self._turns.wait_for(lambda: self._under_way[destination] < _AT_ONCE, wait_s):
                self._slow.add(destination)
                raise GiveBack("enough of this destination are under way", delay_s=random.uniform(3, 8))
            self._under_way[destination] += 1
        try:
            yield
        finally:
            with self._turns:
                self._under_way[destination] -= 1
                self._slow.discard(destination)
                self._turns.notify_all()

    def _try(self, parcel: Parcel, kind: str, bring: Callable[[], str]) -> None:
        """One try, and its receipt when it was the last."""
        receipt = self._receipt(parcel, kind, bring)
        if receipt.state != "confirmed" and _is_confirmed(parcel):
            return  # by another copy of this message meanwhile
        policies.STORE(parcel.folder.write_receipt, receipt)
        telemetry.ended(receipt.state)
        self._metrics.delivery(kind, receipt.state)
        level = logging.INFO if receipt.state == "confirmed" else logging.ERROR
        log.log(level, "delivery %s: %s", receipt.state, receipt.detail)

    def _receipt(self, parcel: Parcel, kind: str, bring: Callable[[], str]) -> Receipt:
        """How the delivery ended. Raises GiveBack when it has not."""
        state: Literal["confirmed", "dead"] = "confirmed"
        try:
            detail = policies.DESTINATION(bring)
        except DestinationUnavailable as exc:
            age_s = _age_s(parcel, str(exc), self._broker.now())
            if age_s <= _GIVE_UP_S:
                log.warning("delivery given back: %s", exc)
                self._metrics.delivery(kind, "given_back")
                raise GiveBack(str(exc), delay_s=exc.retry_after_s or again_in_s(age_s)) from None
            state, detail = "dead", f"given up after {_GIVE_UP_S // 3600} h: {exc}"
        except Retryable:  # the store's, not the destination's
            raise
        except Permanent as exc:  # the part can't be read: no try would do better
            state, detail = "dead", str(exc)
        except Exception as exc:
            log_defect("delivery", exc)
            state, detail = "dead", f"a defect of the worker ({type(exc).__name__}); see its log."
        return Receipt(
            job=parcel.folder.job,
            batch=parcel.batch,
            destination=parcel.destination,
            state=state,
            detail=detail,
            at=now(),
        )

    def _webhook(self) -> "WebhookDestination":
        return cast("WebhookDestination", self._destination("webhook"))

    def _destination(self, kind: str) -> Destination[Any]:
        """The one object a kind; its driver is imported when it is first needed."""
        with self._lock:
            if kind not in self._open:
                self._open[kind] = _make(kind, self._settings)
            return self._open[kind]


def _is_confirmed(parcel: Parcel) -> bool:
    receipt = parcel.folder.receipt(parcel.destination, parcel.batch)
    return receipt is not None and receipt.state == "confirmed"


def _age_s(parcel: Parcel, reason: str, at: float) -> float:
    """Seconds since the first try failed, or since it was sent on again; the receipt says when that was.

    ``at``: now, on the broker's clock: workers' own may differ by hours.
    """
    receipt = parcel.folder.receipt(parcel.destination, parcel.batch)
    if receipt is None or receipt.state != "waiting":
        written = waiting(parcel.folder.job, parcel.batch, parcel.destination, reason, at)
        policies.STORE(parcel.folder.write_receipt, written)
        return 0.0
    return max(at - datetime.fromisoformat(receipt.at).timestamp(), 0.0)


def again_in_s(age_s: float) -> float:
    """Until the next try: half of the time since the first, from 2 s to a quarter of an hour, a quarter more or less.

    Without a count that somebody has to keep.
    """
    return min(max(age_s / 2, _AGAIN_S), _AGAIN_MAX_S) * random.uniform(0.75, 1.25)


def _make(kind: str, settings: FleetSettings) -> Destination[Any]:
    if kind == "webhook":
        from embedfleet_worker.destinations.webhook import WebhookDestination

        return WebhookDestination(settings)
    from embedfleet_worker.destinations.pgvector import PgvectorDestination

    return PgvectorDestination(settings)
