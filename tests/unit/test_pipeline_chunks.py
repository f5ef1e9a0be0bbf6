"""Chunks in the pipeline: rows and means, each text its own; tokens in and used; the cache of a task; deadlines."""

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedfleet.contract import CacheUse, Chunking, EmbedSettings
from embedfleet.errors import DeadlineExceeded, EngineFailed, SettingsError
from embedfleet.tables import Outcome, Outcomes
from embedfleet_worker import pipeline
from embedfleet_worker.bisection import longest_s
from embedfleet_worker.engine.base import Tokens
from tests.unit.fake_engine import FakeEngine
from tests.unit.test_pipeline import PLAIN, DictCache, errors, message, run, unit

WORDS = [f"word{number}" for number in range(25)]
LONG = " ".join(WORDS)
"""26 tokens of the engine, which takes 12: three chunks of 11, 11 and 3 words."""
CHUNKS = [" ".join(WORDS[first : first + 11]) for first in (0, 11, 22)]


def chunked(**chunking: Any) -> EmbedSettings:
    return PLAIN.model_copy(update={"on_overflow": "chunk", "chunking": Chunking(**chunking)})


def brief(row: Outcome) -> tuple[object, ...]:
    return row.id, row.chunk, row.n_tokens, row.tokens_in, row.error and row.error[0]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


def is_unit_mean(vector: NDArray[np.float32], parts: Sequence[NDArray[np.float32]], weights: Sequence[int]) -> bool:
    mean = np.average(np.array(parts, np.float64), axis=0, weights=weights)
    return bool(np.allclose(vector, mean / np.linalg.norm(mean), rtol=0, atol=1e-7))


# Rows


def test_each_chunk_is_a_row_with_its_place_in_the_text(engine: FakeEngine) -> None:
    outcomes = run(engine, ["a b", LONG, "c"], chunked())
    assert [brief(row) for row in outcomes.rows] == [
        ("id-0", 0, 3, 3, None),
        ("id-1", 0, 12, 26, None),
        ("id-1", 1, 12, 26, None),
        ("id-1", 2, 4, 26, None),
        ("id-2", 0, 2, 2, None),
    ]
    texts = [outcomes.rows[0].id and "a b", LONG, LONG, LONG, "c"]
    cut = [text[row.chunk_start : row.chunk_end] for text, row in zip(texts, outcomes.rows, strict=True)]
    assert cut == ["a b", *CHUNKS, "c"]
    for vector, text in zip(outcomes.vectors, cut, strict=True):
        assert vector.tobytes() == engine.vector(text).tobytes()


def test_totals_count_texts_and_the_tokens_of_every_chunk(engine: FakeEngine) -> None:
    totals = run(engine, ["a b", LONG, "", LONG], chunked()).totals()
    assert (totals.texts, totals.errors, totals.truncated, totals.cached) == (4, 1, 0, 0)
    assert totals.tokens == 3 + 2 * (12 + 12 + 4)


def test_without_chunking_no_row_has_a_place(engine: FakeEngine) -> None:
    (row,) = run(engine, ["a b"]).rows
    assert (row.chunk, row.chunk_start, row.chunk_end, row.tokens_in) == (0, None, None, 3)


def test_a_failed_chunk_fails_its_text_alone_in_one_row(engine: FakeEngine) -> None:
    engine.spoiled[CHUNKS[1]] = unit(np.nan)
    outcomes = run(engine, [LONG, "a", LONG], chunked())
    assert [brief(row) for row in outcomes.rows] == [
        ("id-0", 0, None, 26, "not_finite"),
        ("id-1", 0, 2, 2, None),
        ("id-2", 0, None, 26, "not_finite"),
    ]
    begin = LONG.index(CHUNKS[1])
    assert message(outcomes, 0).endswith(f"(chunk 1, characters {begin} to {begin + len(CHUNKS[1])})")
    assert outcomes.vectors[1].tobytes() == engine.vector("a").tobytes()
    assert outcomes.totals().errors == 2


def test_chunks_that_are_equal_are_computed_once(engine: FakeEngine) -> None:
    outcomes = run(engine, ["same " * 33, "same " * 11, LONG, LONG], chunked())
    assert sorted(engine.computed) == sorted([("same " * 11).strip(), "same " * 11, *CHUNKS])
    assert [row.chunk for row in outcomes.rows] == [0, 1, 2, 0, 0, 1, 2, 0, 1, 2]


def test_each_chunk_has_the_prompt(engine: FakeEngine) -> None:
    how = chunked().model_copy(update={"input_type": "query", "instruction": "x"})
    outcomes = run(engine, [" ".join(WORDS[:15])], how)
    # An empty text counts its prompt's last word, which here the text's first one is joined to: 8 words, not 9.
    assert engine.computed == [
        "Instruct: x\nQuery:" + " ".join(WORDS[:8]),
        "Instruct: x\nQuery:" + " ".join(WORDS[8:15]),
    ]
    assert [row.tokens_in for row in outcomes.rows] == [18, 18]


def test_dimensions_are_those_of_every_chunk(engine: FakeEngine) -> None:
    outcomes = run(engine, [LONG], chunked().model_copy(update={"dimensions": 3}))
    assert outcomes.vectors.shape == (3, 3)
    np.testing.assert_allclose(np.linalg.norm(outcomes.vectors, axis=1), 1, atol=1e-6)


# Means


def test_the_mean_is_one_row_weighted_by_tokens_of_text(engine: FakeEngine) -> None:
    outcomes = run(engine, ["a b", LONG, "c"], chunked(output="mean"))
    assert [brief(row) for row in outcomes.rows] == [
        ("id-0", 0, 3, 3, None),
        ("id-1", 0, 28, 26, None),
        ("id-2", 0, 2, 2, None),
    ]
    assert [(row.chunk_start, row.chunk_end) for row in outcomes.rows] == [(0, 3), (0, len(LONG)), (0, 1)]
    assert is_unit_mean(outcomes.vectors[1], [engine.vector(chunk) for chunk in CHUNKS], [11, 11, 3])
    assert outcomes.vectors[0].tobytes() == engine.vector("a b").tobytes()
    assert outcomes.vectors[2].tobytes() == engine.vector("c").tobytes()


def test_the_mean_is_that_of_the_vectors_that_chunks_would_have(engine: FakeEngine) -> None:
    shorter = {"dimensions": 3}
    chunks = run(engine, [LONG], chunked().model_copy(update=shorter))
    (mean,) = run(engine, [LONG], chunked(output="mean").model_copy(update=shorter)).vectors
    assert is_unit_mean(mean, list(chunks.vectors), [11, 11, 3])


@pytest.mark.parametrize("off", [0.0, 1e-9])
def test_chunks_that_cancel_each_other_have_no_mean(engine: FakeEngine, off: float) -> None:
    text = " ".join(WORDS[:22])
    engine.spoiled = {CHUNKS[0]: unit(1, off), CHUNKS[1]: unit(-1)}
    outcomes = run(engine, ["a", text, "b"], chunked(output="mean"))
    assert errors(outcomes) == [None, "not_unit_norm", None]
    assert message(outcomes, 1) == "the mean of its 2 chunks is zero: they cancel each other"
    assert outcomes.rows[1].n_tokens is None
    assert outcomes.vectors[2].tobytes() == engine.vector("b").tobytes()


# Bad texts


def test_bad_texts_keep_their_place_between_chunks(engine: FakeEngine) -> None:
    texts = [None, LONG, "", "\ud800", LONG, "a"]
    outcomes = run(engine, texts, chunked(), rejected={0: ("lone_surrogate", "half of a pair")})
    assert [row.id for row in outcomes.rows] == [f"id-{row}" for row in (0, 1, 1, 1, 2, 3, 4, 4, 4, 5)]
    bad = {row.id: row.error[0] for row in outcomes.rows if row.error}
    assert bad == {"id-0": "lone_surrogate", "id-2": "empty", "id-3": "lone_surrogate"}
    assert outcomes.vectors[9].tobytes() == engine.vector("a").tobytes()


def test_no_text_that_can_be_embedded_is_no_failure(engine: FakeEngine) -> None:
    for output in ("chunks", "mean"):
        assert errors(run(engine, ["", None], chunked(output=output))) == ["empty", "not_a_string"]


def test_a_text_the_tokenizer_fails_at_is_found_when_the_batch_runs_alone(engine: FakeEngine) -> None:
    engine.untokenisable = {"bad"}
    with pytest.raises(EngineFailed):
        run(engine, ["a", "bad", LONG, "bad"], chunked())
    outcomes = run(engine, ["a", "bad", LONG, "bad"], chunked(), alone=True)
    assert [row.error and row.error[0] for row in outcomes.rows] == [
        None,
        "engine_error",
        None,
        None,
        None,
        "engine_error",
    ]
    assert errors(run(engine, ["bad", "bad"], chunked(), alone=True)) == ["engine_error"] * 2
    engine.untokenisable = {"bad", "worse"}
    with pytest.raises(EngineFailed):  # it is the tokenizer, not the texts
        run(engine, ["bad", "worse"], chunked(), alone=True)


def test_a_chunk_the_engine_breaks_at_is_its_texts_error_when_it_runs_alone(engine: FakeEngine) -> None:
    engine.breaking = {CHUNKS[2]}
    outcomes = run(engine, ["a", LONG], chunked(), alone=True)
    assert errors(outcomes) == [None, "engine_error"]
    assert "(chunk 2, " in message(outcomes, 1)


# Tokens in, tokens used


def test_tokens_in_are_those_of_the_whole_text_whatever_becomes_of_it(engine: FakeEngine) -> None:
    cut = PLAIN.model_copy(update={"on_overflow": "truncate"})
    engine.refused["x"] = "no"
    for cache in (None, DictCache()):
        outcomes = run(engine, [LONG, "a b", "x", ""], PLAIN, cache)
        assert [(row.n_tokens, row.tokens_in) for row in outcomes.rows] == [(None, 26), (3, 3), (None, 2), (None, None)]
        outcomes = run(engine, [LONG, "a b"], cut, cache)
        assert [(row.n_tokens, row.tokens_in) for row in outcomes.rows] == [(12, 26), (3, 3)]


def test_a_hit_tells_the_same_tokens_as_a_miss(engine: FakeEngine) -> None:
    cut = PLAIN.model_copy(update={"on_overflow": "truncate"})
    for how in (cut, PLAIN, chunked(), chunked(output="mean"), chunked(overlap=4)):
        cache = DictCache()
        texts = [LONG, "a b"]
        miss, hit = run(engine, texts, how, cache), run(engine, texts, how, cache)
        assert [row.cached for row in hit.rows] == [row.error is None for row in hit.rows]
        assert [brief(row) for row in hit.rows] == [brief(row) for row in miss.rows]
        assert [(row.chunk_start, row.chunk_end) for row in hit.rows] == [
            (row.chunk_start, row.chunk_end) for row in miss.rows
        ]
        assert hit.vectors.tobytes() == miss.vectors.tobytes()


# The cache


def test_chunks_and_whole_texts_share_the_cache(engine: FakeEngine) -> None:
    cache = DictCache()
    run(engine, [*CHUNKS], PLAIN, cache)
    outcomes = run(engine, [LONG], chunked(), cache)
    assert all(row.cached for row in outcomes.rows)
    assert outcomes.totals().cached == 1
    outcomes = run(engine, [LONG + " more"], chunked(), cache)
    assert [row.cached for row in outcomes.rows] == [True, True, False]
    assert outcomes.totals().cached == 0, "it needed the engine"


def test_a_whole_text_in_the_cache_is_no_answer_for_smaller_chunks(engine: FakeEngine) -> None:
    cache = DictCache()
    run(engine, [CHUNKS[0]], PLAIN, cache)
    assert [row.chunk for row in run(engine, [CHUNKS[0]], chunked(max_tokens=10), cache).rows] == [0, 1]


def test_a_truncated_vector_in_the_cache_is_no_chunk(engine: FakeEngine) -> None:
    cache = DictCache()
    run(engine, [LONG], PLAIN.model_copy(update={"on_overflow": "truncate"}), cache)
    assert not any(row.cached for row in run(engine, [LONG], chunked(), cache).rows)


@pytest.mark.parametrize(("use", "reads", "writes"), [("on", 1, 1), ("off", 0, 0), ("read", 1, 0), ("write", 0, 1)])
def test_a_task_says_what_the_cache_is_for(engine: FakeEngine, use: CacheUse, reads: int, writes: int) -> None:
    cache = DictCache()
    run(engine, ["kept"], PLAIN, cache)
    gets = cache.gets
    how = PLAIN.model_copy(update={"cache": use})
    outcomes = run(engine, ["kept", "new"], how, cache)
    assert cache.gets - gets == reads
    assert len(cache.kept) == 1 + writes
    assert [row.cached for row in outcomes.rows] == [bool(reads), False]
    assert outcomes.vectors.tobytes() == run(FakeEngine(), ["kept", "new"]).vectors.tobytes()


# Settings


def test_what_only_the_tokenizer_can_tell_is_refused_by_name(engine: FakeEngine) -> None:
    with pytest.raises(SettingsError, match=r"chunking.max_tokens=13: the limit of a model here is 12"):
        run(engine, ["a"], chunked(max_tokens=13))
    with pytest.raises(SettingsError, match=r"chunking.overlap=5: .* Take 4 or less"):
        run(engine, ["a"], chunked(max_tokens=10, overlap=5))
    long = {"input_type": "query", "instruction": "word " * 3}
    with pytest.raises(SettingsError, match=r"chunking.max_tokens=12: 6 of them are the prompt .* Take 14 or more"):
        run(engine, ["a"], chunked().model_copy(update=long))


@pytest.mark.parametrize("policy", ["error", "truncate"])
def test_an_instruction_that_leaves_no_room_is_refused_by_name(engine: FakeEngine, policy: str) -> None:
    """Truncated, all texts would have the same vector: that of the instruction."""

    def query(words: int) -> Outcomes:
        instruction = {"on_overflow": policy, "input_type": "query", "instruction": "word " * words}
        return run(engine, ["a", "b"], PLAIN.model_copy(update=instruction))

    assert errors(query(8)) == [None, None]
    with pytest.raises(
        SettingsError, match=r"instruction: with the prompt .* it has 12 tokens, and the limit .* is 12"
    ):
        query(9)


# Deadlines


def test_many_chunks_go_to_the_engine_in_portions_that_each_have_the_time_of_a_batch(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_PORTION_TOKENS", 24)
    outcomes = run(engine, [LONG, " ".join(f"other{n}" for n in range(24))], chunked())
    assert [len(call) for call in engine.asked] == [2, 3, 1]
    assert errors(outcomes) == [None] * 6
    assert longest_s(600) > pipeline._PORTIONS * 600, "a message that is held for longer means that its task hangs"


def test_only_what_is_shared_out_has_more_time_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_PORTION_TOKENS", 1)
    clock = itertools.count(0.0, 40.0)
    monkeypatch.setattr(pipeline, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    tokens = [Tokens("a", [1], 1)] * 8

    def ends(*, share: bool) -> list[float]:
        return [end for _, end in pipeline._portions(tokens, 0.0, 60.0, share=share)]

    assert ends(share=True) == [60, 60, 100, 140, 180, 220, 260, 300]
    assert ends(share=False) == [60] * 8
    assert max(end for _, end in pipeline._portions(tokens * 5, 0.0, 10.0, share=True)) == pipeline._PORTIONS * 10


def test_what_was_computed_before_the_deadline_is_kept(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_PORTION_TOKENS", 12)
    cache = DictCache()
    engine.slow = {CHUNKS[1]}
    with pytest.raises(DeadlineExceeded, match=r"longer than 0.1 s"):
        run(engine, [LONG], chunked(), cache, deadline_s=0.1)
    assert [entry.vector.tobytes() for entry in cache.kept.values()] == [engine.vector(CHUNKS[0]).tobytes()]


def test_a_batch_that_fits_goes_to_the_engine_at_once(engine: FakeEngine) -> None:
    tokens = [Tokens("a", [1], 1)] * 1000
    assert [len(portion) for portion, _ in pipeline._portions(tokens, 0.0, 1.0, share=True)] == [1000]
    assert list(pipeline._portions([], 0.0, 1.0, share=True)) == []
    assert run(engine, ["a"], chunked()).provenance["chunking"] == {
        "max_tokens": None,
        "overlap": 0,
        "output": "chunks",
    }
