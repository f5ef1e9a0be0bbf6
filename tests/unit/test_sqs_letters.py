"""Dead letters on SQS (moto): listing what can't be listed, what SQS moved there by itself, and settling that."""

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr

from embedfleet import Fleet, sqsdead
from embedfleet.broker import connect
from embedfleet.cli import cli
from embedfleet.contract import Batch, Delivery
from embedfleet.envelope import wrap
from embedfleet.errors import BrokerUnavailable, StoreNotAllowed, StoreUnavailable
from embedfleet.letters import Letter
from embedfleet.settings import FleetSettings, load
from embedfleet.sqs import SqsBroker
from embedfleet_worker import redriven
from embedfleet_worker.lifecycle.janitor import Janitor as WorkersJanitor
from embedfleet_worker.redriven import Seen, settle_redriven
from tests import aws
from tests.unit import sqs_queues
from tests.unit.redis_server import RedisServer

BATCH = Batch(to="file:///data", job="j-1", batch=7, tokens=1)
DELIVERY = Delivery(to="file:///data", job="j-1", batch=7, destination="pgvector-a8ab8934")


@pytest.fixture
def settings(proxy: aws.Proxy) -> FleetSettings:
    return sqs_queues.settings()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in is one server: it knows at once that nothing more comes."""
    monkeypatch.setattr(sqsdead, "_WAIT_S", 0)


@pytest.fixture
def broker(settings: FleetSettings) -> Iterator[SqsBroker]:
    with sqs_queues.made(settings) as made:
        yield made


def letter(at: float = 100.0) -> Letter:
    return Letter.of(BATCH.model_dump(), "a reason", "a-queue", at)


def moved(broker: SqsBroker, body: str, lane: str = "") -> None:
    """Have SQS move a message to the dead letters, as it does: it was given out too often."""
    queue = lane or broker.lane("bulk")
    redrive = json.loads(sqs_queues.attributes(broker, queue)["RedrivePolicy"])
    sqs_queues.change(broker, queue, RedrivePolicy=json.dumps({**redrive, "maxReceiveCount": 1}))
    before = broker.depth(broker.dead_queue)
    broker.call("send_message", queue, MessageBody=body)
    for _ in range(2):
        broker.call("receive_message", queue, VisibilityTimeout=0)
    assert broker.depth(broker.dead_queue) == before + 1


# Listing


def test_letters_are_listed_newest_first_and_visible_again_at_once(broker: SqsBroker) -> None:
    letters = [letter(at=float(at)) for at in range(25)]
    for each in letters:
        broker.dead_letter(each)
    for _ in range(2):
        found = broker.letters()
        assert (found.letters, found.complete) == (letters[::-1], True)
        assert broker.depth(broker.dead_queue) == 25
        assert sqs_queues.held(broker, broker.dead_queue) == 0


def test_letters_are_removed_by_their_ids(broker: SqsBroker) -> None:
    letters = [letter(at=float(at)) for at in range(13)]
    for each in letters:
        broker.dead_letter(each)
    assert broker.remove_letters([each.id for each in letters[1:]] + ["0" * 12]) == 12
    assert broker.letters().letters == letters[:1]


def test_a_listing_that_is_cut_says_so(broker: SqsBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    for at in range(15):
        broker.dead_letter(letter(at=float(at)))
    found = broker.letters(limit=10)
    assert (len(found.letters), found.complete) == (10, False)
    assert broker.depth(broker.dead_queue) == 15
    monkeypatch.setattr(sqsdead, "_LOOK_S", 0)
    assert not broker.letters().complete


def test_a_listing_beside_another_says_that_it_may_lack_some(broker: SqsBroker) -> None:
    broker.dead_letter(letter())
    with sqsdead.look(broker, 10) as queue:
        assert len(queue.found) == 1
        beside = broker.letters()
        assert (beside.letters, beside.complete) == ([], False)
    assert broker.letters().complete


def test_a_listing_that_fails_shows_again_what_it_hid(broker: SqsBroker, proxy: aws.Proxy) -> None:
    for at in range(15):
        broker.dead_letter(letter(at=float(at)))
    proxy.faults["ReceiveMessage"] += ["", "500"]  # the first one is answered
    with pytest.raises(BrokerUnavailable):
        broker.letters()
    assert broker.depth(broker.dead_queue) == 15


@pytest.mark.usefixtures("proxy")
def test_what_sqs_moved_and_is_not_signed_is_no_message_of_ours() -> None:
    """Else a replay would sign it."""
    key = SecretStr("a key of the fleet's")
    with sqs_queues.made(sqs_queues.settings(signing_key=key)) as broker:
        moved(broker, wrap(BATCH, broker.lane("bulk"), at=0, key=None))
        moved(broker, wrap(BATCH, broker.lane("bulk"), at=0, key=key))
        assert sorted(str(each.work) for each in broker.letters().letters) == sorted(["None", str(BATCH)])


def test_what_sqs_moved_is_listed_as_a_letter(broker: SqsBroker) -> None:
    moved(broker, wrap(BATCH, broker.lane("bulk"), at=0, key=None))
    moved(broker, "a secret")
    found = broker.letters()
    work, poison = sorted(found.letters, key=lambda each: each.raw is not None)
    assert (work.work, work.queue, work.part) == (BATCH, broker.lane("bulk"), False)
    assert work.reason.startswith("SQS gave it out ")
    assert work.at == pytest.approx(time.time(), abs=60)
    assert (poison.work, poison.raw_bytes) == (None, b"a secret")
    assert "secret" not in poison.reason
    assert {each.id for each in broker.letters().letters} == {work.id, poison.id}
    assert broker.remove_letters([work.id]) == 1
    assert [each.id for each in broker.letters().letters] == [poison.id]


def test_a_letter_of_an_earlier_version_is_read(broker: SqsBroker) -> None:
    old = {"message": BATCH.model_dump(), "reason": "a reason", "at": 12.5}
    broker.call("send_message", broker.dead_queue, MessageBody=json.dumps(old))
    [found] = broker.letters().letters
    assert (found.work, found.reason, found.at) == (BATCH, "a reason", 12.5)


def test_the_commands_work_on_sqs(broker: SqsBroker, tmp_path: Path) -> None:
    with Fleet(**{**dict(broker.settings), "store": str(tmp_path)}) as fleet:
        job = fleet.enqueue(["a text"])
    bulk = broker.lane("bulk")
    batch = BATCH.model_copy(update={"to": job.folder.store.uri, "job": job.id, "batch": 0})
    moved(broker, wrap(batch, bulk, at=0, key=None))
    broker.call("purge_queue", bulk)
    broker.dead_letter(Letter.quarantined(b"poison", "no", bulk, 0))
    options = ["--broker-url", broker.url, "--store", str(tmp_path), "--engine", "synthetic"]
    options += ["--queue-prefix", broker.settings.queue_prefix]

    def dead(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["dead", *arguments, *options], standalone_mode=False)

    assert len(dead("list").output.splitlines()) == 2
    replayed = dead("replay", "--all")
    assert replayed.return_value == 1, "the poison stays"
    assert f"{job.id} batch 0 is published again in {bulk}" in replayed.output
    assert broker.depth(bulk) == 1
    assert dead("purge", "--all").output == "1 letter removed\n"
    assert broker.depth(broker.dead_queue) == 0


# Settling


class Janitor:
    """One that looks again and again, and where it says how a batch or a delivery ended."""

    def __init__(self, broker: SqsBroker) -> None:
        self.broker = broker
        self.seen = Seen()
        self.told: list[Batch | Delivery] = []
        self.failure: Exception | None = None

    def settle(self) -> int:
        return settle_redriven(self.broker, self.tell, self.tell, self.seen)

    def tell(self, work: Batch | Delivery, reason: str) -> None:
        if self.failure is not None:
            raise self.failure
        assert reason.startswith("SQS gave it out ")
        self.told.append(work)


@pytest.fixture
def janitor(broker: SqsBroker) -> Janitor:
    return Janitor(broker)


@pytest.mark.parametrize(("work", "lane"), [(BATCH, "bulk"), (DELIVERY, "deliver")])
def test_the_job_of_what_sqs_moved_is_told_and_a_letter_is_left(
    broker: SqsBroker, janitor: Janitor, work: Batch | Delivery, lane: Any
) -> None:
    moved(broker, wrap(work, broker.lane(lane), at=0, key=None), broker.lane(lane))
    [before] = broker.letters().letters
    assert janitor.settle() == 1
    assert janitor.told == [work]
    [after] = broker.letters().letters
    assert (after.id, after.work, after.queue, after.part) == (before.id, work, broker.lane(lane), True)
    assert broker.depth(broker.dead_queue) == 1
    assert not any(held.moved for held in looked_at(broker)), "it is a letter of ours now"


def test_the_workers_janitor_settles_what_sqs_moved(proxy: aws.Proxy, tmp_path: Path) -> None:
    """Else its job would wait for ever."""
    with sqs_queues.made(sqs_queues.settings(store=str(tmp_path))) as broker, Fleet(**dict(broker.settings)) as fleet:
        job = fleet.enqueue(["a text"])
        bulk = broker.lane("bulk")
        broker.call("purge_queue", bulk)
        batch = BATCH.model_copy(update={"to": job.folder.store.uri, "job": job.id, "batch": 0})
        moved(broker, wrap(batch, bulk, at=0, key=None), bulk)
        WorkersJanitor(broker.settings, broker).turn()
        assert [row["error"] for row in job.rows()] == ["dead_letter"]
        [letter] = broker.letters().letters
        assert letter.part


def looked_at(broker: SqsBroker) -> list[sqsdead.Held]:
    with sqsdead.look(broker, 100) as queue:
        return list(queue.found.values())


def test_letters_are_not_received_again_while_nothing_comes(
    broker: SqsBroker, janitor: Janitor, proxy: aws.Proxy
) -> None:
    broker.dead_letter(letter())
    moved(broker, wrap(BATCH, broker.lane("bulk"), at=0, key=None))
    assert janitor.settle() == 1
    proxy.seen.clear()
    assert [janitor.settle() for _ in range(3)] == [0, 0, 0]
    assert proxy.seen["ReceiveMessage"] == 0
    moved(broker, wrap(BATCH.model_copy(update={"batch": 8}), broker.lane("bulk"), at=0, key=None))
    assert janitor.settle() == 1
    assert [work.batch for work in janitor.told] == [7, 8]


def test_an_empty_queue_is_not_received_from(janitor: Janitor, proxy: aws.Proxy) -> None:
    assert janitor.settle() == 0
    assert proxy.seen["ReceiveMessage"] == 0


def test_what_can_not_be_told_now_is_told_later(broker: SqsBroker, janitor: Janitor) -> None:
    moved(broker, wrap(BATCH, broker.lane("bulk"), at=0, key=None))
    janitor.failure = StoreUnavailable("the store is down")
    assert janitor.settle() == 0
    assert [held.moved for held in looked_at(broker)] == [True]
    janitor.failure = None
    assert janitor.settle() == 1, "though the depth is the same"


def test_what_can_never_be_told_becomes_a_letter_that_says_so(broker: SqsBroker, janitor: Janitor) -> None:
    moved(broker, wrap(BATCH, broker.lane("bulk"), at=0, key=None))
    janitor.failure = StoreNotAllowed("not this one")
    assert janitor.settle() == 1
    [found] = broker.letters().letters
    assert found.reason.endswith("; its job can't be told: not this one")
    assert (found.work, found.part) == (BATCH, False)


@pytest.mark.parametrize(
    "body", ["poison", json.dumps({"version": 1}), wrap(BATCH, "q", at=0, key=None).replace("utf-8", "zstd")]
)
def test_what_is_no_message_of_ours_touches_no_job(broker: SqsBroker, janitor: Janitor, body: str) -> None:
    moved(broker, body)
    assert janitor.settle() == 0
    assert janitor.told == []
    assert [held.body for held in looked_at(broker)] == [body]


def test_a_janitor_killed_between_letter_and_deletion_leaves_one_letter(
    broker: SqsBroker, janitor: Janitor, proxy: aws.Proxy
) -> None:
    moved(broker, wrap(BATCH, broker.lane("bulk"), at=0, key=None))
    proxy.faults["DeleteMessageBatch"].append("500")
    with pytest.raises(BrokerUnavailable):
        janitor.settle()
    assert broker.depth(broker.dead_queue) == 2
    assert len(broker.letters().letters) == 1
    assert janitor.settle() == 1
    assert [held.moved for held in looked_at(broker)] == [False]
    assert broker.depth(broker.dead_queue) == 1


def test_on_redis_nothing_is_moved(redis_server: RedisServer) -> None:
    with closing(connect(load(broker_url=redis_server.url))) as broker:
        assert settle_redriven(broker, refuse, refuse, Seen()) == 0


def refuse(*_: object) -> None:
    raise AssertionError


def test_letters_that_one_look_does_not_see_are_looked_for_again(
    broker: SqsBroker, janitor: Janitor, proxy: aws.Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redriven, "MAX_LETTERS", 1)
    for at in (1.0, 2.0, 3.0):
        broker.dead_letter(letter(at))
    for _ in range(2):
        proxy.seen.clear()
        janitor.settle()
        assert proxy.seen["ReceiveMessage"] > 0
