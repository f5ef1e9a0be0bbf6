"""redis+sentinel://, on a real master, replica and Sentinel: who is found, and how a fleet goes on after a failover."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from embedfleet.broker import Broker, connect
from embedfleet.contract import Batch
from embedfleet.errors import BrokerUnavailable, ConfigurationError
from embedfleet.redis import RedisBroker
from embedfleet.settings import load
from embedfleet_worker.cache import Entry, VectorCache
from tests.integration.command import run
from tests.sentinel import Watched, watched
from tests.waiting import wait_until

BATCH = Batch(to="file:///data", job="j-1", batch=0, tokens=1)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Servers that no test ends."""
    with watched(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def broker(servers: Watched) -> Iterator[Broker]:
    with closing(connect(load(broker_url=servers.url))) as connected:
        yield connected


def test_the_master_is_found_through_the_first_sentinel_that_answers(broker: Broker, servers: Watched) -> None:
    """With a password for the master and none for the Sentinels, which would refuse it."""
    broker.check()
    broker.publish(BATCH, "q")
    with servers.master.client() as client:
        assert client.llen("q") == 1


def test_the_database_is_that_of_the_url(servers: Watched) -> None:
    with closing(connect(load(broker_url=f"{servers.url[:-1]}3"))) as connected:
        connected.publish(BATCH, "third")
    with servers.master.client() as client:
        assert client.llen("third") == 0
        client.select(3)
        assert client.llen("third") == 1


def test_sentinels_with_a_password(tmp_path: Path) -> None:
    with watched(tmp_path, sentinel_password="another") as servers:
        with closing(connect(load(broker_url=servers.url))) as connected:
            connected.check()
        with (
            closing(connect(load(broker_url=servers.url.partition("?")[0]))) as refused,
            pytest.raises(BrokerUnavailable, match="No master found"),
        ):
            refused.check()


def test_a_master_that_no_sentinel_knows_is_unavailable(servers: Watched) -> None:
    url = servers.url.replace("/main/", "/another/")
    with closing(connect(load(broker_url=url))) as connected, pytest.raises(BrokerUnavailable) as refused:
        connected.check()
    assert "No master found for 'another'" in str(refused.value)
    assert "word" not in str(refused.value).partition("(")[0]


def test_a_sentinel_is_no_broker(servers: Watched) -> None:
    url = f"redis://127.0.0.1:{servers.sentinel.port}/0"
    with (
        closing(connect(load(broker_url=url))) as connected,
        pytest.raises(ConfigurationError, match=r"redis\+sentinel://"),
    ):
        connected.check()


def test_doctor_and_config_show_no_password(servers: Watched, tmp_path: Path) -> None:
    for command in (("doctor",), ("config", "show")):
        done = run(*command, cwd=tmp_path, broker_url=servers.url, store=tmp_path / "store")
        assert done.returncode == 0, done.stderr
        assert "word" not in done.stdout.replace("passwords", "")
    assert "EMBEDFLEET_BROKER_URL=redis+sentinel://:***@127.0.0.1:" in done.stdout


def test_the_cache_may_be_there_too(servers: Watched) -> None:
    import numpy as np

    cache = VectorCache(servers.url, 2)
    cache.set([(b"embedfleet:v1:key", Entry(1, 1, False, np.zeros(2, "<f4")))])
    [found] = cache.get([b"embedfleet:v1:key"])
    assert found is not None
    cache._redis.close()


def test_publishing_and_replies_go_on_after_the_master_was_killed(tmp_path: Path) -> None:
    with watched(tmp_path) as servers, closing(connect(load(broker_url=servers.url))) as broker:
        broker.publish(BATCH, "before")
        before = servers.master
        wait_until(lambda: length(servers, "before", 1), "the replica to have it")
        before.kill()
        sent = wait_until(lambda: tried(broker), "publishing", timeout_s=30)
        assert servers.master is not before
        for _ in range(20):  # and from now on at once, on every connection
            broker.publish(BATCH, "after")
        assert broker.depth("after") == 20 + sent
        assert broker.depth("before") == 1
        broker.reply("key", b"answer")
        assert broker.await_reply("key", 5) == b"answer"


def length(servers: Watched, queue: str, expected: int) -> bool:
    """Whether every server has as much in a queue."""
    lengths = []
    for node in servers.servers:
        with node.client() as client:
            lengths.append(client.llen(queue))
    return lengths == [expected] * len(lengths)


def tried(broker: Broker) -> int | None:
    """Publish as an application that tries again."""
    try:
        broker.publish(BATCH, "after")
    except BrokerUnavailable:
        return None
    return broker.depth("after")


def test_a_master_that_became_a_replica_is_left_at_the_next_try(tmp_path: Path) -> None:
    """Nobody died: connections to the old one stay open, and it refuses to write."""
    with watched(tmp_path) as servers, closing(connect(load(broker_url=servers.url))) as broker:
        broker.publish(BATCH, "q")
        before = servers.master
        with servers.sentinel.client() as client:
            client.execute_command("SENTINEL", "FAILOVER", "main")
        wait_until(lambda: servers.master is not before, "the failover", timeout_s=20)
        broker.publish(BATCH, "q")  # its own retries are enough
        assert broker.depth("q") == 2


def test_a_server_that_became_a_replica_behind_its_name_is_left_at_the_next_try(tmp_path: Path) -> None:
    """As with a name that moves: the next connection may lead elsewhere, the open one never does."""
    with watched(tmp_path) as servers:
        url = f"redis://:pass%2Fword@127.0.0.1:{servers.master.port}/0"
        with closing(connect(load(broker_url=url))) as broker, servers.master.client() as client:
            broker.publish(BATCH, "q")
            assert isinstance(broker, RedisBroker)
            [open_now] = broker.redis.connection_pool._available_connections
            client.replicaof("127.0.0.1", 1)
            with pytest.raises(BrokerUnavailable, match="read only"):
                broker.reply("key", b"answer")
            assert not open_now.is_connected
