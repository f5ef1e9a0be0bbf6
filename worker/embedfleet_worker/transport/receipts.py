"""What this worker holds of SQS: room per lane, leases renewed, messages deleted and given back by tens.

One thread talks to SQS about what is held, so that neither Celery's loop nor a task waits for it.
"""

import logging
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from embedfleet.errors import BrokerUnavailable, EmbedfleetError
from embedfleet.sqs import TENS, SqsBroker

log = logging.getLogger(__name__)

_MAX_DELAY_S = 43_200  # SQS': 12 hours
_GATHER_S = 0.02  # for more that goes into the same request


@dataclass(frozen=True)
class _Order:
    """What SQS is to be told of one message: to give it out again in so many seconds, or (None) to delete it."""

    queue: str
    receipt: str
    delay_s: float | None


class Receipts:
    """Thread-safe. ``limits``: how many messages of each queue may be held."""

    def __init__(self, broker: SqsBroker, limits: Mapping[str, int]) -> None:
        self._broker = broker
        self._limits = limits
        self._held: dict[str, tuple[str, str]] = {}
        self._changed = threading.Condition()
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        # What was done must not come back for a request that failed once: told until its lease is over.
        self._policy = Retrying(
            retry=retry_if_exception_type(BrokerUnavailable),
            stop=stop_after_delay(broker.settings.lease_s),
            wait=wait_exponential_jitter(multiplier=0.2, max=5),
            reraise=True,
        )
        self._thread = threading.Thread(target=self._run, name="receipts", daemon=True)
        self._thread.start()

    def wait_for_room(self, queue: str, timeout_s: float) -> int:
        """How many more messages of a queue may be taken; waits for the first."""
        with self._changed:
            self._changed.wait_for(lambda: self._room(queue) > 0, timeout_s)
            return self._room(queue)

    def add(self, tag: str, queue: str, receipt: str) -> None:
        """Hold a message."""
        with self._changed:
            self._held[tag] = queue, receipt

    def delete(self, tag: str) -> None:
        """It is done with."""
        self._settle(tag, None)

    def give_back(self, tag: str, delay_s: float) -> None:
        """Others may have it, in so many seconds."""
        self._settle(tag, delay_s)

    def give_back_all(self) -> None:
        """Others may have all of it now."""
        for tag in list(self._held):
            self.give_back(tag, 0)

    def renew(self) -> None:
        """Lengthen every lease. Raises BrokerUnavailable."""
        lease_s = self._broker.settings.lease_s
        with self._changed:
            orders = [_Order(queue, receipt, lease_s) for queue, receipt in self._held.values()]
        for batch in _batches(orders):
            self._tell(batch)

    def close(self, timeout_s: float) -> None:
        """Tell SQS what is still to be told, within the time."""
        self._orders.put(None)
        self._thread.join(timeout_s)

    def _room(self, queue: str) -> int:
        return self._limits[queue] - Counter(held for held, _ in self._held.values())[queue]

    def _settle(self, tag: str, delay_s: float | None) -> None:
        with self._changed:
            held = self._held.pop(tag, None)
            self._changed.notify_all()
        if held is not None:
            self._orders.put(_Order(*held, delay_s))

    def _run(self) -> None:
        while (orders := self._gather()) is not None:
            for batch in _batches(orders):
                try:
                    self._policy.copy()(self._tell, batch)
                except EmbedfleetError as exc:  # it comes back when its lease ends; what it did is not done twice
                    log.warning("sqs: %d messages could not be settled: %s", len(batch), exc)

    def _gather(self) -> list[_Order] | None:
        """The next orders; what comes a moment later goes along."""
        first = self._orders.get()
        if first is None:
            return None
        orders = [first]
        end = time.monotonic() + _GATHER_S
        while len(orders) < 10 * TENS and (left := end - time.monotonic()) > 0:
            try:
                order = self._orders.get(timeout=left)
            except queue.Empty:
                break
            if order is None:
                self._orders.put(None)
                break
            orders.append(order)
        return orders

    def _tell(self, batch: list[_Order]) -> None:
        entries = []
        for row, order in enumerate(batch):
            entry: dict[str, Any] = {"Id": str(row), "ReceiptHandle": order.receipt}
            if order.delay_s is not None:
                entry["VisibilityTimeout"] = min(math.ceil(order.delay_s), _MAX_DELAY_S)
            entries.append(entry)
        deleting = batch[0].delay_s is None
        operation = "delete_message_batch" if deleting else "change_message_visibility_batch"
        failed = self._broker.call(operation, batch[0].queue, Entries=entries).get("Failed", [])
        # A receipt that SQS does not know any more is not ours any more: its lease had ended.
        if any(not entry["SenderFault"] for entry in failed):
            raise BrokerUnavailable(f"SQS did not do all of it ({failed[0]['Code']}).")


def _batches(orders: Iterable[_Order]) -> list[list[_Order]]:
    """By queue and operation, at most ten."""

    def kind(order: _Order) -> tuple[str, bool]:
        return order.queue, order.delay_s is None

    alike = [list(group) for _, group in groupby(sorted(orders, key=kind), key=kind)]
    return [group[start : start + TENS] for group in alike for start in range(0, len(group), TENS)]
