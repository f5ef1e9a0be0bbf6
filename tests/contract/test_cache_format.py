"""The cache's keys and values: an upgraded fleet finds what the one before it kept, and nothing that is wrong."""

import numpy as np
import pytest

from embedfleet_worker.cache import Entry, KeyMaker, VectorCache
from tests.contract.conftest import Golden
from tests.contract.documents import CACHE_KEYS
from tests.unit.redis_server import RedisServer

VECTOR = np.array([1.0, -0.5, 3.0e-8, 0.0], np.float32)
VALUE = bytes.fromhex("0500000009000000010000803f000000bf59d9003300000000")
"""n_tokens and tokens_in as uint32, truncated as one byte, the full vector as float32; all little-endian."""
DAY_S = 24 * 3600


@pytest.mark.parametrize("name", CACHE_KEYS)
def test_a_key_is_exactly_this(golden: Golden, name: str) -> None:
    fields, prompt = CACHE_KEYS[name]
    assert KeyMaker(*fields).key(prompt).decode() == golden.json("cache-keys-v2.json")[name]


def test_keys_of_different_things_differ(golden: Golden) -> None:
    keys = golden.json("cache-keys-v2.json")
    assert len(set(keys.values())) == len(keys) == len(CACHE_KEYS)


def test_no_key_is_one_of_version_1_whose_values_had_another_form(golden: Golden) -> None:
    assert not set(golden.json("cache-keys-v1.json").values()) & set(golden.json("cache-keys-v2.json").values())


def test_a_value_is_exactly_these_bytes_and_lasts_30_days(redis_server: RedisServer) -> None:
    cache = VectorCache(redis_server.url, 4)
    cache.set([(b"key", Entry(5, 9, True, VECTOR))])
    assert redis_server.client.get("key") == VALUE
    assert 29 * DAY_S < redis_server.client.ttl("key") <= 30 * DAY_S


def test_a_value_that_was_kept_before_is_read(redis_server: RedisServer) -> None:
    redis_server.client.set("key", VALUE)
    (entry,) = VectorCache(redis_server.url, 4).get([b"key"])
    assert entry is not None
    assert (entry.n_tokens, entry.tokens_in, entry.truncated) == (5, 9, True)
    assert entry.vector.tobytes() == VECTOR.tobytes()


@pytest.mark.parametrize("value", [b"", VALUE[:-1], VALUE + b"\0", VALUE[:-4], b"\0" * 5])
def test_a_value_of_another_size_is_not_found(redis_server: RedisServer, value: bytes) -> None:
    redis_server.client.set("key", value)
    assert VectorCache(redis_server.url, 4).get([b"key"]) == [None]


def test_a_key_that_holds_something_else_is_not_found(redis_server: RedisServer) -> None:
    redis_server.client.delete("key")
    redis_server.client.rpush("key", VALUE)
    assert VectorCache(redis_server.url, 4).get([b"key"]) == [None]
