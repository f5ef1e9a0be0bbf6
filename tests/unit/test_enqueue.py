"""Fleet.enqueue: a job of one batch with its texts in job.json."""

from pathlib import Path
from typing import Any

import pytest

from embedfleet import EmbedSettings, Fleet
from embedfleet.errors import InputError, JobMismatch, SettingsError
from embedfleet.testing import InMemoryFleet
from tests.unit.redis_server import RedisServer


@pytest.fixture
def fleet(redis_server: RedisServer, tmp_path: Path) -> Any:
    with Fleet(broker_url=redis_server.url, store=str(tmp_path / "store")) as connected:
        yield connected


def depth(fleet: Fleet) -> int:
    return fleet.broker.depth(fleet.broker.queue(fleet.settings.model, "bulk"))


def test_one_file_and_one_message(fleet: Fleet) -> None:
    job = fleet.enqueue(["a", "b"], ids=["x", "y"])
    assert job.folder.store.paths(job.id) == [f"{job.id}/job.json"]
    assert depth(fleet) == 1
    status = job.status()
    assert (status.state, status.batches, status.texts) == ("running", 1, 2)


def test_every_text_has_its_outcome_whatever_it_is() -> None:
    with InMemoryFleet() as fleet:
        texts: Any = ["fine", "", None, "\ud800", "word " * 2000]
        job = fleet.enqueue(texts, ids=["a", "b", "c", "d", "e"])
        errors = {row["id"]: row["error"] for row in job.rows()}
        assert errors == {"a": None, "b": "empty", "c": "not_a_string", "d": "lone_surrogate", "e": "too_long"}
        assert job.wait().totals.errors == 4
        child = job.retry(on_overflow="truncate")
        assert child is not None
        assert [row["error"] for row in job.rows() if row["id"] == "e"] == [None]


def test_the_same_key_again_publishes_again_and_makes_nothing_twice(fleet: Fleet) -> None:
    first = fleet.enqueue(["a"], key="k")
    again = fleet.enqueue(["a"], key="k")
    assert (first.id, depth(fleet)) == (again.id, 2)
    with pytest.raises(JobMismatch, match="made from other texts"):
        fleet.enqueue(["b"], key="k")
    with pytest.raises(JobMismatch, match="encoding"):
        fleet.enqueue(["a"], key="k", settings=EmbedSettings(encoding="float16"))
    with pytest.raises(JobMismatch):
        fleet.submit(["a", "b"], key="k")


def test_a_job_that_was_submitted_is_no_enqueued_one(fleet: Fleet) -> None:
    fleet.submit(["a"], key="k")
    with pytest.raises(JobMismatch, match="made from other texts"):
        fleet.enqueue(["a"], key="k")


@pytest.mark.parametrize(
    ("texts", "ids", "said"),
    [
        ("a text", None, "a list of at least one text"),
        ([], None, "a list of at least one text"),
        (["a", "b"], ["x"], "2 texts and 1 ids"),
        (["a", "b"], ["x", "x"], "the id 'x' was there before"),
        (["a"], [""], "the id is empty"),
        (["x" * 200_001], None, "201 KB are over the limit of 200 KB. Use submit"),
        (["ü" * 120_000], None, "Use submit"),
    ],
)
def test_what_can_not_be_enqueued_is_refused_before_anything_is_written(
    fleet: Fleet, texts: Any, ids: Any, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        fleet.enqueue(texts, ids=ids)
    assert depth(fleet) == 0
    assert not list(Path(fleet.settings.store or "").rglob("job.json"))


def test_settings_are_checked_first(fleet: Fleet) -> None:
    with pytest.raises(SettingsError):
        fleet.enqueue(["a"], settings=EmbedSettings(dimensions=7))
    assert depth(fleet) == 0
