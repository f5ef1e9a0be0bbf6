"""Leases on SQS: a message's visibility timeout, renewed, ended or crowned by a deletion, by tens."""

import logging
import math
import time
from collections.abc import Iterable
from itertools import groupby

from embedfleet.errors import BrokerUnavailable
from embedfleet.sqs import TENS, SqsBroker
from embedfleet_worker.transport import Order, Taken

log = logging.getLogger(__name__)

_POLL_S = 20  # the longest SQS waits: the fewest requests to pay for
_MAX_DELAY_S = 43_200  # SQS': 12 hours
_TOO_SOON_S = 0.5  # for an empty answer to a long poll
_TIMES = "ApproximateReceiveCount"


class SqsLeases:
    """Leases of the queues of one region. A lease is the receipt handle, which is new with every receive."""

    def __init__(self, broker: SqsBroker) -> None:
        self._broker = broker
        self._lease_s = broker.settings.lease_s

    def take(self, queue: str, room: int) -> list[Taken]:
        """One long poll."""
        begun = time.monotonic()
        answer = self._broker.call(
            "receive_message",
            queue,
            MaxNumberOfMessages=min(room, TENS),
            WaitTimeSeconds=_POLL_S,
            VisibilityTimeout=math.ceil(self._lease_s),
            MessageSystemAttributeNames=[_TIMES],
        )
        found = [message for message in answer.get("Messages", []) if message.keys() >= {"ReceiptHandle", "Body"}]
        if not found and time.monotonic() - begun < _TOO_SOON_S:
            raise BrokerUnavailable(f"{queue}: an empty answer without a wait is not one of SQS.")
        return [
            Taken(queue, each["ReceiptHandle"], each["Body"].encode(), int(each.get("Attributes", {}).get(_TIMES, 1)))
            for each in found
        ]

    def renew(self, queue: str, leases: list[str]) -> None:
        """Lengthen all that can be. Raises BrokerUnavailable when SQS could not be told of some."""
        left = self.settle([Order(queue, lease, self._lease_s, 0) for lease in leases])
        if left:
            raise BrokerUnavailable(f"{len(left)} leases could not be renewed.")

    def settle(self, orders: list[Order]) -> list[Order]:
        """By tens; what SQS did not take of them, and may yet."""
        return [order for batch in _batches(orders) for order in self._settle(batch)]

    def sweep(self) -> None:
        """SQS does it."""

    def _settle(self, batch: list[Order]) -> list[Order]:
        deleting = batch[0].delay_s is None
        operation = "delete_message_batch" if deleting else "change_message_visibility_batch"
        try:
            done, failed = self._broker.call_batch(operation, batch[0].queue, [_entry(order) for order in batch])
        except BrokerUnavailable as exc:  # the other batches may do better
            log.warning("sqs: %s", exc)
            return batch
        # The sender's fault, says SQS: the lease is over, or the message gone. There is nothing left to tell.
        over = {row for row, entry in failed.items() if entry.get("SenderFault")}
        return [order for row, order in enumerate(batch) if row not in done and row not in over]


def _entry(order: Order) -> dict[str, object]:
    if order.delay_s is None:
        return {"ReceiptHandle": order.lease}
    return {"ReceiptHandle": order.lease, "VisibilityTimeout": min(math.ceil(order.delay_s), _MAX_DELAY_S)}


def _batches(orders: Iterable[Order]) -> list[list[Order]]:
    """By queue and operation, at most ten."""

    def kind(order: Order) -> tuple[str, bool]:
        return order.queue, order.delay_s is None

    alike = [list(group) for _, group in groupby(sorted(orders, key=kind), key=kind)]
    return [group[start : start + TENS] for group in alike for start in range(0, len(group), TENS)]
