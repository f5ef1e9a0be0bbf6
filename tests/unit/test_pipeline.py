"""The pipeline with a fake engine: one outcome a text, neighbours unharmed, a hit bit for bit a miss."""

import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedfleet.contract import EmbedSettings, Encoding
from embedfleet.errors import DeadlineExceeded, EngineFailed, EngineUnavailable
from embedfleet.models import ModelProfile
from embedfleet.tables import Outcomes, read_part, write_part
from embedfleet_worker.cache import Entry, VectorCache
from embedfleet_worker.engine.base import Embedded, Priority, Tokens
from embedfleet_worker.pipeline import Cache, NoCache, Pipeline, Problem
from tests.unit.fake_engine import FakeEngine
from tests.unit.redis_server import RedisServer, running_redis

PROFILE = ModelProfile(
    name="a model",
    dimensions=8,
    max_tokens=12,
    pooling="mean",
    parameters=1,
    query_template="Instruct: {instruction}\nQuery:{text}",
    min_dimensions=2,
)
PLAIN = EmbedSettings(model="a model", dimensions=8)
LONG = "word " * 20


class DictCache:
    """A cache in memory that remembers what it was given."""

    def __init__(self) -> None:
        self.kept: dict[bytes, Entry] = {}
        self.gets = 0

    def get(self, keys: Sequence[bytes]) -> list[Entry | None]:
        self.gets += 1
        return [self.kept.get(key) for key in keys]

    def set(self, entries: Sequence[tuple[bytes, Entry]]) -> None:
        self.kept.update(entries)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


def run(
    engine: FakeEngine,
    texts: Sequence[str | None],
    how: EmbedSettings = PLAIN,
    cache: Cache | None = None,
    rejected: dict[int, Problem] | None = None,
    salt: str = "",
    deadline_s: float = 60,
    *,
    alone: bool = False,
) -> Outcomes:
    ids = [f"id-{row}" for row in range(len(texts))]
    pipeline = Pipeline(engine, PROFILE, cache or NoCache(), salt)
    return pipeline.run(ids, texts, how, priority=Priority.BULK, deadline_s=deadline_s, rejected=rejected, alone=alone)


def errors(outcomes: Outcomes) -> list[str | None]:
    return [row.error and row.error[0] for row in outcomes.rows]


def message(outcomes: Outcomes, row: int) -> str:
    error = outcomes.rows[row].error
    assert error is not None
    return error[1]


# Order, duplicates, bad texts


def test_each_text_gets_its_own_vector_in_order(engine: FakeEngine) -> None:
    outcomes = run(engine, ["a", "b c", "d"])
    assert [row.id for row in outcomes.rows] == ["id-0", "id-1", "id-2"]
    assert [row.n_tokens for row in outcomes.rows] == [2, 3, 2]
    assert errors(outcomes) == [None] * 3
    assert outcomes.vectors.dtype == np.float32
    for vector, text in zip(outcomes.vectors, ["a", "b c", "d"], strict=True):
        assert vector.tobytes() == engine.vector(text).tobytes()


def test_duplicates_are_computed_once(engine: FakeEngine) -> None:
    outcomes = run(engine, ["a", "b", "a", "a"])
    assert engine.asked == [["a", "b"]]
    assert outcomes.vectors[0].tobytes() == outcomes.vectors[2].tobytes() == outcomes.vectors[3].tobytes()
    assert outcomes.totals().tokens == 8, "each text counts its tokens"


@pytest.mark.parametrize(
    ("text", "code"),
    [("", "empty"), (" \n\t\u2003", "empty"), (None, "not_a_string"), ("\ud800", "lone_surrogate"), (LONG, "too_long")],
)
def test_a_bad_text_is_its_own_error_and_its_neighbours_keep_their_vectors(
    engine: FakeEngine, text: str | None, code: str
) -> None:
    outcomes = run(engine, ["a", text, "b"])
    assert errors(outcomes) == [None, code, None]
    assert engine.asked == [["a", "b"]]
    assert outcomes.vectors[0].tobytes() == engine.vector("a").tobytes()
    assert outcomes.vectors[2].tobytes() == engine.vector("b").tobytes()
    assert outcomes.rows[1].n_tokens is None


def test_what_the_producer_rejected_keeps_its_reason(engine: FakeEngine) -> None:
    outcomes = run(engine, [None, "a"], rejected={0: ("lone_surrogate", "half of a pair")})
    assert outcomes.rows[0].error == ("lone_surrogate", "half of a pair")
    assert errors(outcomes) == ["lone_surrogate", None]


def test_nothing_to_compute_asks_nothing_of_the_engine(engine: FakeEngine) -> None:
    assert errors(run(engine, ["", None])) == ["empty", "not_a_string"]
    assert run(engine, []).rows == []
    assert engine.asked == []


def test_the_priority_reaches_the_engine(engine: FakeEngine) -> None:
    pipeline = Pipeline(engine, PROFILE, NoCache())
    pipeline.run(["1"], ["a"], PLAIN, priority=Priority.INTERACTIVE, deadline_s=60)
    assert engine.priorities == [Priority.INTERACTIVE]


# Wrong vectors


def unit(*components: float) -> NDArray[np.float32]:
    vector = np.zeros(8, np.float32)
    vector[: len(components)] = components
    return vector


WRONG = {
    "NaN": (unit(1, np.nan), "not_finite"),
    "infinity": (unit(np.inf), "not_finite"),
    "minus infinity": (unit(-np.inf, 1), "not_finite"),
    "all NaN": (np.full(8, np.nan, np.float32), "not_finite"),
    "too long": (unit(1.01), "not_unit_norm"),
    "too short": (unit(0.99), "not_unit_norm"),
    "not normalised": (np.full(8, 3.0, np.float32), "not_unit_norm"),
    "all zero": (unit(), "not_unit_norm"),
    "one component more": (np.eye(1, 9, dtype=np.float32)[0], "wrong_length"),
    "one component less": (np.eye(1, 7, dtype=np.float32)[0], "wrong_length"),
    "no components": (np.zeros(0, np.float32), "wrong_length"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_vector_is_that_texts_error_and_is_never_cached(engine: FakeEngine, kind: str) -> None:
    vector, code = WRONG[kind]
    cache = DictCache()
    engine.spoiled["bad"] = vector
    outcomes = run(engine, ["a", "bad", "b", "bad"], cache=cache)
    assert errors(outcomes) == [None, code, None, code]
    assert outcomes.vectors[0].tobytes() == engine.vector("a").tobytes()
    assert outcomes.vectors[2].tobytes() == engine.vector("b").tobytes()
    assert sorted(entry.vector.tobytes() for entry in cache.kept.values()) == sorted(
        engine.vector(text).tobytes() for text in ("a", "b")
    )


def test_an_engine_whose_vectors_all_have_another_length_fails_every_text(engine: FakeEngine) -> None:
    engine.spoiled = {text: np.eye(1, 4, dtype=np.float32)[0] for text in ("a", "b")}
    outcomes = run(engine, ["a", "b"])
    assert errors(outcomes) == ["wrong_length"] * 2
    assert message(outcomes, 0) == "the engine gave 4 components and 8 were expected"


def test_rounding_is_no_error(engine: FakeEngine) -> None:
    engine.spoiled["a"] = unit(1 + 5e-4)
    assert errors(run(engine, ["a"])) == [None]


def test_what_the_engine_refuses_is_that_texts_error(engine: FakeEngine) -> None:
    cache = DictCache()
    engine.refused["bad"] = "it did not like it"
    outcomes = run(engine, ["a", "bad"], cache=cache)
    assert outcomes.rows[1].error == ("engine_error", "it did not like it")
    assert errors(outcomes) == [None, "engine_error"]
    assert len(cache.kept) == 1


# Overflow


def test_too_long_says_how_long_and_what_would_help(engine: FakeEngine) -> None:
    outcomes = run(engine, [LONG])
    assert message(outcomes, 0) == "21 tokens and the limit is 12; on_overflow=truncate would cut it, chunk split it"


def test_truncate_cuts_and_says_so(engine: FakeEngine) -> None:
    outcomes = run(engine, [LONG, "a"], PLAIN.model_copy(update={"on_overflow": "truncate"}))
    assert [(row.truncated, row.n_tokens) for row in outcomes.rows] == [(True, 12), (False, 2)]
    assert outcomes.totals().truncated == 1


def test_a_truncated_text_stays_truncated_when_it_comes_from_the_cache(engine: FakeEngine) -> None:
    cache, how = DictCache(), PLAIN.model_copy(update={"on_overflow": "truncate"})
    run(engine, [LONG], how, cache)
    again = run(engine, [LONG], how, cache)
    assert (again.rows[0].truncated, again.rows[0].cached, again.rows[0].n_tokens) == (True, True, 12)


def test_a_vector_cached_with_truncation_does_not_answer_without(engine: FakeEngine) -> None:
    cache = DictCache()
    run(engine, [LONG], PLAIN.model_copy(update={"on_overflow": "truncate"}), cache)
    assert errors(run(engine, [LONG], PLAIN, cache)) == ["too_long"]


# Dimensions


def cut(dimensions: int) -> EmbedSettings:
    return PLAIN.model_copy(update={"dimensions": dimensions})


@pytest.mark.parametrize("dimensions", [2, 3, 7])
def test_fewer_dimensions_are_the_first_ones_renormalised(engine: FakeEngine, dimensions: int) -> None:
    outcomes = run(engine, ["a", "b"], cut(dimensions))
    assert outcomes.vectors.shape == (2, dimensions)
    for vector, text in zip(outcomes.vectors, ["a", "b"], strict=True):
        first = engine.vector(text).astype(np.float64)[:dimensions]
        np.testing.assert_allclose(vector, first / np.linalg.norm(first), rtol=1e-6)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_all_dimensions_are_the_engines_bits(engine: FakeEngine) -> None:
    engine.spoiled["a"] = unit(1 + 5e-4)
    assert run(engine, ["a"]).vectors[0].tobytes() == engine.spoiled["a"].tobytes()


def test_a_vector_whose_kept_part_is_zero_is_that_texts_error(engine: FakeEngine) -> None:
    engine.spoiled["bad"] = unit(0, 0, 0, 1)
    outcomes = run(engine, ["bad", "a"], cut(2))
    assert errors(outcomes) == ["not_unit_norm", None]
    assert message(outcomes, 0) == "the first 2 components of its vector are all zero"
    assert errors(run(engine, ["bad"], cut(4))) == [None]


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1, width=32), min_size=8, max_size=8).filter(lambda found: any(found)), st.integers(1, 8))
def test_whatever_the_vector_what_is_kept_has_unit_norm_or_is_an_error(numbers: list[float], dimensions: int) -> None:
    vector = np.array(numbers, np.float64)
    engine = FakeEngine()
    engine.spoiled["a"] = (vector / np.linalg.norm(vector)).astype(np.float32)
    outcomes = run(engine, ["a"], cut(dimensions))
    if outcomes.rows[0].error is None:
        assert np.linalg.norm(outcomes.vectors[0].astype(np.float64)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("small", [1e-3, 1e-10, 1e-20, 1e-22, 1e-30])
def test_however_small_the_kept_part_is_it_has_unit_norm(engine: FakeEngine, small: float) -> None:
    engine.spoiled["a"] = unit(small, -small, small, 1)
    outcomes = run(engine, ["a"], cut(3))
    assert errors(outcomes) == [None]
    np.testing.assert_allclose(outcomes.vectors[0], np.array([1, -1, 1]) / np.sqrt(3), rtol=1e-6)


# Prompts and provenance


def test_a_query_is_embedded_as_its_prompt_and_documents_as_they_are(engine: FakeEngine) -> None:
    query = PLAIN.model_copy(update={"input_type": "query", "instruction": "Find it"})
    run(engine, ["a"], query)
    run(engine, ["a"], PLAIN)
    assert engine.computed == ["Instruct: Find it\nQuery:a", "a"]


def test_the_outcomes_say_what_made_them(engine: FakeEngine) -> None:
    query = EmbedSettings(
        model="a model",
        dimensions=4,
        input_type="query",
        instruction="Find it",
        encoding="float16",
        on_overflow="truncate",
    )
    assert run(engine, ["a"], query).provenance == {
        "engine": "fake",
        "engine_version": "1",
        "model": "a model",
        "revision": None,
        "weights": "0" * 64,
        "dtype": "float32",
        "quantization": None,
        "pooling": "mean",
        "template": "Instruct: {instruction}\nQuery:{text}",
        "input_type": "query",
        "instruction": "Find it",
        "dimensions": 4,
        "encoding": "float16",
        "max_tokens": 12,
        "on_overflow": "truncate",
    }
    assert run(engine, ["a"]).provenance["template"] == "{text}"


def test_what_was_cached_says_the_same_of_what_made_it(engine: FakeEngine) -> None:
    cache = DictCache()
    first, second = (run(engine, ["a"], cache=cache) for _ in range(2))
    assert [outcomes.rows[0].cached for outcomes in (first, second)] == [False, True]
    assert second.provenance == first.provenance


def test_the_time_of_every_stage_is_kept(engine: FakeEngine) -> None:
    stages = run(engine, ["a"]).stages_s
    assert set(stages) == {"prepare", "cache", "tokenise", "engine", "check"}
    assert all(seconds >= 0 for seconds in stages.values())


# The cache


def part_rows(outcomes: Outcomes, encoding: Encoding) -> list[dict[str, object]]:
    table, _ = read_part(write_part(outcomes, encoding, "j-1", 0), "part")
    return table.drop_columns(["cached"]).to_pylist()


@pytest.mark.parametrize("encoding", ["float32", "float16"])
@pytest.mark.parametrize("dimensions", [8, 3])
def test_a_hit_is_bit_for_bit_a_miss(redis_server: RedisServer, encoding: Encoding, dimensions: int) -> None:
    texts = [f"text {n}" for n in range(20)] + ["", LONG]
    how = cut(dimensions).model_copy(update={"encoding": encoding, "on_overflow": "truncate"})
    engine = FakeEngine()
    miss = run(engine, texts, how, VectorCache(redis_server.url, 8))
    hit = run(engine, texts, how, VectorCache(redis_server.url, 8))
    assert len(engine.asked) == 1
    assert [row.cached for row in miss.rows] == [False] * 22
    assert [row.cached for row in hit.rows] == [True] * 20 + [False, True]
    assert hit.vectors.tobytes() == miss.vectors.tobytes()
    assert part_rows(hit, encoding) == part_rows(miss, encoding)
    assert run(engine, texts, how).vectors.tobytes() == miss.vectors.tobytes(), "with the cache off too"


def test_one_entry_answers_every_number_of_dimensions(redis_server: RedisServer) -> None:
    engine, cache = FakeEngine(), VectorCache(redis_server.url, 8)
    for dimensions in (3, 8, 2):
        cached = run(engine, ["a"], cut(dimensions), cache)
        assert cached.vectors.tobytes() == run(FakeEngine(), ["a"], cut(dimensions)).vectors.tobytes()
    assert engine.computed == ["a"]


def test_only_what_is_missing_is_computed(engine: FakeEngine) -> None:
    cache = DictCache()
    run(engine, ["a", "b"], cache=cache)
    outcomes = run(engine, ["c", "b", "a", "c"], cache=cache)
    assert engine.asked == [["a", "b"], ["c"]]
    assert [row.cached for row in outcomes.rows] == [False, True, True, False]
    assert cache.gets == 2, "one look a batch"


@pytest.mark.parametrize(
    ("other", "salt"),
    [(FakeEngine(weights="1" * 64), ""), (FakeEngine(max_tokens=11), ""), (FakeEngine(), "tenant b")],
    ids=["weights", "token limit", "salt"],
)
def test_another_model_limit_or_tenant_finds_nothing(engine: FakeEngine, other: FakeEngine, salt: str) -> None:
    cache = DictCache()
    run(engine, ["a"], cache=cache)
    run(other, ["a"], cache=cache, salt=salt)
    assert other.computed == ["a"]
    assert len(cache.kept) == 2


def test_a_cache_that_dies_between_two_batches_costs_nothing(tmp_path: Path, engine: FakeEngine) -> None:
    with running_redis(tmp_path) as server:
        cache = VectorCache(server.url, 8)
        run(engine, ["a"], cache=cache)
        server.kill()
        outcomes = run(engine, ["a"], cache=cache)
    assert errors(outcomes) == [None]
    assert engine.computed == ["a", "a"]


# Engines that fail


def test_an_engine_that_is_gone_is_for_the_caller_to_handle(engine: FakeEngine) -> None:
    engine.failure = EngineUnavailable("it broke")
    cache = DictCache()
    with pytest.raises(EngineUnavailable, match="it broke"):
        run(engine, ["a"], cache=cache)
    assert cache.kept == {}


FAILURES: dict[str, tuple[str, type[Exception], str]] = {
    "a step that fails": ("breaking", EngineFailed, "a step of the engine failed (RuntimeError)"),
    "a step that never ends": ("slow", DeadlineExceeded, "the engine took longer than 0.02 s"),
    "a tokenizer that fails": ("untokenisable", EngineFailed, "the tokenizer failed: ValueError"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_what_fails_among_others_goes_up(engine: FakeEngine, kind: str) -> None:
    among, raised, said = FAILURES[kind]
    getattr(engine, among).add("bad")
    with pytest.raises(raised, match=re.escape(said)):
        run(engine, ["a", "bad", "b"], deadline_s=0.02)


@pytest.mark.parametrize("kind", FAILURES)
def test_alone_it_is_found_and_costs_no_other_text_its_vector(
    engine: FakeEngine, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    among, _, said = FAILURES[kind]
    getattr(engine, among).add("bad")
    cache = DictCache()
    outcomes = run(engine, ["a", "bad", "b", "c", "", "bad"], cache=cache, deadline_s=0.02, alone=True)
    assert errors(outcomes) == [None, "engine_error", None, None, "empty", "engine_error"]
    assert message(outcomes, 1) == f"the engine fails at this text ({said})"
    for row, text in ((0, "a"), (2, "b"), (3, "c")):
        assert outcomes.vectors[row].tobytes() == engine.vector(text).tobytes()
    assert len(cache.kept) == 3
    assert "a text" not in caplog.text


def test_alone_and_nothing_wrong_is_one_request(engine: FakeEngine) -> None:
    assert errors(run(engine, ["a", "b", LONG], alone=True)) == [None, None, "too_long"]
    assert engine.asked == [["a", "b"]]


@pytest.mark.parametrize("alone", [True, False])
def test_an_engine_that_hangs_goes_up_from_wherever_it_does(engine: FakeEngine, *, alone: bool) -> None:
    engine.slow, engine.hangs = {"bad"}, True
    cache = DictCache()
    with pytest.raises(EngineUnavailable, match="hung"):
        run(engine, ["a", "bad"], cache=cache, deadline_s=0.02, alone=alone)
    assert engine.dead.is_set()


def test_what_was_computed_before_the_engine_died_is_cached(engine: FakeEngine) -> None:
    engine.breaking, engine.slow, engine.hangs = {"bad"}, {"worse"}, True
    cache = DictCache()
    with pytest.raises(EngineUnavailable):
        run(engine, ["a", "b", "bad", "worse"], cache=cache, deadline_s=0.02, alone=True)
    assert {entry.vector.tobytes() for entry in cache.kept.values()} == {engine.vector(t).tobytes() for t in "ab"}


def test_waiting_behind_other_batches_is_nobodys_fault(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time counts from when the engine begins with a batch."""
    embed = engine.embed

    def later(prompts: Sequence[Tokens], priority: Priority) -> "Future[Embedded]":
        future: Future[Embedded] = Future()

        def do() -> None:
            future.set_running_or_notify_cancel()
            future.set_result(embed(prompts, priority).result())

        threading.Timer(1, do).start()
        return future

    monkeypatch.setattr(engine, "embed", later)
    assert errors(run(engine, ["a"], deadline_s=0.3)) == [None]


def test_the_tokenizers_time_is_part_of_the_deadline(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.slow = {"a"}
    tokenise = engine.tokenise

    def slowly(prompts: Sequence[str], *, truncate: bool) -> list[Tokens]:
        time.sleep(0.5)
        return tokenise(prompts, truncate=truncate)

    monkeypatch.setattr(engine, "tokenise", slowly)
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        run(engine, ["a"], deadline_s=0.5)
    assert time.monotonic() - begun < 0.9


def test_an_error_of_its_own_in_the_engines_answer_is_no_deadline(engine: FakeEngine) -> None:
    engine.failure = TimeoutError()
    with pytest.raises(TimeoutError):
        run(engine, ["a"])


# Any batch at all

some_texts = st.lists(
    st.sampled_from(["a", "b", "c d", "", " ", None, "\ud800", LONG, "NaN", "zero", "long", "refused"]), max_size=14
)


@settings(deadline=None)
@given(some_texts, st.booleans(), st.integers(2, 8))
def test_every_text_ends_as_its_vector_or_an_error(texts: list[str | None], truncate: bool, dimensions: int) -> None:
    engine = FakeEngine()
    engine.spoiled = {"NaN": unit(np.nan), "zero": unit(), "long": np.eye(1, 9, dtype=np.float32)[0]}
    engine.refused = {"refused": "no"}
    how = cut(dimensions).model_copy(update={"on_overflow": "truncate" if truncate else "error"})
    cache = DictCache()
    for _ in range(2):
        outcomes = run(engine, texts, how, cache)
        assert len(outcomes.rows) == len(texts) == len(outcomes.vectors)
        for row, text in enumerate(texts):
            good = text in ("a", "b", "c d") or (text == LONG and truncate)
            assert (outcomes.rows[row].error is None) == good
            if good:
                alone = run(FakeEngine(), [text], how)
                assert outcomes.vectors[row].tobytes() == alone.vectors[0].tobytes()
