"""kombu's Redis transport with one difference: a message is popped and leased in a single step on the server.

Stock kombu pops first and writes the lease when the reply has been read. A worker killed in between has lost
the message, and with an engine busy in the same process that is not rare. Renewing is heartbeat.py's.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.resources import files
from queue import Empty
from typing import Any, ClassVar

import kombu.transport
from kombu.transport import redis, virtual
from redis.exceptions import RedisError, ResponseError

from embedfleet.broker import CONNECT_TIMEOUT_S
from embedfleet.redis import RedisBroker
from embedfleet_worker.transport import GIVEN_BACK_S, TAKEN, envelope, give_back_in_s, running

log = logging.getLogger(__name__)

_NAME = f"{__name__}:Transport"
_LEASE_SCRIPT = files(__package__).joinpath("lease.lua").read_text(encoding="utf-8")
# How long one blocked look at the first queue lasts; the others are looked at in between, so that a bulk
# message waits at most this long for an idle worker and an interactive one not at all. At work a look also delays
# the next message of a lane in which room has just come: six batches could not be more than sixty a second.
_LOOK_S, _LOOK_AT_WORK_S = 0.1, 0.02
_REFUSED_S = 1.0


def install(broker: RedisBroker, limits: Mapping[str, int]) -> dict[str, Any]:
    """Have every redis:// URL of this process use this transport; Celery's options for it.

    The scheme decides, whatever Celery is told: kombu remembers what it resolved before, and a worker that went on
    with the stock transport would lose messages. ``limits``: messages held at once, by queue.
    """
    Channel.broker, Channel.limits = broker, limits
    for scheme in ("redis", "rediss"):
        kombu.transport.TRANSPORT_ALIASES[scheme] = _NAME
        kombu.transport._transport_cache.pop(scheme, None)
    return {
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": CONNECT_TIMEOUT_S,  # a server that hangs would hold the worker's loop
        "visibility_timeout": broker.settings.lease_s,
        "queue_order_strategy": "priority",  # queues in the order they are consumed: interactive first
        # Batches of a dead worker are given out again a second after their lease ended.
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 5,
        # No retries of kombu's own below Celery's: it would try for seconds each time.
        "max_retries": 0,
        "interval_start": 0,
        "interval_step": 0,
        "interval_max": 0,
    }


class QoS(redis.QoS):  # type: ignore[misc]
    """What this consumer holds. The lease is there already when a message arrives."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Remember it in this process only."""
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Give up the lease. When Redis can't be told, it is forgotten here and the message comes back when it ends.

        kombu would go on counting it as held: with every slot so taken the worker never polls again, and so never
        notices that Redis is back.
        """
        virtual.QoS.ack(self, delivery_tag)
        self.channel.held.pop(delivery_tag, None)
        give_back_in_s.pop(delivery_tag, None)
        with _told(), self.channel.conn_or_acquire() as client:
            # Not in a transaction: Redis at its memory limit refuses all of one, and then nothing would ever drain.
            pipe = client.pipeline(transaction=False)
            pipe.zrem(self.unacked_index_key, delivery_tag).hdel(self.unacked_key, delivery_tag).execute()

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give the message back: its lease ends in a moment. When Redis can't be told, as in :meth:`ack`.

        In a moment, not now: a dependency that is down must not make messages spin.
        """
        if not requeue:
            self.ack(delivery_tag)
            return
        virtual.QoS.ack(self, delivery_tag)
        self.channel.held.pop(delivery_tag, None)
        delay_s = give_back_in_s.pop(delivery_tag, GIVEN_BACK_S)
        with _told(), self.channel.conn_or_acquire() as client:
            ends = time.time() - self.visibility_timeout + delay_s
            client.zadd(self.unacked_index_key, {delivery_tag: ends}, xx=True)

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Bring back messages whose lease ended; a server that refuses is asked again in a second."""
        with suppress(ResponseError):
            super().restore_visible(*args, **kwargs)


@contextmanager
def _told() -> Iterator[None]:
    """Inside, whatever Redis answers is a lost connection to Celery, which passes that by; all else ends its loop.

    A server may be at its memory limit, unable to persist, or have become a replica.
    """
    try:
        yield
    except ResponseError as exc:
        raise ConnectionError(str(exc)) from None


class Channel(redis.Channel):  # type: ignore[misc]
    """Sends the lease script where the stock channel sends BRPOP, and a look that removes nothing when all is empty."""

    QoS = QoS
    broker: ClassVar[RedisBroker]
    limits: ClassVar[Mapping[str, int]]
    _looking = False

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        self.held: dict[str, str] = {}
        """Queues of the messages that are held, by delivery tag."""
        super().__init__(connection, **kwargs)

    def renew(self) -> None:
        """Lengthen the leases of what is held. Raises RedisError and OSError."""
        held = dict.fromkeys(list(self.held), time.time())
        if held:
            # xx: what was acknowledged or given back meanwhile stays so.
            self.broker.redis.zadd(self.unacked_index_key, held, xx=True)

    def _with_room(self, queues: list[str]) -> list[str]:
        """Those of which more may be held: none is kept waiting by another's work.

        What an earlier channel took before the connection was lost is counted while its thread works on it.
        """
        held = Counter(self.held.values())
        held.update(queue for queue, channel in list(running.values()) if channel != id(self))
        return [queue for queue in queues if held[queue] < self.limits[queue]]

    def _brpop_start(self, timeout: float | None = None) -> None:  # noqa: ARG002 - kombu's interface
        queues = self._with_room(self._queue_cycle.consume(len(self.active_queues)))
        if not queues:
            return
        self._in_poll = self.client.connection
        self._brpop_sent_at = time.monotonic()
        if self._looking:
            first = self._q_for_pri(queues[0], 0)
            command = ["BLMOVE", first, first, "RIGHT", "RIGHT", _LOOK_AT_WORK_S if self.held else _LOOK_S]
        else:
            lists = [(self._q_for_pri(queue, step), queue) for step in self.priority_steps for queue in queues]
            keys, names = [key for key, _ in lists], [name for _, name in lists]
            leases = [time.time(), self.unacked_key, self.unacked_index_key, self._quarantine]
            command = ["EVAL", _LEASE_SCRIPT, len(keys), *keys, *leases, *names]
        self.client.connection.send_command(*command)

    def _brpop_read(self, **options: Any) -> bool:
        looked = self._looking
        try:
            reply = self.client.parse_response(self.client.connection, "BLMOVE" if looked else "EVAL", **options)
        except self.connection_errors:
            self.client.connection.disconnect()  # the next turn of the loop connects again
            raise
        except ResponseError as exc:  # at its memory limit, unable to persist, a replica by now: it may pass
            log.warning("redis refused to give messages: %s", str(exc).partition(".")[0])
            self.client.connection.disconnect()
            self._looking = False
            time.sleep(_REFUSED_S)
            raise Empty from None
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        self._looking = reply is None and not looked
        if looked or reply is None:
            raise Empty
        queue, message, tag = reply[0].decode(), reply[1], reply[2].decode(errors="surrogateescape")
        self.held[tag] = queue
        try:
            payload = envelope.read(message, self.broker.settings.signing_key)
            payload["properties"][TAKEN] = queue, id(self)
            self.connection._deliver(payload, queue)
        except (RedisError, OSError):  # not kombu's connection_errors: those have KeyError among them
            raise
        except Exception as exc:  # whatever Celery's loop lets through would end the worker, and then the next one
            log.error("a message was set aside in %s: %s", self._quarantine, _reason(exc))
            self._set_aside(message, tag)
        return True

    def _set_aside(self, message: bytes, tag: str) -> None:
        """Out of the leases, into the quarantine, for a person to look at; where Redis refuses, when it comes again."""
        self.held.pop(tag, None)
        if tag in self.qos._delivered:
            virtual.QoS.ack(self.qos, tag)
        with suppress(ResponseError), self.conn_or_acquire() as client, client.pipeline() as pipe:
            name = tag.encode(errors="surrogateescape")
            pipe.lpush(self._quarantine, message)
            pipe.zrem(self.unacked_index_key, name).hdel(self.unacked_key, name).execute()

    @property
    def _quarantine(self) -> str:
        return f"{self.unacked_key}-quarantine"


def _reason(exc: Exception) -> str:
    """envelope.py says what is wrong without quoting; anything else might quote a text."""
    return str(exc) if type(exc) is ValueError else type(exc).__name__


class Transport(redis.Transport):  # type: ignore[misc]
    """Any redis URL, consumed with leases."""

    Channel = Channel
