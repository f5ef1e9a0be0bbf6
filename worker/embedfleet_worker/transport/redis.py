"""kombu's Redis transport with one difference: a message is popped and leased in a single step on the server.

Stock kombu pops first and writes the lease when the reply has been read. A worker killed in between has lost
the message, and with an engine busy in the same process that is not rare. Renewing is heartbeat.py's.
"""

import time
from importlib.resources import files
from json import loads
from queue import Empty
from typing import Any

import kombu.transport
from kombu.transport import redis, virtual

_NAME = f"{__name__}:Transport"
_LEASE_SCRIPT = files(__package__).joinpath("lease.lua").read_text(encoding="utf-8")
# How long one blocked look at the first queue lasts; the others are looked at in between, so that a bulk
# message waits at most this long for an idle worker and an interactive one not at all.
_LOOK_S = 0.1
RESERVED = 2
"""Of the messages a consumer may hold, those that only the first queue's can be: bulk never takes every slot."""


def install() -> None:
    """Have every redis:// URL of this process use this transport: the scheme decides, whatever Celery is told.

    kombu remembers what it resolved before; a worker that went on with the stock transport would lose messages.
    """
    for scheme in ("redis", "rediss"):
        kombu.transport.TRANSPORT_ALIASES[scheme] = _NAME
        kombu.transport._transport_cache.pop(scheme, None)


class QoS(redis.QoS):  # type: ignore[misc]
    """What this consumer holds. The lease is there already when a message arrives."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Remember it in this process only."""
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Give up the lease. When Redis is gone the message is forgotten here, and comes back when its lease ends.

        kombu would go on counting it as held: with every slot so taken the worker never polls again, and so never
        notices that Redis is back.
        """
        try:
            super().ack(delivery_tag)
        except self.channel.connection_errors:
            virtual.QoS.ack(self, delivery_tag)
            raise

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give the message back; when Redis is gone, as in :meth:`ack`."""
        try:
            super().reject(delivery_tag, requeue)
        except self.channel.connection_errors:
            virtual.QoS.ack(self, delivery_tag)
            raise


class Channel(redis.Channel):  # type: ignore[misc]
    """Sends the lease script where the stock channel sends BRPOP, and a look that removes nothing when all is empty."""

    QoS = QoS
    _looking = False

    def _brpop_start(self, timeout: float | None = None) -> None:  # noqa: ARG002 - kombu's interface
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        room = self.qos.can_consume_max_estimate()  # None: no limit
        if room is not None and room <= RESERVED:
            queues = queues[:1]
        self._in_poll = self.client.connection
        self._brpop_sent_at = time.monotonic()
        if self._looking:
            first = self._q_for_pri(queues[0], 0)
            command = ["BLMOVE", first, first, "RIGHT", "RIGHT", _LOOK_S]
        else:
            lists = [(self._q_for_pri(queue, step), queue) for step in self.priority_steps for queue in queues]
            keys, names = [key for key, _ in lists], [name for _, name in lists]
            quarantine = f"{self.unacked_key}-quarantine"
            leases = [time.time(), self.unacked_key, self.unacked_index_key, quarantine]
            command = ["EVAL", _LEASE_SCRIPT, len(keys), *keys, *leases, *names]
        self.client.connection.send_command(*command)

    def _brpop_read(self, **options: Any) -> bool:
        looked = self._looking
        try:
            reply = self.client.parse_response(self.client.connection, "BLMOVE" if looked else "EVAL", **options)
        except self.connection_errors:
            self.client.connection.disconnect()  # the next turn of the loop connects again
            raise
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        self._looking = reply is None and not looked
        if looked or reply is None:
            raise Empty
        queue, message = reply
        self.connection._deliver(loads(message), queue.decode())
        return True


class Transport(redis.Transport):  # type: ignore[misc]
    """Any redis URL, consumed with leases."""

    Channel = Channel
