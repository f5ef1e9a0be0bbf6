"""Celery's side of the transport, on a real Redis: lanes, leases before deliveries, poison, servers that go."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery import Celery

from embedfleet.broker import connect
from embedfleet.contract import TASK_EMBED
from embedfleet.errors import BrokerUnavailable
from embedfleet.redis import RedisBroker
from embedfleet.settings import load
from embedfleet_worker.transport import Back, Taken, channel, given_back, holding, redis
from tests.unit.poison import GARBAGE, POISON, changed
from tests.unit.redis_server import RedisServer, running_redis
from tests.unit.transports import Taker, restored
from tests.waiting import wait_until

FIVE, THREE = "first", "second"


class Consumers:
    """A Redis with consumers of two queues, and a plain Celery producer."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.made: list[Taker] = []
        self.app = Celery("another", broker=server.url, set_as_current=False)

    def start(self, lease_s: float = 30) -> Taker:
        """With room for five messages of the first queue, and three of the second."""
        broker = connect(load(broker_url=self.server.url, lease_s=lease_s))
        self.made.append(Taker(broker, {FIVE: 5, THREE: 3}))
        return self.made[-1]

    def publish(self, queue: str, *bodies: str, **options: object) -> None:
        for body in bodies:
            self.app.send_task(TASK_EMBED, args=[body], queue=queue, argsrepr="", **options)

    def held(self, queue: str = FIVE) -> tuple[int, int]:
        return self.server.client.hlen(f"{queue}-leases"), self.server.client.zcard(f"{queue}-ends")

    def reasons(self) -> list[str]:
        """Of the dead letters, oldest first."""
        letters = self.server.client.lrange("embedfleet-dead", 0, -1)
        return [json.loads(letter)["reason"] for letter in reversed(letters)]

    def end_leases(self, queue: str = FIVE) -> None:
        """As if their time were over."""
        for lease in self.server.client.zrange(f"{queue}-ends", 0, -1):
            self.server.client.zadd(f"{queue}-ends", {lease: 0})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path) as running:
        yield running


@pytest.fixture
def consumers(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Consumers]:
    monkeypatch.setattr(redis, "_LOOK_S", 0.2)
    monkeypatch.setattr(channel, "_AGAIN_S", 0.05)
    monkeypatch.setattr(holding, "_AGAIN_MAX_S", 0.2)
    with restored(monkeypatch):
        made = Consumers(server)
        yield made
        for taker in made.made:
            taker.close()
            taker.broker.close()
        made.app.close()


@pytest.fixture
def taker(consumers: Consumers) -> Taker:
    return consumers.start()


# Lanes


def test_celerys_loop_has_something_to_read(taker: Taker) -> None:
    """With nothing, it sleeps for a tenth of a second after each message instead of being woken."""
    assert taker.hub.readers
    taker.connection.close()
    assert not taker.hub.readers


def test_lanes_have_room_of_their_own(consumers: Consumers, taker: Taker) -> None:
    consumers.publish(THREE, "b1", "b2", "b3", "b4", "b5")
    assert sorted(taker.wait(3)) == ["b1", "b2", "b3"]
    taker.look(0.5)
    assert len(taker.taken) == 3
    consumers.publish(FIVE, "a1", "a2", "a3", "a4", "a5", "a6")
    assert sorted(taker.wait(8)[3:]) == ["a1", "a2", "a3", "a4", "a5"], "the full lane is in nobody's way"
    taker.look(0.5)
    assert (consumers.server.client.llen(FIVE), consumers.server.client.llen(THREE)) == (1, 2)
    assert channel.failing() is False


def test_every_priority_of_a_plain_producer_is_taken_the_highest_first(consumers: Consumers) -> None:
    for priority in (9, 7, 6, 4, 3, 1, 0):
        consumers.publish(FIVE, f"a{priority}", priority=priority)
    taker = consumers.start()
    first = taker.wait(5)
    assert first == ["a1", "a0", "a4", "a3", "a7"], "kombu has four steps: 0, 3, 6 and 9"
    taker.taken.clear()
    for tag in list(taker.holding._held):
        taker.holding.done(tag)
    assert taker.wait(2) == ["a6", "a9"]


def test_room_comes_back_with_every_way_a_message_ends(consumers: Consumers, taker: Taker) -> None:
    """Else a lane would take less and less."""
    for _ in range(3):
        consumers.publish(THREE, "b1", "b2", "b3")
        taker.wait(3)
        assert taker.room(THREE) == 0
        done, back, poison = taker.taken
        given_back[back.delivery_tag] = Back(600)
        done.ack()
        back.requeue()
        poison.reject()
        taker.taken.clear()
        wait_until(lambda: taker.holding.wait_until_empty(0), "all to be told")
        assert taker.room(THREE) == 3
    assert consumers.held(THREE) == (3, 3), "what was given back"
    assert given_back == {}


# Leases


def test_a_message_is_leased_before_it_is_delivered(consumers: Consumers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the server's answer and the first thing done with it: it is in the leases, and comes again."""
    with monkeypatch.context() as patched:
        patched.setattr(channel, "_hold", lambda _: None)
        taker = consumers.start()
        consumers.publish(FIVE, "a1")
        wait_until(lambda: consumers.held() == (1, 1), "the message to be taken", timeout_s=5)
        taker.look(0.2)
        assert taker.taken == []
        assert consumers.server.client.llen(FIVE) == 0
    consumers.end_leases()
    assert taker.wait(1) == ["a1"]


def test_a_lease_that_ended_brings_the_message_back_as_it_was(consumers: Consumers, taker: Taker) -> None:
    consumers.publish(FIVE, 'ü [] {} 12345678901234567890 "quoted" \\ud800')
    sent = consumers.server.client.lindex(FIVE, 0) or next(iter(consumers.server.client.hvals(f"{FIVE}-leases")))
    taker.wait(1)
    consumers.end_leases()
    first, second = taker.wait(2)
    assert first == second == 'ü [] {} 12345678901234567890 "quoted" \\ud800'
    assert consumers.server.client.hvals(f"{FIVE}-leases") == [sent]


def test_what_a_dead_worker_held_another_has_within_the_lease_and_a_sweep(consumers: Consumers) -> None:
    dead = consumers.start(lease_s=1)
    consumers.publish(FIVE, "a1", "a2")
    dead.wait(2)
    dead.cancel()
    dead.holding._closing = True  # its heartbeat ends, and nothing is told
    [first, *_] = consumers.server.client.zrange(f"{FIVE}-ends", 0, 0, withscores=True)
    alive = consumers.start(lease_s=1)
    assert sorted(alive.wait(2, timeout_s=5)) == ["a1", "a2"]
    seconds, micros = consumers.server.client.time()
    assert 0 <= seconds + micros / 1e6 - first[1] < holding.SWEEP_S + 0.5


def test_a_lease_is_renewed_while_the_message_is_held(consumers: Consumers) -> None:
    taker = consumers.start(lease_s=1)
    consumers.publish(FIVE, "a1")
    taker.wait(1)
    taker.look(2.5)
    assert len(taker.taken) == 1, "it was given out again"
    taker.taken[0].ack()
    wait_until(lambda: consumers.held() == (0, 0), "it to be forgotten")


def test_an_acknowledged_message_leaves_nothing(consumers: Consumers, taker: Taker) -> None:
    consumers.publish(FIVE, "a1")
    taker.wait(1)
    taker.taken[0].ack()
    wait_until(lambda: consumers.held() == (0, 0), "the end of the lease", timeout_s=2)
    assert not consumers.server.client.exists(FIVE)


def test_what_is_given_back_comes_again_in_a_moment(
    consumers: Consumers, taker: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at once, so that it can't spin; and not at the end of a whole lease."""
    monkeypatch.setattr(holding, "GIVEN_BACK_S", 0.5)
    consumers.publish(FIVE, "a1")
    taker.wait(1)
    begun = time.monotonic()
    taker.taken.pop().requeue()
    taker.wait(1)
    assert 0.5 < time.monotonic() - begun < 0.5 + holding.SWEEP_S + 1


def test_what_is_given_back_waits_as_long_as_it_was_told_to(consumers: Consumers, taker: Taker) -> None:
    """A receiver said when to come again."""
    consumers.publish(FIVE, "a1")
    taker.wait(1)
    message = taker.taken.pop()
    given_back[message.delivery_tag] = Back(600)
    message.requeue()
    wait_until(lambda: taker.holding.wait_until_empty(0), "it to be told")
    [(_, ends)] = consumers.server.client.zrange(f"{FIVE}-ends", 0, -1, withscores=True)
    assert ends - taker.broker.clock() == pytest.approx(600, abs=10)
    assert given_back == {}


# Poison


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_is_no_message_goes_to_the_dead_letters_and_blocks_nothing(
    consumers: Consumers, taker: Taker, garbage: bytes
) -> None:
    consumers.server.client.lpush(FIVE, garbage)
    consumers.publish(FIVE, "a1")
    assert taker.wait(1) == ["a1"]
    wait_until(lambda: consumers.held() == (1, 1), "the lease of the garbage to end")
    [reason] = consumers.reasons()
    assert reason.startswith("not a message of ours: ")


def test_a_defect_at_one_message_costs_no_other_of_the_same_poll(
    taker: Taker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They would be held, and nobody would work on them."""

    def defect(*_: object) -> None:
        raise RuntimeError("a secret text")

    room = taker.holding.wait_for_room(FIVE, 0)
    monkeypatch.setattr(taker.broker, "dead_letter", defect)
    assert channel._receive(Taken(FIVE, "lease", b"no message")) is None
    assert taker.holding.wait_for_room(FIVE, 0) == room
    assert "was given back: RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def test_what_only_looks_like_a_message_goes_to_the_dead_letters_and_blocks_nothing(
    consumers: Consumers, taker: Taker, caplog: pytest.LogCaptureFixture
) -> None:
    consumers.publish(THREE, "a secret text")
    taker.wait(1)
    sound = json.loads(consumers.server.client.hvals(f"{THREE}-leases")[0])
    for name in POISON:
        consumers.server.client.lpush(FIVE, json.dumps(changed(sound, name)))
    consumers.publish(FIVE, "a1")
    assert taker.wait(2) == ["a secret text", "a1"]
    wait_until(lambda: consumers.held() == (1, 1), "the leases of the poison to end")
    reasons = consumers.reasons()
    assert len(reasons) == len(POISON)
    assert all(reason.startswith("not a message of ours: ") for reason in reasons)
    assert caplog.text.count("was set aside") == len(POISON)
    assert "secret" not in caplog.text + "".join(reasons)


def test_poison_that_can_not_be_set_aside_yet_is_set_aside_when_it_comes_again(
    consumers: Consumers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While letters can't be kept it is given back; nothing ends."""

    def refused(*_: object) -> None:
        raise BrokerUnavailable("no")

    monkeypatch.setattr(holding, "GIVEN_BACK_S", 0.2)
    consumers.server.client.lpush(FIVE, b"no message")
    with monkeypatch.context() as patched:
        patched.setattr(RedisBroker, "dead_letter", refused)
        taker = consumers.start()
        taker.look(1)
        assert consumers.reasons() == []
    consumers.publish(FIVE, "a1")
    assert taker.wait(1) == ["a1"]
    wait_until(lambda: len(consumers.reasons()) == 1, "the dead letter", timeout_s=5)


def test_what_celery_chokes_on_is_given_back_and_names_no_text(
    consumers: Consumers, taker: Taker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def choke(*_: object) -> None:
        raise KeyError("a secret text")

    monkeypatch.setattr(holding, "GIVEN_BACK_S", 0)
    with monkeypatch.context() as patched:
        patched.setattr(taker.transport, "_deliver", choke)
        consumers.publish(FIVE, "a1")
        wait_until(lambda: (taker.hub.run_once(), "was given back" in caplog.text)[1], "the attempt")
    assert taker.wait(1) == ["a1"]
    assert "secret" not in caplog.text


# A server that refuses, goes, and comes


def replica(server: RedisServer, yes: bool) -> None:
    server.client.replicaof(*(("127.0.0.1", 1) if yes else ("no", "one")))


def full(server: RedisServer, yes: bool) -> None:
    server.client.config_set("maxmemory", 1 if yes else 0)


@pytest.mark.parametrize("state", [replica, full])
def test_a_server_that_refuses_for_a_while_ends_nothing(
    consumers: Consumers, taker: Taker, monkeypatch: pytest.MonkeyPatch, state: Callable[[RedisServer, bool], None]
) -> None:
    monkeypatch.setattr(channel, "_AGAIN_MAX_S", 0.2)
    state(consumers.server, True)
    taker.look(1)
    state(consumers.server, False)
    consumers.publish(FIVE, "a1")
    assert taker.wait(1) == ["a1"]
    wait_until(lambda: not channel.failing(), "all lanes to be polled again", timeout_s=5)


def test_messages_are_taken_renewed_given_back_and_done_at_the_memory_limit(consumers: Consumers) -> None:
    """Else nothing would ever drain."""
    consumers.publish(FIVE, "a1", "a2", "a3")
    full(consumers.server, True)
    taker = consumers.start(lease_s=1)
    taker.wait(3)
    taker.look(1.5)
    assert len(taker.taken) == 3, "they were renewed"
    done, soon, at_once = taker.taken
    given_back[soon.delivery_tag], given_back[at_once.delivery_tag] = Back(0.2), Back(0)
    taker.taken.clear()
    done.ack()
    soon.requeue()
    at_once.requeue()
    assert sorted(taker.wait(2)) == ["a2", "a3"]
    for message in taker.taken:
        message.ack()
    wait_until(lambda: consumers.held() == (0, 0), "all to be done")
    assert not consumers.server.client.exists(FIVE)


def test_an_empty_lane_of_a_full_server_is_no_failure(consumers: Consumers, taker: Taker) -> None:
    """A look may need memory; what is given back meanwhile is taken soon all the same."""
    consumers.publish(FIVE, "a1")
    taker.wait(1)
    full(consumers.server, True)
    taker.look(1)
    assert channel.failing() is False
    given_back[taker.taken[0].delivery_tag] = Back(0)
    taker.taken.pop().requeue()
    taker.wait(1, timeout_s=3)


@pytest.mark.parametrize("way", ["ack", "requeue"])
def test_a_message_that_redis_can_not_be_told_of_takes_no_room(consumers: Consumers, way: str) -> None:
    """Else a worker whose every slot is taken so would never poll again."""
    taker = consumers.start(lease_s=1)
    consumers.publish(FIVE, "a1", "a2", "a3", "a4", "a5")
    taker.wait(5)
    assert taker.room(FIVE) == 0
    consumers.server.kill()
    for message in taker.taken:
        getattr(message, way)()
    assert taker.room(FIVE) == 5


def test_a_server_that_is_gone_is_said_without_its_password(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "embedfleet_worker")
    with restored(monkeypatch):
        taker = Taker(connect(load(broker_url="redis://:a-secret@127.0.0.1:1/0")), {FIVE: 1})
        wait_until(channel.failing, "the failure")
        taker.close()
    assert caplog.text.count("taking: broker redis://:***@127.0.0.1:1/0") == 1, "once an outage"
    assert "secret" not in caplog.text


# Going


def test_what_a_poll_brings_after_the_queue_was_cancelled_is_given_back_at_once(
    consumers: Consumers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "_LOOK_S", 3)
    taker = consumers.start()
    taker.look(0.3)
    taker.cancel()
    consumers.publish(FIVE, "a1")
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == f"poll {FIVE}"], "the poll to end")
    assert (consumers.held(), consumers.server.client.llen(FIVE)) == ((0, 0), 1)
    assert taker.taken == []


def test_what_a_poll_brings_after_taking_was_stopped_is_given_back_at_once(
    consumers: Consumers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is told to stop begins nothing new in its grace time."""
    monkeypatch.setattr(redis, "_LOOK_S", 3)
    taker = consumers.start()
    taker.look(0.3)
    taker.holding.stop_taking()
    consumers.publish(FIVE, "a1")
    taker.look(0.5)
    assert (consumers.held(), consumers.server.client.llen(FIVE)) == ((0, 0), 1)
    assert taker.taken == []


def test_consuming_again_and_again_leaves_no_threads(consumers: Consumers, taker: Taker) -> None:
    def ours() -> list[str]:
        names = ("poll ", "leases", "heartbeat")
        return [thread.name for thread in threading.enumerate() if thread.name.startswith(names)]

    taker.look(0.2)
    before = len(ours())
    for _ in range(3):
        consumers.start().look(0.1)
        again = consumers.made.pop()
        again.close()
        again.broker.close()
    wait_until(lambda: len(ours()) <= before, "the threads to end", timeout_s=5)
