"""Celery's side of the transports: a queue is polled from when it is consumed until it is cancelled, by a thread.

kombu's own transports lose messages on a kill, renew nothing, and stop for good at some answers. Nothing here raises
into Celery's loop: a broker that is down is waited for, so there is nothing to reconnect, and what runs goes on.
"""

import logging
import random
import socket
import threading
import uuid
from typing import Any, ClassVar

import kombu.transport
from kombu.transport import virtual

from embedfleet.broker import Broker
from embedfleet.errors import EmbedfleetError
from embedfleet.letters import Letter
from embedfleet_worker.transport import Back, Leases, Taken, envelope, given_back
from embedfleet_worker.transport.holding import Holding

log = logging.getLogger(__name__)

URL = "embedfleet://-"
"""What Celery is told of the broker: no more than this transport needs to know."""
_NAME = f"{__name__}:Transport"
_AGAIN_S, _AGAIN_MAX_S = 1.0, 30.0


class Side:
    """What the transport of this process works with: Celery makes its objects by itself, and hands nothing on."""

    broker: ClassVar[Broker]
    leases: ClassVar[Leases]
    holding: ClassVar[Holding]
    failing: ClassVar[set[str]] = set()
    """Queues of which the last poll failed."""


def failing() -> bool:
    """Whether the broker gives no messages of some queue."""
    return bool(Side.failing)


def install(broker: Broker, leases: Leases, holding: Holding) -> None:
    """Have :data:`URL` lead to this transport."""
    Side.broker, Side.leases, Side.holding = broker, leases, holding
    kombu.transport.TRANSPORT_ALIASES["embedfleet"] = _NAME


class QoS(virtual.QoS):  # type: ignore[misc]
    """Hands on how a message ended."""

    def ack(self, delivery_tag: str) -> None:
        """It is done with."""
        super().ack(delivery_tag)
        given_back.pop(delivery_tag, None)
        Side.holding.done(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give the message back; as with a task of ours, what is not given back is done with."""
        if not requeue:
            self.ack(delivery_tag)
            return
        virtual.QoS.ack(self, delivery_tag)
        Side.holding.give_back(delivery_tag, given_back.pop(delivery_tag, Back()))

    def restore_unacked_once(self, *_: object, **__: object) -> None:
        """Going down is the drain's; threads may still work on what is held."""
        self._on_collect.cancel()  # else every channel there ever was is kept until the process ends


class Channel(virtual.Channel):  # type: ignore[misc]
    """Polls the queues that are consumed."""

    QoS = QoS

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._stops: dict[str, threading.Event] = {}

    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **kwargs: Any) -> None:
        """Begin to poll a queue."""
        super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)
        self._stops[consumer_tag] = stop = threading.Event()
        poll = (queue, stop, self.connection)  # kombu takes the connection from a channel that is closed
        threading.Thread(target=_poll, args=poll, name=f"poll {queue}", daemon=True).start()

    def basic_cancel(self, consumer_tag: str) -> None:
        """Stop polling; what a poll under way still brings is given back at once."""
        if consumer_tag in self._stops:
            self._stops.pop(consumer_tag).set()
        super().basic_cancel(consumer_tag)


class Transport(virtual.Transport):  # type: ignore[misc]
    """Our leases, in Celery's event loop."""

    Channel = Channel
    driver_type = driver_name = "embedfleet"
    polling_interval = None
    implements = virtual.Transport.implements.extend(asynchronous=True, exchange_type=frozenset({"direct"}))
    loop: Any = None
    _never_readable: tuple[socket.socket, socket.socket] | None = None

    def driver_version(self) -> str:
        """There is no driver of kombu's."""
        return "-"

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:  # noqa: ARG002 - kombu's interface
        """Remember the loop in which messages are handed over.

        It needs something to read, or it sleeps for a tenth of a second where it should wait to be woken.
        """
        self.loop = loop
        self._never_readable = socket.socketpair()
        loop.add_reader(self._never_readable[0], lambda: None)

    def close_connection(self, connection: Any) -> None:
        """Close the channels; the loop goes on without us."""
        super().close_connection(connection)
        if self._never_readable is not None:
            self.loop.remove_reader(self._never_readable[0])
            for end in self._never_readable:
                end.close()
            self._never_readable = None

    def deliver(self, messages: "list[tuple[str, dict[str, Any]]]", queue: str) -> None:
        """In Celery's loop: hand messages over. Whatever Celery let through would end the loop, and the worker."""
        for tag, payload in messages:
            if queue not in self._callbacks:  # cancelled meanwhile
                Side.holding.give_back(tag, Back(0))
                continue
            try:
                self._deliver(payload, queue)
            except Exception as exc:
                log.error("a message of %s was given back: %s", queue, type(exc).__name__)
                Side.holding.give_back(tag)


def _poll(queue: str, stop: threading.Event, transport: Transport) -> None:
    """Take what there is room for, until stopped. Whatever happens, the next poll may do."""
    failures = 0
    while not stop.is_set():
        room = Side.holding.wait_for_room(queue, timeout_s=1)
        if not room:
            continue
        try:
            found = Side.leases.take(queue, room)
            if stop.is_set():
                Side.holding.refuse(found)
                return
            messages = [message for each in found if (message := _receive(each))]
            if messages:
                transport.loop.call_soon(transport.deliver, messages, queue)
            failures = 0
            Side.failing.discard(queue)
        except Exception as exc:  # without this thread nothing is ever taken again
            if failures == 0:
                log.warning("taking: %s", exc if isinstance(exc, EmbedfleetError) else type(exc).__name__)
            Side.failing.add(queue)
            stop.wait(min(_AGAIN_S * 2**failures, _AGAIN_MAX_S) * random.uniform(0.5, 1))
            failures = min(failures + 1, 10)


def _receive(taken: Taken) -> tuple[str, dict[str, Any]] | None:
    """Hold a message and read it; None when there is nothing to hand over."""
    tag = _hold(taken)
    if tag is None:
        return None
    try:
        payload = _read(tag, taken)
    except Exception as exc:  # the others of this poll are handed over all the same
        log.error("a message of %s was given back: %s", taken.queue, type(exc).__name__)
        Side.holding.give_back(tag)
        return None
    return None if payload is None else (tag, payload)


def _hold(taken: Taken) -> str | None:
    """The message's tag in this process; None when nothing is held any more."""
    tag = uuid.uuid4().hex
    if Side.holding.add(tag, taken):
        return tag
    Side.holding.refuse([taken])
    return None


def _read(tag: str, taken: Taken) -> dict[str, Any] | None:
    """The message as kombu wants it. What is none of ours is set aside, for a person to look at."""
    try:
        payload = envelope.read(taken.message, Side.broker.settings.signing_key)
    except ValueError as exc:
        _set_aside(tag, taken, f"not a message of ours: {exc}")
        return None
    payload["properties"]["delivery_tag"] = tag
    return payload


def _set_aside(tag: str, taken: Taken, reason: str) -> None:
    """To the dead letters; where the broker does not take it, when it comes again."""
    log.error("a message of %s was set aside: %s", taken.queue, reason)
    try:
        Side.broker.dead_letter(Letter.quarantined(taken.message, reason, taken.queue, Side.broker.now()))
    except EmbedfleetError as exc:
        log.warning("dead letter: %s", exc)
        Side.holding.give_back(tag)
    else:
        Side.holding.done(tag)
