"""What a worker holds, with stand-in leases that keep what they are told: room, renewals, settling, pauses, going."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from embedfleet.errors import BrokerUnavailable, ConfigurationError
from embedfleet_worker.transport import Back, Order, Taken, holding
from embedfleet_worker.transport.holding import Holding
from tests.waiting import wait_until

BULK, OTHER = "bulk", "other"


class FakeLeases:
    """Keeps what it was told, or does as a test says."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.sweeps = 0
        self.on_renew: Callable[[], object] = lambda: None
        self.on_settle: Callable[[list[Order]], list[Order]] = lambda _: []
        self.on_sweep: Callable[[], object] = lambda: None

    def take(self, queue: str, room: int) -> list[Taken]:
        raise NotImplementedError

    def renew(self, queue: str, leases: list[str]) -> None:
        self.on_renew()
        self.told.append(("renewed", queue, sorted(leases)))

    def settle(self, orders: list[Order]) -> list[Order]:
        left = self.on_settle(orders)
        self.told += [(order.lease, order.delay_s) for order in orders if order not in left]
        return left

    def sweep(self) -> None:
        self.sweeps += 1
        self.on_sweep()

    def ends(self) -> list[tuple[str, float | None]]:
        return sorted(each for each in self.told if each[0] != "renewed")


@pytest.fixture
def leases() -> FakeLeases:
    return FakeLeases()


@pytest.fixture
def held(leases: FakeLeases, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Holding]]:
    """Make what holds five messages of one queue, and two of another."""
    monkeypatch.setattr(holding, "SWEEP_S", 0.05)
    monkeypatch.setattr(holding, "_AGAIN_MAX_S", 0.05)
    monkeypatch.setattr(holding, "_AGAIN_S", 0.01)
    made: list[Holding] = []

    def make(lease_s: float = 30, longest_s: float = 3600) -> Holding:
        made.append(Holding(leases, {BULK: 5, OTHER: 2}, lease_s, longest_s))
        return made[-1]

    yield make
    leases.on_settle = lambda _: []
    for each in made:
        each.close(2)


def add(to: Holding, *tags: str, queue: str = BULK, times: int = 1) -> None:
    for tag in tags:
        assert to.add(tag, Taken(queue, f"lease-{tag}", b"", times))


def all_told(of: Holding) -> None:
    wait_until(lambda: of.wait_until_empty(0), "all to be told", timeout_s=5)


def gone(*_: object) -> Any:
    raise BrokerUnavailable("gone")


# Room


def test_each_queue_has_its_own_room(held: Callable[..., Holding]) -> None:
    made = held()
    add(made, "a", "b", "c", "d", "e")
    assert (made.wait_for_room(BULK, 0), made.wait_for_room(OTHER, 0)) == (0, 2)
    made.done("a")
    assert made.wait_for_room(BULK, 0) == 1


def test_who_waits_for_room_has_it_as_soon_as_there_is_some(held: Callable[..., Holding]) -> None:
    made = held()
    add(made, "a", "b", queue=OTHER)
    threading.Timer(0.2, made.done, ["a"]).start()
    begun = time.monotonic()
    assert made.wait_for_room(OTHER, 10) == 1
    assert time.monotonic() - begun < 2


def test_a_message_ends_once(held: Callable[..., Holding], leases: FakeLeases) -> None:
    made = held()
    add(made, "a")
    made.done("a")
    made.done("a")
    made.give_back("a")
    made.give_back("never held")
    all_told(made)
    assert leases.ends() == [("lease-a", None)]


# Renewing


def test_what_is_held_is_renewed_every_third_of_a_lease(held: Callable[..., Holding], leases: FakeLeases) -> None:
    made = held(lease_s=0.6)
    add(made, "a", "b")
    add(made, "c", queue=OTHER)
    time.sleep(1.1)
    renewals = [each for each in leases.told if each[0] == "renewed"]
    assert ("renewed", BULK, ["lease-a", "lease-b"]) in renewals
    assert ("renewed", OTHER, ["lease-c"]) in renewals
    assert 3 <= sum(each[1] == BULK for each in renewals) <= 7


@pytest.mark.parametrize(
    "error", [BrokerUnavailable("gone"), ConfigurationError("no queue"), ValueError("?")], ids=repr
)
@pytest.mark.parametrize("where", ["on_renew", "on_sweep"])
def test_the_heartbeat_goes_on_whatever_it_meets(
    held: Callable[..., Holding], leases: FakeLeases, error: Exception, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it no lease would be renewed again, and long batches be done again and again."""

    def fail() -> None:
        raise error

    setattr(leases, where, fail)
    made = held(lease_s=0.3)
    add(made, "a")
    time.sleep(0.5)
    setattr(leases, where, lambda: None)
    leases.told.clear()
    sweeps = leases.sweeps
    wait_until(lambda: ("renewed", BULK, ["lease-a"]) in leases.told, "a renewal", timeout_s=5)
    wait_until(lambda: leases.sweeps > sweeps, "a sweep", timeout_s=5)
    assert caplog.text.count("leases: ") == 1, "once an outage"


def test_a_queue_that_can_not_be_renewed_keeps_no_other_from_it(
    held: Callable[..., Holding], leases: FakeLeases
) -> None:
    refusals = iter([gone])
    leases.on_renew = lambda: next(refusals, lambda: None)()
    made = held()
    add(made, "a")
    add(made, "b", queue=OTHER)
    with pytest.raises(BrokerUnavailable):
        made.renew()
    assert leases.told == [("renewed", OTHER, ["lease-b"])]


def test_a_lease_is_not_renewed_after_it_was_given_up(held: Callable[..., Holding], leases: FakeLeases) -> None:
    """A renewal that is under way ends first: the other way round the message would be kept from everybody."""
    begun = threading.Event()

    def slow() -> None:
        begun.set()
        time.sleep(0.3)

    made = held()
    add(made, "a")
    leases.on_renew = slow
    renewing = threading.Thread(target=made.renew)
    renewing.start()
    begun.wait(5)
    made.give_back("a", Back(0))
    renewing.join()
    all_told(made)
    made.renew()
    assert leases.told == [("renewed", BULK, ["lease-a"]), ("lease-a", 0)]


def test_what_hangs_is_not_renewed_and_is_said(
    held: Callable[..., Holding], leases: FakeLeases, caplog: pytest.LogCaptureFixture
) -> None:
    made = held(lease_s=0.3, longest_s=0.6)
    add(made, "hangs")
    wait_until(lambda: ("renewed", BULK, ["lease-hangs"]) in leases.told, "a renewal", timeout_s=5)
    assert not made.hanging.is_set()
    assert made.hanging.wait(5)
    leases.told.clear()
    add(made, "new")
    made.renew()
    assert leases.told == [("renewed", BULK, ["lease-new"])]
    assert "1 messages are held for over 0.6 s: they hang" in caplog.text


# Settling


def test_what_ends_together_is_told_together(held: Callable[..., Holding], leases: FakeLeases) -> None:
    requests: list[int] = []
    leases.on_settle = lambda orders: (requests.append(len(orders)), [])[1]
    made = held()
    add(made, "a", "b", "c", "d", "e")
    for tag in "abcde":
        made.done(tag)
    all_told(made)
    assert requests == [5]


def test_what_was_not_told_is_told_again_and_nothing_else(held: Callable[..., Holding], leases: FakeLeases) -> None:
    made = held()
    add(made, "a", "b", "c")
    refusals = iter([lambda orders: orders[1:], gone])
    leases.on_settle = lambda orders: next(refusals, lambda _: [])(orders)
    for tag in "abc":
        made.done(tag)
    all_told(made)
    assert leases.ends() == [("lease-a", None), ("lease-b", None), ("lease-c", None)]


def test_what_can_not_be_told_takes_no_room_and_is_given_up_with_its_lease(
    held: Callable[..., Holding], leases: FakeLeases, caplog: pytest.LogCaptureFixture
) -> None:
    leases.on_settle = gone
    made = held(lease_s=0.3)
    add(made, "a")
    made.done("a")
    assert made.wait_for_room(BULK, 0) == 5
    all_told(made)
    assert "1 messages could not be settled and come again" in caplog.text


def test_a_defect_while_telling_ends_no_thread(held: Callable[..., Holding], leases: FakeLeases) -> None:
    def broken(_: list[Order]) -> list[Order]:
        raise ValueError("?")

    leases.on_settle = broken
    made = held()
    add(made, "a")
    made.done("a")
    all_told(made)
    leases.on_settle = lambda _: []
    add(made, "b")
    made.done("b")
    all_told(made)
    assert leases.ends() == [("lease-b", None)]


def test_what_is_given_back_waits_as_told_or_longer_each_time(held: Callable[..., Holding], leases: FakeLeases) -> None:
    """SQS counts, and takes a message for dead after 1000 times: an outage of an hour must not come to that."""
    made = held()
    for times in (1, 10, 1000):
        add(made, str(times), times=times)
        made.give_back(str(times))
    add(made, "told", times=1000)
    made.give_back("told", Back(7.5))
    all_told(made)
    assert leases.ends() == [("lease-1", 2), ("lease-10", 20), ("lease-1000", 900), ("lease-told", 7.5)]


def test_how_often_a_message_was_given_out_is_known_while_it_is_held(held: Callable[..., Holding]) -> None:
    made = held()
    add(made, "a", times=3)
    assert (made.times("a"), made.times("unknown")) == (3, 1)


# Outages


def paused_s(of: Holding, queue: str = BULK) -> float:
    begun = time.monotonic()
    assert of.wait_for_room(queue, 0) == 0
    wait_until(lambda: of.wait_for_room(queue, 0.01), "the lane to go on", timeout_s=10)
    return time.monotonic() - begun


def outage(of: Holding, tag: str) -> None:
    add(of, tag)
    of.give_back(tag, Back(outage=True))


@pytest.fixture
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "GIVEN_BACK_S", 0.2)


@pytest.mark.usefixtures("_short_pauses")
def test_an_outage_pauses_its_lane_longer_each_time(held: Callable[..., Holding]) -> None:
    made = held()
    pauses = []
    for number in range(3):
        outage(made, f"{number}")
        assert made.wait_for_room(OTHER, 0) == 2, "other lanes are not affected"
        pauses.append(paused_s(made))
    assert [0.15 * 2**number < pause < 0.2 * 2**number + 0.15 for number, pause in enumerate(pauses)] == [True] * 3


@pytest.mark.usefixtures("_short_pauses")
def test_all_that_meet_the_same_outage_pause_once(held: Callable[..., Holding]) -> None:
    made = held()
    add(made, "a", "b", "c", "d")
    for tag in "abcd":
        made.give_back(tag, Back(outage=True))
    assert paused_s(made) < 0.35


def test_a_lane_goes_on_at_once_after_something_was_done(held: Callable[..., Holding]) -> None:
    made = held()
    add(made, "works")
    outage(made, "a")
    assert made.wait_for_room(BULK, 0) == 0
    threading.Timer(0.2, made.done, ["works"]).start()
    begun = time.monotonic()
    assert made.wait_for_room(BULK, 10) == 5
    assert time.monotonic() - begun < 1


def test_what_is_given_back_for_another_reason_pauses_nothing(held: Callable[..., Holding]) -> None:
    made = held()
    add(made, "a")
    made.give_back("a", Back(600))
    assert made.wait_for_room(BULK, 0) == 5


# Going


def test_after_taking_was_stopped_there_is_no_room_and_nothing_more_is_held(held: Callable[..., Holding]) -> None:
    made = held()
    add(made, "a")
    made.stop_taking()
    assert made.wait_for_room(BULK, 0) == 0
    assert not made.add("b", Taken(BULK, "lease-b", b""))
    assert not made.wait_until_empty(0.1)
    made.done("a")
    assert made.wait_until_empty(5)


def test_closing_gives_back_what_is_held_now(held: Callable[..., Holding], leases: FakeLeases) -> None:
    made = held()
    add(made, "a", "b", "c", times=9)
    made.done("a")
    assert made.close(5) == 2
    assert leases.ends() == [("lease-a", None), ("lease-b", 0), ("lease-c", 0)]
    assert not made.add("d", Taken(BULK, "lease-d", b""))
    made.refuse([Taken(BULK, "lease-d", b"")])
    assert ("lease-d", 0) in leases.told


def test_what_ended_last_is_told_before_it_is_closed_though_the_broker_refuses_twice(
    held: Callable[..., Holding], leases: FakeLeases
) -> None:
    refusals = iter([gone, gone])
    leases.on_settle = lambda orders: next(refusals, lambda _: [])(orders)
    made = held()
    add(made, "a")
    made.done("a")
    made.close(5)
    assert leases.ends() == [("lease-a", None)]


def test_a_broker_that_is_gone_holds_up_no_closing(held: Callable[..., Holding], leases: FakeLeases) -> None:
    leases.on_settle = gone
    made = held(lease_s=2)
    add(made, "a")
    begun = time.monotonic()
    assert made.close(0.3) == 1
    assert time.monotonic() - begun < 1


def test_threads_end_with_closing(held: Callable[..., Holding]) -> None:
    before = set(threading.enumerate())
    made = held()
    assert len(set(threading.enumerate()) - before) == 2
    made.close(5)
    wait_until(lambda: set(threading.enumerate()) <= before, "the threads to end", timeout_s=5)


def test_what_is_refused_stays_suspected(held: Callable[..., Holding], leases: FakeLeases) -> None:
    """On SQS, what is sent anew is counted anew."""
    orders: list[Order] = []
    leases.on_settle = lambda told: orders.extend(told) or []
    held().refuse([Taken(BULK, "new", b"", 1), Taken(BULK, "suspect", b"", 2)])
    assert [(order.lease, order.blamed) for order in orders] == [("new", False), ("suspect", True)]
