"""The synthetic engine: what every engine promises, at a set speed, and vectors nobody takes for a model's."""

import time
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedfleet import EmbedSettings
from embedfleet.batching import estimated_starts, estimated_tokens
from embedfleet.errors import DeadlineExceeded, EngineUnavailable
from embedfleet.models import DEFAULT_MODEL, profile_of
from embedfleet.settings import load
from embedfleet.synthetic import synthetic_vectors
from embedfleet.testing import InMemoryFleet
from embedfleet_worker.engine.base import Priority, Tokens
from embedfleet_worker.engine.synthetic import SyntheticEngine
from embedfleet_worker.pipeline import NoCache, Pipeline


def engine(**settings: Any) -> SyntheticEngine:
    return SyntheticEngine(profile_of(DEFAULT_MODEL), load(engine="synthetic", **settings))


def embed(made: SyntheticEngine, *texts: str) -> "Future[Any]":
    return made.embed(made.tokenise(texts, truncate=False), Priority.BULK)


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5), st.integers(1, 64))
def test_the_same_text_gives_the_same_unit_vector_and_another_text_another(texts: list[str], dimensions: int) -> None:
    vectors = synthetic_vectors(texts, dimensions)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for row, text in enumerate(texts):
        assert vectors[row].tobytes() == synthetic_vectors([text], dimensions).tobytes()


def test_a_fleet_in_memory_says_of_its_vectors_what_a_worker_says() -> None:
    """So that application code that reads the provenance can be tested with it."""
    made = engine()
    with InMemoryFleet() as fleet:
        job = fleet.submit(["a text"], settings=EmbedSettings(encoding="float16"))
        settings, said = job.spec.settings, job.folder.part_info(0).provenance
    pipeline = Pipeline(made, profile_of(DEFAULT_MODEL), NoCache())
    assert said == pipeline.run(["0"], ["a text"], settings, priority=Priority.BULK, deadline_s=10).provenance
    made.close()


def test_it_says_what_it_is() -> None:
    made = engine()
    assert (made.identity.engine, made.identity.weights) == ("synthetic", "synthetic")
    made.close()


def test_vectors_come_in_order() -> None:
    made = engine()
    vectors = embed(made, "a", "b", "a").result(10).vectors
    assert vectors.shape == (3, 384)
    assert vectors[0].tobytes() == vectors[2].tobytes() != vectors[1].tobytes()
    made.close()


def test_its_speed_is_the_one_that_was_set() -> None:
    made = engine(synthetic_texts_per_s=200)
    begun = time.monotonic()
    embed(made, *["a"] * 40).result(10)
    assert 0.2 <= time.monotonic() - begun < 1
    made.close()


def test_a_text_over_the_limit_is_too_long_or_cut() -> None:
    made = engine(max_tokens=16)
    (long,) = made.tokenise(["x" * 400], truncate=False)
    assert long.too_long == 102
    assert made.tokenise(["x" * 400], truncate=True) == [Tokens("x" * 400, [], 16, truncated=True, tokens_in=102)]
    made.close()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_tokens_are_estimated_alike_wherever_they_begin(text: str) -> None:
    starts = list(estimated_starts(text))
    assert starts == sorted(starts)
    assert abs(len(starts) - (estimated_tokens(text) - 2)) <= 1
    assert all(0 <= start < len(text) for start in starts)


def test_what_is_under_way_when_it_closes_can_be_given_back() -> None:
    made = engine(synthetic_texts_per_s=10)
    under_way = [embed(made, *["a"] * 100) for _ in range(3)]
    made.close()
    for future in under_way[1:]:
        assert isinstance(future.exception(timeout=10), EngineUnavailable)


def test_what_comes_after_it_closed_can_be_given_back() -> None:
    made = engine()
    made.close()
    with pytest.raises(EngineUnavailable):
        embed(made, "a").result(10)


def test_what_is_aborted_costs_no_more_time_and_the_next_goes_on() -> None:
    made = engine(synthetic_texts_per_s=10)
    begun = time.monotonic()
    inside, waiting = embed(made, *["a"] * 1000), embed(made, *["b"] * 1000)
    made.abort(waiting)
    made.abort(inside)
    for future in (inside, waiting):
        assert isinstance(future.exception(0), DeadlineExceeded)
    assert embed(made, "c").result(10).vectors.shape == (1, 384)
    assert time.monotonic() - begun < 5
    assert not made.dead.is_set()
    made.close()


def test_aborting_what_is_done_changes_nothing() -> None:
    made = engine()
    done = embed(made, "a")
    assert done.result(10).vectors.shape == (1, 384)
    made.abort(done)
    assert done.exception(0) is None
    made.close()
