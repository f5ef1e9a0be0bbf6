"""`Fleet.embed` beside bulk work, on real vLLM."""

import time

import pytest

from embedfleet import Fleet
from embedfleet.errors import TextError, WaitTimeout
from tests.waiting import wait_until


def test_it_overtakes_bulk_work(qwen_fleet: Fleet) -> None:
    """Bulk never has every slot of a worker, and an interactive text gets the engine's next step."""
    job = qwen_fleet.submit(f"text number {n} of a job that keeps the worker busy for a while" for n in range(20_000))
    wait_until(lambda: job.status().batches_done, "the first part")

    begun = time.monotonic()
    vectors = qwen_fleet.embed(["what is a lease?"])
    took_s = time.monotonic() - begun

    status = job.status()
    assert vectors.shape == (1, 128)
    assert not status.finished, "the bulk work was still going on"
    assert took_s < 10
    job.cancel()
    wait_until(lambda: job.status().batches_done == 40, "an outcome for every batch")


def test_texts_without_a_vector_are_named_by_position(qwen_fleet: Fleet) -> None:
    with pytest.raises(TextError, match="text 1 has no vector: too_long") as failed:
        qwen_fleet.embed(["a text", "word " * 2000, "another"])
    assert list(failed.value.errors) == [1]


def test_without_a_worker_it_ends_in_time(redis_url: str) -> None:
    with Fleet(broker_url=redis_url) as fleet, pytest.raises(WaitTimeout, match="Is a worker for this model running"):
        fleet.embed(["a text"], timeout_s=0.3)
