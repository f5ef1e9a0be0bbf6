"""Redis as broker: which URLs and servers are taken, and which are refused by name."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from embedfleet import redis as module
from embedfleet.broker import connect
from embedfleet.errors import ConfigurationError
from embedfleet.redisclient import _Sentinels, client_of
from embedfleet.settings import load
from tests.unit.redis_server import RedisServer, running_redis

# URLs of Sentinels


@pytest.mark.parametrize(
    ("url", "hosts", "name", "user", "password", "database"),
    [
        ("redis+sentinel://a/main", [("a", 26379)], "main", None, None, 0),
        ("redis+sentinel://a:1,b,c:3/main/5", [("a", 1), ("b", 26379), ("c", 3)], "main", None, None, 5),
        ("redis+sentinel://me:p%2Fw%40@a:1/main/", [("a", 1)], "main", "me", "p/w@", 0),
        ("redis+sentinel://:p@w@10.0.0.1:1,[::1]:2/m-1.x", [("10.0.0.1", 1), ("::1", 2)], "m-1.x", None, "p@w", 0),
        ("redis+sentinel://a/main?sentinel_username=s&sentinel_password=p%26w", [("a", 26379)], "main", None, None, 0),
    ],
)
def test_the_parts_of_a_sentinel_url(
    url: str, hosts: list[tuple[str, int]], name: str, user: str | None, password: str | None, database: int
) -> None:
    connect(load(broker_url=url)).close()
    pool: Any = client_of(url).connection_pool
    asked = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
    assert [(one["host"], one["port"]) for one in asked] == hosts
    given = pool.connection_kwargs
    assert (pool.service_name, given["username"], given["password"], given["db"]) == (name, user, password, database)
    of_sentinels = ("s", "p&w") if "sentinel_password" in url else (None, None)
    assert {(one["username"], one["password"]) for one in asked} == {of_sentinels}


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://a:1",
        "redis+sentinel:///main",
        "redis+sentinel://a:1,/main",
        "redis+sentinel://a:x/main",
        "redis+sentinel://a:99999/main",
        "redis+sentinel://a:1/main/x",
        "redis+sentinel://a:1/main/0/0",
        "redis+sentinel://:pass-word@a:1,:pass-word@b:1/ma in",
        "redis+sentinel://me:pass-word@a:1/main?password=pass-word",
        "redis+sentinel://a b/main",
    ],
)
def test_a_sentinel_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="it is no Redis URL") as refused:
        connect(load(broker_url=url))
    assert "redis+sentinel://host:26379,host2:26379/master/0" in str(refused.value)
    assert "pass-word" not in str(refused.value)


def test_threads_that_look_for_the_master_at_once_lose_no_sentinel() -> None:
    """redis-py swaps two entries of one list: done by two threads at once, the same entry is there twice."""
    together = threading.Barrier(2)

    class Well:
        def sentinel_masters(self) -> dict[str, Any]:
            together.wait(5)
            state = {"is_master": True, "is_sdown": False, "is_odown": False, "num-other-sentinels": 0}
            return {"main": {**state, "ip": "10.0.0.1", "port": 1}}

    class Down:
        def sentinel_masters(self) -> dict[str, Any]:
            raise RedisConnectionError

    class Slow(list[Any]):
        """Time for the other thread between the two halves of a swap."""

        def __setitem__(self, *args: Any) -> None:
            super().__setitem__(*args)
            time.sleep(0.1)

    sentinels: Any = _Sentinels([])  # type: ignore[no-untyped-call]
    sentinels.sentinels = Slow([Down(), Well()])
    threads = [threading.Thread(target=sentinels.discover_master, args=("main",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(one).__name__ for one in sentinels.sentinels) == ["Down", "Well"]


# Servers


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path) as running:
        yield running


def refusal(url: str) -> str:
    with closing(connect(load(broker_url=url))) as broker, pytest.raises(ConfigurationError) as refused:
        broker.check()
    return str(refused.value)


def test_a_cluster_is_refused(tmp_path: Path) -> None:
    with running_redis(tmp_path, "--cluster-enabled", "yes") as server:
        assert "it is a cluster" in refusal(server.url)


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
def test_eviction_that_would_take_queues_is_refused(server: RedisServer, policy: str) -> None:
    server.client.config_set("maxmemory-policy", policy)
    said = refusal(server.url)
    assert f"its maxmemory-policy is {policy}" in said
    assert "Set noeviction, or volatile-lru" in said


@pytest.mark.parametrize("policy", ["noeviction", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"])
def test_eviction_that_leaves_queues_alone_is_taken(server: RedisServer, policy: str) -> None:
    server.client.config_set("maxmemory-policy", policy)
    with closing(connect(load(broker_url=server.url))) as broker:
        broker.check()


@pytest.mark.parametrize(("version", "refused"), [("5.0.14", True), ("6.0.16", True), ("6.2.0", False), ("7.0", False)])
def test_a_server_without_blmove_is_refused(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, version: str, refused: bool
) -> None:
    """No server as old is to be had: the answer of this one is changed."""
    with closing(connect(load(broker_url=server.url))) as broker:
        info = broker.redis.info  # type: ignore[attr-defined]
        monkeypatch.setattr(broker.redis, "info", lambda section: {**info(section), "redis_version": version})  # type: ignore[attr-defined]
        if refused:
            with pytest.raises(ConfigurationError, match=f"it is Redis {version}, which lacks BLMOVE"):
                broker.check()
        else:
            broker.check()


def test_a_server_that_says_nothing_of_itself_is_taken() -> None:
    """Some that speak Redis' protocol."""
    assert module._unfit({}, {}) is None
    assert module._unfit({"redis_version": "unstable"}, {}) is None


def test_a_user_that_may_not_ask_is_no_error(server: RedisServer) -> None:
    server.client.config_set("maxmemory-policy", "allkeys-lru")
    server.client.acl_setuser("someone", enabled=True, nopass=True, keys=["*"], commands=["+ping"])
    url = server.url.replace("redis+socket://", "redis+socket://someone:x@")
    with closing(connect(load(broker_url=url))) as broker:
        broker.check()
