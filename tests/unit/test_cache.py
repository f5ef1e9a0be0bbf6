"""The vector cache: keys that differ when anything does, and a cache that is down, slow or full."""

import socket
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError

from embedfleet.errors import ConfigurationError
from embedfleet_worker import cache as module
from embedfleet_worker.cache import Entry, KeyMaker, VectorCache
from embedfleet_worker.engine.base import Identity
from tests.unit.fake_engine import IDENTITY
from tests.unit.redis_server import RedisServer, running_redis

ENTRY = Entry(3, 3, False, np.array([0.6, 0.8], np.float32))

short = st.text(max_size=3)
identities = st.builds(Identity, short, short, short, st.none() | short, short, short, st.none() | short, short)
keys = st.tuples(identities, st.integers(1, 99), st.sampled_from(["error", "truncate"]), short, short)


def key(parts: tuple[Identity, int, str, str, str]) -> bytes:
    *fields_of_maker, prompt = parts
    return KeyMaker(*fields_of_maker).key(prompt)


# Keys


@given(keys, keys)
def test_keys_are_equal_exactly_when_everything_is(
    first: tuple[Identity, int, str, str, str], second: tuple[Identity, int, str, str, str]
) -> None:
    assert (key(first) == key(second)) == (first == second)


@pytest.mark.parametrize("name", [field.name for field in fields(Identity)])
def test_every_field_of_the_engines_identity_is_in_the_key(name: str) -> None:
    other = replace(IDENTITY, **{name: "another"})
    assert KeyMaker(IDENTITY, 512, "error", "").key("a") != KeyMaker(other, 512, "error", "").key("a")


def test_no_revision_is_not_a_revision_called_none() -> None:
    other = replace(IDENTITY, revision="null")
    assert KeyMaker(IDENTITY, 512, "error", "").key("a") != KeyMaker(other, 512, "error", "").key("a")


def test_a_border_between_fields_cannot_be_moved() -> None:
    first = replace(IDENTITY, engine="ab", engine_version="c")
    second = replace(IDENTITY, engine="a", engine_version="bc")
    assert KeyMaker(first, 512, "error", "").key("a") != KeyMaker(second, 512, "error", "").key("a")
    assert KeyMaker(IDENTITY, 512, "error", "x").key("y") != KeyMaker(IDENTITY, 512, "error", "").key("xy")


# A cache that works


@pytest.fixture
def cache(redis_server: RedisServer) -> VectorCache:
    return VectorCache(redis_server.url, 2)


def test_what_was_kept_is_found_in_the_order_of_the_keys(cache: VectorCache) -> None:
    other = Entry(9, 12, True, np.array([-1, 0], np.float32))
    cache.set([(b"one", ENTRY), (b"two", other)])
    two, none, one = cache.get([b"two", b"missing", b"one"])
    assert none is None
    assert two is not None
    assert one is not None
    assert (two.n_tokens, two.truncated, two.vector.tobytes()) == (9, True, other.vector.tobytes())
    assert (one.n_tokens, one.truncated, one.vector.tobytes()) == (3, False, ENTRY.vector.tobytes())


def test_nothing_costs_no_round_trip(cache: VectorCache, redis_server: RedisServer) -> None:
    cache.get([b"warm up"])
    before = commands(redis_server)
    assert cache.get([]) == []
    cache.set([])
    assert commands(redis_server) == before + 1, "the look at the count itself"


def test_a_batch_is_one_command_to_read(cache: VectorCache, redis_server: RedisServer) -> None:
    cache.get([b"warm up"])
    before = commands(redis_server)
    cache.get([b"%d" % n for n in range(500)])
    assert commands(redis_server) == before + 2


def commands(server: RedisServer) -> int:
    return int(server.client.info("stats")["total_commands_processed"])


# A cache that does not


@pytest.fixture
def silent() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"


def closed() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"redis://127.0.0.1:{listener.getsockname()[1]}/0"


def seconds(cache: VectorCache) -> float:
    """How long a batch's two calls take when nothing is found and nothing raised."""
    begun = time.monotonic()
    assert cache.get([b"a", b"b"]) == [None, None]
    cache.set([(b"a", ENTRY)])
    return time.monotonic() - begun


def test_a_cache_that_never_answers_costs_half_a_second_once(silent: str) -> None:
    cache = VectorCache(silent, 2)
    assert seconds(cache) < 1.0
    assert seconds(cache) < 0.05, "it is passed by for a while"


def test_a_cache_that_is_not_there_costs_nothing() -> None:
    assert seconds(VectorCache(closed(), 2)) < 0.5


def test_a_cache_that_comes_back_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)
    with running_redis(tmp_path) as server:
        cache = VectorCache(server.url, 2)
        server.kill()
        assert cache.get([b"a"]) == [None]
    with running_redis(tmp_path):
        cache.set([(b"a", ENTRY)])
        assert cache.get([b"a"])[0] is not None


def test_the_pause_ends(monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    cache = VectorCache(silent, 2)
    cache.get([b"k"])
    assert cache._is_down()
    later = time.monotonic() + module._PAUSE_S
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert not cache._is_down()


def test_a_connection_that_is_lost_once_costs_no_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_redis(tmp_path) as server:
        cache = VectorCache(server.url, 2)
        cache.set([(b"k", Entry(1, 1, False, np.ones(2, np.float32)))])
        mget, lost = cache._redis.mget, [RedisConnectionError("reset")]

        def ask(keys: list[bytes]) -> Any:
            if lost:
                raise lost.pop()
            return mget(keys)

        monkeypatch.setattr(cache._redis, "mget", ask)
        assert cache.get([b"k"]) != [None]
        assert not cache._is_down()


def test_a_cache_that_is_full_or_read_only_is_passed_by(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server:
        server.client.config_set("maxmemory", "1")
        cache = VectorCache(server.url, 2)
        cache.set([(b"a", ENTRY)])
        assert cache.get([b"a"]) == [None]


def test_a_cache_that_wants_a_password_is_passed_by(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server:
        server.client.config_set("requirepass", "secret")
        assert VectorCache(server.url, 2).get([b"a"]) == [None]


@pytest.mark.parametrize("url", ["nonsense", "", "http://host", "redis://host:port", "redis://[", "redis://h:99999"])
def test_an_address_that_is_none_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError):
        VectorCache(url, 2)
