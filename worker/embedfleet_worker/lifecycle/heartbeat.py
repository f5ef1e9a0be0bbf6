"""A worker's heartbeat: it renews the leases of what it holds and says that it is there.

kombu never renews, and would give long work out twice.
"""

import contextlib
import logging
import os
import socket
import threading
from typing import Any, ClassVar

from celery import bootsteps

from embedfleet.broker import Broker
from embedfleet.errors import BrokerUnavailable

log = logging.getLogger(__name__)

_NAME = f"{socket.gethostname()}-{os.getpid()}"


class Heartbeat(bootsteps.StartStopStep):  # type: ignore[misc]
    """A consumer step: every third of a lease, all messages that were taken and not acknowledged are renewed."""

    requires: ClassVar = ("celery.worker.consumer.tasks:Tasks",)
    broker: ClassVar[Broker]
    queues: ClassVar[list[str]]
    lease_s: ClassVar[float]

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._stop = threading.Event()

    def start(self, consumer: Any) -> None:
        """Begin to beat. Called again with a new channel after each reconnect."""
        self._stop = threading.Event()
        arguments = (consumer.task_consumer.channel, self._stop)
        threading.Thread(target=self._run, args=arguments, name="heartbeat", daemon=True).start()

    def stop(self, consumer: Any) -> None:  # noqa: ARG002 - Celery's interface
        """Stop renewing: what is still held goes back when the channel closes, or when its lease ends."""
        self._stop.set()
        with contextlib.suppress(BrokerUnavailable):
            for queue in self.queues:
                self.broker.withdraw(queue, _NAME)

    def _run(self, channel: Any, stop: threading.Event) -> None:
        while True:
            try:
                self._beat(channel)
            except Exception as exc:  # without this thread no lease would ever be renewed again
                log.warning("heartbeat: missed this time (%s)", type(exc).__name__)
            if stop.wait(self.lease_s / 3):
                return

    def _beat(self, channel: Any) -> None:
        channel.renew()
        for queue in self.queues:
            self.broker.announce(queue, _NAME, self.lease_s)
