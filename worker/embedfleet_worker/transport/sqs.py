"""Leases on SQS: a message's visibility timeout. Everything by tens."""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from embedfleet.errors import BrokerUnavailable, EmbedfleetError, Retryable
from embedfleet.sqs import TENS, SqsBroker
from embedfleet_worker.transport import Order, Taken

log = logging.getLogger(__name__)

_POLL_S = 5  # SQS waits up to 20, which costs half a dollar less a month; a worker that is told to stop waits too
_MAX_HIDDEN_S = 43_200  # SQS': 12 hours
_MAX_DELAY_S = 900  # SQS', of a message that is sent
_MAX_SENT_BYTES = 64 * 1024  # ours have 2 KB; ten of them have to fit into a request
_TOO_SOON_S = 0.5  # for an empty answer to a long poll
_TIMES = "ApproximateReceiveCount"


class SqsLeases:
    """Leases of the queues of one region. A lease is the receipt handle, which is new with every receive."""

    def __init__(self, broker: SqsBroker) -> None:
        self._broker = broker
        self._lease_s = broker.settings.lease_s
        self._polls: set[object] = set()

    def take(self, queue: str, room: int) -> list[Taken]:
        """One long poll."""
        begun, poll = time.monotonic(), object()
        self._polls.add(poll)
        try:
            answer = self._broker.call(
                "receive_message",
                queue,
                MaxNumberOfMessages=min(room, TENS),
                WaitTimeSeconds=_POLL_S,
                VisibilityTimeout=math.ceil(self._lease_s),
                MessageSystemAttributeNames=[_TIMES],
            )
        finally:
            self._polls.discard(poll)
        found = [message for message in answer.get("Messages", []) if message.keys() >= {"ReceiptHandle", "Body"}]
        if not found and time.monotonic() - begun < _TOO_SOON_S:
            raise BrokerUnavailable(f"{queue}: an empty answer without a wait is not one of SQS.")
        return [
            Taken(queue, each["ReceiptHandle"], each["Body"].encode(), int(each.get("Attributes", {}).get(_TIMES, 1)))
            for each in found
        ]

    def asking(self) -> bool:
        """SQS hands messages to a poll whose client is gone; they come again when their lease ends, and as suspects."""
        return bool(self._polls)

    def renew(self, queue: str, leases: list[str]) -> None:
        """Lengthen all that can be. Raises BrokerUnavailable when SQS could not be told of some."""
        orders = [Order(queue, lease, self._lease_s, 0) for lease in leases]
        left = [order for batch in _tens(orders) for order in self._call(_HIDE, batch)[1]]
        if left:
            raise BrokerUnavailable(f"{len(left)} leases could not be renewed.")

    def settle(self, orders: list[Order]) -> list[Order]:
        """By tens; what SQS did not take of them, and may yet."""
        alike: dict[tuple[str, _Operation], list[Order]] = defaultdict(list)
        for order in orders:
            alike[order.queue, _operation(order)].append(order)
        batches = [(operation, batch) for (_, operation), group in alike.items() for batch in _tens(group)]
        return [order for operation, batch in batches for order in self._settle(operation, batch)]

    def sweep(self) -> None:
        """SQS does it."""

    def _settle(self, operation: "_Operation", batch: list[Order]) -> list[Order]:
        if operation is not _SEND:
            return self._call(operation, batch)[1]
        sent, left = self._call(_SEND, batch)
        refused = [replace(order, blamed=True) for order in batch if order not in sent and order not in left]
        gone = self._call(_DELETE, [replace(order, delay_s=None) for order in sent])[1] if sent else []
        return left + gone + refused  # what SQS does not take anew is hidden as it is

    def _call(self, operation: "_Operation", batch: list[Order]) -> tuple[list[Order], list[Order]]:
        """Of orders for one queue, those that are done, and those that SQS did not take and may yet."""
        entries = [operation.entry(order) for order in batch]
        try:
            done, failed = self._broker.call_batch(operation.name, batch[0].queue, entries)
        except EmbedfleetError as exc:  # the other batches may do better
            log.warning("sqs: %s", exc)
            return [], batch if isinstance(exc, Retryable) else []
        # The sender's fault, says SQS: the lease is over, or the message gone. There is nothing left to tell.
        over = {row for row, entry in failed.items() if entry.get("SenderFault")}
        rows = list(enumerate(batch))
        left = [order for row, order in rows if row not in done and row not in over]
        return [order for row, order in rows if row in done], left


@dataclass(frozen=True)
class _Operation:
    """A batch operation of SQS, and its entry for an order."""

    name: str
    entry: Callable[[Order], Mapping[str, object]]


def _seconds(order: Order, most: int) -> int:
    return min(math.ceil(order.delay_s or 0), most)


_DELETE = _Operation("delete_message_batch", lambda order: {"ReceiptHandle": order.lease})
_HIDE = _Operation(
    "change_message_visibility_batch",
    lambda order: {"ReceiptHandle": order.lease, "VisibilityTimeout": _seconds(order, _MAX_HIDDEN_S)},
)
_SEND = _Operation(
    "send_message_batch",
    lambda order: {"MessageBody": order.message.decode(), "DelaySeconds": _seconds(order, _MAX_DELAY_S)},
)


def _operation(order: Order) -> _Operation:
    """What is given back is sent anew, then deleted.

    SQS counts how often it gives a message out. So the count of one that was given back begins anew, and more than once
    means that a worker died with it, or blames it. Killed in between there are two, of which one finds the part.
    """
    if order.delay_s is None:
        return _DELETE
    may_be_sent = order.delay_s <= _MAX_DELAY_S and len(order.message) <= _MAX_SENT_BYTES
    return _SEND if may_be_sent and not order.blamed else _HIDE


def _tens(orders: list[Order]) -> list[list[Order]]:
    return [orders[start : start + TENS] for start in range(0, len(orders), TENS)]
