"""The Celery app for a broker URL, queue names, publishing and replies. Not what a message says (contract.py)."""

import hashlib
import json
import re
import ssl
import time
import uuid
from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis
from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, stop_after_delay, wait_exponential_jitter

from embedfleet.contract import TASK_ANSWER, TASK_EMBED, Batch, Document, Request
from embedfleet.errors import BrokerUnavailable, ConfigurationError, WaitTimeout
from embedfleet.settings import FleetSettings, mask, mask_url

CONNECT_TIMEOUT_S = 5.0
_REPLY_TTL_S = 600
_FORGET_S = 24 * 3600  # longer than any lease: a queue that nobody consumes any more leaves nothing behind
_BLOCK_S = 2.0  # one blocking look for a reply; short, so that Ctrl-C is heard

# By scheme, what Celery and redis-py both understand behind the question mark.
_TLS_OPTIONS = ("ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")
_URL_OPTIONS: dict[str, tuple[str, ...]] = {"redis": (), "rediss": _TLS_OPTIONS, "redis+socket": ("virtual_host",)}

# Publishing again is harmless (a part is written once), so what may or may not have arrived is sent again.
_PUBLISH_POLICY = Retrying(
    retry=retry_if_exception_type(BrokerUnavailable),
    stop=stop_after_attempt(4) | stop_after_delay(15),
    wait=wait_exponential_jitter(multiplier=0.2, max=3),
    reraise=True,
)


def queue_name(prefix: str, model: str, revision: str | None, lane: str) -> str:
    """Queue of a model's lane: readable, at most 80 characters of ``[a-z0-9-]``, as SQS allows.

    >>> queue_name("embedfleet", "sentence-transformers/all-MiniLM-L6-v2", None, "bulk")
    'embedfleet-sentence-transformers-all-minilm-l6-v2-b01c9bbb-bulk'
    """
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:40].strip("-")
    digest = hashlib.sha256(f"{model}\0{revision or ''}".encode()).hexdigest()[:8]
    return f"{prefix}-{slug}-{digest}-{lane}"


def celery_app(url: str, lease_s: float) -> Celery:
    """Celery for this broker: JSON only, acknowledged late, no results; used by producers and workers alike."""
    app = Celery("embedfleet", broker=url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_acks_late=True,
        task_acks_on_failure_or_timeout=False,
        task_ignore_result=True,
        # kombu would not look at the server's certificate unless told to; what the URL says goes first.
        broker_use_ssl={"ssl_cert_reqs": ssl.CERT_REQUIRED} if url.startswith("rediss:") else None,
        task_publish_retry=False,  # one retry policy, ours
        broker_connection_timeout=CONNECT_TIMEOUT_S,
        broker_transport_options={
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "socket_timeout": CONNECT_TIMEOUT_S,  # a server that hangs would hold a publisher, or the worker's loop
            "visibility_timeout": lease_s,
            # No retries of kombu's own below our policy: it would try for seconds each time.
            "max_retries": 0,
            "interval_start": 0,
            "interval_step": 0,
            "interval_max": 0,
        },
    )
    return app


class Broker:
    """Where messages go and replies come from. Thread-safe."""

    def __init__(self, settings: FleetSettings) -> None:
        self._settings = settings
        self.url = _checked_url(settings)
        self.app = celery_app(self.url, settings.lease_s)
        timeouts = {"socket_connect_timeout": CONNECT_TIMEOUT_S, "socket_timeout": CONNECT_TIMEOUT_S + _BLOCK_S}
        self.redis: Any = redis.Redis.from_url(redis_url(self.url), **timeouts)

    def check(self) -> None:
        """Raise BrokerUnavailable, naming the URL without its password, unless the broker answers in time."""
        self._call(self.redis.ping)

    def clock(self) -> float:
        """The broker's Unix time in s, the one clock that all agree on."""
        seconds, micros = self._call(self.redis.time)
        return float(seconds) + float(micros) / 1e6

    def queue(self, model: str, lane: str) -> str:
        """Name of a model's queue in this fleet. The synthetic engine has its own: real work never goes there."""
        named = f"synthetic/{model}" if self._settings.engine == "synthetic" else model
        return queue_name(self._settings.queue_prefix, named, self._settings.revision, lane)

    def depth(self, queue: str) -> int:
        """Messages waiting in a queue."""
        return int(self._call(self.redis.llen, queue))

    def publish(self, message: Batch | Request, queue: str) -> None:
        """Send a message; raises BrokerUnavailable after bounded tries. Every publish has a new task id."""
        task = TASK_EMBED if isinstance(message, Batch) else TASK_ANSWER
        _PUBLISH_POLICY(self._send, task, message, queue)

    def reply(self, key: str, payload: bytes) -> None:
        """Put an answer where its caller waits for it; it is forgotten after ten minutes."""
        pipe = self.redis.pipeline()
        pipe.rpush(key, payload)
        pipe.expire(key, _REPLY_TTL_S)
        self._call(pipe.execute)

    def await_reply(self, key: str, timeout_s: float) -> bytes:
        """The answer put under ``key``. Raises WaitTimeout."""
        end = time.monotonic() + timeout_s
        while (left := end - time.monotonic()) > 0:
            found = self._call(self.redis.blpop, [key], max(min(left, _BLOCK_S), 0.01))
            if found:
                return bytes(found[1])
        raise WaitTimeout(f"no answer within {timeout_s:g} s. Is a worker for this model running?")

    def announce(self, queue: str, worker: str, ttl_s: float) -> None:
        """Say that a worker consumes a queue, for the next ``ttl_s`` seconds."""
        now = self.clock()
        pipe = self.redis.pipeline(transaction=False)
        pipe.zremrangebyscore(f"{queue}-workers", "-inf", now).zadd(f"{queue}-workers", {worker: now + ttl_s})
        pipe.expire(f"{queue}-workers", _FORGET_S)
        self._call(pipe.execute)

    def withdraw(self, queue: str, worker: str) -> None:
        """Take back what :meth:`announce` said."""
        self._call(self.redis.zrem, f"{queue}-workers", worker)

    def workers(self, queue: str) -> list[str]:
        """Names of the workers that lately said they consume a queue."""
        names = self._call(self.redis.zrangebyscore, f"{queue}-workers", self.clock(), "+inf")
        return sorted(name.decode() for name in names)

    def dead_letter(self, message: object, reason: str) -> None:
        """Keep a message that nobody can do, with the reason, in ``{prefix}-dead``."""
        letter = json.dumps({"message": message, "reason": reason, "at": time.time()})
        self._call(self.redis.lpush, f"{self._settings.queue_prefix}-dead", letter)

    def close(self) -> None:
        """Close the connections."""
        self.app.close()
        self.redis.close()

    def _send(self, task: str, message: Document, queue: str) -> None:
        self._call(
            self.app.send_task,
            task,
            args=[message.model_dump(mode="json")],
            queue=queue,
            task_id=str(uuid.uuid4()),
            argsrepr="",  # Celery would put the texts into a header too, and from there into logs
            retry=False,
        )

    def _call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return operation(*args, **kwargs)
        except (RedisError, OperationalError, OSError) as exc:
            reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
            raise BrokerUnavailable(
                f"broker {mask_url(self.url)}: it can't be reached ({mask_url(reason)}). "
                "Check EMBEDFLEET_BROKER_URL and that the server runs."
            ) from None


def _checked_url(settings: FleetSettings) -> str:
    if settings.broker_url is None:
        raise ConfigurationError(
            "no broker: set EMBEDFLEET_BROKER_URL (or --broker-url) to redis://host:6379/0, "
            "or start a fleet on this machine with `embedfleet up`."
        )
    url = settings.broker_url.get_secret_value()
    check_redis_url(url, "broker")
    return url


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
