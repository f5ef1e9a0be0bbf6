"""Reconcile: open jobs are named, closed when finished, and published again when the broker lost their messages."""

from pathlib import Path
from typing import Any

import pytest

from embedfleet import Fleet, Pgvector
from embedfleet.errors import ConfigurationError, StoreNotAllowed
from embedfleet.reconcile import open_jobs, reconcile
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
    assert sorted(open_jobs(fleet)) == sorted([job.uri, small.uri])
    commit(job, 0)
    assert reconcile(fleet, job.uri) == "finished"
    assert open_jobs(fleet) == [small.uri]
    assert job.folder.manifest() is not None
    assert reconcile(fleet, job.uri) == "finished", "again does no harm"


def test_what_was_refused_is_no_open_job(fleet: Fleet) -> None:
    with pytest.raises(Exception, match="Use submit"):
        fleet.enqueue(["x" * 300_000])
    assert open_jobs(fleet) == []


def test_messages_that_wait_or_are_held_are_left_alone(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.submit(["a"])
    assert reconcile(fleet, job.uri) == "running"
    assert fleet.broker.depth(bulk(fleet)) == 1
    redis_server.client.delete(bulk(fleet))
    redis_server.client.hset("unacked", "tag", "held")
    assert reconcile(fleet, job.uri) == "running"
    assert fleet.broker.depth(bulk(fleet)) == 0


def test_what_the_broker_lost_is_published_again(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.submit(f"text {n}" for n in range(1100))
    commit(job, 1)
    redis_server.client.flushall()
    assert reconcile(fleet, job.uri) == "published again"
    assert fleet.broker.depth(bulk(fleet)) == 2


def test_deliveries_that_the_broker_lost_are_published_again(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.submit(["a"], deliver_to=[TABLE])
    commit(job, 0)
    redis_server.client.flushall()
    assert reconcile(fleet, job.uri) == "published again"
    assert fleet.broker.depth(fleet.broker.deliver_queue) == 1
    assert reconcile(fleet, job.uri) == "running"
    assert open_jobs(fleet) == [job.uri]


def test_an_entry_leads_nowhere_but_into_the_allowed_stores(fleet: Fleet, tmp_path: Path) -> None:
    with Fleet(broker_url=fleet.settings.broker_url, store=str(tmp_path / "other")) as other:
        elsewhere = other.submit(["a"])
    with pytest.raises(StoreNotAllowed):
        reconcile(fleet, elsewhere.uri)


def test_without_a_store_nothing_is_known(redis_server: RedisServer) -> None:
    with Fleet(broker_url=redis_server.url) as fleet, pytest.raises(ConfigurationError, match="EMBEDFLEET_STORE"):
        open_jobs(fleet)
