"""Jobs that expire: when that is, what becomes of their texts, and what is no time to come."""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from embedfleet import Fleet
from embedfleet.cli import cli
from embedfleet.errors import ConfigurationError
from embedfleet.redis import RedisBroker
from embedfleet.testing import InMemoryFleet
from tests.unit.redis_server import RedisServer


@pytest.fixture
def fleet(redis_server: RedisServer, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(broker_url=redis_server.url, store=str(tmp_path / "store")) as connected:
        yield connected


def slowly(*texts: str) -> Iterator[str]:
    for text in texts:
        time.sleep(0.01)
        yield text


@pytest.mark.parametrize("verb", ["submit", "enqueue"])
def test_it_is_said_in_the_brokers_time(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setattr(RedisBroker, "clock", lambda _: 1000.0)
    assert getattr(fleet, verb)(["a"], expires_in_s=60).spec.expires_at == 1060.0


def test_a_job_without_expiry_does_not_say_so(fleet: Fleet) -> None:
    """Workers that know of no expiry go on with it."""
    job = fleet.submit(["a"])
    assert b"expires" not in job.folder.store.get(f"{job.id}/job.json")


@pytest.mark.parametrize("again", [None, 5, 7200])
def test_going_on_keeps_the_first_expiry(fleet: Fleet, again: float | None) -> None:
    first = fleet.submit(["a"], key="k", expires_in_s=3600).spec.expires_at
    assert first is not None
    assert fleet.submit(["a"], key="k", expires_in_s=again).spec.expires_at == first


def test_an_expired_job_is_done_and_its_texts_can_be_retried() -> None:
    with InMemoryFleet() as fleet:
        job = fleet.submit(slowly("a", "b"), expires_in_s=0.001)
        assert job.wait().state == "done"
        assert job.error_counts() == {"expired": 2}
        child = job.retry()
        assert child is not None
        assert child.spec.expires_at is None
        assert [row["error"] for row in job.rows()] == [None, None]


def test_a_job_that_is_done_in_time_does_not_expire() -> None:
    with InMemoryFleet() as fleet:
        assert fleet.enqueue(["a"], expires_in_s=60).wait().totals.errors == 0


NO_TIME: list[Any] = [0, -1, math.inf, -math.inf, math.nan, "60"]


@pytest.mark.parametrize("verb", ["submit", "enqueue"])
@pytest.mark.parametrize("value", NO_TIME)
def test_what_is_no_time_to_come_is_refused_by_name_before_anything_is_written(
    fleet: Fleet, redis_server: RedisServer, tmp_path: Path, verb: str, value: Any
) -> None:
    with pytest.raises(ConfigurationError, match="expires_in_s: a number of seconds over 0 was expected, not"):
        getattr(fleet, verb)(["a"], expires_in_s=value)
    assert not redis_server.client.keys()
    assert not list(tmp_path.rglob("job.json"))


@pytest.mark.parametrize("command", ["embed", "submit"])
def test_the_commands_refuse_it_before_they_begin(command: str) -> None:
    ran = CliRunner().invoke(cli, [command, "nothing.jsonl", "--expires-in-s", "-1"], standalone_mode=False)
    assert isinstance(ran.exception, ConfigurationError)


def test_the_command_passes_it_on(fleet: Fleet, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a\n")
    options = ["--broker-url", fleet.settings.broker_url.get_secret_value(), "--store", str(fleet.settings.store)]  # type: ignore[union-attr]
    ran = CliRunner().invoke(cli, ["submit", str(texts), "--expires-in-s", "60", "--json", *options])
    assert ran.exit_code == 0, ran.output
    left_s = (fleet.job(json.loads(ran.stdout)["job"]).spec.expires_at or 0) - fleet.broker.clock()
    assert 50 < left_s <= 60
