"""Redis as broker: publishing, replies, who is there. Leases are the worker's (its transport/redis.py)."""

import json
import re
import time
from collections.abc import Sequence
from threading import Event
from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis
from redis.exceptions import RedisError

from embedfleet.broker import CONNECT_TIMEOUT_S, PUBLISH_POLICY, Broker, masked_reason
from embedfleet.envelope import Message, wrap
from embedfleet.errors import BrokerUnavailable, ConfigurationError, WaitTimeout
from embedfleet.masking import mask, mask_url
from embedfleet.settings import FleetSettings

_REPLY_TTL_S = 600
_FORGET_S = 24 * 3600  # longer than any lease: a queue that nobody consumes any more leaves nothing behind
_MAX_CONNECTIONS = 10_000  # one for each thread that waits for an answer; the driver's 100 would fail the next
_BLOCK_S = 2.0  # one blocking look for a reply; short, so that Ctrl-C and an abandoned call are heard

# By scheme, what Celery and redis-py both understand behind the question mark.
_TLS_OPTIONS = ("ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")
_URL_OPTIONS: dict[str, tuple[str, ...]] = {"redis": (), "rediss": _TLS_OPTIONS, "redis+socket": ("virtual_host",)}


class RedisBroker(Broker):
    """One Redis server: lanes are lists, as Celery has them."""

    def __init__(self, settings: FleetSettings, url: str) -> None:
        check_redis_url(url, "broker")
        super().__init__(settings, url)
        timeouts = {"socket_connect_timeout": CONNECT_TIMEOUT_S, "socket_timeout": CONNECT_TIMEOUT_S + _BLOCK_S}
        self.redis: Any = redis.Redis.from_url(redis_url(self.url), max_connections=_MAX_CONNECTIONS, **timeouts)

    def check(self, *queues: str) -> None:  # noqa: ARG002 - a list is there when something is in it
        """Ask for a sign of life."""
        self.call(self.redis.ping)

    def clock(self) -> float:
        """The broker's Unix time in s, the one clock that all agree on."""
        seconds, micros = self.call(self.redis.time)
        return float(seconds) + float(micros) / 1e6

    def depth(self, queue: str) -> int:
        """Messages waiting in a queue."""
        return int(self.call(self.redis.llen, queue))

    def is_idle(self, queue: str) -> bool:
        """Nothing waits in it, and no lease is of it: each says its queue at its end."""
        if self.depth(queue):
            return False
        return not any(lease.endswith(f'"{queue}"]'.encode()) for lease in self.call(self.redis.hvals, "unacked"))

    def publish_all(self, messages: Sequence[Message], queue: str) -> None:
        """In one request, where the consumers take from the other end."""
        if messages:
            PUBLISH_POLICY(lambda: self.call(self.redis.lpush, queue, *(wrap(message, queue) for message in messages)))

    def reply(self, key: str, payload: bytes) -> None:
        """Put an answer where its caller waits for it; it is forgotten after ten minutes."""
        pipe = self.redis.pipeline()
        pipe.rpush(key, payload)
        pipe.expire(key, _REPLY_TTL_S)
        self.call(pipe.execute)

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
        now = self.clock()
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

    def dead_letter(self, message: object, reason: str) -> None:
        """Keep a message that nobody can do, with the reason, in ``{prefix}-dead``."""
        letter = json.dumps({"message": message, "reason": reason, "at": time.time()})
        self.call(self.redis.lpush, self.dead_queue, letter)

    def close(self) -> None:
        """Close the connections."""
        self.redis.close()

    def call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return operation(*args, **kwargs)
        except (RedisError, OSError) as exc:
            raise BrokerUnavailable(
                f"broker {mask_url(self.url)}: it can't be reached ({masked_reason(exc)}). "
                "Check EMBEDFLEET_BROKER_URL and that the server runs."
            ) from None


def redis_url(url: str) -> str:
    """The URL as redis-py writes it, which has other names for a socket and its database than Celery."""
    return re.sub(r"^redis\+socket:", "unix:", url).replace("?virtual_host=", "?db=")


def check_redis_url(url: str, what: str) -> None:
    """Raise ConfigurationError, naming ``what``, for what is no Redis URL that Celery and redis-py read alike."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in _URL_OPTIONS:
            raise ValueError(
                f"{parts.scheme or 'no scheme'} is not supported; give redis://, rediss:// or redis+socket://"
            )
        for option in parse_qs(parts.query, keep_blank_values=True):
            if option not in _URL_OPTIONS[parts.scheme]:
                known = ", ".join(_URL_OPTIONS[parts.scheme]) or "none"
                raise ValueError(f"the option {option!r} is not known; {parts.scheme}:// has {known}")
        if parts.scheme != "redis+socket" and not re.fullmatch(r"/?\d*", parts.path):
            raise ValueError("the database behind the host must be a number")
        parts.port  # noqa: B018 - raises ValueError
        redis.ConnectionPool.from_url(redis_url(url))
    except ValueError as exc:
        raise ConfigurationError(
            f"{what} {mask(url)}: it is no Redis URL ({mask_url(str(exc))}). It looks like redis://host:6379/0; "
            "write / in a password as %2F."
        ) from None
