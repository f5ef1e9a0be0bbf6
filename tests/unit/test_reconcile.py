"""Reconcile: open jobs are named, closed when finished, and published again when the broker lost their messages."""

import base64
import itertools
import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from embedfleet import Fleet, Pgvector
from embedfleet.broker import connect
from embedfleet.cli import cli
from embedfleet.contract import Batch, Delivery, Receipt
from embedfleet.delivering import Delivering
from embedfleet.envelope import wrap
from embedfleet.errors import ConfigurationError, ContractError, NotFound, StoreNotAllowed
from embedfleet.job import Job
from embedfleet.jobfolder import now, waiting
from embedfleet.lost import Lanes
from embedfleet.openjobs import OpenJob, open_path, read, remove, write
from embedfleet.openjobs import open_jobs as named
from embedfleet.reconcile import Sweep
from embedfleet.settings import load
from tests.unit.redis_server import RedisServer
from tests.unit.test_job import TEXTS, commit

TABLE = Pgvector(table="docs")


@pytest.fixture
def fleet(redis_server: RedisServer, tmp_path: Path) -> Any:
    with Fleet(broker_url=redis_server.url, store=str(tmp_path / "store")) as connected:
        yield connected


def bulk(fleet: Fleet) -> str:
    return fleet.broker.queue(fleet.settings.model, "bulk")


def sweep(fleet: Fleet) -> Sweep:
    """A new one, which has seen nothing yet."""
    return Sweep(fleet, Lanes(fleet.broker))


def reconcile(fleet: Fleet, job: Job) -> str:
    return sweep(fleet).job(job)


def reconcile_open(fleet: Fleet, job: str) -> str:
    return sweep(fleet).open_job(job)


def open_jobs(fleet: Fleet) -> list[str]:
    return list(named(sweep(fleet).store))


def entry(fleet: Fleet, job: Job) -> OpenJob:
    return read(sweep(fleet).store, job.id)


def noted(fleet: Fleet, job: Job, **fields: Any) -> None:
    """Have the job's note say something else."""
    changed = entry(fleet, job).model_copy(update=fields)
    sweep(fleet).store.replace(open_path(job.id), changed.dumps().encode())


def other(fleet: Fleet, queue: str, age_s: float, step: str = "", job: str = "j-other") -> None:
    """Somebody else's message waits, published so many seconds ago, behind all that wait already."""
    message = Batch(to="file:///elsewhere", job=job, batch=0, tokens=1)
    fleet.broker.redis.lpush(queue + step, wrap(message, queue, at=fleet.broker.clock() - age_s, key=None))  # type: ignore[attr-defined]


def take(server: RedisServer, queue: str) -> bytes:
    """What a worker does first: the oldest message becomes a lease."""
    message = bytes(server.client.rpop(queue))  # type: ignore[arg-type]
    server.client.hset(f"{queue}-leases", f"holder:{len(message)}:{server.client.incr('tags')}", message)
    return message


def queued(server: RedisServer, queue: str) -> list[int]:
    """Numbers of the batches in a queue, in the order of publishing."""
    raws = reversed(server.client.lrange(queue, 0, -1))  # type: ignore[arg-type]
    return [json.loads(base64.b64decode(json.loads(raw)["body"]))[0][0]["batch"] for raw in raws]


def test_a_redis_at_its_memory_limit_is_looked_at(redis_server: RedisServer) -> None:
    """Else nobody would publish again what is lost, nor close a job."""
    with closing(connect(load(broker_url=redis_server.url))) as broker:
        redis_server.client.config_set("maxmemory", 1)
        assert broker.look("q").empty
        redis_server.client.config_set("maxmemory", 0)


def test_a_job_is_open_until_it_is_found_finished(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.submit(["a"])
    small = fleet.enqueue(["b"])
    assert sorted(open_jobs(fleet)) == sorted([job.id, small.id])
    commit(job, 0)
    assert reconcile_open(fleet, job.id) == "finished"
    assert open_jobs(fleet) == [small.id]
    assert job.folder.manifest() is not None
    assert reconcile(fleet, job) == "finished", "again does no harm"
    with pytest.raises(NotFound):
        reconcile_open(fleet, job.id)


def test_what_was_refused_is_no_open_job(fleet: Fleet) -> None:
    with pytest.raises(Exception, match="Use submit"):
        fleet.enqueue(["x" * 300_000])
    assert open_jobs(fleet) == []


def test_messages_that_wait_or_are_held_are_left_alone(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.submit(["a"])
    assert reconcile(fleet, job) == "running"
    assert fleet.broker.depth(bulk(fleet)) == 1
    take(redis_server, bulk(fleet))
    assert reconcile(fleet, job) == "running"
    assert fleet.broker.depth(bulk(fleet)) == 0


def test_what_the_broker_lost_is_published_again(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.submit(f"text {n}" for n in range(1100))
    commit(job, 1)
    redis_server.client.flushall()
    assert reconcile(fleet, job) == "published again: 2"
    assert fleet.broker.depth(bulk(fleet)) == 2


def test_deliveries_that_the_broker_lost_are_published_again(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.submit(["a"], deliver_to=[TABLE])
    commit(job, 0)
    redis_server.client.flushall()
    assert reconcile(fleet, job) == "published again: 1"
    assert fleet.broker.depth(fleet.broker.deliver_queue) == 1
    assert reconcile(fleet, job) == "running"
    assert open_jobs(fleet) == [job.id]


def test_an_entry_leads_nowhere_but_into_the_allowed_stores(fleet: Fleet, tmp_path: Path) -> None:
    with Fleet(broker_url=fleet.settings.broker_url, store=str(tmp_path / "other")) as other:
        elsewhere = other.submit(["a"])
    fleet.submit(["b"])
    (Path(fleet.settings.store or "") / "open" / elsewhere.id).write_text(OpenJob(uri=elsewhere.uri).dumps())
    with pytest.raises(StoreNotAllowed):
        reconcile_open(fleet, elsewhere.id)


def test_a_job_that_was_sent_on_is_open_again(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.submit(["a"])
    commit(job, 0)
    assert reconcile(fleet, job) == "finished"
    job.deliver(TABLE)
    redis_server.client.flushall()
    assert open_jobs(fleet) == [job.id]
    assert reconcile_open(fleet, job.id) == "published again: 1"


def test_a_cancelled_job_is_delivered_too_and_once(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.submit(["a"], deliver_to=[TABLE])
    job.cancel()
    commit(job, 0)
    redis_server.client.flushall()
    fleet.submit(["somebody else's"])  # the bulk lane is none of its business any more
    assert reconcile(fleet, job) == "published again: 1"
    assert (fleet.broker.depth(bulk(fleet)), fleet.broker.depth(fleet.broker.deliver_queue)) == (1, 1)


def test_messages_go_to_the_queue_of_the_jobs_own_revision(
    fleet: Fleet, redis_server: RedisServer, tmp_path: Path
) -> None:
    with Fleet(broker_url=redis_server.url, store=str(tmp_path / "store"), revision="r1") as other:
        job = other.submit(["a"])
        redis_server.client.flushall()
        assert reconcile_open(fleet, job.id) == "published again: 1"
        assert other.broker.depth(bulk(other)) == 1
        assert reconcile(fleet, job) == "running"


def test_an_entry_that_is_wrong_or_whose_job_is_gone_stops_no_sweep(fleet: Fleet, tmp_path: Path) -> None:
    job, gone = fleet.submit(["a"]), fleet.submit(["b"])
    (tmp_path / "store" / "open" / "a-broken-one").write_text("{")
    shutil.rmtree(tmp_path / "store" / gone.id)
    noted(fleet, gone, published_at=fleet.broker.clock() - 3700)
    done = CliRunner().invoke(cli, ["reconcile", "--all", *options(fleet)], standalone_mode=False)
    assert f"{job.id}: running" in done.output
    assert f"{gone.id}: gone" in done.output
    assert "a-broken-one: " in done.output
    assert done.return_value == 1
    assert sorted(open_jobs(fleet)) == sorted(["a-broken-one", job.id])


def options(fleet: Fleet) -> list[str]:
    return ["--broker-url", fleet.settings.broker_url.get_secret_value(), "--store", fleet.settings.store or ""]  # type: ignore[union-attr]


def test_without_a_store_nothing_is_known(redis_server: RedisServer) -> None:
    with Fleet(broker_url=redis_server.url) as fleet, pytest.raises(ConfigurationError, match="EMBEDFLEET_STORE"):
        open_jobs(fleet)


# Which messages were lost


def test_exactly_the_lost_batches_are_published_again(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.submit(TEXTS)
    take(redis_server, bulk(fleet))
    commit(job, 1)
    redis_server.client.delete(bulk(fleet))
    assert reconcile(fleet, job) == "published again: 1"
    assert queued(redis_server, bulk(fleet)) == [2]


def test_an_input_that_nobody_can_read_any_more_keeps_none_from_being_published(
    fleet: Fleet, redis_server: RedisServer, tmp_path: Path
) -> None:
    """A worker writes the part that says so; else the job would never end."""
    job = fleet.submit(TEXTS)
    redis_server.client.delete(bulk(fleet))
    numbers = job.folder.inputs()
    (Path(job.uri.removeprefix("file://")) / "input" / "00000000.parquet").unlink()
    assert reconcile(fleet, job) == f"published again: {len(numbers)}"
    assert queued(redis_server, bulk(fleet)) == numbers


def test_beside_others_work_what_was_lost_is_published_again(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.submit(TEXTS)
    redis_server.client.delete(bulk(fleet))
    other(fleet, bulk(fleet), age_s=-30)
    assert reconcile(fleet, job) == "published again: 3"
    assert queued(redis_server, bulk(fleet)) == [0, 0, 1, 2]


@pytest.mark.parametrize("step", ["", "\x06\x163", "\x06\x166", "\x06\x169"])
def test_while_something_older_waits_nothing_is_taken_for_lost(
    fleet: Fleet, redis_server: RedisServer, step: str
) -> None:
    job = fleet.submit(["a"])
    redis_server.client.delete(bulk(fleet))
    other(fleet, bulk(fleet), age_s=600, step=step)
    other(fleet, bulk(fleet), age_s=-30)
    assert reconcile(fleet, job) == "running"


def test_a_younger_message_that_was_given_back_hides_no_older_one(fleet: Fleet, redis_server: RedisServer) -> None:
    """What is given back goes to the end that is taken from, whatever its age."""
    job = fleet.submit(["a"])
    for age_s in range(-500, -100):
        other(fleet, "elsewhere", age_s)
    while message := redis_server.client.lpop("elsewhere"):
        redis_server.client.rpush(bulk(fleet), message)  # type: ignore[arg-type]
    assert reconcile(fleet, job) == "running"


def test_a_message_that_says_nothing_of_its_age_may_be_old(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.submit(["a"])
    redis_server.client.delete(bulk(fleet))
    redis_server.client.lpush(bulk(fleet), b"from somebody else")
    assert reconcile(fleet, job) == "running"


def test_what_is_in_the_leases_and_is_no_message_of_a_job_harms_nothing(
    fleet: Fleet, redis_server: RedisServer
) -> None:
    job = fleet.submit(["a"])
    redis_server.client.delete(bulk(fleet))
    for number, raw in enumerate((b"", b"{", b"[]", b'{"body": "IiI="}', b'{"body": "W1tbXV1d"}', b"\xff")):
        redis_server.client.hset(f"{bulk(fleet)}-leases", f"tag:{number}", raw)
    assert reconcile(fleet, job) == "published again: 1"


def test_what_was_published_again_and_waits_is_not_once_more(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.submit(TEXTS)
    redis_server.client.delete(bulk(fleet))
    other(fleet, bulk(fleet), age_s=-0.5)
    noted(fleet, job, published_at=fleet.broker.clock() - 600)
    sealed = job.folder.sealed()
    assert sealed is not None
    earlier = sealed.model_copy(update={"at": fleet.broker.clock() - 600})
    job.folder.store.replace(job.folder.path("sealed.json"), earlier.dumps().encode())
    assert reconcile(fleet, job) == "published again: 3"
    noted(fleet, job, again=0)
    assert reconcile(fleet, job) == "running"


def test_what_is_lost_again_and_again_is_published_less_and_less_often(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.submit(["a"])
    pauses_s = []
    for times in range(12):
        redis_server.client.flushall()
        noted(fleet, job, again=times, published_at=fleet.broker.clock() - 7200)
        assert reconcile(fleet, job) == "published again: 1"
        assert entry(fleet, job).again == times + 1
        redis_server.client.flushall()
        for pause_s in (59, 61, 119, 121, 3599, 3601):
            noted(fleet, job, again=times + 1, published_at=fleet.broker.clock() - pause_s)
            if reconcile(fleet, job) != "running":
                pauses_s.append(pause_s)
                break
    assert pauses_s == [61] * 3 + [121] + [3599] * 4 + [3601] * 4


def test_what_there_was_no_time_for_is_published_in_the_next_sweep(
    fleet: Fleet, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = fleet.submit(TEXTS)
    for number in range(3):
        redis_server.client.flushall()
        moments = iter([0.0, 0.0, 0.0, 0.0, *[100.0] * 20])
        with monkeypatch.context() as patched:
            patched.setattr("embedfleet.reconcile.time.monotonic", lambda: next(moments))  # noqa: B023
            limited = Sweep(fleet, Lanes(fleet.broker), ends_at=50.0)
            found = limited.job(job)
        assert found.startswith("published again: ")
        assert 0 < len(queued(redis_server, bulk(fleet))) < 3, number
        assert entry(fleet, job).again == 0, "nothing is to wait that was not published"


def test_a_job_is_sealed_after_its_last_message_was_sent(
    fleet: Fleet, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(1_000_000_000)
    monkeypatch.setattr(type(fleet.broker), "now", lambda _: float(next(ticks)))
    job = fleet.submit(TEXTS)
    raws = redis_server.client.lrange(bulk(fleet), 0, -1)
    sealed = job.folder.sealed()
    assert sealed is not None
    assert sealed.at is not None
    assert max(json.loads(raw)["headers"]["embedfleet_at"] for raw in raws) < sealed.at  # type: ignore[union-attr]


def test_a_job_that_was_never_sealed_waits_for_an_empty_queue(fleet: Fleet, redis_server: RedisServer) -> None:
    def dying() -> Any:
        yield from TEXTS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fleet.submit(dying(), key="died")
    (name,) = open_jobs(fleet)
    job = fleet.job(name)
    assert job.folder.sealed() is None
    assert job.folder.inputs() == [0, 1]
    redis_server.client.delete(bulk(fleet))
    other(fleet, bulk(fleet), age_s=-30)
    assert reconcile(fleet, job) == "running"
    take(redis_server, bulk(fleet))
    assert reconcile(fleet, job) == "running"
    redis_server.client.flushall()
    assert reconcile(fleet, job) == "published again: 2"


def test_a_job_sealed_by_an_earlier_version_waits_for_an_empty_queue(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.submit(["a"])
    sealed = job.folder.sealed()
    assert sealed is not None
    old = sealed.model_copy(update={"at": None})
    assert '"at"' not in old.dumps()
    job.folder.store.replace(job.folder.path("sealed.json"), old.dumps().encode())
    sweep(fleet).store.replace(open_path(job.id), OpenJob(uri=job.uri).dumps().encode())
    redis_server.client.delete(bulk(fleet))
    other(fleet, bulk(fleet), age_s=-30)
    assert reconcile(fleet, job) == "running"
    redis_server.client.flushall()
    assert reconcile(fleet, job) == "published again: 1"


def test_what_was_enqueued_a_moment_ago_may_be_on_its_way(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.enqueue(["a"])
    redis_server.client.flushall()
    assert reconcile(fleet, job) == "running"
    published_at = entry(fleet, job).published_at
    assert published_at is not None
    assert 50 < published_at - fleet.broker.clock() <= 60
    noted(fleet, job, published_at=published_at - 61)
    other(fleet, bulk(fleet), age_s=-30)
    assert reconcile(fleet, job) == "published again: 1"


def test_submitting_again_publishes_what_is_missing_and_notes_when(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.submit(TEXTS, key="again")
    commit(job, 1)
    redis_server.client.flushall()
    noted(fleet, job, published_at=None)
    assert fleet.submit(TEXTS, key="again").id == job.id
    assert queued(redis_server, bulk(fleet)) == [0, 2]
    assert entry(fleet, job).published_at == pytest.approx(fleet.broker.clock(), abs=5)


# Deliveries


def test_beside_others_deliveries_what_was_lost_is_published_again(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.submit(TEXTS, deliver_to=[TABLE])
    commit(job, 0, 1, 2)
    redis_server.client.flushall()
    lane = fleet.broker.deliver_queue
    other(fleet, lane, age_s=1)
    assert reconcile(fleet, job) == "running", "the deliveries were handed over before now, as was the one that waits"
    assert entry(fleet, job).stage == "deliver"
    redis_server.client.delete(lane)
    other(fleet, lane, age_s=-30)
    held = Delivery(to=job.folder.store.uri, job=job.id, batch=1, destination=TABLE.name)
    redis_server.client.hset(f"{lane}-leases", "tag:1", wrap(held, lane, at=1.0, key=None))
    job.folder.write_receipt(waiting(job.id, 2, TABLE.name, "it answered 500", 1.0))
    assert reconcile(fleet, job) == "published again: 2"
    assert queued(redis_server, lane) == [0, 0, 2]


def test_a_receipt_that_confirms_is_read_once(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.submit(TEXTS, deliver_to=[TABLE])
    commit(job, 0, 1, 2)
    confirmed = Receipt(job=job.id, batch=1, destination=TABLE.name, state="confirmed", detail="", at=now())
    job.folder.write_receipt(confirmed)
    receipts: dict[str, Delivering] = {}
    assert Sweep(fleet, Lanes(fleet.broker), receipts=receipts).job(job) == "published again: 2"
    path = job.folder.path(f"deliveries/{TABLE.name}/00000001.json")
    job.folder.store.replace(path, b"not read again")
    for number in (0, 2):
        job.folder.write_receipt(confirmed.model_copy(update={"batch": number}))
    assert Sweep(fleet, Lanes(fleet.broker), receipts=receipts).job(job) == "finished"
    assert receipts == {}, "nothing is kept of a job that ended"
    with pytest.raises(ContractError):
        reconcile(fleet, job)


def test_a_batch_that_is_still_held_hands_over_itself(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.submit(["a"], deliver_to=[TABLE])
    take(redis_server, bulk(fleet))
    commit(job, 0)
    assert reconcile(fleet, job) == "running"
    assert entry(fleet, job).stage == "embed", "it is not known yet when all was handed over"
    redis_server.client.delete(f"{bulk(fleet)}-leases")
    assert reconcile(fleet, job) == "published again: 1"


# Entries


def test_the_entry_of_a_job_that_is_gone_is_kept_for_an_hour(fleet: Fleet, tmp_path: Path) -> None:
    job = fleet.submit(["a"])
    shutil.rmtree(tmp_path / "store" / job.id)
    assert reconcile_open(fleet, job.id).startswith("gone; ")
    assert open_jobs(fleet) == [job.id], "it may be submitted anew at this moment"
    noted(fleet, job, published_at=fleet.broker.clock() - 3601)
    assert reconcile_open(fleet, job.id) == "gone"
    assert open_jobs(fleet) == []


def test_an_entry_that_was_noted_again_meanwhile_stays(fleet: Fleet) -> None:
    job = fleet.submit(["a"])
    before = entry(fleet, job)
    write(sweep(fleet).store, job.folder, "deliver", 1.0)
    remove(sweep(fleet).store, job.id, before)
    assert open_jobs(fleet) == [job.id]
    remove(sweep(fleet).store, job.id, entry(fleet, job))
    remove(sweep(fleet).store, job.id, before)
    assert open_jobs(fleet) == []


def test_open_jobs_are_listed_a_page_at_a_time(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedfleet.openjobs._PAGE", 3)
    jobs = sorted(fleet.submit([text]).id for text in "abcdefg")
    assert open_jobs(fleet) == jobs
    assert list(named(sweep(fleet).store, jobs[3])) == jobs[4:]
