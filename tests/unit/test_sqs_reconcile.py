"""Reconcile on SQS, which can't be searched: a queue is empty when it seemed so three times, a minute apart."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from embedfleet import Fleet, Pgvector
from embedfleet.cli import cli
from embedfleet.job import Job
from embedfleet.lost import Lanes
from embedfleet.openjobs import OpenJob, open_path
from embedfleet.reconcile import UNDECIDED, Sweep
from embedfleet.sqs import SqsBroker
from tests import aws
from tests.unit import sqs_queues
from tests.unit.test_job import TEXTS, commit

pytestmark = pytest.mark.usefixtures("proxy")


@pytest.fixture
def fleet(proxy: aws.Proxy, tmp_path: Path) -> Iterator[Fleet]:
    settings = sqs_queues.settings(store=str(tmp_path / "store"))
    with sqs_queues.made(settings), Fleet(**dict(settings)) as connected:
        yield connected


def broker(fleet: Fleet) -> SqsBroker:
    assert isinstance(fleet.broker, SqsBroker)
    return fleet.broker


def lose(fleet: Fleet, queue: str) -> int:
    """Every message of a queue; how many there were."""
    count = 0
    while found := broker(fleet).call("receive_message", queue, MaxNumberOfMessages=10).get("Messages"):
        for message in found:
            broker(fleet).call("delete_message", queue, ReceiptHandle=message["ReceiptHandle"])
            count += 1
    return count


@pytest.fixture
def lanes(fleet: Fleet) -> Lanes:
    """What one process remembers; it may look again at once."""
    return Lanes(fleet.broker, apart_s=0)


def see_to(fleet: Fleet, lanes: Lanes, job: Job) -> str:
    return Sweep(fleet, lanes).open_job(job.id)


def test_a_queue_that_seemed_empty_three_times_has_lost_what_is_missing(fleet: Fleet, lanes: Lanes) -> None:
    job, bulk = fleet.submit(TEXTS), fleet.broker.lane("bulk")
    commit(job, 1)
    assert see_to(fleet, lanes, job) == "running"
    assert lose(fleet, bulk) == 3
    assert [see_to(fleet, lanes, job) for _ in range(3)] == [UNDECIDED, UNDECIDED, "published again: 2"]
    assert see_to(fleet, lanes, job) == "running"
    assert lose(fleet, bulk) == 2


def test_what_somebody_holds_or_what_waits_begins_the_count_anew(fleet: Fleet, lanes: Lanes) -> None:
    job, bulk = fleet.submit(["a"]), fleet.broker.lane("bulk")
    lose(fleet, bulk)
    assert [see_to(fleet, lanes, job) for _ in range(2)] == [UNDECIDED, UNDECIDED]
    fleet.broker.publish(sqs_queues.batch("j-other", "file:///elsewhere"), bulk)
    (held,) = broker(fleet).call("receive_message", bulk)["Messages"]
    assert see_to(fleet, lanes, job) == "running"
    broker(fleet).call("delete_message", bulk, ReceiptHandle=held["ReceiptHandle"])
    assert [see_to(fleet, lanes, job) for _ in range(3)] == [UNDECIDED, UNDECIDED, "published again: 1"]


def test_looks_that_are_less_than_a_minute_apart_count_once(fleet: Fleet, proxy: aws.Proxy) -> None:
    job = fleet.submit(["a"])
    lose(fleet, fleet.broker.lane("bulk"))
    before = proxy.seen["GetQueueAttributes"]
    lanes = Lanes(fleet.broker)
    assert {see_to(fleet, lanes, job) for _ in range(20)} == {UNDECIDED}
    assert proxy.seen["GetQueueAttributes"] == before + 1


def test_looks_from_before_the_job_was_published_say_nothing_of_it(fleet: Fleet, lanes: Lanes) -> None:
    for _ in range(3):
        lanes.view(fleet.broker.lane("bulk"))
    job = fleet.submit(["a"])
    lose(fleet, fleet.broker.lane("bulk"))
    later = fleet.broker.clock() + 30
    entry = OpenJob(uri=job.uri, published_at=later)
    Sweep(fleet, lanes).store.replace(open_path(job.id), entry.dumps().encode())
    assert [see_to(fleet, lanes, job) for _ in range(5)] == [UNDECIDED] * 5


def test_another_process_has_to_look_for_itself(fleet: Fleet, lanes: Lanes) -> None:
    job = fleet.submit(["a"])
    lose(fleet, fleet.broker.lane("bulk"))
    assert [see_to(fleet, Lanes(fleet.broker, apart_s=0), job) for _ in range(5)] == [UNDECIDED] * 5


def test_deliveries_and_the_job_that_was_never_sealed_too(fleet: Fleet, lanes: Lanes) -> None:
    job = fleet.submit(["a"], deliver_to=[Pgvector(table="docs")])
    commit(job, 0)
    lose(fleet, fleet.broker.lane("bulk"))
    assert [see_to(fleet, lanes, job) for _ in range(3)] == [UNDECIDED, UNDECIDED, "published again: 1"]
    assert lose(fleet, fleet.broker.deliver_queue) == 1

    def dying() -> Iterator[str]:
        yield from TEXTS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fleet.submit(dying(), key="died")
    lose(fleet, fleet.broker.lane("bulk"))
    unsealed = fleet.job(_the_other(fleet, job))
    assert [see_to(fleet, Lanes(fleet.broker, apart_s=0), unsealed)] == [UNDECIDED]
    fresh = Lanes(fleet.broker, apart_s=0)
    assert [see_to(fleet, fresh, unsealed) for _ in range(3)] == [UNDECIDED, UNDECIDED, "published again: 2"]


def _the_other(fleet: Fleet, job: Job) -> str:
    from embedfleet.openjobs import open_jobs

    (name,) = set(open_jobs(Sweep(fleet, Lanes(fleet.broker)).store)) - {job.id}
    return name


def test_the_command_looks_three_times_itself_and_only_where_it_has_to(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("embedfleet.operate.LOOKS_APART_S", 0.01)
    monkeypatch.setattr("embedfleet.operate.time.sleep", pauses.append)
    monkeypatch.setattr("embedfleet.lost._EARLY_S", 1.0)
    job, finished = fleet.submit(TEXTS), fleet.submit(["b"])
    commit(finished, 0)
    arguments = ["reconcile", "--all", "--broker-url", "sqs://us-east-1", "--store", fleet.settings.store or ""]
    arguments += ["--queue-prefix", fleet.settings.queue_prefix, "--engine", "synthetic"]
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert (sorted(done.output.splitlines()), pauses) == (
        sorted([f"{finished.id}: finished", f"{job.id}: running"]),
        [],
    )
    lose(fleet, fleet.broker.lane("bulk"))
    monkeypatch.setattr("embedfleet.operate.LOOKS_APART_S", 0)
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert (done.output, done.return_value, pauses) == (f"{job.id}: published again: 3\n", 0, [0, 0])
