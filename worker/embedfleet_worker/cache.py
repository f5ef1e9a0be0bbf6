"""The vector cache: Redis, one MGET and one pipelined SET a batch, passed by when it is down. Not what is cached when.

One entry answers every ``dimensions``: the full vector is kept. Who can write to the cache is trusted.
"""

import hashlib
import json
import logging
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from embedfleet import policies
from embedfleet.errors import CacheUnavailable
from embedfleet.redisclient import check_redis_url, client_of
from embedfleet_worker.engine.base import Identity

log = logging.getLogger(__name__)

KEY_VERSION = 2
_TIMEOUT_S = 0.5  # a batch takes the engine about as long: a slow cache may not cost more than it saves
_PAUSE_S = 10.0  # after a failure, so that a cache that is down costs one timeout in ten seconds
_TTL_S = 30 * 24 * 3600
_HEAD = struct.Struct("<II?")


@dataclass(frozen=True, slots=True)
class Entry:
    """What is kept of one prompt."""

    n_tokens: int
    """Given to the model."""
    tokens_in: int
    """Of the whole prompt: more only if it was truncated."""
    truncated: bool
    vector: np.ndarray[Any, Any]
    """(full dimensions,) float32."""


class KeyMaker:
    """Keys of one engine and policy: everything that changes a vector is in them, ``dimensions`` is not."""

    def __init__(self, identity: Identity, max_tokens: int, on_overflow: str, salt: str) -> None:
        truncation_side = "right"
        fields = [KEY_VERSION, *astuple(identity), max_tokens, truncation_side, on_overflow, salt]
        # JSON keeps the borders between fields; the digest has one length, so prefix + prompt is injective too.
        self._prefix = hashlib.sha256(json.dumps(fields).encode()).digest()

    def key(self, prompt: str) -> bytes:
        """The Redis key of a final prompt."""
        digest = hashlib.sha256(self._prefix + prompt.encode("utf-8"))
        return f"embedfleet:v{KEY_VERSION}:{digest.hexdigest()}".encode()


class VectorCache:
    """Entries by key. Never raises for a cache that is down: it finds nothing and keeps nothing then."""

    def __init__(self, url: str, dimensions: int) -> None:
        check_redis_url(url, "cache")
        timeouts = {"socket_timeout": _TIMEOUT_S, "socket_connect_timeout": _TIMEOUT_S}
        self._redis: Any = client_of(url, **timeouts)
        self._size = _HEAD.size + 4 * dimensions
        self._down_until = 0.0

    def get(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """One entry a key, None where there is none; one round trip."""
        if not keys or self._is_down():
            return [None] * len(keys)
        values = self._ask(lambda: self._redis.mget(keys))
        return [None] * len(keys) if values is None else [self._decode(value) for value in values]

    def set(self, entries: Sequence[tuple[bytes, Entry]]) -> None:
        """Keep the entries; one round trip."""
        if not entries or self._is_down():
            return

        def put() -> object:
            pipe = self._redis.pipeline(transaction=False)
            for key, entry in entries:
                head = _HEAD.pack(entry.n_tokens, entry.tokens_in, entry.truncated)
                pipe.set(key, head + entry.vector.tobytes(), ex=_TTL_S)
            return pipe.execute()

        self._ask(put)

    def _ask(self, operation: Callable[[], Any]) -> Any:
        """What it answers; None when it is passed by from now on."""

        def ask() -> Any:
            try:
                return operation()
            except RedisConnectionError as exc:  # not a timeout: that has cost enough
                raise CacheUnavailable(type(exc).__name__) from None

        try:
            return policies.CACHE(ask)
        except (CacheUnavailable, RedisError, OSError) as exc:
            self._down_until = time.monotonic() + _PAUSE_S
            log.warning("cache: passed by for %g s (%s)", _PAUSE_S, type(exc).__name__)
            return None

    def _decode(self, value: bytes | None) -> Entry | None:
        if value is None or len(value) != self._size:
            return None
        n_tokens, tokens_in, truncated = _HEAD.unpack_from(value)
        return Entry(n_tokens, tokens_in, truncated, np.frombuffer(value, "<f4", offset=_HEAD.size))

    def _is_down(self) -> bool:
        return time.monotonic() < self._down_until
