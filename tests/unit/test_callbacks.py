"""Callbacks: a finished job is told to a real receiver, by the janitor through the deliver lane, until it has it."""

import asyncio
import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks

from embedfleet import AsyncFleet, Fleet, Webhook
from embedfleet.contract import Completion
from embedfleet.destinations import CALLBACK
from embedfleet.errors import ConfigurationError, JobMismatch, SettingsError
from embedfleet.job import Job
from embedfleet.jobfolder import waiting
from embedfleet.settings import load
from embedfleet_worker.deliveries import Deliveries
from embedfleet_worker.settling import GiveBack
from embedfleet_worker.telemetry import Metrics
from tests.receiver import Receiver, receiver, status
from tests.unit.redis_server import RedisServer
from tests.unit.test_job import TEXTS, commit
from tests.unit.test_reconcile import entry, noted, open_jobs, reconcile, reconcile_open

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


@pytest.fixture
def server() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


@pytest.fixture
def fleet(redis_server: RedisServer, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(broker_url=redis_server.url, store=str(tmp_path / "store")) as connected:
        yield connected


@pytest.fixture
def deliveries(fleet: Fleet, server: Receiver) -> Iterator[Deliveries]:
    origin = server.url.removesuffix("/hook")
    settings = load(
        store=fleet.settings.store, webhook_secret=SECRET, webhook_origins=origin, webhook_networks="127.0.0.1"
    )
    made = Deliveries(fleet.broker, settings, Metrics())
    yield made
    made.close()


def lane(fleet: Fleet, server: RedisServer) -> list[dict[str, Any]]:
    """Takes what the deliver lane holds, which is to be completions alone."""
    raws = [json.loads(raw) for raw in server.client.lrange(fleet.broker.deliver_queue, 0, -1)]  # type: ignore[union-attr]
    server.client.delete(fleet.broker.deliver_queue)
    assert {raw["headers"]["task"] for raw in raws} <= {"embedfleet.complete"}
    return [json.loads(base64.b64decode(raw["body"]))[0][0] for raw in raws]


def message(job: Job) -> dict[str, Any]:
    return Completion(to=job.folder.store.uri, job=job.id).model_dump(mode="json")


def test_a_finished_job_is_told_once_and_is_open_until_then(
    fleet: Fleet, redis_server: RedisServer, server: Receiver, deliveries: Deliveries
) -> None:
    server.answer = status(204)
    job = fleet.submit(TEXTS, callback=server.url + "?token=s3cret")
    commit(job, 0, 1, failing=["7"])
    assert reconcile(fleet, job) == "running"
    commit(job, 2)
    redis_server.client.flushall()
    assert job.status().finished, "the callback is no part of that"
    assert reconcile_open(fleet, job.id) == "finished; its callback is queued"
    assert open_jobs(fleet) == [job.id]
    (told,) = lane(fleet, redis_server)
    assert told == message(job)
    deliveries.complete(told)
    deliveries.complete(told)
    (request,) = server.received
    assert request.headers["webhook-id"] == f"{job.id}-callback"
    assert standardwebhooks.Webhook(SECRET).verify(request.body, request.headers) == {
        "type": "embedfleet.job.done",
        "data": {
            "job": job.id,
            "folder": job.uri,
            "state": "done",
            "batches": 3,
            **job.status().totals.model_dump(),
            "deliveries": [],
        },
    }
    receipt = job.folder.receipt(CALLBACK, 0)
    assert receipt is not None
    assert (receipt.state, receipt.detail) == ("confirmed", f"127.0.0.1:{server.port} answered 204")
    assert reconcile_open(fleet, job.id) == "finished"
    assert open_jobs(fleet) == []
    assert reconcile(fleet, job) == "finished"
    assert lane(fleet, redis_server) == []


def test_it_waits_for_the_deliveries_and_says_how_they_ended(
    fleet: Fleet, redis_server: RedisServer, server: Receiver, deliveries: Deliveries
) -> None:
    server.answer = status(200)
    job = fleet.submit(["a"], deliver_to=[Webhook(url="https://app.example/v?token=s3cret")], callback=server.url)
    commit(job, 0)
    redis_server.client.flushall()
    assert reconcile(fleet, job) == "published again: 1"
    deliveries.complete(message(job))
    assert server.received == [], "a message alone does not finish a job"
    (destination,) = job.folder.destinations()
    dead = waiting(job.id, 0, destination.name, "it answered 410", 1.0).model_copy(update={"state": "dead"})
    job.folder.write_receipt(dead)
    redis_server.client.flushall()
    assert reconcile(fleet, job) == "finished; its callback is queued"
    deliveries.complete(message(job))
    (request,) = server.received
    data = json.loads(request.body)["data"]
    assert data["deliveries"] == [{"destination": "https://app.example/v", "confirmed": 0, "dead": 1}]


def test_a_cancelled_job_is_told_too(
    fleet: Fleet, redis_server: RedisServer, server: Receiver, deliveries: Deliveries
) -> None:
    server.answer = status(200)
    job = fleet.submit(["a"], callback=server.url)
    job.cancel()
    commit(job, 0, failing=["0"], code="cancelled")
    assert reconcile(fleet, job) == "finished; its callback is queued"
    deliveries.complete(lane(fleet, redis_server)[0])
    assert json.loads(server.received[0].body)["data"]["state"] == "cancelled"


def test_a_receiver_that_is_down_is_tried_for_a_day_and_the_job_stays_open(
    fleet: Fleet, redis_server: RedisServer, server: Receiver, deliveries: Deliveries
) -> None:
    server.answer = status(500)
    job = fleet.enqueue(["a"], callback=server.url)
    commit_inline(job)
    reconcile(fleet, job)
    with pytest.raises(GiveBack):
        deliveries.complete(message(job))
    receipt = job.folder.receipt(CALLBACK, 0)
    assert receipt is not None
    assert receipt.state == "waiting"
    assert reconcile_open(fleet, job.id) == "finished; its callback is being told"
    yesterday = (datetime.now(UTC) - timedelta(hours=25)).isoformat(timespec="seconds")
    job.folder.write_receipt(receipt.model_copy(update={"at": yesterday}))
    deliveries.complete(message(job))
    receipt = job.folder.receipt(CALLBACK, 0)
    assert receipt is not None
    assert receipt.state == "dead"
    assert receipt.detail.startswith("given up after 24 h")
    assert reconcile_open(fleet, job.id) == "finished"
    assert open_jobs(fleet) == []


def test_a_completion_that_the_broker_lost_is_published_again(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.submit(["a"], callback="https://app.example/done")
    commit(job, 0)
    assert reconcile(fleet, job) == "finished; its callback is queued"
    assert reconcile(fleet, job) == "finished; its callback is being told"
    assert len(lane(fleet, redis_server)) == 1
    assert reconcile(fleet, job) == "finished; its callback is being told", "not more than once a minute"
    published_at = entry(fleet, job).published_at
    assert published_at is not None
    noted(fleet, job, published_at=published_at - 61)
    redis_server.client.hset(f"{fleet.broker.deliver_queue}-leases", "tag:1", held(job))
    assert reconcile(fleet, job) == "finished; its callback is being told", "somebody holds it"
    redis_server.client.flushall()
    assert reconcile(fleet, job) == "finished; its callback is queued again"
    assert lane(fleet, redis_server) == [message(job)]


def held(job: Job) -> str:
    from embedfleet.envelope import wrap

    return wrap(Completion(to=job.folder.store.uri, job=job.id), "q", at=1.0, key=None)


def commit_inline(job: Job) -> None:
    """What a worker does for an enqueued job."""
    from embedfleet.synthetic import synthetic_vectors
    from embedfleet.tables import Outcome, Outcomes, write_part

    outcomes = Outcomes([Outcome("0", n_tokens=1)], synthetic_vectors(["0"], 384))
    job.folder.write_part(0, write_part(outcomes, "float32", job.id, 0))


def test_a_message_for_a_job_without_a_callback_is_a_dead_letter(
    fleet: Fleet, redis_server: RedisServer, server: Receiver, deliveries: Deliveries
) -> None:
    job = fleet.submit(["a"])
    deliveries.complete(message(job))
    deliveries.complete({"version": 1, "to": "s3://not-mine", "job": job.id})
    assert redis_server.client.llen("embedfleet-dead") == 2
    assert server.received == []


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/x", "https://user:password@app.example/", "pgvector:docs", "", "ftp://app.example"]
)
def test_a_callback_that_is_no_url_is_refused_before_anything_is_queued(fleet: Fleet, tmp_path: Path, url: str) -> None:
    if url.startswith("http://"):
        job = fleet.submit(["a"], callback=url)  # whether it may be called, the workers' settings say
        assert job.spec.callback is not None
        return
    with pytest.raises(SettingsError, match="callback") as refused:
        fleet.submit(["a"], callback=url)
    assert "password@" not in str(refused.value)
    assert not (tmp_path / "store").exists()


def test_an_address_that_is_not_public_is_not_called(fleet: Fleet, redis_server: RedisServer, server: Receiver) -> None:
    job = fleet.submit(["a"], callback=server.url)
    commit(job, 0)
    guarded = Deliveries(fleet.broker, load(store=fleet.settings.store, webhook_secret=SECRET), Metrics())
    guarded.complete(message(job))
    guarded.close()
    receipt = job.folder.receipt(CALLBACK, 0)
    assert receipt is not None
    assert receipt.state == "dead"
    assert server.received == []


def test_the_same_key_with_another_callback_is_another_job(fleet: Fleet) -> None:
    fleet.submit(["a"], key="k", callback="https://app.example/done")
    fleet.submit(["a"], key="k", callback="https://app.example/done")
    for other in ("https://app.example/other", None):
        with pytest.raises(JobMismatch, match="another callback"):
            fleet.submit(["a"], key="k", callback=other)


def test_without_a_store_that_names_the_open_jobs_nobody_would_tell(redis_server: RedisServer, tmp_path: Path) -> None:
    with (
        Fleet(broker_url=redis_server.url) as fleet,
        pytest.raises(ConfigurationError, match=r"callback.*EMBEDFLEET_STORE"),
    ):
        fleet.submit(["a"], to=str(tmp_path), callback="https://app.example/done")


def test_the_asynchronous_verbs_have_it_too(fleet: Fleet) -> None:
    async def main() -> None:
        each = AsyncFleet(fleet)
        for verb in (each.submit, each.enqueue):
            job = await verb(["a"], callback="https://app.example/done")
            assert (await job.spec()).callback == Webhook(url="https://app.example/done")
        await each.close()

    asyncio.run(main())
