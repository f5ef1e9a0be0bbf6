"""Redis as broker: publishing, replies, who is there. Leases are the worker's (its transport/redis.py)."""

import re
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from threading import Event
from typing import Any

from redis.exceptions import NoPermissionError, ReadOnlyError, RedisError

from embedfleet import policies
from embedfleet.broker import CONNECT_TIMEOUT_S, Broker, masked_reason
from embedfleet.envelope import Message, wrap
from embedfleet.errors import BrokerUnavailable, ConfigurationError, WaitTimeout
from embedfleet.letters import MAX_LETTERS, Letter, Listing, digest, listing
from embedfleet.masking import mask_url
from embedfleet.queueview import QueueView, published_at, work_of
from embedfleet.redisclient import check_redis_url, client_of
from embedfleet.settings import FleetSettings

_REPLY_TTL_S = 600
_FORGET_S = 24 * 3600  # longer than any lease: a queue that nobody consumes any more leaves nothing behind
_MAX_CONNECTIONS = 10_000  # one for each thread that waits for an answer; the driver's 100 would fail the next
_PRIORITY_STEPS = ("", "\x06\x163", "\x06\x166", "\x06\x169")
"""What is behind a queue's name in the names of its lists, as kombu has them."""
_OLDEST_OF = 1000
"""Messages looked at where they are taken from: what was given back lies there, of any age, before the oldest."""
_OLDEST = (6, 2)  # has BLMOVE, with which workers wait
_BLOCK_S = 2.0  # one blocking look for a reply; short, so that Ctrl-C and an abandoned call are heard

_OLD_QUARANTINE = "unacked-quarantine"  # of all fleets on a database, before there were letters
_PAGE = 200  # letters in one answer: each may have 88 KB


# Not a transaction: Redis at its memory limit refuses all of one.
_LOOK = """
local seen = {redis.call('TIME'), redis.call('HVALS', KEYS[1])}
for list = 2, #KEYS do
  seen[#seen + 1] = redis.call('LRANGE', KEYS[list], ARGV[1], -1)
end
return seen
"""

# A command first that frees memory: Redis at its limit refuses scripts that begin with another.
_PUSH = """
redis.call('HDEL', KEYS[2], '')
redis.call('LPUSH', KEYS[1], ARGV[1])
if ARGV[2] ~= '0' then
  redis.call('EXPIRE', KEYS[1], ARGV[2])
end
"""


class RedisBroker(Broker):
    """One Redis server: lanes are lists, as Celery has them."""

    def __init__(self, settings: FleetSettings, url: str) -> None:
        check_redis_url(url, "broker")
        super().__init__(settings, url)
        timeouts = {"socket_connect_timeout": CONNECT_TIMEOUT_S, "socket_timeout": CONNECT_TIMEOUT_S + _BLOCK_S}
        self.redis: Any = client_of(self.url, max_connections=_MAX_CONNECTIONS, **timeouts)

    def check(self, *queues: str) -> None:  # noqa: ARG002 - a list is there when something is in it
        """Ask for a sign of life, and whether the server can be a broker: ConfigurationError when it can't."""
        self.call(self.redis.ping)
        unfit = _unfit(self.call(self._info, "server"), self.call(self._info, "memory"))
        if unfit is not None:
            raise ConfigurationError(f"broker {mask_url(self.url)}: {unfit}.")

    def clock(self) -> float:
        """The broker's Unix time in s, the one clock that all agree on."""
        seconds, micros = self.call(self.redis.time)
        return float(seconds) + float(micros) / 1e6

    def depth(self, queue: str) -> int:
        """Messages waiting in a queue."""
        return int(self.call(self.redis.llen, queue))

    def look(self, queue: str) -> QueueView:
        """In one step: a message on its way between the queue and its leases is seen."""
        keys = [lease_keys(queue)[0], *lists(queue)]
        (seconds, micros), leases, *waits = self.call(self.redis.eval, _LOOK, len(keys), *keys, -_OLDEST_OF)
        waiting = [published_at(message) for messages in waits for message in messages]
        leased = frozenset(work for message in leases if (work := work_of(message)) is not None)
        return QueueView(float(seconds) + float(micros) / 1e6, min(waiting, default=None), leased)

    def call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        """An operation of the driver's. Raises BrokerUnavailable for whatever it raises."""
        try:
            return operation(*args, **kwargs)
        except (RedisError, OSError) as exc:
            if isinstance(exc, ReadOnlyError) or "-READONLY" in str(exc):  # that is how 6.2 says it of a script
                # A master until now: who tries again gets a new connection.
                self.redis.connection_pool.disconnect(inuse_connections=False)
            raise BrokerUnavailable(
                f"broker {mask_url(self.url)}: it can't be reached ({masked_reason(exc)}). "
                "Check EMBEDFLEET_BROKER_URL and that the server runs."
            ) from None
        except (AttributeError, LookupError, TypeError, ValueError):  # what the driver's parsers trip over
            raise BrokerUnavailable(
                f"broker {mask_url(self.url)}: what answers is not Redis. Check EMBEDFLEET_BROKER_URL."
            ) from None

    def publish_all(self, messages: Sequence[Message], queue: str) -> None:
        """In one request, where the consumers take from the other end."""
        if messages:
            policies.BROKER(self._publish, messages, queue)

    def hand_over(self, message: Message, queue: str) -> None:
        """Also at the server's memory limit: the message that is done with then makes room for more than this takes."""
        wrapped = wrap(message, queue, at=self.now(), key=self.settings.signing_key)
        policies.BROKER(self._push, queue, wrapped)

    def reply(self, key: str, payload: bytes) -> None:
        """Put an answer where its caller waits for it, also at the memory limit; forgotten after ten minutes."""
        self._push(key, payload, _REPLY_TTL_S)

    def await_reply(self, key: str, timeout_s: float, abandoned: Event | None = None) -> bytes:
        """The answer put under ``key``. Raises WaitTimeout."""
        end = time.monotonic() + timeout_s
        while (left := end - time.monotonic()) > 0 and not (abandoned and abandoned.is_set()):
            found = self.call(self.redis.blpop, [key], max(min(left, _BLOCK_S), 0.01))
            if found:
                return bytes(found[1])
        raise WaitTimeout(f"no answer within {timeout_s:g} s. Is a worker for this model running?")

    def announce(self, queue: str, worker: str, ttl_s: float) -> None:
        """Say that a worker consumes a queue, for the next ``ttl_s`` seconds."""
        now = self.now()
        pipe = self.redis.pipeline(transaction=False)
        pipe.zremrangebyscore(f"{queue}-workers", "-inf", now).zadd(f"{queue}-workers", {worker: now + ttl_s})
        pipe.expire(f"{queue}-workers", _FORGET_S)
        self.call(pipe.execute)

    def withdraw(self, queue: str, worker: str) -> None:
        """Take back what :meth:`announce` said."""
        self.call(self.redis.zrem, f"{queue}-workers", worker)

    def workers(self, queue: str) -> list[str]:
        """Names of the workers that lately said they consume a queue."""
        names = self.call(self.redis.zrangebyscore, f"{queue}-workers", self.clock(), "+inf")
        return sorted(name.decode() for name in names)

    def dead_letter(self, letter: Letter) -> None:
        """Keep what nobody can do in ``{prefix}-dead``, also at the memory limit."""
        self._push(self.dead_queue, letter.dumps())

    def letters(self, limit: int = MAX_LETTERS) -> Listing:
        """The dead letters, newest first. They stay."""
        found = [letter for _, _, letter in self._letters(limit + 1)]
        return listing(found, limit, complete=True)

    def remove_letters(self, ids: Collection[str]) -> int:
        """Forget dead letters; how many were there."""
        there = [(name, stored, letter.id) for name, stored, letter in self._letters() if letter.id in ids]
        pipe = self.redis.pipeline(transaction=False)
        for name, stored, _ in there:  # by what they are, not where: workers add to the list meanwhile
            pipe.lrem(name, 0, stored)
        self.call(pipe.execute)
        return len({letter for _, _, letter in there})

    def _letters(self, limit: int | None = None) -> Iterator[tuple[str, bytes, Letter]]:
        """Each with its list and the form in which it is kept there; of each list the newest."""
        for name in (self.dead_queue, _OLD_QUARANTINE):
            for start in range(0, limit or sys.maxsize, _PAGE):
                page = self.call(self._page, name, start, min(start + _PAGE, limit or sys.maxsize) - 1)
                for stored in page:
                    if name == _OLD_QUARANTINE:
                        reason = "no message of ours; an earlier version set it aside"
                        yield name, stored, Letter.quarantined(stored, reason, "", 0, digest(stored))
                    else:
                        yield name, stored, Letter.read(stored)
                if len(page) < _PAGE:
                    break

    def _page(self, name: str, first: int, last: int) -> list[bytes]:
        """Of a list; the old quarantine's name is none that a fleet's user may touch."""
        try:
            found: list[bytes] = self.redis.lrange(name, first, last)
        except NoPermissionError:
            if name != _OLD_QUARANTINE:
                raise
            return []
        return found

    def close(self) -> None:
        """Close the connections."""
        self.redis.close()

    def _push(self, key: str, what: bytes | str, ttl_s: int = 0) -> None:
        self.call(self.redis.eval, _PUSH, 2, key, lease_keys(key)[0], what, ttl_s)

    def _publish(self, messages: Sequence[Message], queue: str) -> None:
        at, key = self.now(), self.settings.signing_key
        self.call(self.redis.lpush, queue, *(wrap(message, queue, at=at, key=key) for message in messages))

    def _info(self, section: str) -> Mapping[str, object]:
        """What the server says of itself; nothing where its user may not ask."""
        try:
            found: Mapping[str, object] = self.redis.info(section)
        except NoPermissionError:
            return {}
        return found


def lists(queue: str) -> list[str]:
    """Of a queue, in the order in which they are taken from."""
    return [f"{queue}{step}" for step in _PRIORITY_STEPS]


def lease_keys(queue: str) -> tuple[str, str]:
    """Of a queue's leases (a hash) and of when they end (a sorted set)."""
    return f"{queue}-leases", f"{queue}-ends"


def _unfit(server: Mapping[str, object], memory: Mapping[str, object]) -> str | None:
    """Why a server can't be a broker, by what it says of itself, and what to do; None if it can."""
    version, policy = str(server.get("redis_version", "")), str(memory.get("maxmemory_policy", ""))
    if server.get("redis_mode") == "cluster":
        return "it is a cluster, where a queue and its leases may be on two servers. Use one server, or Sentinel"
    if server.get("redis_mode") == "sentinel":
        return "it is a Sentinel. Its URL looks like redis+sentinel://host:26379/master"
    number = re.match(r"(\d+)\.(\d+)", version)
    if number and (int(number[1]), int(number[2])) < _OLDEST:
        return f"it is Redis {version}, which lacks BLMOVE. Use 6.2 or later"
    if policy.startswith("allkeys-"):  # whatever its limit is now: it is set in a hurry, when memory is short
        return (
            f"its maxmemory-policy is {policy}, which removes queues when memory is short. Set noeviction, or "
            "volatile-lru if the vector cache is there too: cache entries expire, queues and leases don't"
        )
    return None
