"""A kombu transport for SQS: one long poll per lane, each in a thread of its own, whatever SQS answers.

kombu's own stops polling for good after one broken answer, asks one queue after another, and neither renews a lease
nor tries a deletion again. Nothing here raises into Celery's loop: an SQS that is down is waited for.
"""

import logging
import math
import random
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

import kombu.transport
from kombu.transport import virtual

from embedfleet.broker import Broker
from embedfleet.errors import BrokerUnavailable, EmbedfleetError
from embedfleet.sqs import TENS, SqsBroker
from embedfleet_worker.transport import envelope, give_back_in_s
from embedfleet_worker.transport.receipts import Receipts

log = logging.getLogger(__name__)

_NAME = f"{__name__}:Transport"
_POLL_S = 20  # the longest SQS waits: the fewest requests to pay for
_AGAIN_S, _AGAIN_MAX_S = 1.0, 30.0
_CLOSE_S = 5.0
_TOO_SOON_S = 0.5  # for an empty answer to a long poll
_TIMES = "ApproximateReceiveCount"


def install(broker: Broker, limits: Mapping[str, int]) -> dict[str, Any]:
    """Have every sqs:// URL of this process use this transport. ``limits``: messages held at once, by queue."""
    if not isinstance(broker, SqsBroker):
        raise TypeError(f"no transport for {type(broker).__name__}")
    Channel.broker, Channel.limits = broker, limits
    kombu.transport.TRANSPORT_ALIASES["sqs"] = _NAME
    kombu.transport._transport_cache.pop("sqs", None)
    return {}


class QoS(virtual.QoS):  # type: ignore[misc]
    """What this consumer holds; how it is settled is for the receipts."""

    def ack(self, delivery_tag: str) -> None:
        """It is done with."""
        super().ack(delivery_tag)
        self.channel.receipts.delete(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give the message back; as with a task of ours, what is not given back is done with."""
        virtual.QoS.ack(self, delivery_tag)
        if requeue:
            self.channel.receipts.give_back(delivery_tag, give_back_in_s.pop(delivery_tag, None))
        else:
            self.channel.receipts.delete(delivery_tag)

    def restore_unacked_once(self, *_: object, **__: object) -> None:
        """Going down: give back what is left, now."""
        self._on_collect.cancel()  # else every channel there ever was is kept until the process ends
        self.channel.receipts.give_back_all()


class Channel(virtual.Channel):  # type: ignore[misc]
    """Queues are polled from when they are consumed until they are cancelled."""

    QoS = QoS
    broker: ClassVar[SqsBroker]
    limits: ClassVar[Mapping[str, int]]

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._stops: dict[str, threading.Event] = {}
        self.receipts = Receipts(self.broker, self.limits)

    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **kwargs: Any) -> None:
        """Begin to poll a queue."""
        super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)
        self._stops[consumer_tag] = stop = threading.Event()
        poll = (queue, stop, self.connection)  # kombu takes the connection from a channel that is closed
        threading.Thread(target=self._poll_queue, args=poll, name=f"poll {queue}", daemon=True).start()

    def basic_cancel(self, consumer_tag: str) -> None:
        """Stop polling; what a poll under way still brings is given back at once."""
        if consumer_tag in self._stops:
            self._stops.pop(consumer_tag).set()
        super().basic_cancel(consumer_tag)

    def close(self) -> None:
        """Stop, give back, and see that SQS was told. A poll under way is not waited for."""
        if not self.closed:
            for stop in self._stops.values():
                stop.set()
            super().close()
            self.receipts.close(_CLOSE_S)

    def renew(self) -> None:
        """Lengthen the leases of what is held. Raises BrokerUnavailable."""
        self.receipts.renew()

    def _poll_queue(self, queue: str, stop: threading.Event, transport: "Transport") -> None:
        failures = 0
        while not stop.is_set():
            room = self.receipts.wait_for_room(queue, timeout_s=1)
            if not room:
                continue
            try:
                found = self._receive(queue, room)
                if stop.is_set():
                    self.receipts.refuse(queue, [message["ReceiptHandle"] for message in found])
                    return
                for message in found:
                    self._take(queue, message, transport)
                failures = 0
            except Exception as exc:  # whatever it is, the next poll may do; without one, nothing is ever taken again
                log.warning("sqs: %s", exc if isinstance(exc, EmbedfleetError) else type(exc).__name__)
                stop.wait(min(_AGAIN_S * 2**failures, _AGAIN_MAX_S) * random.uniform(0.5, 1))
                failures = min(failures + 1, 10)

    def _receive(self, queue: str, room: int) -> list[dict[str, Any]]:
        begun = time.monotonic()
        answer = self.broker.call(
            "receive_message",
            queue,
            MaxNumberOfMessages=min(room, TENS),
            WaitTimeSeconds=_POLL_S,
            VisibilityTimeout=math.ceil(self.broker.settings.lease_s),
            MessageSystemAttributeNames=[_TIMES],
        )
        found = [message for message in answer.get("Messages", []) if message.keys() >= {"ReceiptHandle", "Body"}]
        if not found and time.monotonic() - begun < _TOO_SOON_S:
            raise BrokerUnavailable(f"{queue}: an empty answer without a wait is not one of SQS.")
        return found

    def _take(self, queue: str, message: dict[str, Any], transport: "Transport") -> None:
        """Hold a message and hand it to Celery's loop."""
        tag = str(uuid.uuid4())  # a new one each time it is given out: the message's own id would be the same
        times = int(message.get("Attributes", {}).get(_TIMES, 1))
        if not self.receipts.add(tag, queue, message["ReceiptHandle"], times):
            self.receipts.refuse(queue, [message["ReceiptHandle"]])
            return
        try:
            payload = envelope.read(message["Body"].encode(), self.broker.settings.signing_key)
        except ValueError as exc:
            self._set_aside(queue, tag, message["Body"], f"not a message of ours: {exc}")
            return
        payload["properties"]["delivery_tag"] = tag
        transport.loop.call_soon(transport.deliver, self, payload, queue, tag)

    def _set_aside(self, queue: str, tag: str, body: str, reason: str) -> None:
        """To the dead letters, for a person to look at; where SQS does not take it, when it comes again."""
        log.error("a message of %s was set aside: %s", queue, reason)
        try:
            self.broker.dead_letter(body, reason)
        except EmbedfleetError as exc:
            log.warning("sqs: %s", exc)
            self.receipts.give_back(tag)
        else:
            self.receipts.delete(tag)


class Transport(virtual.Transport):  # type: ignore[misc]
    """Any sqs URL, consumed with leases, in Celery's event loop."""

    Channel = Channel
    driver_type = driver_name = "sqs"
    polling_interval = None
    implements = virtual.Transport.implements.extend(asynchronous=True, exchange_type=frozenset({"direct"}))
    loop: Any = None

    def driver_version(self) -> str:
        """The broker's: there is no driver of kombu's."""
        return "boto3"

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:  # noqa: ARG002 - kombu's interface
        """Remember the loop in which messages are handed over."""
        self.loop = loop

    def deliver(self, channel: Any, payload: dict[str, Any], queue: str, tag: str) -> None:
        """In Celery's loop: hand a message over. Whatever Celery let through would end the loop, and the worker."""
        if queue not in self._callbacks:  # cancelled meanwhile
            channel.receipts.give_back(tag, 0)
            return
        try:
            self._deliver(payload, queue)
        except Exception as exc:
            log.error("a message of %s was given back: %s", queue, type(exc).__name__)
            channel.receipts.give_back(tag)
