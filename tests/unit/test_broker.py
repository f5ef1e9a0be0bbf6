"""The broker when it works and when it does not: bounded time, our errors only, never a password."""

import signal
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tenacity import stop_after_attempt, wait_none

from embedfleet import broker as module
from embedfleet import policies
from embedfleet import redis as redis_module
from embedfleet.broker import Broker, connect
from embedfleet.contract import Batch
from embedfleet.errors import BrokerUnavailable, ConfigurationError, WaitTimeout
from embedfleet.letters import Letter
from embedfleet.redis import RedisBroker
from embedfleet.settings import load
from tests.unit.redis_server import RedisServer, running_redis
from tests.waiting import wait_until

BATCH = Batch(to="file:///data", job="j-1", batch=0, tokens=1)
CALLS: dict[str, Callable[[Broker], object]] = {
    "check": lambda broker: broker.check(),
    "clock": lambda broker: broker.clock(),
    "now": lambda broker: broker.now(),
    "depth": lambda broker: broker.depth("q"),
    "publish": lambda broker: broker.publish(BATCH, "q"),
    "reply": lambda broker: broker.reply("key", b"answer"),
    "await_reply": lambda broker: broker.await_reply("key", 1),
    "announce": lambda broker: broker.announce("q", "worker", 30),
    "workers": lambda broker: broker.workers("q"),
    "letters": lambda broker: broker.letters(),
    "remove_letters": lambda broker: broker.remove_letters(["0123456789ab"]),
    "dead_letter": lambda broker: broker.dead_letter(Letter.of({}, "reason", "q", 0)),
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def closed() -> Iterator[Broker]:
    """A broker at a port where nobody listens."""
    unreachable = connect(load(broker_url=f"redis://me:very-secret@127.0.0.1:{free_port()}/0"))
    yield unreachable
    unreachable.close()


@pytest.fixture
def _one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies.BROKER, "stop", stop_after_attempt(1))


@pytest.mark.usefixtures("_one_attempt")
@pytest.mark.parametrize("name", CALLS)
def test_a_broker_that_is_not_there_is_named_at_once_and_its_password_never(closed: Broker, name: str) -> None:
    begun = time.monotonic()
    named = r"^broker redis://me:\*\*\*@127.0.0.1:\d+/0: it can't be reached"
    with pytest.raises(BrokerUnavailable, match=named) as met:
        CALLS[name](closed)
    assert time.monotonic() - begun < 2
    assert "very-secret" not in "".join(traceback.format_exception(met.value))
    assert met.value.__cause__ is None


def test_publishing_is_tried_four_times(closed: RedisBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies.BROKER, "wait", wait_none())
    attempts: list[object] = []

    def refuse(*_: object, **__: object) -> None:
        attempts.append(None)
        raise OSError("refused")

    monkeypatch.setattr(closed, "redis", SimpleNamespace(lpush=refuse, time=lambda: (0, 0), close=closed.redis.close))
    with pytest.raises(BrokerUnavailable):
        closed.publish(BATCH, "q")
    assert len(attempts) == 4


def test_publishing_goes_on_when_the_broker_is_back(
    broker: RedisBroker, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, refusals = broker.redis.lpush, iter([OSError("refused")])

    def refuse_at_first(*args: Any, **kwargs: Any) -> None:
        for refusal in refusals:
            raise refusal
        send(*args, **kwargs)

    monkeypatch.setattr(broker.redis, "lpush", refuse_at_first)
    broker.publish(BATCH, "q")
    assert broker.depth("q") == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (None, "no broker: set EMBEDFLEET_BROKER_URL"),
        ("amqp://me:very-secret@host//", "amqp is not supported"),
        ("localhost:6379", "is not supported"),
        ("redis://me:very-secret@host:port/0", "broker "),
        ("redis://me:very-secret@host:99999/0", "broker "),
        ("redis://:very/secret@host:6379/0", "broker "),
        ("redis://:half#of-a-secret@host:6379/0", "a port, a number"),
        ("redis://:half?of-a-secret@host:6379/0", "the option behind the question mark"),
        ("redis://:half?secret=x@host:6379/0", "the option behind the question mark"),
        ("redis://[", "broker "),
        ("redis://host/0?socket_timeout=soon", "broker "),
    ],
)
def test_an_address_that_is_none_is_a_configuration_error(url: str | None, said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        connect(load(broker_url=url))
    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


# The broker's clock


def test_the_clock_is_the_brokers_whatever_this_machine_says(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = time.time()
    monkeypatch.setattr(time, "time", lambda: expected + 3600)
    assert broker.now() == pytest.approx(expected, abs=5)


def test_the_clock_is_asked_once_a_minute_and_goes_on_in_between(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed, asked = iter([0, 0, 1, 1, 60, 60, 61, 61, 61, 62, 62]), iter([1000.0, 2000.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(passed))
    monkeypatch.setattr(broker, "clock", lambda: next(asked))
    assert [broker.now() for _ in range(5)] == [1000, 1001, 1060, 2000, 2001]


def test_many_threads_may_ask_for_the_clock(broker: Broker) -> None:
    with ThreadPoolExecutor(16) as threads:
        seen = list(threads.map(lambda _: broker.now(), range(500)))
    assert max(seen) - min(seen) < 5


# When it works


def test_a_reply_is_waited_for(broker: Broker) -> None:
    waiting = threading.Timer(0.05, broker.reply, ("key", b"answer"))
    waiting.start()
    assert broker.await_reply("key", 10) == b"answer"
    waiting.join()


def test_a_reply_that_does_not_come_is_a_timeout(broker: Broker) -> None:
    begun = time.monotonic()
    with pytest.raises(WaitTimeout, match=r"no answer within 0.05 s. Is a worker for this model running\?"):
        broker.await_reply("key", 0.05)
    assert time.monotonic() - begun < 2


def test_the_workers_of_a_queue_are_those_that_lately_said_so(broker: Broker, redis_server: RedisServer) -> None:
    broker.announce("q", "b", 30)
    broker.announce("q", "a", 30)
    broker.announce("another", "c", 30)
    broker.announce("q", "late", 0.001)
    wait_until(lambda: broker.workers("q") == ["a", "b"], "the one that is late to be left out")
    assert redis_server.client.ttl("q-workers") > 43_200, "the longest lease"
    broker.withdraw("q", "a")
    assert broker.workers("q") == ["b"]


def test_the_synthetic_engine_has_queues_of_its_own(redis_server: RedisServer) -> None:
    """Else a worker of a load test would take real work and answer it with hashes."""
    real, synthetic = (connect(load(broker_url=redis_server.url, engine=engine)) for engine in ("vllm", "synthetic"))
    assert real.queue("m", "bulk") != synthetic.queue("m", "bulk")


@pytest.mark.parametrize(
    "url",
    [
        "redis://h:6379/x",
        "redis://h:6379/0?bogus=1",
        "redis://h:6379/0?socket_timeout=3",
        "redis://h:6379/0?ssl_cert_reqs=none",
        "rediss://h:6379/0?sokcet_timeout=3",
        "redis+socket:///run/r.sock?db=1",
        "me:pass-word@localhost",
    ],
)
def test_a_url_that_celery_and_redis_would_not_read_alike_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="it is no Redis URL") as refused:
        connect(load(broker_url=url))
    assert "pass-word" not in str(refused.value)


def test_the_database_of_a_socket_is_that_of_its_url(redis_server: RedisServer) -> None:
    connected = connect(load(broker_url=f"{redis_server.url}?virtual_host=3"))
    connected.publish(BATCH, "q")
    assert connected.depth("q") == 1
    assert redis_server.client.llen("q") == 0


def test_certificates_are_verified_unless_the_url_says_otherwise() -> None:
    def verified(url: str) -> object:
        broker = connect(load(broker_url=url))
        assert isinstance(broker, RedisBroker)
        return broker.redis.connection_pool.make_connection().cert_reqs

    assert verified("rediss://localhost:6379/0") == ssl.CERT_REQUIRED
    assert verified("rediss://localhost:6379/0?ssl_cert_reqs=none") == ssl.CERT_NONE


def test_a_server_that_hangs_stops_publishing_in_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_module, "CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setattr(redis_module, "_BLOCK_S", 0)
    monkeypatch.setattr(policies.BROKER, "wait", wait_none())
    with running_redis(tmp_path) as server:
        connected = connect(load(broker_url=server.url))
        connected.publish(BATCH, "q")
        server.process.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            connected.publish(BATCH, "q")
        assert time.monotonic() - begun < 5


def test_the_depth_counts_what_waits(broker: Broker) -> None:
    assert broker.depth("q") == 0
    for _ in range(3):
        broker.publish(BATCH, "q")
    assert broker.depth("q") == 3


def test_many_threads_may_publish_at_once(broker: Broker) -> None:
    threads = [threading.Thread(target=lambda: [broker.publish(BATCH, "q") for _ in range(20)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert broker.depth("q") == 160


def test_the_queue_belongs_to_prefix_model_revision_and_lane() -> None:
    def queue(**settings: object) -> str:
        return connect(load(broker_url="redis://localhost", **settings)).queue("a model", "bulk")

    assert queue() != queue(queue_prefix="other")
    assert queue() != queue(revision="v2")
