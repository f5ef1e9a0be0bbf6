"""The SQS broker on moto: queues found and made, publishing by tens, and an SQS that answers anything else."""

import builtins
import json
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from tenacity import wait_none

from embedfleet import EmbedSettings, Fleet, doctor, policies
from embedfleet.broker import connect
from embedfleet.contract import Batch
from embedfleet.envelope import AT
from embedfleet.errors import BrokerUnavailable, ConfigurationError
from embedfleet.letters import Letter
from embedfleet.settings import FleetSettings, load
from embedfleet.sqs import MAX_BYTES, RETENTION_S, SqsBroker
from tests import aws
from tests.unit import sqs_queues

FORTNIGHT = str(RETENTION_S)


@pytest.fixture
def settings(proxy: aws.Proxy) -> FleetSettings:
    """With queue names of the test's own."""
    return sqs_queues.settings()


@pytest.fixture
def broker(settings: FleetSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqsBroker]:
    """At queues that are there; it waits for nothing between tries."""
    monkeypatch.setattr(policies.BROKER, "wait", wait_none())
    with sqs_queues.made(settings) as made:
        yield made


@pytest.fixture
def impatient(settings: FleetSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqsBroker]:
    """One that gives up soon what hangs."""
    quick(monkeypatch)
    monkeypatch.setattr(policies.BROKER, "wait", wait_none())
    with sqs_queues.made(settings) as made:
        yield made


def batches(count: int, to: str = "file:///data") -> list[Batch]:
    return [Batch(to=to, job="j-1", batch=number, tokens=1) for number in range(count)]


def received(broker: SqsBroker, queue: str) -> list[dict[str, Any]]:
    """Every message of a queue."""
    found: list[dict[str, Any]] = []
    while True:
        answer = broker.call("receive_message", queue, MaxNumberOfMessages=10).get("Messages", [])
        if not answer:
            return found
        found += answer


def numbers(broker: SqsBroker, queue: str) -> list[int]:
    return sorted(sqs_queues.body(message["Body"])["batch"] for message in received(broker, queue))


# Queues


def test_doctor_makes_the_queues_once(settings: FleetSettings, proxy: aws.Proxy) -> None:
    refused = doctor.queues(settings)
    assert not refused.ok
    assert "embedfleet doctor --fix" in refused.remedy
    assert proxy.seen["CreateQueue"] == 0
    first = doctor.queues(settings, fix=True)
    assert first.ok
    assert first.detail.startswith("4 are there, with dead letters; made or mended: ")
    again = doctor.queues(settings, fix=True)
    assert (again.ok, again.detail) == (True, "4 are there, with dead letters")
    assert doctor.queues(settings).ok
    assert (proxy.seen["CreateQueue"], proxy.seen["SetQueueAttributes"]) == (4, 0)


def test_what_doctor_makes_keeps_messages_for_a_fortnight_and_has_dead_letters(broker: SqsBroker) -> None:
    dead, *lanes = broker.queues
    assert lanes == [broker.lane("interactive"), broker.lane("bulk"), broker.lane("deliver")]
    assert dead == f"{broker.settings.queue_prefix}-dead"
    assert "RedrivePolicy" not in sqs_queues.attributes(broker, dead)
    for queue in lanes:
        found = sqs_queues.attributes(broker, queue)
        assert found["MessageRetentionPeriod"] == FORTNIGHT
        redrive = json.loads(found["RedrivePolicy"])
        assert redrive["deadLetterTargetArn"].endswith(f":{dead}")
        assert int(redrive["maxReceiveCount"]) == 1000


def test_doctor_mends_what_a_queue_lacks_and_leaves_the_rest(settings: FleetSettings) -> None:
    with sqs_queues.made(settings) as broker:
        dead, interactive, bulk, deliver = broker.queues
        theirs = {"deadLetterTargetArn": sqs_queues.attributes(broker, dead)["QueueArn"], "maxReceiveCount": 7}
        sqs_queues.change(broker, bulk, MessageRetentionPeriod="60", VisibilityTimeout="77", DelaySeconds="5")
        sqs_queues.change(broker, deliver, RedrivePolicy="")
        sqs_queues.change(broker, interactive, RedrivePolicy=json.dumps(theirs))
        before = doctor.queues(settings)
        assert not before.ok
        assert before.detail == (
            f"{interactive} makes a dead letter of what was received 7 times, and SQS counts give-backs; "
            f"{bulk} keeps messages for less than 14 days; {deliver} has no dead-letter queue"
        )
        assert doctor.queues(settings, fix=True).detail.endswith(f"made or mended: {interactive}, {bulk}, {deliver}")
        mended = sqs_queues.attributes(broker, bulk)
        assert mended["MessageRetentionPeriod"] == FORTNIGHT
        assert (mended["VisibilityTimeout"], mended["DelaySeconds"]) == ("77", "5")
        assert "RedrivePolicy" in sqs_queues.attributes(broker, deliver)
        assert '"maxReceiveCount": 1000' in sqs_queues.attributes(broker, interactive)["RedrivePolicy"]


@pytest.mark.parametrize("fault", ["500", "expired", "reset", "page", "hang", "nobody"])
@pytest.mark.parametrize("check", [doctor.queues, doctor.broker])
def test_doctor_says_what_is_wrong_with_an_sqs_that_does_not_answer(
    settings: FleetSettings,
    proxy: aws.Proxy,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    check: Callable[..., doctor.Check],
) -> None:
    quick(monkeypatch)
    proxy.faults["GetQueueUrl"].append(fault)
    if fault == "nobody":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    begun = time.monotonic()
    found = check(settings)
    assert not found.ok
    assert found.detail.startswith("broker sqs://us-east-1: it can't be reached (")
    assert aws.SECRET not in found.detail
    assert time.monotonic() - begun < 5


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs is given up early."""
    monkeypatch.setattr("embedfleet.sqs._READ_TIMEOUT_S", 0.3)


def test_no_credentials_are_said(settings: FleetSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    found = doctor.queues(settings, fix=True)
    assert not found.ok
    assert "Unable to locate credentials" in found.detail


def test_a_profile_that_is_not_there_is_said(settings: FleetSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobodys")
    with pytest.raises(ConfigurationError, match=r"broker sqs://us-east-1: .*nobodys"):
        connect(settings)


@pytest.mark.parametrize(
    "url",
    [
        "sqs://",
        "sqs:eu-central-1",
        "sqs://localhost:9324",
        "sqs://eu-central-1/queue",
        "sqs://eu-central-1?visibility_timeout=3",
        "sqs://AKIAX:very%2Fsecret@",
        "sqs://AKIAX:very/secret@eu-central-1",
        "sqs://very-Secret@eu-central-1",
        "sqs://AKIAX:very-secret",
        "sqs://eu-central-1?aws_secret_access_key=very-Secret",
    ],
)
def test_a_url_is_a_region_and_nothing_else(url: str) -> None:
    with pytest.raises(ConfigurationError, match="it looks like sqs://eu-central-1") as refused:
        connect(load(broker_url=url))
    assert "secret" not in str(refused.value).lower()


def test_without_boto3_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def without_boto3(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] in ("boto3", "botocore"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return importing(name, *args, **kwargs)

    for name in [name for name in sys.modules if name == "embedfleet.sqs"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without_boto3)
    settings = load(broker_url="sqs://AKIAX:very-secret@eu-central-1")
    with pytest.raises(ConfigurationError, match=r'pip install "embedfleet\[sqs\]"') as refused:
        connect(settings)
    assert "secret" not in str(refused.value)
    assert 'pip install "embedfleet[sqs]"' in doctor.queues(settings).detail


# Publishing


def test_messages_go_by_tens(broker: SqsBroker, proxy: aws.Proxy) -> None:
    proxy.entries.clear()
    broker.publish_all(batches(25), broker.lane("bulk"))
    assert proxy.entries == [("SendMessageBatch", 10), ("SendMessageBatch", 10), ("SendMessageBatch", 5)]
    assert broker.depth(broker.lane("bulk")) == 25
    assert numbers(broker, broker.lane("bulk")) == list(range(25))


def test_messages_that_are_too_large_together_are_split(broker: SqsBroker, proxy: aws.Proxy) -> None:
    proxy.entries.clear()
    broker.publish_all(batches(10, "file:///" + "d" * (MAX_BYTES // 5)), broker.lane("bulk"))
    assert [count for _, count in proxy.entries] == [3, 3, 3, 1]
    assert numbers(broker, broker.lane("bulk")) == list(range(10))


def test_only_what_was_refused_is_sent_again(broker: SqsBroker, proxy: aws.Proxy) -> None:
    proxy.faults["SendMessageBatch"] += ["some", "some"]
    broker.publish_all(batches(10), broker.lane("bulk"))
    assert [count for _, count in proxy.entries] == [10, 5, 2]
    found = received(broker, broker.lane("bulk"))
    assert sorted(sqs_queues.body(message["Body"])["batch"] for message in found) == list(range(10))
    assert len({json.loads(message["Body"])["headers"]["id"] for message in found}) == 10


def test_publishing_goes_on_after_any_answer(impatient: SqsBroker, proxy: aws.Proxy) -> None:
    for fault in aws.FAULTS:
        proxy.faults["SendMessageBatch"] += [fault] * 3
        impatient.publish_all(batches(10), impatient.lane("bulk"))
        assert numbers(impatient, impatient.lane("bulk")) == list(range(10)), fault


def test_publishing_is_tried_four_times(impatient: SqsBroker, proxy: aws.Proxy) -> None:
    for fault in aws.FAULTS:
        proxy.seen.clear()
        proxy.faults["SendMessageBatch"] = deque([fault] * 5)
        with pytest.raises(BrokerUnavailable, match=r"^broker sqs://us-east-1: ") as met:
            impatient.publish_all(batches(40), impatient.lane("bulk"))
        assert proxy.seen["SendMessageBatch"] == 4, fault
        assert aws.SECRET not in "".join(traceback.format_exception(met.value))


@pytest.mark.parametrize(
    ("operation", "call"),
    [
        ("GetQueueAttributes", lambda broker: broker.depth(broker.lane("bulk"))),
        ("SendMessage", lambda broker: broker.dead_letter(Letter.of({}, "a reason", "q", 0))),
        ("GetQueueUrl", lambda broker: broker.check("another")),
        ("GetQueueUrl", lambda broker: broker.clock()),
    ],
)
def test_every_other_operation_raises_ours_only(
    impatient: SqsBroker, proxy: aws.Proxy, operation: str, call: Callable[[SqsBroker], object]
) -> None:
    for fault in aws.FAULTS:
        proxy.faults[operation].append(fault)
        with pytest.raises(BrokerUnavailable, match=r"^broker sqs://us-east-1: it can't be reached"):
            call(impatient)


# The clock

LATER = "Fri, 01 Jan 2027 10:00:00 GMT"
LATER_S = 1_798_797_600


def test_the_clock_is_that_of_sqs(broker: SqsBroker, proxy: aws.Proxy) -> None:
    proxy.date = LATER
    assert broker.clock() == LATER_S
    broker.publish_all(batches(25), broker.lane("bulk"))
    sent = received(broker, broker.lane("bulk"))
    assert {int(json.loads(message["Body"])["headers"][AT]) - LATER_S for message in sent} <= {0, 1}


@pytest.mark.parametrize("date", ["", "soon", "Fri, 99 Jan 2027 10:00:00 GMT"])
def test_without_a_date_there_is_no_clock(impatient: SqsBroker, proxy: aws.Proxy, date: str) -> None:
    proxy.date = date
    for call in (impatient.clock, lambda: impatient.publish_all(batches(1), impatient.lane("bulk"))):
        with pytest.raises(BrokerUnavailable, match="its answer has no date"):
            call()
    proxy.date = None
    impatient.publish_all(batches(1), impatient.lane("bulk"))


def test_publishing_asks_for_the_time_once_a_minute(broker: SqsBroker, proxy: aws.Proxy) -> None:
    broker.publish_all(batches(1), broker.lane("bulk"))
    before = proxy.seen["GetQueueUrl"]
    for _ in range(5):
        broker.publish_all(batches(1), broker.lane("bulk"))
    assert proxy.seen["GetQueueUrl"] == before


def test_the_clock_is_asked_of_a_queue_that_is_there(broker: SqsBroker) -> None:
    """A producer for another model may know and use no other."""
    with closing(SqsBroker(broker.settings.model_copy(update={"model": "another"}), broker.url)) as another:
        another.publish_all(batches(1), broker.lane("bulk"))
        assert broker.depth(broker.lane("bulk")) == 1


# A fleet


def test_a_queue_that_is_not_there_is_said_before_anything_is_written(settings: FleetSettings, tmp_path: Any) -> None:
    with Fleet(**{**dict(settings), "store": str(tmp_path)}) as fleet:
        for begin in (fleet.submit, fleet.enqueue):
            with pytest.raises(ConfigurationError, match=r"the queue .* is not there.* `embedfleet doctor --fix`"):
                begin(["a text"])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("j-")] == []


def test_a_queue_that_goes_and_comes_back_is_found_again(broker: SqsBroker) -> None:
    bulk = broker.lane("bulk")
    broker.publish_all(batches(1), bulk)
    broker.call("delete_queue", bulk)
    with pytest.raises(ConfigurationError, match="doctor --fix"):
        broker.publish_all(batches(1), bulk)
    with pytest.raises(ConfigurationError, match="doctor --fix"):
        broker.check(bulk)
    assert broker.find_or_make(bulk)
    broker.publish_all(batches(1), bulk)


def test_embed_is_refused(broker: SqsBroker, tmp_path: Any) -> None:
    with (
        Fleet(**{**dict(broker.settings), "store": str(tmp_path)}) as fleet,
        pytest.raises(ConfigurationError, match=r"SQS carries no answers back. Use `enqueue` or `submit`, or a Redis"),
    ):
        fleet.embed(["a text"], settings=EmbedSettings())
    assert all(broker.depth(queue) == 0 for queue in broker.queues)
    assert fleet.workers() is None
