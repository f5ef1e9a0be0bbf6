"""Deliveries: hand-over, the deliver task and its receipts, sending a job on. Where they go is a stand-in here."""

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tenacity import stop_after_attempt

from embedfleet import Fleet, Pgvector, Webhook, jobfolder, policies
from embedfleet.broker import Broker
from embedfleet.contract import Batch, Delivery
from embedfleet.destinations import Target, parse_destination
from embedfleet.errors import (
    DestinationRefused,
    DestinationUnavailable,
    JobMismatch,
    NotFinished,
    SettingsError,
    StoreUnavailable,
)
from embedfleet.job import Job
from embedfleet.jobfolder import delivery
from embedfleet.models import DEFAULT_MODEL, profile_of
from embedfleet.settings import FleetSettings, load
from embedfleet_worker import deliveries as module
from embedfleet_worker.deliveries import Deliveries, again_in_s
from embedfleet_worker.destinations.base import Parcel
from embedfleet_worker.pipeline import NoCache, Pipeline
from embedfleet_worker.settling import GiveBack
from embedfleet_worker.tasks import Tasks
from embedfleet_worker.telemetry import Metrics
from embedfleet_worker.transport.counts import FolderCounts
from tests.unit.fake_engine import FakeEngine
from tests.unit.redis_server import RedisServer

HOOK, TABLE = Webhook(url="https://app.example/hook?token=very-secret"), Pgvector(table="docs")


BLIPS = policies.DESTINATION.stop


class Recorder:
    """Stands in for a destination: keeps what it was brought, or fails as it is told."""

    def __init__(self) -> None:
        self.brought: list[tuple[str, int, list[str]]] = []
        self.failures: list[Exception] = []

    def deliver(self, target: Target, parcel: Parcel) -> str:
        if self.failures:
            raise self.failures.pop(0)
        self.brought.append((target.name, parcel.batch, parcel.table["id"].to_pylist()))
        return f"{parcel.info.totals.texts} rows"

    def close(self) -> None:
        pass


class World:
    """A fleet, and a worker that does what is in its queues when it is told to."""

    def __init__(self, server: RedisServer, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = server
        self.recorder = Recorder()
        self.fleet = Fleet(broker_url=server.url, store=str(store))
        self.broker: Broker = self.fleet.broker
        monkeypatch.setattr(module, "_make", lambda kind, settings: self.recorder)
        pipeline = Pipeline(FakeEngine(dimensions=384), profile_of(DEFAULT_MODEL), NoCache())
        self.settings: FleetSettings = load(store=str(store))
        self.tasks = Tasks(pipeline, self.broker, DEFAULT_MODEL, self.settings.stores)
        self.deliveries = Deliveries(self.broker, self.settings, Metrics())

    def queued(self) -> list[Delivery]:
        """Takes the deliveries off their queue."""
        found = self.server.client.lrange(self.broker.deliver_queue, 0, -1)
        self.server.client.delete(self.broker.deliver_queue)
        return [Delivery.model_validate(message(raw)) for raw in reversed(found)]

    def embed(self, job: Job) -> None:
        for number in job.folder.inputs():
            batch = Batch(to=job.folder.store.uri, job=job.id, batch=number, tokens=1)
            self.tasks.embed(batch.model_dump(mode="json"))

    def deliver(self) -> None:
        for each in self.queued():
            self.deliveries.deliver(each.model_dump(mode="json"))

    def dead_letters(self) -> list[str]:
        return [json.loads(letter)["reason"] for letter in self.server.client.lrange("embedfleet-dead", 0, -1)]


def message(raw: bytes) -> Any:
    import base64

    return json.loads(base64.b64decode(json.loads(raw)["body"]))[0][0]


@pytest.fixture
def world(redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(policies.DESTINATION, "stop", stop_after_attempt(1))  # each try is what the test says it is
    made = World(redis_server, tmp_path / "store", monkeypatch)
    yield made
    made.fleet.close()


# The way


def test_each_part_goes_to_each_destination_and_the_job_is_done_when_all_have_confirmed(world: World) -> None:
    job = world.fleet.submit([f"text {n}" for n in range(600)], deliver_to=[HOOK, TABLE])
    assert job.status().deliveries == ()
    world.embed(job)
    assert job.status().state == "embedded"
    assert not job.status().finished
    world.deliver()
    assert sorted(world.recorder.brought) == sorted(
        (target.name, number, [str(n) for n in ids])
        for target in (HOOK, TABLE)
        for number, ids in enumerate((range(512), range(512, 600)))
    )
    status = job.status()
    assert (status.state, status.finished) == ("done", True)
    assert [(each.destination, each.confirmed, each.dead) for each in status.deliveries] == [
        ("https://app.example/hook", 2, 0),
        ("pgvector:docs", 2, 0),
    ]


def test_the_same_batch_again_changes_nothing_once_it_is_delivered(world: World) -> None:
    job = world.fleet.submit(["a"], deliver_to=[TABLE])
    world.embed(job)
    world.embed(job)  # the message came again before the delivery: it is handed over again
    twice = world.queued()
    assert len(twice) == 2
    for each in twice:
        world.deliveries.deliver(each.model_dump(mode="json"))
    assert len(world.recorder.brought) == 1
    world.embed(job)
    assert world.queued() == []


def test_a_worker_that_died_between_part_and_hand_over_loses_no_delivery(world: World) -> None:
    job = world.fleet.submit(["a"], deliver_to=[TABLE])
    batch = Batch(to=job.folder.store.uri, job=job.id, batch=0, tokens=1)
    world.tasks._commit(job.folder, batch, FolderCounts(job.folder, 0, times=1))  # and dies
    assert world.queued() == []
    assert world.fleet.republish(job) == 1
    world.embed(job)
    assert [(each.job, each.destination) for each in world.queued()] == [(job.id, TABLE.name)]


def test_a_broker_that_is_gone_at_the_hand_over_gives_the_batch_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedfleet.errors import BrokerUnavailable
    from embedfleet.redis import RedisBroker

    job = world.fleet.submit(["a"], deliver_to=[TABLE])

    def gone(*_: object) -> None:
        raise BrokerUnavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(RedisBroker, "hand_over", gone)
        with pytest.raises(GiveBack):
            world.embed(job)
    assert job.folder.has_part(0)
    world.embed(job)
    world.deliver()
    assert job.status().state == "done"


def test_a_cancelled_job_is_finished_when_its_parts_are_delivered(world: World) -> None:
    job = world.fleet.submit(["a"], deliver_to=[TABLE])
    job.cancel()
    world.embed(job)
    assert (job.status().state, job.status().finished) == ("cancelled", False)
    world.deliver()
    assert (job.status().state, job.status().finished) == ("cancelled", True)


def test_one_destination_that_hangs_leaves_room_for_others(world: World) -> None:
    first = world.fleet.submit([f"text {n}" for n in range(2000)], deliver_to=[HOOK])
    second = world.fleet.submit(["b"], deliver_to=[TABLE])
    for job in (first, second):
        world.embed(job)
    *hooks, hook, table = world.queued()
    assert len(hooks) == 3
    hanging, go_on = threading.Barrier(4), threading.Event()
    deliver = world.recorder.deliver

    def hang(target: Target, parcel: Parcel) -> str:
        if target == HOOK:
            hanging.wait(10)
            go_on.wait(10)
        return deliver(target, parcel)

    world.recorder.deliver = hang  # type: ignore[method-assign]
    messages = [each.model_dump(mode="json") for each in hooks]
    threads = [threading.Thread(target=world.deliveries.deliver, args=(message,)) for message in messages]
    for thread in threads:
        thread.start()
    hanging.wait(10)
    for _ in range(20):  # the first waits for a moment, the others know
        with pytest.raises(GiveBack, match="under way"):
            world.deliveries.deliver(hook.model_dump(mode="json"))
    world.deliveries.deliver(table.model_dump(mode="json"))
    assert second.status().state == "done"
    go_on.set()
    for thread in threads:
        thread.join()
    hanging.abort()
    world.recorder.deliver = deliver  # type: ignore[method-assign]
    world.deliveries.deliver(hook.model_dump(mode="json"))
    assert first.status().state == "done"


def test_retries_are_sent_on_with_their_job(world: World) -> None:
    job = world.fleet.submit(["a", "word " * 2000])
    world.embed(job)
    child = job.retry(on_overflow="truncate")
    assert child is not None
    with pytest.raises(NotFinished, match=child.id):
        job.deliver(TABLE)
    world.embed(child)
    job.deliver(TABLE)
    world.deliver()
    assert [each.status().state for each in job.chain()] == ["done", "done"]
    assert len(world.recorder.brought) == 2


# Receipts


def test_what_a_destination_refuses_is_dead_with_the_reason_and_ends_the_job(world: World) -> None:
    world.recorder.failures = [DestinationRefused("the table docs holds 3 dimensions, and these are 384.")]
    job = world.fleet.submit(["a"], deliver_to=[TABLE])
    world.embed(job)
    world.deliver()
    status = job.status()
    assert (status.state, status.dead_deliveries) == ("done", 1)
    assert status.deliveries[0].reason == "the table docs holds 3 dimensions, and these are 384."


def test_a_defect_is_a_dead_delivery_that_quotes_no_text(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Else the job would wait for ever, or the message come again and again."""
    world.recorder.failures = [KeyError("a secret text")]
    job = world.fleet.submit(["a"], deliver_to=[TABLE])
    world.embed(job)
    world.deliver()
    status = job.status()
    assert (status.state, status.dead_deliveries) == ("done", 1)
    assert status.deliveries[0].reason == "a defect of the worker (KeyError); see its log."
    assert "delivery failed: KeyError" in caplog.text
    assert "secret" not in caplog.text


def test_what_a_destination_can_not_take_now_is_given_back_with_the_delay_it_asked_for(world: World) -> None:
    world.recorder.failures = [DestinationUnavailable("busy", retry_after_s=77), DestinationUnavailable("busy")]
    job = world.fleet.submit(["a"], deliver_to=[TABLE])
    world.embed(job)
    [queued] = world.queued()
    with pytest.raises(GiveBack) as asked:
        world.deliveries.deliver(queued.model_dump(mode="json"))
    assert asked.value.delay_s == 77
    with pytest.raises(GiveBack) as ours:
        world.deliveries.deliver(queued.model_dump(mode="json"))
    assert 1.5 <= (ours.value.delay_s or 0) <= 2.5
    world.deliveries.deliver(queued.model_dump(mode="json"))
    assert job.status().state == "done"


def test_waits_grow_with_the_age_of_a_delivery_up_to_a_quarter_of_an_hour() -> None:
    assert all(1.5 <= again_in_s(0) <= 2.5 for _ in range(100))
    assert all(37 <= again_in_s(100) <= 63 for _ in range(100))
    assert all(675 <= again_in_s(80_000) <= 1125 for _ in range(100))


def test_after_a_day_of_failures_a_delivery_is_dead(world: World) -> None:
    world.recorder.failures = [DestinationUnavailable("it answered 500")] * 2
    job = world.fleet.submit(["a"], deliver_to=[TABLE])
    world.embed(job)
    [queued] = world.queued()
    with pytest.raises(GiveBack):  # the day begins with the first failure, however long it waited in the queue
        world.deliveries.deliver(queued.model_dump(mode="json"))
    receipt = job.folder.receipt(TABLE.name, 0)
    assert receipt is not None
    assert receipt.state == "waiting"
    begun = (datetime.now(UTC) - timedelta(hours=25)).isoformat(timespec="seconds")
    job.folder.write_receipt(receipt.model_copy(update={"at": begun}))
    world.deliveries.deliver(queued.model_dump(mode="json"))
    assert job.status().deliveries[0].reason == "given up after 24 h: it answered 500"


def test_a_blip_of_a_destination_costs_no_give_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies.DESTINATION, "stop", BLIPS)
    job = world.fleet.submit(["a"], deliver_to=[TABLE])
    world.embed(job)
    [queued] = world.queued()
    world.recorder.failures = [DestinationUnavailable("a blip")]
    world.deliveries.deliver(queued.model_dump(mode="json"))
    assert job.status().deliveries[0].confirmed == 1


def test_a_receipt_that_can_not_be_written_means_the_delivery_comes_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tenacity import wait_none

    from embedfleet.folder import Folder

    monkeypatch.setattr(policies.STORE, "wait", wait_none())
    job = world.fleet.submit(["a"], deliver_to=[TABLE])
    world.embed(job)
    [queued] = world.queued()

    def gone(*_: object) -> None:
        raise StoreUnavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "replace", gone)
        with pytest.raises(GiveBack):
            world.deliveries.deliver(queued.model_dump(mode="json"))
    world.deliveries.deliver(queued.model_dump(mode="json"))
    assert len(world.recorder.brought) == 2
    assert job.status().state == "done"


# What is in a message is not trusted


def test_a_destination_that_the_job_does_not_name_is_sent_nothing(world: World) -> None:
    job = world.fleet.submit(["a"], deliver_to=[TABLE])
    world.embed(job)
    world.queued()
    world.deliveries.deliver(delivery(job.folder, 0, HOOK.name).model_dump(mode="json"))
    assert world.recorder.brought == []
    assert "there is no such object" in world.dead_letters()[0]


@pytest.mark.parametrize(
    "changed",
    [{"destination": "../../x"}, {"destination": "webhook-00000000/../x"}, {"job": "../x"}, {"batch": -1}, {"to": "/"}],
)
def test_a_message_leads_nowhere_but_into_its_job(world: World, changed: dict[str, object]) -> None:
    job = world.fleet.submit(["a"], deliver_to=[TABLE])
    world.embed(job)
    [queued] = world.queued()
    world.deliveries.deliver({**queued.model_dump(mode="json"), **changed})
    assert world.recorder.brought == []
    assert len(world.dead_letters()) == 1


def test_a_part_that_is_not_there_is_delivered_when_it_is(world: World) -> None:
    """Whoever can publish may ask for it too early: that must not be the end of the delivery."""
    job = world.fleet.submit(["a"], deliver_to=[TABLE])
    message = delivery(job.folder, 0, TABLE.name).model_dump(mode="json")
    world.deliveries.deliver(message)
    assert world.recorder.brought == []
    assert job.folder.receipt(TABLE.name, 0) is None
    assert "batch 0 has no part" in world.dead_letters()[0]
    world.embed(job)
    world.deliveries.deliver(message)
    assert len(world.recorder.brought) == 1


def test_another_batch_of_a_job_of_one_does_not_exist(world: World) -> None:
    """A message of whoever can publish must not double a job's texts."""
    job = world.fleet.enqueue(["a", "b"])
    world.tasks.embed(Batch(to=job.folder.store.uri, job=job.id, batch=7, tokens=1).model_dump(mode="json"))
    assert list(job.folder.parts()) == []
    assert "no batch 7" in world.dead_letters()[0]


# Sending on


def test_a_finished_job_is_sent_on_without_embedding(world: World) -> None:
    job = world.fleet.submit([f"text {n}" for n in range(600)])
    with pytest.raises(NotFinished, match="0 of 2 batches"):
        job.deliver(TABLE)
    world.embed(job)
    assert job.status().state == "done"
    before = {path: path.stat().st_mtime_ns for path in Path(world.settings.store or "").rglob("parts/*")}
    job.deliver(TABLE)
    assert world.fleet.job(job.id).status().state == "embedded"
    world.deliver()
    assert [number for _, number, _ in world.recorder.brought] == [0, 1]
    assert world.fleet.job(job.id).status().state == "done"
    assert {path: path.stat().st_mtime_ns for path in Path(world.settings.store or "").rglob("parts/*")} == before
    job.deliver(TABLE)
    assert world.queued() == [], "what was confirmed is not sent again"


def test_what_is_sent_on_and_lost_is_sent_by_submitting_again_too(world: World) -> None:
    world.recorder.failures = [DestinationRefused("no such table")]
    job = world.fleet.submit(["a"], deliver_to=[TABLE])
    world.embed(job)
    world.deliver()
    job.deliver(TABLE)
    world.queued()  # the broker lost it
    assert world.fleet.republish(job) == 1
    world.embed(job)
    world.deliver()
    assert job.status().state == "done"


def test_a_job_is_sent_on_only_when_its_producer_has_ended_it(world: World) -> None:
    """Else batches that come later would not go there."""
    job = world.fleet.submit(["a"])
    world.embed(job)
    (Path(world.settings.store or "") / job.id / "sealed.json").unlink()
    with pytest.raises(NotFinished):
        world.fleet.job(job.id).deliver(TABLE)


def test_a_confirmed_delivery_stays_so_whatever_another_copy_meets(world: World) -> None:
    job = world.fleet.submit(["a"], deliver_to=[TABLE])
    world.embed(job)
    [queued] = world.queued()
    deliver = world.recorder.deliver

    def meanwhile(target: Target, parcel: Parcel) -> str:
        world.recorder.deliver = deliver  # type: ignore[method-assign]
        another = Deliveries(world.broker, world.settings, Metrics())  # in another worker
        another.deliver(queued.model_dump(mode="json"))
        raise DestinationRefused("it wants no more")

    world.recorder.deliver = meanwhile  # type: ignore[method-assign]
    world.deliveries.deliver(queued.model_dump(mode="json"))
    assert job.status().dead_deliveries == 0


def test_a_retry_that_was_begun_goes_where_it_began(world: World) -> None:
    job = world.fleet.submit(["a", "word " * 2000])
    world.embed(job)
    child = job.retry(on_overflow="truncate")
    job.folder.add_destination(TABLE)
    again = job.retry(on_overflow="truncate")
    assert child is not None
    assert again is not None
    assert (again.id, again.spec.deliver_to) == (child.id, ())


def test_what_was_dead_is_sent_again_and_waited_for(world: World) -> None:
    world.recorder.failures = [DestinationRefused("no such table")]
    job = world.fleet.submit([f"text {n}" for n in range(600)], deliver_to=[TABLE])
    world.embed(job)
    world.deliver()
    assert job.status().dead_deliveries == 1
    job.deliver(TABLE)
    assert (job.status().state, job.status().dead_deliveries) == ("embedded", 0)
    world.deliver()
    assert (job.status().state, job.status().deliveries[0].confirmed) == ("done", 2)


def test_a_retry_goes_where_its_job_went(world: World) -> None:
    job = world.fleet.submit(["a", "word " * 2000], deliver_to=[TABLE])
    world.embed(job)
    world.deliver()
    job.deliver(HOOK)
    world.deliver()
    child = job.retry(on_overflow="truncate")
    assert child is not None
    assert child.spec.deliver_to == (TABLE, HOOK)


def test_submitting_again_with_other_destinations_is_refused(world: World) -> None:
    world.fleet.submit(["a"], key="k", deliver_to=[TABLE])
    with pytest.raises(JobMismatch, match=r"other destinations \(pgvector:docs\) than now \(none\)"):
        world.fleet.submit(["a"], key="k")


# Saying where


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "docs",
        "ftp://host/x",
        "https://",
        "https://me:very-secret@host/x",
        "https://host:99999/",
        "https://host/\n",
        "https://höst/",
        "pgvector:",
        "pgvector:Docs",
        'pgvector:docs";drop table x',
        "pgvector:a.b.c",
        "postgresql://me:very-secret@host/db",
        "https://host/" + "x" * 3000,
    ],
)
def test_what_is_no_destination_is_refused(typed: str) -> None:
    with pytest.raises(SettingsError, match="destination ") as refused:
        parse_destination(typed)
    assert "very-secret" not in str(refused.value)
    assert "Give https://host/path for a webhook, or pgvector:TABLE." in str(refused.value)


def test_a_label_shows_no_query() -> None:
    assert HOOK.label == "https://app.example/hook"
    assert parse_destination("https://app.example/hook?token=very-secret") == HOOK


def test_a_part_is_handed_over_also_at_the_brokers_memory_limit(world: World) -> None:
    """What is done with makes the room; refused, nothing would ever be done with."""
    job = world.fleet.submit(["a"], deliver_to=[TABLE])
    world.server.client.config_set("maxmemory", 1)
    try:
        world.embed(job)
    finally:
        world.server.client.config_set("maxmemory", 0)
    assert len(world.queued()) == 1


def test_the_day_of_a_delivery_is_counted_by_the_brokers_clock(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers' clocks may be hours apart."""
    world.recorder.failures = [DestinationUnavailable("it answered 500")] * 2
    job = world.fleet.submit(["a"], deliver_to=[TABLE])
    world.embed(job)
    [queued] = world.queued()
    wrong = time.time() - 25 * 3600
    with monkeypatch.context() as patched:
        patched.setattr(jobfolder.time, "time", lambda: wrong)
        with pytest.raises(GiveBack):
            world.deliveries.deliver(queued.model_dump(mode="json"))
    with pytest.raises(GiveBack):  # to another worker the day has just begun
        world.deliveries.deliver(queued.model_dump(mode="json"))
