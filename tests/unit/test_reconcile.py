"""Reconcile: open jobs are named, closed when finished, and published again when the broker lost their messages."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from embedfleet import Fleet, Pgvector
from embedfleet.cli import cli
from embedfleet.contract import OpenJob
from embedfleet.errors import ConfigurationError, NotFound, StoreNotAllowed
from embedfleet.reconcile import open_jobs, reconcile, reconcile_open
from tests.unit.redis_server import RedisServer
from tests.unit.test_job import commit

TABLE = Pgvector(table="docs")


@pytest.fixture
def fleet(redis_server: RedisServer, tmp_path: Path) -> Any:
    with Fleet(broker_url=redis_server.url, store=str(tmp_path / "store")) as connected:
        yield connected


def bulk(fleet: Fleet) -> str:
    return fleet.broker.queue(fleet.settings.model, "bulk")


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
    redis_server.client.delete(bulk(fleet))
    redis_server.client.hset("unacked", "another", '[{},"","another-queue"]')
    redis_server.client.hset("unacked", "tag", f'[{{}},"","{bulk(fleet)}"]')
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
