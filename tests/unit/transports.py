"""A consumer of our transport for the tests: Celery's side without Celery, on whatever broker."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import kombu.transport
import pytest
from kombu import Connection, Consumer, Queue
from kombu.asynchronous import Hub

from embedfleet.broker import Broker
from embedfleet_worker.app import leases_of
from embedfleet_worker.transport import channel
from embedfleet_worker.transport.holding import Holding
from tests.waiting import wait_until


class Taker:
    """Consumes queues, with room for so many messages of each. Its loop runs while a test waits for something."""

    def __init__(self, broker: Broker, limits: Mapping[str, int], longest_s: float = 3600) -> None:
        self.broker = broker
        self.leases = leases_of(broker, list(limits))
        self.holding = Holding(self.leases, limits, broker.settings.lease_s, longest_s)
        channel.install(broker, self.leases, self.holding)
        self.connection = Connection(channel.URL)
        self.hub = Hub()
        self.transport: Any = self.connection.transport
        self.transport.register_with_event_loop(self.connection.connection, self.hub)
        self.taken: list[Any] = []
        self.channel: Any = self.connection.channel()
        queues = [Queue(name, routing_key=name) for name in limits]
        self.consumer = Consumer(self.channel, queues, callbacks=[lambda _, message: self.taken.append(message)])
        before = set(threading.enumerate())
        self.consumer.consume()
        self._polls = set(threading.enumerate()) - before

    def wait(self, count: int, timeout_s: float = 15) -> list[Any]:
        """Wait until so many have been taken; what each says. kombu's loop keeps no order between two polls."""

        def taken() -> bool:
            self.hub.run_once()
            return len(self.taken) >= count

        wait_until(taken, f"{count} messages", timeout_s)
        return [message.payload[0][0] for message in self.taken]

    def look(self, seconds: float) -> None:
        """Let Celery's loop run for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.hub.run_once()

    def room(self, queue: str) -> int:
        """How many more messages of a queue it would take now."""
        return self.holding.wait_for_room(queue, 0)

    def cancel(self) -> None:
        """Consume no more."""
        self.consumer.cancel()

    def close(self) -> None:
        """As a worker goes, and wait for its polls."""
        self.holding.stop_taking()
        self.cancel()
        self.holding.close(1)
        for poll in self._polls:
            poll.join(10)
        self.connection.close()
        self.hub.close()


@contextmanager
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, what kombu and the transport keep for the whole process is the test's own."""
    monkeypatch.setattr(kombu.transport, "_transport_cache", dict(kombu.transport._transport_cache))
    monkeypatch.setattr(kombu.transport, "TRANSPORT_ALIASES", dict(kombu.transport.TRANSPORT_ALIASES))
    monkeypatch.setattr(channel.Side, "failing", set())
    yield
