"""What this worker holds of SQS: room per lane, leases renewed, messages deleted and given back by tens.

One thread tells SQS what is done with, so that neither Celery's loop nor a task waits for it.
"""

import logging
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

from embedfleet.errors import BrokerUnavailable, EmbedfleetError, Retryable
from embedfleet.sqs import TENS, SqsBroker
from embedfleet_worker.transport import GIVEN_BACK_S

log = logging.getLogger(__name__)

_MAX_DELAY_S = 43_200  # SQS': 12 hours
_LONGEST_S = 900  # that a message waits which was given back: SQS counts, and after 1000 times it is a dead letter
_GATHER_S = 0.02  # for more that goes into the same request
_AGAIN_S, _AGAIN_MAX_S = 0.2, 5.0


@dataclass(frozen=True)
class _Held:
    """A message: its queue, what SQS knows it by this time, and how often it has been given out."""

    queue: str
    receipt: str
    times: int


@dataclass(frozen=True)
class _Order:
    """What SQS is to be told of a message: to give it out again in so many seconds, or (None) to delete it."""

    queue: str
    receipt: str
    delay_s: float | None
    until: float
    """By the monotonic clock, when the lease is over and there is nothing left to tell."""


class Receipts:
    """Thread-safe. ``limits``: how many messages of each queue may be held."""

    def __init__(self, broker: SqsBroker, limits: Mapping[str, int]) -> None:
        self._broker = broker
        self._lease_s = broker.settings.lease_s
        self._limits = limits
        self._held: dict[str, _Held] = {}
        self._orders: list[_Order] = []
        self._closing = False
        self._changed = threading.Condition()
        self._telling = threading.Lock()  # renewing a lease never comes after giving it up
        self._thread = threading.Thread(target=self._run, name="receipts", daemon=True)
        self._thread.start()

    def wait_for_room(self, queue: str, timeout_s: float) -> int:
        """How many more messages of a queue may be taken; waits for the first."""
        with self._changed:
            self._changed.wait_for(lambda: self._room(queue) > 0, timeout_s)
            return self._room(queue)

    def add(self, tag: str, queue: str, receipt: str, times: int = 1) -> bool:
        """Hold a message that was given out so many times; False when nothing is held any more."""
        with self._changed:
            if not self._closing:
                self._held[tag] = _Held(queue, receipt, times)
            return not self._closing

    def delete(self, tag: str) -> None:
        """It is done with."""
        self._settle(tag, deleting=True)

    def give_back(self, tag: str, delay_s: float | None = None) -> None:
        """Others may have it, in so many seconds; if nothing is said, in a moment, that is longer each time."""
        self._settle(tag, delay_s)

    def give_back_all(self) -> None:
        """Others may have all of it now; nothing is held any more."""
        with self._changed:
            self._closing = True
            for tag in list(self._held):
                self.give_back(tag, 0)
            self._changed.notify_all()

    def refuse(self, queue: str, receipts: Iterable[str]) -> None:
        """Others may have messages that never were held. Tried once: else they come back when their lease ends."""
        self._tell([_Order(queue, receipt, 0, 0) for receipt in receipts])

    def renew(self) -> None:
        """Lengthen every lease. Raises BrokerUnavailable when SQS could not be told of some."""
        with self._changed:
            orders = [_Order(held.queue, held.receipt, self._lease_s, 0) for held in self._held.values()]
        left = sum(len(self._tell(batch, renewing=True)) for batch in _batches(orders))
        if left:
            raise BrokerUnavailable(f"{left} leases could not be renewed.")

    def close(self, timeout_s: float) -> None:
        """Give back what is held, and tell SQS what is still to be told, within the time."""
        self.give_back_all()
        self._thread.join(timeout_s)

    def _room(self, queue: str) -> int:
        return self._limits[queue] - Counter(held.queue for held in self._held.values())[queue]

    def _settle(self, tag: str, delay_s: float | None = None, *, deleting: bool = False) -> None:
        with self._changed:
            held = self._held.pop(tag, None)
            if held is None:
                return
            if not deleting and delay_s is None:
                delay_s = min(GIVEN_BACK_S * held.times, _LONGEST_S)
            self._orders.append(_Order(held.queue, held.receipt, delay_s, time.monotonic() + self._lease_s))
            self._changed.notify_all()

    def _run(self) -> None:
        """What was done must not come back for a request that failed once: told again until its lease is over."""
        failures = 0
        while orders := self._gather():
            left = [order for batch in _batches(orders) for order in self._tell(batch)]
            late = [order for order in left if order.until < time.monotonic()]
            if late:  # what it did is not done twice: its part is there
                log.warning("sqs: %d messages could not be settled and come again", len(late))
            with self._changed:
                self._orders += [order for order in left if order not in late]
            failures = failures + 1 if left else 0
            if failures:
                time.sleep(min(_AGAIN_S * 2**failures, _AGAIN_MAX_S) * random.uniform(0.5, 1))

    def _gather(self) -> list[_Order]:
        """The next orders, with what comes a moment later; none when all is told and nothing is held any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._orders or self._closing)
            self._changed.wait_for(lambda: len(self._orders) >= TENS or self._closing, _GATHER_S)
            orders, self._orders = self._orders, []
            return orders

    def _tell(self, batch: list[_Order], *, renewing: bool = False) -> list[_Order]:
        """What SQS did not take of orders of one kind, and may yet."""
        with self._telling:
            if renewing:
                with self._changed:
                    held = {held.receipt for held in self._held.values()}
                batch = [order for order in batch if order.receipt in held]
            try:
                return self._told(batch) if batch else []
            except Exception as exc:  # without this thread nothing would ever be told again
                log.warning("sqs: %s", exc if isinstance(exc, EmbedfleetError) else type(exc).__name__)
                return batch if isinstance(exc, Retryable) else []

    def _told(self, batch: list[_Order]) -> list[_Order]:
        deleting = batch[0].delay_s is None
        operation = "delete_message_batch" if deleting else "change_message_visibility_batch"
        done, failed = self._broker.call_batch(operation, batch[0].queue, [_entry(order) for order in batch])
        # A receipt that SQS does not know any more is not ours any more: its lease had ended.
        gone = {row for row, entry in failed.items() if entry.get("SenderFault")}
        return [order for row, order in enumerate(batch) if row not in done | gone]


def _entry(order: _Order) -> dict[str, object]:
    if order.delay_s is None:
        return {"ReceiptHandle": order.receipt}
    delay_s = min(math.ceil(order.delay_s), _MAX_DELAY_S)
    return {"ReceiptHandle": order.receipt, "VisibilityTimeout": delay_s}


def _batches(orders: Iterable[_Order]) -> list[list[_Order]]:
    """By queue and operation, at most ten."""

    def kind(order: _Order) -> tuple[str, bool]:
        return order.queue, order.delay_s is None

    alike = [list(group) for _, group in groupby(sorted(orders, key=kind), key=kind)]
    return [group[start : start + TENS] for group in alike for start in range(0, len(group), TENS)]
