"""Our Redis transport by itself, on a real server: one step from queue to lease, and what happens when Redis goes."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import kombu.transport
import pytest
from celery import Celery
from kombu import Connection, Consumer, Queue

from embedfleet.broker import connect
from embedfleet.contract import TASK_EMBED
from embedfleet.redis import RedisBroker
from embedfleet.settings import load
from embedfleet_worker.transport import give_back_in_s
from embedfleet_worker.transport import redis as transport
from tests.unit.redis_server import RedisServer, running_redis
from tests.waiting import wait_until


class Taker:
    """A consumer of two queues with room for five messages, at most three of them the second queue's.

    It publishes as anybody's Celery does.
    """

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kombu.transport, "_transport_cache", dict(kombu.transport._transport_cache))
        monkeypatch.setattr(kombu.transport, "TRANSPORT_ALIASES", dict(kombu.transport.TRANSPORT_ALIASES))
        broker = connect(load(broker_url=url))
        assert isinstance(broker, RedisBroker)
        options = transport.install(broker, {"first": 5, "second": 3})
        self.app = Celery("another", broker=url, set_as_current=False)
        self.app.conf.broker_transport_options = options
        self.connection = Connection(url, transport_options=options)
        self.taken: list[Any] = []
        self.channel = self.connection.channel()
        assert isinstance(self.channel, transport.Channel)
        queues = [Queue(name, routing_key=name) for name in ("first", "second")]
        consumer = Consumer(self.channel, queues, callbacks=[lambda _, message: self.taken.append(message)])
        consumer.qos(prefetch_count=5)
        consumer.consume()

    def publish(self, queue: str, *bodies: str) -> None:
        for body in bodies:
            self.app.send_task(TASK_EMBED, args=[body], queue=queue, argsrepr="")

    def take(self, count: int) -> list[str]:
        def taken() -> bool:
            with suppress(TimeoutError):
                self.connection.drain_events(timeout=0.2)
            return len(self.taken) >= count

        wait_until(taken, f"{count} messages", timeout_s=10)
        return [message.payload[0][0] for message in self.taken]


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with running_redis(tmp_path) as running:
        yield running


@pytest.fixture
def taker(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Taker]:
    made = Taker(server.url, monkeypatch)
    yield made
    made.channel.qos._on_collect.cancel()  # else kombu gives messages back at the end of the process, to no server


def test_the_first_queue_goes_first(taker: Taker) -> None:
    taker.publish("second", "b1", "b2")
    taker.publish("first", "a1")
    assert taker.take(3) == ["a1", "b1", "b2"]


def test_the_second_queue_leaves_slots_to_the_first(taker: Taker) -> None:
    taker.publish("second", "b1", "b2", "b3", "b4", "b5")
    assert taker.take(3) == ["b1", "b2", "b3"]
    for _ in range(5):  # and no more, though there is room for other queues'
        with suppress(TimeoutError):
            taker.connection.drain_events(timeout=0.1)
    assert len(taker.taken) == 3
    taker.publish("first", "a1", "a2", "a3")
    assert taker.take(5) == ["b1", "b2", "b3", "a1", "a2"]
    assert not taker.channel.qos.can_consume()
    assert (taker.channel.client.llen("first"), taker.channel.client.llen("second")) == (1, 2)


def test_a_message_is_leased_before_it_is_delivered(taker: Taker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the server's answer and kombu's callback: the message is in the leases already."""
    taker.publish("first", "a1")
    monkeypatch.setattr(taker.channel.connection, "_deliver", raising(SystemExit))
    with pytest.raises(SystemExit):
        taker.take(1)
    assert taker.channel.client.llen("first") == 0
    assert taker.channel.client.hlen("unacked") == taker.channel.client.zcard("unacked_index") == 1


def test_a_lease_that_ended_brings_the_message_back_as_it_was(taker: Taker) -> None:
    taker.publish("first", 'ü [] {} 12345678901234567890 "quoted"')
    taker.take(1)
    tag = taker.taken.pop().delivery_tag
    taker.channel.qos.restore_by_tag(tag)
    assert taker.take(1) == ['ü [] {} 12345678901234567890 "quoted"']
    assert taker.taken[0].headers["redelivered"] is True


def test_an_acknowledged_message_leaves_nothing(taker: Taker) -> None:
    taker.publish("first", "a1")
    taker.take(1)
    taker.taken[0].ack()
    assert taker.channel.client.exists("unacked", "unacked_index") == 0


@pytest.mark.parametrize("garbage", ["", "no json", "[" * 5000, "7", "{}", '{"properties": {}}', '{"properties": 7}'])
def test_what_is_no_message_goes_to_quarantine_and_blocks_nothing(taker: Taker, garbage: str) -> None:
    taker.channel.client.lpush("first", garbage)
    taker.publish("first", "a1")
    assert taker.take(1) == ["a1"]
    assert taker.channel.client.lrange("unacked-quarantine", 0, -1) == [garbage.encode()]


def raising(error: type[BaseException]) -> Any:
    def broken(*_: object) -> None:
        raise error

    return broken


def envelope(taker: Taker) -> dict[str, Any]:
    """A message as our producers send it."""
    taker.publish("first", "a text")
    found: dict[str, Any] = json.loads(taker.channel.client.rpop("first"))
    return found


def encoded(body: object) -> str:
    return base64.b64encode(json.dumps(body).encode()).decode()


CHAIN = {"chain": [{"task": "somebody.elses"}], "callbacks": None, "errbacks": None, "chord": None}
POISON: dict[str, dict[str, Any]] = {
    "no body": {"body": None},
    "a body that is no text": {"body": 7},
    "a body that is not base64": {"body": "%%%"},
    "a body that is not JSON": {"body": base64.b64encode(b"{{{").decode()},
    "a body of one": {"body": encoded([[]])},
    "a body that is a mapping": {"body": encoded({"a": 1})},
    "arguments that are no list": {"body": encoded([1, {}, {}])},
    "a chain": {"body": encoded([["a1"], {}, CHAIN])},
    "pickle": {"content-type": "application/x-python-serialize"},
    "no content type": {"content-type": None},
    "another encoding": {"content-encoding": "klingon"},
    "headers that are a list": {"headers": [1]},
    "no headers": {"headers": None},
    "no id": {"headers.id": None},
    "an id that is a list": {"headers.id": [1]},
    "another task": {"headers.task": "os.system"},
    "a built-in task": {"headers.task": "celery.map"},
    "a task that is a list": {"headers.task": ["embedfleet.embed"]},
    "a time limit": {"headers.timelimit": [1, 1]},
    "half a time limit": {"headers.timelimit": [None]},
    "an ETA": {"headers.eta": "2026-11-21T00:00:00"},
    "an expiry": {"headers.expires": "2026-11-21T00:00:00"},
    "a compression": {"headers.compression": "application/x-gzip"},
    "stamps": {"headers.stamps": {"a": 1}},
    "another body encoding": {"properties.body_encoding": "rot13"},
    "delivery info that is text": {"properties.delivery_info": "x"},
}


@pytest.mark.parametrize("name", POISON)
def test_what_only_looks_like_a_message_goes_to_quarantine_and_blocks_nothing(taker: Taker, name: str) -> None:
    poison = envelope(taker)
    for path, value in POISON[name].items():
        *parents, last = path.split(".")
        (poison[parents[0]] if parents else poison)[last] = value
    sent = json.dumps(poison).encode()
    taker.channel.client.lpush("first", sent)
    taker.publish("first", "a1")
    assert taker.take(1) == ["a1"]
    assert taker.channel.client.lrange("unacked-quarantine", 0, -1) == [sent]
    assert taker.channel.client.hlen("unacked") == taker.channel.client.zcard("unacked_index") == 1


@pytest.mark.parametrize("changed", [b"\xff", b"\x1f", b"\n"], ids=repr)
def test_what_the_script_can_read_and_python_can_not_goes_to_quarantine(taker: Taker, changed: bytes) -> None:
    sent = json.dumps(envelope(taker)).encode().replace(b'"lang": "py"', b'"lang": "' + changed + b'"')
    taker.channel.client.lpush("first", sent)
    taker.publish("first", "a1")
    assert taker.take(1) == ["a1"]
    assert taker.channel.client.lrange("unacked-quarantine", 0, -1) == [sent]


def test_messages_are_taken_and_acknowledged_at_the_memory_limit(server: RedisServer, taker: Taker) -> None:
    """Else nothing would ever drain."""
    taker.publish("first", "a1", "a2")
    server.client.config_set("maxmemory", 1)
    assert taker.take(2) == ["a1", "a2"]
    for message in taker.taken:
        message.ack()
    assert server.client.exists("unacked", "unacked_index", "first") == 0


def replica(server: RedisServer, yes: bool) -> None:
    server.client.replicaof(*(("127.0.0.1", 1) if yes else ("no", "one")))


def full(server: RedisServer, yes: bool) -> None:
    server.client.config_set("maxmemory", 1 if yes else 0)


def test_what_is_given_back_comes_again_in_a_moment(taker: Taker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at once, so that it can't spin; and not at the end of a whole lease."""
    monkeypatch.setattr(transport, "GIVEN_BACK_S", 0.5)
    taker.publish("first", "a1")
    taker.take(1)
    taker.taken.pop().requeue()
    assert taker.channel.qos.can_consume()

    def is_back() -> bool:
        taker.channel.qos.restore_visible(interval=1)
        return bool(taker.channel.client.llen("first"))

    assert not is_back()
    wait_until(is_back, "the message", timeout_s=5)
    assert taker.take(1) == ["a1"]


def test_what_is_given_back_waits_as_long_as_it_was_told_to(taker: Taker) -> None:
    """A receiver said when to come again."""
    taker.publish("first", "a1")
    taker.take(1)
    message = taker.taken.pop()
    give_back_in_s[message.delivery_tag] = 600
    message.requeue()
    [(_, ends)] = taker.channel.client.zrange("unacked_index", 0, -1, withscores=True)
    assert ends + taker.channel.visibility_timeout - time.time() == pytest.approx(600, abs=10)
    assert give_back_in_s == {}


def test_a_tag_that_is_no_text_ends_nothing(taker: Taker) -> None:
    sent = b'{"properties":{"delivery_tag":"\xff"}}'
    taker.channel.client.lpush("first", sent)
    taker.publish("first", "a1")
    assert taker.take(1) == ["a1"]
    assert taker.channel.client.lrange("unacked-quarantine", 0, -1) == [sent]
    assert list(taker.channel.held.values()) == ["first"]


def test_what_threads_still_work_on_after_a_reconnect_takes_room(taker: Taker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each reconnect would give as many threads again to a receiver that hangs, until none is left."""
    monkeypatch.setattr(transport, "running", {1: ("second", 0), 2: ("second", 0), 3: ("first", id(taker.channel))})
    taker.publish("second", "b1", "b2")
    assert taker.take(1) == ["b1"]
    for _ in range(5):
        with suppress(TimeoutError):
            taker.connection.drain_events(timeout=0.1)
    assert len(taker.taken) == 1
    transport.running.clear()
    assert taker.take(2) == ["b1", "b2"]


def test_room_comes_back_with_every_way_a_message_ends(taker: Taker) -> None:
    """Else a lane would take less and less."""
    for _ in range(3):
        taker.publish("second", "b1", "b2", "b3")
        taker.take(3)
        done, back, poison = taker.taken
        done.ack()
        back.requeue()
        poison.reject()
        taker.taken.clear()
        taker.channel.client.delete("unacked", "unacked_index")
    assert taker.channel.held == {}


def test_poison_that_can_not_be_set_aside_yet_is_set_aside_when_it_comes_again(
    server: RedisServer, taker: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the memory limit it stays leased; nothing ends."""
    monkeypatch.setattr(transport, "_REFUSED_S", 0.01)
    server.client.lpush("first", json.dumps({**envelope(taker), "content-type": "application/x-python-serialize"}))
    full(server, True)
    for _ in range(3):
        with suppress(TimeoutError):
            taker.connection.drain_events(timeout=0.2)
    [tag] = server.client.zrange("unacked_index", 0, -1)
    full(server, False)
    taker.channel.qos.restore_by_tag(tag.decode())
    taker.publish("first", "a1")
    assert taker.take(1) == ["a1"]
    assert server.client.llen("unacked-quarantine") == 1


@pytest.mark.parametrize("state", [replica, full])
def test_a_server_that_refuses_for_a_while_ends_nothing(
    server: RedisServer, taker: Taker, monkeypatch: pytest.MonkeyPatch, state: Callable[[RedisServer, bool], None]
) -> None:
    monkeypatch.setattr(transport, "_REFUSED_S", 0.01)
    state(server, True)
    for _ in range(5):
        with suppress(TimeoutError):
            taker.connection.drain_events(timeout=0.2)
    state(server, False)
    taker.publish("first", "a1")
    assert taker.take(1) == ["a1"]


@pytest.mark.parametrize("way", ["ack", "requeue"])
def test_a_refusal_looks_like_a_lost_connection_to_celery(server: RedisServer, taker: Taker, way: str) -> None:
    """Which it passes by, whereas any other error ends its loop."""
    taker.publish("first", "a1")
    taker.take(1)
    replica(server, True)
    with pytest.raises(taker.connection.connection_errors):
        getattr(taker.taken[0], way)()


def test_what_celery_chokes_on_is_set_aside_and_names_no_text(
    taker: Taker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    deliver = taker.channel.connection._deliver

    def choke(message: dict[str, Any], queue: str) -> None:
        deliver(message, queue)
        if len(taker.taken) == 1:
            raise KeyError("a secret text")

    monkeypatch.setattr(taker.channel.connection, "_deliver", choke)
    taker.publish("first", "poison", "a1")
    assert taker.take(2) == ["poison", "a1"]
    assert taker.channel.client.llen("unacked-quarantine") == 1
    assert list(taker.channel.qos._delivered) == [taker.taken[1].delivery_tag]
    assert "set aside" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("way", ["ack", "requeue"])
def test_a_message_that_redis_can_not_be_told_of_takes_no_room(server: RedisServer, taker: Taker, way: str) -> None:
    """Else a worker whose every slot is taken so would never poll again."""
    taker.publish("first", "a1", "a2", "a3", "a4", "a5")
    taker.take(5)
    assert not taker.channel.qos.can_consume()
    server.kill()
    for message in taker.taken:
        with pytest.raises(taker.connection.connection_errors):
            getattr(message, way)()
    assert taker.channel.qos.can_consume()


def test_a_full_redis_still_gives_messages_out(taker: Taker) -> None:
    taker.publish("first", "a1")
    taker.channel.client.config_set("maxmemory", 1)
    assert taker.take(1) == ["a1"]
