"""The users of docs/redis.md, as it writes them, on a real server: what each may do, and what not."""

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from redis.exceptions import NoPermissionError

from embedfleet import Fleet
from embedfleet.broker import Broker, connect
from embedfleet.contract import Batch
from embedfleet.errors import BrokerUnavailable, WaitTimeout
from embedfleet.redis import RedisBroker
from embedfleet.redisclient import client_of
from embedfleet.settings import load
from tests.integration.command import start
from tests.unit.redis_server import RedisServer, running_redis
from tests.waiting import wait_until

DOCUMENT = Path(__file__).parents[2] / "docs" / "redis.md"
RULES = re.findall(r"^ACL SETUSER .*$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
BATCH = Batch(to="file:///data", job="j-1", batch=0, tokens=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server with the users, in which nobody else gets in."""
    with running_redis(tmp_path_factory.mktemp("redis")) as running:
        for rule in RULES:
            running.client.execute_command(*rule.split())
        running.client.execute_command("ACL", "SETUSER", "default", "off")
        yield running


def url(server: RedisServer, user: str) -> str:
    return server.url.replace("://", f"://embedfleet-{user}:PASSWORD@")


@pytest.fixture
def producer(server: RedisServer) -> Iterator[Fleet]:
    with Fleet(broker_url=url(server, "producer"), engine="synthetic") as fleet:
        yield fleet


def test_both_are_written_there() -> None:
    assert [rule.split()[2] for rule in RULES] == ["embedfleet-producer", "embedfleet-worker"]


def test_a_producer_may_do_all_that_a_fleet_does(producer: Fleet, server: RedisServer, tmp_path: Path) -> None:
    job = producer.submit(["a text"], to=str(tmp_path))
    producer.enqueue(["a text"], to=str(tmp_path))
    producer.republish(job)
    assert producer.broker.depth(producer.broker.lane("bulk")) == 3
    assert producer.workers() == []
    with pytest.raises(WaitTimeout):
        producer.embed(["a text"], timeout_s=0.1)
    with closing(connect(load(broker_url=f"{url(server, 'producer')}?virtual_host=1"))) as elsewhere:
        elsewhere.publish(BATCH, "embedfleet-q")


WORKS: dict[str, Callable[[Broker], object]] = {
    "check": lambda broker: broker.check(),
    "publish": lambda broker: broker.publish(BATCH, "embedfleet-q"),
    "depth": lambda broker: broker.depth("embedfleet-q"),
    "announce": lambda broker: broker.announce("embedfleet-q", "worker", 30),
    "workers": lambda broker: broker.workers("embedfleet-q"),
    "withdraw": lambda broker: broker.withdraw("embedfleet-q", "worker"),
    "reply": lambda broker: broker.reply("embedfleet-reply-1", b"answer"),
    "await_reply": lambda broker: broker.await_reply("embedfleet-reply-1", 5),
}


def test_a_worker_may_do_what_a_broker_can(server: RedisServer) -> None:
    with closing(connect(load(broker_url=url(server, "worker")))) as broker:
        for call in WORKS.values():
            call(broker)
        assert isinstance(broker, RedisBroker)
        script = "redis.call('RPOP', KEYS[1]) return redis.call('TIME')"
        assert broker.redis.eval(script, 1, "embedfleet-q")
        broker.redis.set("embedfleet:v1:key", b"value", ex=5)


def test_a_worker_does_all_its_work(server: RedisServer, tmp_path: Path) -> None:
    """Leases, starts, answers, the janitor's look, and what is set aside."""
    settings = {"broker_url": url(server, "worker"), "store": tmp_path / "store", "queue_prefix": "embedfleet-w"}
    worker = start("worker", cwd=tmp_path, **settings)
    try:
        with Fleet(**{**settings, "store": str(settings["store"])}, engine="synthetic") as fleet:
            job = fleet.submit([f"text {number}" for number in range(1000)])
            fleet.broker.redis.lpush(fleet.broker.lane("bulk"), "no message")
            assert job.wait(timeout_s=60).state == "done"
            assert fleet.embed(["a text"]).shape == (1, 384)
            wait_until(lambda: fleet.broker.look(fleet.broker.lane("bulk")).empty, "the last acknowledgements")
            wait_until(lambda: fleet.broker.letters().letters, "the letter")
            assert not fleet.broker.redis.exists(f"{fleet.broker.lane('bulk')}-starts")
    finally:
        worker.terminate()
        _, log = worker.communicate(timeout=30)
    assert b"NOPERM" not in log
    assert b"no permissions" not in log


FORBIDDEN = {
    "producer": ["LRANGE embedfleet-q 0 -1", "RPOP embedfleet-q", "DEL embedfleet-q", "EVAL return 0", "SUBSCRIBE x"],
    "worker": ["SUBSCRIBE x", "KEYS *"],
}
FOR_NOBODY = ["FLUSHALL", "CONFIG GET *", "ACL LIST", "SHUTDOWN", "LPUSH another 1", "BLPOP another 1", "DEBUG SLEEP 0"]


@pytest.mark.parametrize(("user", "command"), [(user, command) for user in FORBIDDEN for command in FORBIDDEN[user]])
def test_neither_may_do_more(server: RedisServer, user: str, command: str) -> None:
    with closing(client_of(url(server, user))) as client:
        for forbidden in (command, *FOR_NOBODY):
            with pytest.raises(NoPermissionError):
                client.execute_command(*forbidden.split())


def test_who_does_not_know_the_password_is_refused_and_told_none(server: RedisServer) -> None:
    wrong = url(server, "producer").replace("PASSWORD", "very-secret")
    with closing(connect(load(broker_url=wrong))) as broker, pytest.raises(BrokerUnavailable) as refused:
        broker.check()
    assert "invalid username-password pair" in str(refused.value)
    assert "very-secret" not in str(refused.value)
