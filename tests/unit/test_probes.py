"""A worker serves only with an engine that computes what it should: how one may not, and what is said."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embedfleet.errors import ConfigurationError, EngineUnavailable
from embedfleet.models import Golden, ModelProfile
from embedfleet_worker import probes
from embedfleet_worker.engine.base import Embedded, Priority, Tokens
from tests.unit.fake_engine import FakeEngine

DIMENSIONS = 32
PROFILE = ModelProfile("a model", dimensions=DIMENSIONS, max_tokens=512, pooling="mean", parameters=1)
ASKS = replace(PROFILE, query_template="Instruct: {instruction}\nQuery:{text}", instructions={"query": "Search"})
GOLDEN = "a text whose vector is known"

Change = Callable[[list[str], np.ndarray[Any, Any]], object]


class Changed(FakeEngine):
    """An engine whose vectors are changed, knowing which texts are together."""

    def __init__(self, change: Change, max_tokens: int = 512) -> None:
        super().__init__(DIMENSIONS, max_tokens)
        self.change = change

    def embed(self, prompts: Sequence[Tokens], priority: Priority) -> "Future[Embedded]":
        future = super().embed(prompts, priority)
        if future.done() and future.exception() is None:
            vectors = future.result().vectors
            self.change([tokens.prompt for tokens in prompts], vectors)
        return future


def sound(texts: list[str], vectors: np.ndarray[Any, Any]) -> None:
    """Nothing."""


def refusal(engine: FakeEngine, profile: ModelProfile = PROFILE) -> str:
    with pytest.raises(ConfigurationError) as refused:
        probes.check(engine, profile, 1.0)
    said = str(refused.value)
    assert said.startswith(
        "model a model: fake 1 does not compute its vectors, and this worker does not serve. Probe: "
    )
    return said.partition("Probe: ")[2]


def golden(engine: FakeEngine, off_by: float = 0.0) -> ModelProfile:
    head = engine.vector(GOLDEN)[:16]
    turned = np.roll(head, 1) - np.roll(head, 1) @ head / (head @ head) * head
    away = head + off_by * np.linalg.norm(head) * turned / np.linalg.norm(turned)
    return replace(PROFILE, golden=(Golden(GOLDEN, "document", tuple(map(float, away))),))


def test_a_sound_engine_serves() -> None:
    engine = Changed(sound)
    probes.check(engine, golden(engine), 1.0)
    alone, together = engine.asked[:-1], engine.asked[-1]
    assert [[text] for text in together] == alone, "each alone, then all in one batch"
    assert any(len(text.split()) > 200 for text in together)
    assert any(not text.isascii() for text in together)
    assert GOLDEN in together


def test_a_query_has_its_prompt() -> None:
    engine = Changed(sound)
    probes.check(engine, ASKS, 1.0)
    assert [text for text in engine.asked[-1] if text.startswith("Instruct: Search\nQuery:")]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_refused(value: float) -> None:
    def spoil(texts: list[str], vectors: np.ndarray[Any, Any]) -> None:
        if texts == ["lease"]:
            vectors[0, 5] = value

    assert refusal(Changed(spoil)).startswith(
        "one word: the engine gave NaN or infinity. The number format may overflow"
    )


def test_nan_in_a_batch_is_refused() -> None:
    def spoil(texts: list[str], vectors: np.ndarray[Any, Any]) -> None:
        if len(texts) > 1:
            vectors[2, 0] = np.nan

    assert refusal(Changed(spoil)).startswith("a long text in a batch: the engine gave NaN")


def test_another_norm_is_refused() -> None:
    def spoil(texts: list[str], vectors: np.ndarray[Any, Any]) -> None:
        vectors *= 3

    assert refusal(Changed(spoil)).startswith("one word: the engine gave a vector of norm 3")


def test_another_length_is_refused() -> None:
    engine = Changed(sound)
    engine.spoiled["lease"] = np.ones(31, np.float32)
    assert "the engine gave 31 components and 32 were expected" in refusal(engine)


@pytest.mark.parametrize(("dtype", "off_by", "least"), [("float32", 0.01, "0.99999"), ("bfloat16", 0.1, "0.999")])
def test_a_batch_that_changes_a_vector_is_refused(dtype: str, off_by: float, least: str) -> None:
    """As padding that counts as text does: the short ones change."""

    def spoil(texts: list[str], vectors: np.ndarray[Any, Any]) -> None:
        if len(texts) > 1:
            vectors[1] += off_by * vectors[0]
            vectors[1] /= np.linalg.norm(vectors[1])

    engine = Changed(spoil)
    engine.identity = replace(engine.identity, dtype=dtype)
    said = refusal(engine)
    assert said.startswith("a sentence has another vector in a batch of 5 than alone: cosine 0.99")
    assert f"{least} is the least in {dtype}. A kernel of the engine is broken, or padding counts as text." in said


def test_what_bfloat16_loses_is_no_reason_to_refuse() -> None:
    def round_off(texts: list[str], vectors: np.ndarray[Any, Any]) -> None:
        if len(texts) > 1:
            vectors += 0.01 * np.roll(vectors, 1, axis=1)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    engine = Changed(round_off)
    engine.identity = replace(engine.identity, dtype="bfloat16")
    probes.check(engine, PROFILE, 1.0)


def test_swapped_vectors_are_refused() -> None:
    def spoil(texts: list[str], vectors: np.ndarray[Any, Any]) -> None:
        if len(texts) > 1:
            vectors[[0, 1]] = vectors[[1, 0]]

    assert refusal(Changed(spoil)).startswith("one word has another vector in a batch of 5 than alone: cosine ")


def test_one_vector_for_every_text_is_refused() -> None:
    def spoil(texts: list[str], vectors: np.ndarray[Any, Any]) -> None:
        vectors[:] = 1 / np.sqrt(DIMENSIONS)

    assert refusal(Changed(spoil)).startswith("5 different texts all have the same vector: cosine 1.000000")


def test_another_vector_than_the_golden_one_is_refused() -> None:
    engine = Changed(sound)
    said = refusal(engine, golden(FakeEngine(DIMENSIONS, weights="other weights")))
    assert said.startswith(f"golden text 0 ({GOLDEN!r}) has cosine ")
    assert "and 0.99999 is the least in float32. These are not the model's weights" in said
    assert "another pooling than mean" in said


@pytest.mark.parametrize(
    ("dtype", "quantization", "off_by", "serves"),
    [
        ("float32", None, 0.001, True),
        ("float32", None, 0.01, False),
        ("bfloat16", None, 0.02, True),
        ("bfloat16", None, 0.1, False),
        ("bfloat16", "fp8", 0.2, True),
        ("bfloat16", "fp8", 0.5, False),
    ],
)
def test_how_near_the_golden_vector_is_wanted(
    dtype: str, quantization: str | None, off_by: float, serves: bool
) -> None:
    engine = Changed(sound)
    engine.identity = replace(engine.identity, dtype=dtype, quantization=quantization)
    profile = golden(engine, off_by)
    if serves:
        probes.check(engine, profile, 1.0)
    else:
        assert "golden text 0" in refusal(engine, profile)


def test_a_golden_text_that_was_cut_is_another_text() -> None:
    """EMBEDFLEET_MAX_TOKENS may be below it."""
    engine = Changed(sound, max_tokens=4)
    probes.check(engine, golden(FakeEngine(DIMENSIONS, weights="other weights")), 1.0)


def test_a_text_that_the_engine_refuses_is_named() -> None:
    engine = Changed(sound)
    engine.refused["lease"] = "too exotic"
    assert refusal(engine).startswith("one word: too exotic.")


def test_a_step_that_fails_is_named() -> None:
    engine = Changed(sound)
    engine.breaking.add("lease")
    assert refusal(engine).startswith("one word: the engine fails at it (a step of the engine failed (RuntimeError)).")


def test_an_engine_that_hangs_is_left_for_another_process() -> None:
    engine = Changed(sound)
    engine.slow.add("lease")
    with pytest.raises(EngineUnavailable, match="it did not embed one word within"):
        probes.check(engine, PROFILE, 0.05)
