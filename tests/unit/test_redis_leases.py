"""Leases on a real Redis, one step at a time: what is taken, whose it is, by which clock it ends, in which order."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from embedfleet.broker import Broker, connect
from embedfleet.errors import BrokerUnavailable
from embedfleet.settings import load
from embedfleet_worker.transport import Order, Taken, redis
from embedfleet_worker.transport.redis import RedisLeases
from tests.unit.redis_server import RedisServer, running_redis
from tests.waiting import wait_until

LEASE_S = 30.0


class Lane:
    """A queue, and holders of its leases."""

    def __init__(self, server: RedisServer, broker: Broker) -> None:
        self.client: Any = server.client
        self.broker = broker
        self.a, self.b = self.holder(), self.holder()

    def holder(self) -> RedisLeases:
        return RedisLeases(self.broker, ["q"])

    def publish(self, *messages: str) -> None:
        for message in messages:
            self.client.lpush("q", message)

    def waiting(self) -> list[bytes]:
        """What is in the queue, the next one first."""
        return list(reversed(self.client.lrange("q", 0, -1)))

    def now(self) -> float:
        return self.broker.clock()

    def ends(self) -> list[float]:
        return [score for _, score in self.client.zrange("q-ends", 0, -1, withscores=True)]

    def leased(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = self.client.hgetall("q-leases")
        return found

    def end(self, *all_taken: Taken) -> None:
        """As if the time of these leases were over, of the first one for the longest."""
        for number, taken in enumerate(all_taken):
            self.client.zadd("q-ends", {taken.lease: number})


@pytest.fixture
def lane(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(redis, "_LOOK_S", 0.2)
    broker = connect(load(broker_url=redis_server.url, lease_s=LEASE_S))
    yield Lane(redis_server, broker)
    broker.close()


def done(taken: Taken) -> Order:
    return Order("q", taken.lease, None, 0)


def back(taken: Taken, delay_s: float = 0) -> Order:
    return Order("q", taken.lease, delay_s, 0)


# Taking


def test_what_an_outage_gives_back_goes_behind_all_that_waits(lane: Any) -> None:
    """Or one store that is down would be tried again and again, before all that could be done."""
    lane.publish("a", "b")
    [taken] = lane.a.take("q", 1)
    lane.a.settle([Order("q", taken.lease, 2, 0, last=True)])
    assert lane.waiting() == [b"b", b"a"]
    assert not lane.client.exists("q-leases", "q-ends")


def test_several_are_taken_in_one_step_up_to_the_room_and_in_order(lane: Lane) -> None:
    lane.publish("m1", "m2", "m3", "m4", "m5")
    lane.a.take("q", 1)  # the script is known from now on
    lane.client.config_resetstat()
    taken = lane.a.take("q", 3)
    assert [each.message for each in taken] == [b"m2", b"m3", b"m4"]
    assert lane.client.info("commandstats")["cmdstat_evalsha"]["calls"] == 1
    assert lane.waiting() == [b"m5"]
    assert {lease.decode(): message for lease, message in lane.leased().items()}.items() >= {
        (each.lease, each.message) for each in taken
    }
    assert len(lane.ends()) == 4


def test_priority_steps_are_taken_in_their_order_in_the_same_step(lane: Lane) -> None:
    for step in ("\x06\x169", "\x06\x166", "\x06\x163", ""):
        lane.client.lpush(f"q{step}", f"one{step}", f"two{step}")
    taken = [each.message.decode() for each in lane.a.take("q", 7)]
    assert (
        taken
        == [f"{name}{step}" for step in ("", "\x06\x163", "\x06\x166", "\x06\x169") for name in ("one", "two")][:7]
    )


def test_every_lease_is_new_and_names_its_holder(lane: Lane) -> None:
    lane.publish("m1", "m2", "m3")
    leases = [each.lease for holder in (lane.a, lane.a, lane.b) for each in holder.take("q", 1)]
    holders = [lease.partition(":")[0] for lease in leases]
    assert len(set(leases)) == 3
    assert holders[0] == holders[1] != holders[2]


def test_an_empty_queue_is_looked_at_for_a_while_and_no_longer(lane: Lane) -> None:
    begun = time.monotonic()
    assert lane.a.take("q", 5) == []
    assert 0.2 <= time.monotonic() - begun < 1
    lane.client.config_resetstat()
    lane.a.take("q", 5)
    stats = lane.client.info("commandstats")
    assert (stats["cmdstat_evalsha"]["calls"], stats["cmdstat_blmove"]["calls"]) == (1, 1)


def test_what_comes_ends_the_look_and_is_taken_by_who_asks_again(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "_LOOK_S", 5)
    threading.Timer(0.2, lane.publish, ["m1"]).start()
    begun = time.monotonic()
    assert lane.a.take("q", 5) == [], "who asks says first whether there still is room"
    assert [each.message for each in lane.a.take("q", 5)] == [b"m1"]
    assert time.monotonic() - begun < 1


def test_looks_remove_nothing_and_keep_the_order(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two holders, a queue that fills while both wait, and a deep one."""
    messages = [f"m{number}".encode() for number in range(1000)]
    monkeypatch.setattr(redis, "_LOOK_S", 5)
    lookers = [threading.Thread(target=holder._look, args=("q",)) for holder in (lane.a, lane.b)]
    for looker in lookers:
        looker.start()
    wait_until(lambda: lane.client.info("clients")["blocked_clients"] == 2, "both to look")
    pipe = lane.client.pipeline()
    for message in messages[:500]:
        pipe.lpush("q", message)
    pipe.execute()
    for looker in lookers:
        looker.join(5)
    assert lane.waiting() == messages[:500]
    lane.client.lpush("q", *messages[500:])
    for holder in (lane.a, lane.b):
        holder._look("q")
    assert lane.waiting() == messages


# The clock


def test_leases_end_by_the_servers_clock(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + 3600)
    lane.publish("m1", "m2")
    first, second = lane.a.take("q", 2)
    assert lane.ends() == pytest.approx([lane.now() + LEASE_S] * 2, abs=2)
    lane.a.settle([back(first, 5)])
    lane.a.renew("q", [second.lease])
    lane.a.sweep()
    assert lane.ends() == pytest.approx([lane.now() + 5, lane.now() + LEASE_S], abs=2)


# Whose it is


def test_a_lease_is_renewed(lane: Lane) -> None:
    lane.publish("m1", "m2")
    one, other = lane.a.take("q", 2)
    lane.client.zadd("q-ends", {one.lease: lane.now() + 1, other.lease: lane.now() + 1})
    lane.a.renew("q", [one.lease])
    assert lane.ends() == pytest.approx([lane.now() + 1, lane.now() + LEASE_S], abs=2)


@pytest.mark.parametrize(
    "undo",
    [
        lambda lane, lease: lane.a.renew("q", [lease.lease]),
        lambda lane, lease: lane.a.settle([back(lease)]),
        lambda lane, lease: lane.a.settle([back(lease, 5)]),
        lambda lane, lease: lane.a.settle([done(lease)]),
    ],
    ids=["renewed", "given back", "given back for later", "done"],
)
@pytest.mark.parametrize("again", [False, True], ids=["in the queue", "another's"])
def test_nothing_is_done_to_a_lease_that_is_over(
    lane: Lane, undo: Callable[[Lane, Taken], object], again: bool
) -> None:
    lane.publish("m1")
    [mine] = lane.a.take("q", 1)
    lane.end(mine)
    lane.b.sweep()
    if again:
        lane.b.take("q", 1)

    def state() -> object:
        return lane.waiting(), lane.leased(), lane.ends()

    before = state()
    undo(lane, mine)
    assert state() == before


def test_a_sweep_leaves_leases_that_are_not_over(lane: Lane) -> None:
    lane.publish("m1", "m2")
    over, mine = lane.a.take("q", 2)
    lane.end(over)
    lane.b.sweep()
    assert lane.waiting() == [b"m1"]
    assert lane.leased() == {mine.lease.encode(): b"m2"}


# Giving back


def test_what_is_given_back_at_once_is_the_next_one(lane: Lane) -> None:
    lane.publish("m1", "m2")
    [first] = lane.a.take("q", 1)
    lane.a.settle([back(first)])
    assert lane.waiting() == [b"m1", b"m2"]
    assert (lane.leased(), lane.ends()) == ({}, [])


def test_what_is_given_back_for_later_comes_then_within_one_sweep(lane: Lane) -> None:
    lane.publish("m1")
    lane.a.settle([back(lane.a.take("q", 1)[0], 0.4)])
    begun = time.monotonic()
    for _ in range(2):
        lane.b.sweep()
        assert lane.waiting() == []
    wait_until(lambda: (lane.b.sweep(), lane.waiting())[1], "the message", timeout_s=3)
    assert 0.35 <= time.monotonic() - begun < 1


def test_of_several_leases_that_are_over_the_oldest_is_taken_first(lane: Lane) -> None:
    lane.publish("m1", "m2", "m3", "m4")
    m1, m2, m3 = lane.a.take("q", 3)
    lane.end(m2, m3, m1)
    lane.b.sweep()
    assert lane.waiting() == [b"m2", b"m3", b"m1", b"m4"]


def test_one_sweep_sees_to_all_lanes(redis_server: RedisServer, lane: Lane) -> None:
    both = RedisLeases(lane.broker, ["other", "q"])
    for queue in ("other", "q"):
        lane.client.lpush(queue, queue)
        [taken] = both.take(queue, 1)
        lane.client.zadd(f"{queue}-ends", {taken.lease: 0})
    both.sweep()
    assert (lane.client.llen("q"), lane.client.llen("other")) == (1, 1)


def test_more_than_a_sweep_gives_out_at_once_comes_with_the_next_ones(lane: Lane) -> None:
    lane.publish(*(f"m{number}" for number in range(250)))
    lane.end(*lane.a.take("q", 250))
    for left in (150, 50, 0):
        lane.b.sweep()
        assert len(lane.ends()) == left
    assert len(lane.waiting()) == 250


def test_many_orders_are_told_in_one_request_a_queue(lane: Lane) -> None:
    lane.publish(*(f"m{number}" for number in range(20)))
    taken = lane.a.take("q", 20)
    lane.a.settle([done(taken[0])])
    lane.client.config_resetstat()
    lane.a.settle([back(each) if number % 2 else done(each) for number, each in enumerate(taken[1:])])
    assert lane.client.info("commandstats")["cmdstat_evalsha"]["calls"] == 1
    assert (len(lane.waiting()), lane.leased()) == (9, {})


# At the memory limit


STEPS: dict[str, Callable[[Lane, Taken], object]] = {
    "take": lambda lane, _: lane.a.take("q", 1),
    "renew": lambda lane, mine: lane.a.renew("q", [mine.lease]),
    "done": lambda lane, mine: lane.a.settle([done(mine)]),
    "given back": lambda lane, mine: lane.a.settle([back(mine)]),
    "given back for later": lambda lane, mine: lane.a.settle([back(mine, 5)]),
    "sweep": lambda lane, _: lane.a.sweep(),
}


@pytest.mark.parametrize("name", STEPS)
def test_every_step_works_at_the_memory_limit(tmp_path: Any, name: str) -> None:
    """Of a server that never saw the script before, too."""
    with running_redis(tmp_path) as server:
        broker = connect(load(broker_url=server.url))
        lane = Lane(server, broker)
        lane.publish("m1", "m2")
        [mine] = lane.b.take("q", 1)
        if name == "sweep":
            lane.end(mine)  # may need memory itself
        server.client.script_flush()
        server.client.config_set("maxmemory", 1)
        STEPS[name](lane, mine)
        assert len(lane.waiting()) + len(lane.leased()) == (1 if name == "done" else 2)
        with pytest.raises(BrokerUnavailable, match="maxmemory"):
            broker.call(server.client.lpush, "q", "m3")
        broker.close()


def test_numbers_of_a_holder_never_repeat(lane: Lane) -> None:
    lane.publish(*(f"m{number}" for number in range(60)))
    with_threads: list[Taken] = []
    threads = [threading.Thread(target=lambda: with_threads.extend(lane.a.take("q", 4))) for _ in range(15)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len({taken.lease for taken in with_threads}) == len({t.message for t in with_threads}) == 60
