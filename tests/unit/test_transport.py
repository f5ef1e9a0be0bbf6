"""Our Redis transport by itself, on a real server: one step from queue to lease, and what happens when Redis goes."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import kombu.transport
import pytest
from kombu import Connection, Consumer, Queue

from embedfleet_worker.transport import redis as transport
from tests.unit.redis_server import RedisServer, running_redis
from tests.waiting import wait_until


class Taker:
    """A consumer of two queues with room for five messages, two of them for the first queue only."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kombu.transport, "_transport_cache", dict(kombu.transport._transport_cache))
        monkeypatch.setattr(kombu.transport, "TRANSPORT_ALIASES", dict(kombu.transport.TRANSPORT_ALIASES))
        transport.install()
        self.connection = Connection(url, transport_options={"queue_order_strategy": "priority", "max_retries": 0})
        self.taken: list[Any] = []
        self.channel = self.connection.channel()
        assert isinstance(self.channel, transport.Channel)
        queues = [Queue(name, routing_key=name) for name in ("first", "second")]
        consumer = Consumer(self.channel, queues, callbacks=[lambda _, message: self.taken.append(message)])
        consumer.qos(prefetch_count=3 + transport.RESERVED)
        consumer.consume()

    def publish(self, queue: str, *bodies: str) -> None:
        with self.connection.SimpleQueue(queue) as simple:
            for body in bodies:
                simple.put(body)

    def take(self, count: int) -> list[str]:
        def taken() -> bool:
            with suppress(TimeoutError):
                self.connection.drain_events(timeout=0.2)
            return len(self.taken) >= count

        wait_until(taken, f"{count} messages", timeout_s=10)
        return [message.payload for message in self.taken]


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
    taker.publish("first", "a1", "a2", "a3")
    assert taker.take(5) == ["b1", "b2", "b3", "a1", "a2"]
    assert not taker.channel.qos.can_consume()
    assert (taker.channel.client.llen("first"), taker.channel.client.llen("second")) == (1, 2)


def test_a_message_is_leased_before_it_is_delivered(taker: Taker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the server's answer and kombu's callback: the message is in the leases already."""
    taker.publish("first", "a1")
    monkeypatch.setattr(taker.channel.connection, "_deliver", lambda *_: pytest.exit("killed"))
    with pytest.raises(pytest.exit.Exception):
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
