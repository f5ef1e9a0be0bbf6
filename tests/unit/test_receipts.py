"""What a worker holds of SQS, on moto: limits, leases, deleting and giving back, whatever it answers; poison; going."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import kombu.transport
import pytest
from kombu import Connection, Consumer, Queue
from kombu.asynchronous import Hub

from embedfleet.contract import Batch
from embedfleet.envelope import wrap
from embedfleet.errors import BrokerUnavailable
from embedfleet.sqs import SqsBroker
from embedfleet_worker.transport import give_back_in_s
from embedfleet_worker.transport import receipts as module
from embedfleet_worker.transport import sqs as transport
from embedfleet_worker.transport.receipts import Receipts
from tests import aws
from tests.unit import sqs_queues
from tests.unit.test_transport import POISON
from tests.waiting import wait_until

FAULTS = [fault for fault in aws.FAULTS if fault != "hang"] + ["some"]
"""Each is tried; what hangs has a test of its own."""


@pytest.fixture
def broker(proxy: aws.Proxy, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[SqsBroker]:
    """With leases of 2 s, unless the test says otherwise; what hangs is given up early."""
    monkeypatch.setattr("embedfleet.sqs._READ_TIMEOUT_S", 0.5)
    for waiting in (module, transport):
        monkeypatch.setattr(waiting, "_AGAIN_MAX_S", 0.1)
    monkeypatch.setattr(transport, "_POLL_S", 1)
    monkeypatch.setattr(transport, "_AGAIN_S", 0.05)
    with sqs_queues.made(sqs_queues.settings(lease_s=getattr(request, "param", 2))) as made:
        yield made


short_lease = pytest.mark.parametrize("broker", [1], indirect=True)


class Taker:
    """A consumer of the bulk lane, with room for five, and of the interactive lane, with room for one."""

    def __init__(self, broker: SqsBroker) -> None:
        self.broker = broker
        self.bulk, self.interactive = broker.lane("bulk"), broker.lane("interactive")
        transport.install(broker, {self.bulk: 5, self.interactive: 1})
        self.connection = Connection(broker.url)
        self.hub = Hub()
        self.connection.transport.register_with_event_loop(self.connection.connection, self.hub)
        self.taken: list[Any] = []
        self.channel = self.connection.channel()
        assert isinstance(self.channel, transport.Channel)
        queues = [Queue(name, routing_key=name) for name in (self.interactive, self.bulk)]
        self.consumer = Consumer(self.channel, queues, callbacks=[lambda _, message: self.taken.append(message)])
        self.consumer.consume()

    def publish(self, *numbers: int, lane: str = "") -> None:
        batches = [Batch(to="file:///a-secret-text", job="j-1", batch=number, tokens=1) for number in numbers]
        self.broker.publish_all(batches, lane or self.bulk)

    def send(self, body: str) -> None:
        self.broker.call("send_message", self.bulk, MessageBody=body)

    def take(self, count: int) -> list[int]:
        """Wait until so many have been taken; their numbers, in order."""

        def taken() -> bool:
            self.hub.run_once()
            return len(self.taken) >= count

        wait_until(taken, f"{count} messages", timeout_s=15)
        return sorted(message.payload[0][0]["batch"] for message in self.taken)

    def look(self, seconds: float) -> None:
        """Let Celery's loop run for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.hub.run_once()

    def settled(self, queue: str = "") -> bool:
        """Whether nobody holds a message, and none waits."""
        queue = queue or self.bulk
        return self.broker.depth(queue) == sqs_queues.held(self.broker, queue) == 0

    def close(self) -> None:
        self.connection.close()
        self.hub.close()


@pytest.fixture
def taker(broker: SqsBroker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Taker]:
    monkeypatch.setattr(kombu.transport, "_transport_cache", dict(kombu.transport._transport_cache))
    monkeypatch.setattr(kombu.transport, "TRANSPORT_ALIASES", dict(kombu.transport.TRANSPORT_ALIASES))
    made = Taker(broker)
    yield made
    made.close()


# Holding


def test_lanes_have_limits_of_their_own(taker: Taker) -> None:
    taker.publish(*range(8))
    taker.publish(100, 101, lane=taker.interactive)
    assert taker.take(6)[-1] == 100
    taker.look(0.3)
    assert len(taker.taken) == 6
    assert (taker.broker.depth(taker.bulk), taker.broker.depth(taker.interactive)) == (3, 1)
    interactive = next(message for message in taker.taken if message.payload[0][0]["batch"] == 100)
    interactive.ack()
    assert taker.take(7)[-2:] == [100, 101], "the full lane is in nobody's way"


def test_what_is_acknowledged_is_deleted_together(taker: Taker, proxy: aws.Proxy) -> None:
    taker.publish(*range(5))
    taker.take(5)
    proxy.entries.clear()
    for message in taker.taken:
        message.ack()
    wait_until(taker.settled, "the deletions")
    assert [count for operation, count in proxy.entries if operation == "DeleteMessageBatch"] == [5]


def test_a_lease_is_renewed_until_the_message_is_done(taker: Taker) -> None:
    taker.publish(1)
    taker.take(1)
    for _ in range(5):
        taker.channel.renew()
        taker.look(0.5)
    assert len(taker.taken) == 1, "it was given out again"
    taker.taken[0].ack()
    wait_until(taker.settled, "the deletion")


@short_lease
def test_without_renewal_it_is_given_out_again_and_the_late_one_hurts_nobody(taker: Taker, proxy: aws.Proxy) -> None:
    """Its receipt is not valid any more when the second holder has deleted the message: told once."""
    taker.publish(1)
    taker.take(2)
    first, second = taker.taken
    second.ack()
    wait_until(taker.settled, "the deletion")
    told = proxy.seen["ChangeMessageVisibilityBatch"] + proxy.seen["DeleteMessageBatch"]
    taker.channel.renew()
    first.requeue()
    taker.look(0.5)
    assert proxy.seen["ChangeMessageVisibilityBatch"] + proxy.seen["DeleteMessageBatch"] == told + 2
    assert taker.settled()
    assert taker.channel.receipts.wait_for_room(taker.bulk, 0) == 5


def test_a_lease_is_not_renewed_after_it_was_given_up(
    broker: SqsBroker, proxy: aws.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal that is under way ends first: the other way round the message would be kept from everybody."""
    bulk = broker.lane("bulk")
    held = Receipts(broker, {bulk: 5})
    broker.publish(Batch(to="file:///data", job="j-1", batch=0, tokens=1), bulk)
    [message] = broker.call("receive_message", bulk, VisibilityTimeout=2)["Messages"]
    held.add("tag", bulk, message["ReceiptHandle"])
    call, begun, told = broker.call_batch, threading.Event(), []

    def slow(operation: str, queue: str, entries: Any) -> Any:
        if entries[0].get("VisibilityTimeout"):
            begun.set()
            time.sleep(0.3)
        told.append(entries[0].get("VisibilityTimeout"))
        return call(operation, queue, entries)

    monkeypatch.setattr(broker, "call_batch", slow)
    renewing = threading.Thread(target=held.renew)
    renewing.start()
    begun.wait(5)
    held.give_back("tag", 0)
    renewing.join()
    wait_until(lambda: broker.depth(bulk) == 1, "the message")
    held.renew()
    held.close(5)
    assert told == [2, 0]


# Giving back


def test_what_is_given_back_comes_when_it_was_asked_to(taker: Taker) -> None:
    taker.publish(1)
    taker.take(1)
    give_back_in_s[taker.taken[0].delivery_tag] = 1
    begun = time.monotonic()
    taker.taken.pop().requeue()
    taker.take(1)
    assert 0.9 < time.monotonic() - begun < 10
    assert not give_back_in_s


def test_what_is_given_back_again_and_again_waits_longer(broker: SqsBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQS counts, and takes a message for dead after 1000 times: an outage of an hour must not come to that."""
    orders: list[dict[str, Any]] = []

    def keep(operation: str, queue: str, entries: list[dict[str, Any]]) -> Any:
        orders.extend(entries)
        return set(range(len(entries))), {}

    monkeypatch.setattr(broker, "call_batch", keep)
    held = Receipts(broker, {"q": 9})
    for times in (1, 10, 1000):
        held.add(str(times), "q", str(times), times)
        held.give_back(str(times))
    held.close(5)
    assert [entry["VisibilityTimeout"] for entry in orders] == [2, 20, 900]


@short_lease
def test_how_often_a_message_was_given_out_is_known(taker: Taker) -> None:
    taker.publish(1)
    taker.take(2)
    assert sorted(held.times for held in taker.channel.receipts._held.values()) == [1, 2]


# Whatever SQS answers


@pytest.mark.parametrize("operation", ["ReceiveMessage", "DeleteMessageBatch", "ChangeMessageVisibilityBatch"])
def test_all_messages_are_done_whatever_sqs_answers(taker: Taker, proxy: aws.Proxy, operation: str) -> None:
    for fault in FAULTS[:-1] if operation == "ReceiveMessage" else FAULTS:
        proxy.faults[operation] += [fault] * 2
    done: set[int] = set()
    again: set[int] = set()

    def all_done() -> bool:
        taker.hub.run_once()
        while taker.taken:
            message = taker.taken.pop()
            number = message.payload[0][0]["batch"]
            if number in again or operation != "ChangeMessageVisibilityBatch":
                message.ack()
                done.add(number)
            else:
                give_back_in_s[message.delivery_tag] = 0
                message.requeue()
                again.add(number)
        return len(done) == 30 and taker.settled()

    taker.publish(*range(30))
    wait_until(all_done, "all messages", timeout_s=40)
    assert done == set(range(30))
    assert not proxy.faults[operation]


def test_only_what_was_not_deleted_is_deleted_again(taker: Taker, proxy: aws.Proxy) -> None:
    proxy.faults["DeleteMessageBatch"].append("some")
    taker.publish(*range(5))
    taker.take(5)
    proxy.entries.clear()
    for message in taker.taken:
        message.ack()
    wait_until(taker.settled, "the deletions")
    assert [count for operation, count in proxy.entries if operation == "DeleteMessageBatch"] == [5, 2]


def test_a_deletion_that_hangs_keeps_nobody(taker: Taker, proxy: aws.Proxy) -> None:
    proxy.faults["DeleteMessageBatch"].append("hang")
    taker.publish(1)
    taker.take(1)
    begun = time.monotonic()
    taker.taken.pop().ack()
    assert time.monotonic() - begun < 0.2
    wait_until(taker.settled, "the deletion", timeout_s=10)


def test_leases_that_can_not_be_renewed_are_told_and_the_others_are(taker: Taker, proxy: aws.Proxy) -> None:
    taker.publish(1)
    taker.publish(2, lane=taker.interactive)
    taker.take(2)
    proxy.faults["ChangeMessageVisibilityBatch"].append("500")
    before = len(proxy.entries)
    with pytest.raises(BrokerUnavailable, match="1 leases could not be renewed"):
        taker.channel.renew()
    assert len(proxy.entries) == before + 1


@short_lease
def test_what_can_not_be_told_takes_no_room_and_comes_again(
    taker: Taker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    taker.publish(1)
    taker.take(1)

    def gone(*_: object, **__: object) -> None:
        raise BrokerUnavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(taker.broker, "call_batch", gone)
        taker.taken[0].ack()
        assert taker.channel.receipts.wait_for_room(taker.bulk, 0) == 5
        assert taker.take(2) == [1, 1]
        wait_until(lambda: "could not be settled and come again" in caplog.text, "it to be given up", timeout_s=5)
    taker.taken[1].ack()
    wait_until(taker.settled, "the deletion")


# Poison


def test_poison_goes_to_the_dead_letters_with_a_reason_and_blocks_nothing(
    taker: Taker, caplog: pytest.LogCaptureFixture
) -> None:
    sent = ["no json", "[" * 5000, "7", "{}", json.dumps({"body": "a-secret-text"})]
    for changes in POISON.values():
        batch = Batch(to="file:///a-secret-text", job="j-1", batch=7, tokens=1)
        message = json.loads(wrap(batch, taker.bulk, at=0, key=None))
        for path, value in changes.items():
            *parents, last = path.split(".")
            (message[parents[0]] if parents else message)[last] = value
        sent.append(json.dumps(message))
    for body in sent:
        taker.send(body)
    taker.publish(1)
    assert taker.take(1) == [1]
    letters: list[dict[str, Any]] = []

    def all_dead() -> bool:
        answer = taker.broker.call("receive_message", taker.broker.dead_queue, MaxNumberOfMessages=10)
        letters.extend(json.loads(message["Body"]) for message in answer.get("Messages", []))
        return len(letters) == len(sent)

    wait_until(all_dead, "the dead letters", timeout_s=20)
    assert sorted(letter["message"] for letter in letters) == sorted(sent)
    assert all(letter["reason"].startswith("not a message of ours: ") for letter in letters)
    assert "secret" not in "".join(letter["reason"] for letter in letters)
    assert caplog.text.count("was set aside") == len(sent)
    assert "secret" not in caplog.text
    wait_until(lambda: sqs_queues.held(taker.broker, taker.bulk) == 1, "its deletion: only the good one is held")


def test_poison_that_can_not_be_set_aside_is_set_aside_when_it_comes_again(
    taker: Taker, proxy: aws.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GIVEN_BACK_S", 0)
    proxy.faults["SendMessage"] += ["", "page", "500"]  # the first one is ours
    taker.send("poison")
    wait_until(lambda: taker.broker.depth(taker.broker.dead_queue) == 1, "the dead letter", timeout_s=15)
    wait_until(taker.settled, "its deletion")


def test_what_celery_chokes_on_is_given_back_and_names_no_text(
    taker: Taker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def choke(*_: object) -> None:
        raise KeyError("a secret text")

    monkeypatch.setattr(module, "GIVEN_BACK_S", 0)
    with monkeypatch.context() as patch:
        patch.setattr(taker.connection.transport, "_deliver", choke)
        taker.publish(1)
        wait_until(lambda: (taker.hub.run_once(), "was given back" in caplog.text)[1], "the attempt")
    assert taker.take(1) == [1]
    assert "secret" not in caplog.text


# Going


def test_closing_waits_for_no_poll_and_what_that_still_brings_is_given_back(
    taker: Taker, proxy: aws.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_POLL_S", 20)
    taker.look(1.2)  # polls of 20 s are under way
    begun = time.monotonic()
    taker.close()
    assert time.monotonic() - begun < 1
    assert proxy.entries == []
    taker.publish(1)
    wait_until(lambda: ("ChangeMessageVisibilityBatch", 1) in proxy.entries, "it to be given back", timeout_s=5)
    assert taker.broker.depth(taker.bulk) == 1


def test_what_is_held_when_the_channel_is_closed_is_visible_at_once(taker: Taker) -> None:
    taker.publish(1, 2, 3)
    taker.take(3)
    taker.taken[0].ack()
    taker.close()
    found = taker.broker.call("receive_message", taker.bulk, MaxNumberOfMessages=10)["Messages"]
    assert len(found) == 2


def test_what_was_acknowledged_last_is_deleted_before_the_channel_is_closed(taker: Taker, proxy: aws.Proxy) -> None:
    taker.publish(*range(5))
    taker.take(5)
    proxy.faults["DeleteMessageBatch"] += ["500", "page", "some"]
    for message in taker.taken:
        message.ack()
    taker.close()
    assert taker.settled()


def test_an_sqs_that_is_gone_holds_up_no_exit(taker: Taker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_CLOSE_S", 0.3)
    taker.publish(1)
    taker.take(1)

    def hang(*_: object, **__: object) -> None:
        time.sleep(1)
        raise BrokerUnavailable("gone")

    monkeypatch.setattr(taker.broker, "call_batch", hang)
    begun = time.monotonic()
    taker.close()
    assert time.monotonic() - begun < 1


def test_connecting_again_and_again_leaves_no_threads(taker: Taker, broker: SqsBroker) -> None:
    def ours() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith(("poll ", "receipts"))]

    before = len(ours())
    for _ in range(5):
        again = Taker(broker)
        again.look(0.1)
        again.close()
    wait_until(lambda: len(ours()) <= before, "the threads to end", timeout_s=5)


def test_nothing_is_logged_that_is_secret(taker: Taker, proxy: aws.Proxy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "embedfleet_worker")
    proxy.faults["ReceiveMessage"] += ["expired", "500", "page"]
    taker.publish(1)
    taker.take(1)
    assert "it is expired" in caplog.text
    assert aws.SECRET not in caplog.text
