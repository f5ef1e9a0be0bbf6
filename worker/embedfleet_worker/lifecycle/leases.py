"""Renewing the leases of what this worker holds. kombu never does, and would give long work out twice."""

import logging
import threading
import time
from typing import Any, ClassVar

from celery import bootsteps
from embedfleet.broker import Broker
from redis.exceptions import RedisError

log = logging.getLogger(__name__)


class LeaseHeartbeat(bootsteps.StartStopStep):  # type: ignore[misc]
    """A consumer step: every third of a lease, all messages that were taken and not acknowledged are renewed."""

    requires: ClassVar = ("celery.worker.consumer.tasks:Tasks",)
    broker: ClassVar[Broker]
    lease_s: ClassVar[float]

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._stop = threading.Event()

    def start(self, consumer: Any) -> None:
        """Begin to renew. Called again with a new channel after each reconnect."""
        self._stop = threading.Event()
        arguments = (consumer.task_consumer.channel, self._stop)
        threading.Thread(target=self._renew, args=arguments, name="leases", daemon=True).start()

    def stop(self, consumer: Any) -> None:  # noqa: ARG002 - Celery's interface
        """Stop renewing: what is still held goes back when the channel closes, or when its lease ends."""
        self._stop.set()

    def _renew(self, channel: Any, stop: threading.Event) -> None:
        while not stop.wait(self.lease_s / 3):
            now = time.time()
            held = dict.fromkeys(list(channel.qos._delivered), now)
            if not held:
                continue
            try:
                # xx: a lease that ended meanwhile is another worker's and stays that.
                self.broker.redis.zadd(channel.unacked_index_key, held, xx=True)
            except (RedisError, OSError) as exc:
                log.warning("leases: not renewed this time (%s)", type(exc).__name__)
