"""The transport on SQS (moto): room, leases, deleting and giving back, whatever it answers; poison; going."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from embedfleet.contract import Batch
from embedfleet.errors import BrokerUnavailable
from embedfleet.sqs import SqsBroker
from embedfleet_worker.transport import Back, channel, given_back, holding, sqs
from embedfleet_worker.transport.holding import Holding
from tests import aws
from tests.unit import sqs_queues
from tests.unit.poison import POISON, changed
from tests.unit.transports import Taker, restored
from tests.waiting import wait_until

FAULTS = [fault for fault in aws.FAULTS if fault != "hang"] + ["some"]
"""Each is tried; what hangs has a test of its own."""


@pytest.fixture
def broker(proxy: aws.Proxy, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[SqsBroker]:
    """With leases of 2 s, unless the test says otherwise; what hangs is given up early."""
    monkeypatch.setattr("embedfleet.sqs._READ_TIMEOUT_S", 1)
    for waiting in (holding, channel):
        monkeypatch.setattr(waiting, "_AGAIN_MAX_S", 0.1)
        monkeypatch.setattr(waiting, "_AGAIN_S", 0.05)
    monkeypatch.setattr(sqs, "_POLL_S", 1)
    with sqs_queues.made(sqs_queues.settings(lease_s=getattr(request, "param", 2))) as made:
        yield made


short_lease = pytest.mark.parametrize("broker", [1], indirect=True)


class SqsTaker(Taker):
    """A consumer of the bulk lane, with room for five, and of the interactive lane, with room for one."""

    def __init__(self, broker: SqsBroker) -> None:
        self.bulk, self.interactive = broker.lane("bulk"), broker.lane("interactive")
        super().__init__(broker, {self.interactive: 1, self.bulk: 5})
        self.broker: SqsBroker = broker

    def publish(self, *numbers: int, lane: str = "") -> None:
        batches = [Batch(to="file:///a-secret-text", job="j-1", batch=number, tokens=1) for number in numbers]
        self.broker.publish_all(batches, lane or self.bulk)

    def send(self, body: str) -> None:
        self.broker.call("send_message", self.bulk, MessageBody=body)

    def take(self, count: int) -> list[int]:
        """Wait until so many have been taken; their numbers, in order."""
        return sorted(said["batch"] for said in self.wait(count))

    def settled(self, queue: str = "") -> bool:
        """Whether nobody holds a message, and none waits."""
        queue = queue or self.bulk
        return self.broker.depth(queue) == sqs_queues.held(self.broker, queue) == 0


@pytest.fixture
def taker(broker: SqsBroker, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqsTaker]:
    with restored(monkeypatch):
        made = SqsTaker(broker)
        yield made
        made.close()


# Holding


def test_lanes_have_limits_of_their_own(taker: SqsTaker) -> None:
    taker.publish(*range(8))
    taker.publish(100, 101, lane=taker.interactive)
    assert taker.take(6)[-1] == 100
    taker.look(0.3)
    assert len(taker.taken) == 6
    assert (taker.broker.depth(taker.bulk), taker.broker.depth(taker.interactive)) == (3, 1)
    interactive = next(message for message in taker.taken if message.payload[0][0]["batch"] == 100)
    interactive.ack()
    assert taker.take(7)[-2:] == [100, 101], "the full lane is in nobody's way"


def test_what_is_acknowledged_is_deleted_together(taker: SqsTaker, proxy: aws.Proxy) -> None:
    taker.publish(*range(5))
    taker.take(5)
    proxy.entries.clear()
    for message in taker.taken:
        message.ack()
    wait_until(taker.settled, "the deletions")
    assert [count for operation, count in proxy.entries if operation == "DeleteMessageBatch"] == [5]


def test_a_lease_is_renewed_until_the_message_is_done(taker: SqsTaker) -> None:
    taker.publish(1)
    taker.take(1)
    for _ in range(5):
        taker.holding.renew()
        taker.look(0.5)
    assert len(taker.taken) == 1, "it was given out again"
    taker.taken[0].ack()
    wait_until(taker.settled, "the deletion")


@short_lease
def test_without_renewal_it_is_given_out_again_and_the_late_one_hurts_nobody(
    taker: SqsTaker, proxy: aws.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its receipt is not valid any more when another has deleted the message. What it gives back comes again."""
    monkeypatch.setattr(taker.holding, "renew", lambda: None)
    taker.publish(1)
    taker.take(2)
    first, *others = taker.taken
    for each in others:
        each.ack()
    wait_until(taker.settled, "the deletion")
    Holding.renew(taker.holding)
    given_back[first.delivery_tag] = Back(0)
    first.requeue()
    taker.taken.clear()
    assert taker.take(1) == [1]

    def all_done() -> bool:
        taker.hub.run_once()
        while taker.taken:
            taker.taken.pop().ack()
        return taker.settled() and taker.room(taker.bulk) == 5

    wait_until(all_done, "nothing to be left")


# Giving back


def test_what_is_given_back_comes_when_it_was_asked_to(taker: SqsTaker) -> None:
    taker.publish(1)
    taker.take(1)
    given_back[taker.taken[0].delivery_tag] = Back(1)
    begun = time.monotonic()
    taker.taken.pop().requeue()
    taker.take(1)
    assert 0.9 < time.monotonic() - begun < 10
    assert not given_back


@short_lease
def test_how_often_a_message_was_given_out_is_known(taker: SqsTaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taker.holding, "renew", lambda: None)
    taker.publish(1)
    taker.take(2)
    assert sorted(held.taken.times for held in taker.holding._held.values())[:2] == [1, 2]


# Whatever SQS answers


@pytest.mark.parametrize("operation", ["ReceiveMessage", "DeleteMessageBatch", "SendMessageBatch"])
def test_all_messages_are_done_whatever_sqs_answers(taker: SqsTaker, proxy: aws.Proxy, operation: str) -> None:
    taker.publish(*range(30))
    for fault in FAULTS[:-1] if operation == "ReceiveMessage" else FAULTS:
        proxy.faults[operation] += [fault] * 2
    done: set[int] = set()
    again: set[int] = set()

    def all_done() -> bool:
        taker.hub.run_once()
        while taker.taken:
            message = taker.taken.pop()
            number = message.payload[0][0]["batch"]
            if number in again or operation != "SendMessageBatch":
                message.ack()
                done.add(number)
            else:
                given_back[message.delivery_tag] = Back(0)
                message.requeue()
                again.add(number)
        return len(done) == 30 and taker.settled()

    wait_until(all_done, "all messages", timeout_s=40)
    assert done == set(range(30))
    assert not proxy.faults[operation]


def test_only_what_was_not_deleted_is_deleted_again(taker: SqsTaker, proxy: aws.Proxy) -> None:
    proxy.faults["DeleteMessageBatch"].append("some")
    taker.publish(*range(5))
    taker.take(5)
    proxy.entries.clear()
    for message in taker.taken:
        message.ack()
    wait_until(taker.settled, "the deletions")
    assert [count for operation, count in proxy.entries if operation == "DeleteMessageBatch"] == [5, 2]


def test_a_deletion_that_hangs_keeps_nobody(taker: SqsTaker, proxy: aws.Proxy) -> None:
    proxy.faults["DeleteMessageBatch"].append("hang")
    taker.publish(1)
    taker.take(1)
    begun = time.monotonic()
    taker.taken.pop().ack()
    assert time.monotonic() - begun < 0.2
    wait_until(taker.settled, "the deletion", timeout_s=25)


def test_leases_that_can_not_be_renewed_are_told_and_the_others_are(taker: SqsTaker, proxy: aws.Proxy) -> None:
    taker.publish(1)
    taker.publish(2, lane=taker.interactive)
    taker.take(2)
    proxy.faults["ChangeMessageVisibilityBatch"].append("500")
    before = len(proxy.entries)
    with pytest.raises(BrokerUnavailable, match="1 leases could not be renewed"):
        taker.holding.renew()
    assert len(proxy.entries) == before + 1


@short_lease
def test_what_can_not_be_told_takes_no_room_and_comes_again(
    taker: SqsTaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    taker.publish(1)
    taker.take(1)

    def gone(*_: object, **__: object) -> None:
        raise BrokerUnavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(taker.broker, "call_batch", gone)
        taker.taken[0].ack()
        assert taker.room(taker.bulk) == 5
        assert taker.take(2) == [1, 1]
        wait_until(lambda: "could not be settled and come again" in caplog.text, "it to be given up", timeout_s=5)
    taker.taken[1].ack()
    wait_until(taker.settled, "the deletion")


# Poison


def test_poison_goes_to_the_dead_letters_with_a_reason_and_blocks_nothing(
    taker: SqsTaker, caplog: pytest.LogCaptureFixture
) -> None:
    taker.publish(7)
    taker.take(1)
    sound = json.loads(next(iter(taker.holding._held.values())).taken.message)
    sent = ["no json", "[" * 5000, "7", "{}", json.dumps({"body": "a-secret-text"})]
    for name in POISON:
        sent.append(json.dumps(changed(sound, name)))
    for body in sent:
        taker.send(body)
    taker.publish(1)
    assert taker.take(2) == [1, 7]
    letters: list[dict[str, Any]] = []

    def all_dead() -> bool:
        answer = taker.broker.call("receive_message", taker.broker.dead_queue, MaxNumberOfMessages=10)
        letters.extend(json.loads(message["Body"]) for message in answer.get("Messages", []))
        return len(letters) == len(sent)

    wait_until(all_dead, "the dead letters", timeout_s=20)
    assert all(letter["reason"].startswith("not a message of ours: ") for letter in letters)
    assert "secret" not in "".join(letter["reason"] for letter in letters)
    assert caplog.text.count("was set aside") == len(sent)
    assert "secret" not in caplog.text
    wait_until(lambda: sqs_queues.held(taker.broker, taker.bulk) == 2, "its deletion: only the good ones are held")


def test_poison_that_can_not_be_set_aside_is_set_aside_when_it_comes_again(
    taker: SqsTaker, proxy: aws.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "GIVEN_BACK_S", 0)
    proxy.faults["SendMessage"] += ["", "page", "500"]  # the first one is ours
    taker.send("poison")
    wait_until(lambda: taker.broker.depth(taker.broker.dead_queue) == 1, "the dead letter", timeout_s=15)
    wait_until(taker.settled, "its deletion")


def test_what_celery_chokes_on_is_given_back_and_names_no_text(
    taker: SqsTaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def choke(*_: object) -> None:
        raise KeyError("a secret text")

    monkeypatch.setattr(holding, "GIVEN_BACK_S", 0)
    with monkeypatch.context() as patch:
        patch.setattr(taker.connection.transport, "_deliver", choke)
        taker.publish(1)
        wait_until(lambda: (taker.hub.run_once(), "was given back" in caplog.text)[1], "the attempt")
    assert taker.take(1) == [1]
    assert "secret" not in caplog.text


# Going


def test_closing_waits_for_no_poll_and_what_that_still_brings_is_given_back(
    taker: SqsTaker, proxy: aws.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqs, "_POLL_S", 20)
    taker.look(1.2)  # polls of 20 s are under way
    begun = time.monotonic()
    taker.holding.stop_taking()
    taker.cancel()
    taker.holding.close(5)
    assert time.monotonic() - begun < 1
    assert proxy.entries == []
    taker.publish(1)
    wait_until(lambda: ("DeleteMessageBatch", 1) in proxy.entries, "it to be given back", timeout_s=5)
    assert taker.broker.depth(taker.bulk) == 1


def test_what_is_given_back_counts_for_nothing_unless_it_is_blamed(taker: SqsTaker) -> None:
    """SQS counts how often it gives a message out: more than once is to mean that a worker did not bring it back."""
    taker.publish(1)
    for blamed, times in ((False, 1), (False, 1), (True, 2), (False, 4)):  # and stays so
        taker.take(1)
        message = taker.taken.pop()
        given_back[message.delivery_tag] = Back(0, blamed=blamed)
        message.requeue()
        taker.take(1)
        assert taker.holding.times(taker.taken[0].delivery_tag) == times
        given_back[taker.taken[0].delivery_tag] = Back(0)
        taker.taken.pop().requeue()


def test_what_sqs_does_not_take_anew_is_not_deleted(taker: SqsTaker, monkeypatch: pytest.MonkeyPatch) -> None:
    call = taker.broker.call_batch

    def refuse(operation: str, queue: str, entries: Any) -> Any:
        if operation == "send_message_batch":
            return set(), {row: {"SenderFault": True, "Code": "InvalidMessageContents"} for row in range(len(entries))}
        return call(operation, queue, entries)

    taker.publish(1)
    taker.take(1)
    monkeypatch.setattr(taker.broker, "call_batch", refuse)
    message = taker.taken.pop()
    given_back[message.delivery_tag] = Back(0)
    message.requeue()
    assert taker.take(1) == [1]


def test_what_is_held_when_the_channel_is_closed_is_visible_at_once(taker: SqsTaker) -> None:
    taker.publish(1, 2, 3)
    taker.take(3)
    taker.taken[0].ack()
    taker.close()
    found = taker.broker.call("receive_message", taker.bulk, MaxNumberOfMessages=10)["Messages"]
    assert len(found) == 2


def test_what_was_acknowledged_last_is_deleted_before_the_channel_is_closed(taker: SqsTaker, proxy: aws.Proxy) -> None:
    taker.publish(*range(5))
    taker.take(5)
    proxy.faults["DeleteMessageBatch"] += ["500", "page", "some"]
    for message in taker.taken:
        message.ack()
    taker.close()
    assert taker.settled()


def test_connecting_again_and_again_leaves_no_threads(taker: SqsTaker, broker: SqsBroker) -> None:
    def ours() -> list[str]:
        names = ("poll ", "leases", "heartbeat")
        return [thread.name for thread in threading.enumerate() if thread.name.startswith(names)]

    before = len(ours())
    for _ in range(2):
        again = SqsTaker(broker)
        again.look(0.1)
        again.close()
    wait_until(lambda: len(ours()) <= before, "the threads to end", timeout_s=5)


def test_nothing_is_logged_that_is_secret(taker: SqsTaker, proxy: aws.Proxy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "embedfleet_worker")
    proxy.faults["ReceiveMessage"] += ["expired", "500", "page"]
    taker.publish(1)
    taker.take(1)
    assert "it is expired" in caplog.text
    assert aws.SECRET not in caplog.text
