"""Texts to outcomes: prompts → cache → tokens → engine → checks → dimensions. Imports no driver and no store."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np

from embedfleet.contract import EmbedSettings, ErrorCode
from embedfleet.models import ModelProfile
from embedfleet.records import check_text
from embedfleet.tables import Outcome, Outcomes
from embedfleet_worker.cache import Entry, KeyMaker
from embedfleet_worker.engine.base import Engine, Priority, Tokens
from embedfleet_worker.prompts import render

_NORM_TOLERANCE = 1e-3  # float32 sums of bfloat16 products stay within 1e-6; what is off by more was not normalised

Problem = tuple[ErrorCode, str]


class Cache(Protocol):
    """Where vectors may be found and kept."""

    def get(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """One entry a key, None where there is none."""

    def set(self, entries: Sequence[tuple[bytes, Entry]]) -> None:
        """Keep the entries."""


class NoCache:
    """For a fleet without one."""

    def get(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """Nothing."""
        return [None] * len(keys)

    def set(self, entries: Sequence[tuple[bytes, Entry]]) -> None:
        """Forgotten."""


class Pipeline:
    """One engine's way from texts to outcomes. Thread-safe: what belongs to a batch is local to its call."""

    def __init__(self, engine: Engine, profile: ModelProfile, cache: Cache, salt: str = "") -> None:
        self.engine = engine
        self.identity = engine.identity
        self._profile = profile
        self._cache = cache
        self._salt = salt

    def run(
        self,
        ids: Sequence[str],
        texts: Sequence[str | None],
        settings: EmbedSettings,
        *,
        priority: Priority,
        rejected: dict[int, Problem] | None = None,
    ) -> Outcomes:
        """One outcome a text, in order. ``settings`` are resolved ones. Raises EngineUnavailable.

        ``rejected``: texts that the producer could not store, by row, with the reason.
        """
        work = _Work(ids, texts, rejected or {})
        with work.timed("prepare"):
            prompts = self._prompts(work, settings)
        keys = KeyMaker(self.engine.identity, self.engine.max_tokens, settings.on_overflow, self._salt)
        with work.timed("cache"):
            found = dict(zip(prompts, self._cache.get([keys.key(prompt) for prompt in prompts]), strict=True))
        missing = [prompt for prompt in prompts if found[prompt] is None]
        computed, problems = self._compute(work, missing, settings, priority)
        with work.timed("cache"):
            self._cache.set([(keys.key(prompt), entry) for prompt, entry in computed.items()])
        with work.timed("check"):
            entries = {**{p: e for p, e in found.items() if e is not None}, **computed}
            work.settle(prompts, entries, problems, computed.keys())
            vectors = work.vectors(entries, prompts, settings.dimensions or self.engine.dimensions)
        return Outcomes(work.rows, vectors, work.stages_s, self._provenance(settings))

    def _prompts(self, work: "_Work", settings: EmbedSettings) -> dict[str, list[int]]:
        """Each distinct prompt with the rows that have it: duplicates in a batch are computed once."""
        prompts: dict[str, list[int]] = {}
        for row, text in enumerate(work.texts):
            problem = work.rejected.get(row) or check_text(text)
            if problem is None:
                prompts.setdefault(render(text or "", settings, self._profile), []).append(row)
            work.rows[row].error = problem
        return prompts

    def _compute(
        self, work: "_Work", prompts: list[str], settings: EmbedSettings, priority: Priority
    ) -> tuple[dict[str, Entry], dict[str, Problem]]:
        """Vectors, or what is wrong, of the prompts that the cache does not have."""
        with work.timed("tokenise"):
            tokens = self.engine.tokenise(prompts, truncate=settings.on_overflow == "truncate")
            problems: dict[str, Problem] = {
                item.prompt: _too_long(item.too_long, self.engine.max_tokens)
                for item in tokens
                if item.too_long is not None
            }
            fit = [item for item in tokens if item.too_long is None]
        with work.timed("engine"):
            embedded = self.engine.embed(fit, priority).result() if fit else None
        if embedded is None:
            return {}, problems
        entries = {}
        for row, item in enumerate(fit):
            problem = _refused(embedded.errors.get(row)) or _wrong(embedded.vectors, row, self.engine.dimensions)
            if problem is not None:
                problems[item.prompt] = problem
            else:
                entries[item.prompt] = _entry(item, embedded.vectors[row])
        return entries, problems

    def _provenance(self, settings: EmbedSettings) -> dict[str, Any]:
        return {
            **asdict(self.engine.identity),
            "template": self._profile.template(settings.input_type),
            "input_type": settings.input_type,
            "instruction": settings.instruction,
            "dimensions": settings.dimensions,
            "encoding": settings.encoding,
            "max_tokens": self.engine.max_tokens,
            "on_overflow": settings.on_overflow,
        }


class _Work:
    """The rows of one batch while they go through."""

    def __init__(self, ids: Sequence[str], texts: Sequence[str | None], rejected: dict[int, Problem]) -> None:
        self.texts = texts
        self.rejected = rejected
        self.rows = [Outcome(record_id) for record_id in ids]
        self.stages_s: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of the block to a stage."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.stages_s[stage] = self.stages_s.get(stage, 0.0) + time.perf_counter() - begun

    def settle(
        self,
        prompts: dict[str, list[int]],
        entries: dict[str, Entry],
        problems: dict[str, Problem],
        computed: Any,
    ) -> None:
        """Give each row its tokens or its error."""
        for prompt, rows in prompts.items():
            for row in rows:
                outcome = self.rows[row]
                if prompt in problems:
                    outcome.error = problems[prompt]
                else:
                    outcome.n_tokens = entries[prompt].n_tokens
                    outcome.truncated = entries[prompt].truncated
                    outcome.cached = prompt not in computed

    def vectors(
        self, entries: dict[str, Entry], prompts: dict[str, list[int]], dimensions: int
    ) -> np.ndarray[Any, Any]:
        """(texts, dimensions) float32: the first components, renormalised where any were dropped (Matryoshka)."""
        result = np.zeros((len(self.rows), dimensions), np.float32)
        for prompt, entry in entries.items():
            result[prompts[prompt]] = entry.vector[:dimensions]
        if entries and dimensions < next(iter(entries.values())).vector.shape[0]:
            norms = np.linalg.norm(result.astype(np.float64), axis=1, keepdims=True)  # float32 squares underflow
            for row in np.flatnonzero(norms[:, 0] == 0):
                self._fail_cut(int(row), dimensions)
            result = (result / np.where(norms == 0, 1, norms)).astype(np.float32)
        return result

    def _fail_cut(self, row: int, dimensions: int) -> None:
        if self.rows[row].error is None:
            self.rows[row].n_tokens = None
            self.rows[row].error = "not_unit_norm", f"the first {dimensions} components of its vector are all zero"


def _too_long(tokens: int, limit: int) -> Problem:
    return "too_long", f"{tokens} tokens and the limit is {limit}; on_overflow=truncate would cut it"


def _refused(reason: str | None) -> Problem | None:
    return None if reason is None else ("engine_error", reason)


def _wrong(vectors: np.ndarray[Any, Any], row: int, dimensions: int) -> Problem | None:
    """What is wrong with a vector: its length, a component, its norm."""
    vector = vectors[row]
    if vector.shape != (dimensions,):
        return "wrong_length", f"the engine gave {vector.shape[0]} components and {dimensions} were expected"
    if not np.isfinite(vector).all():
        return "not_finite", "the engine gave NaN or infinity"
    norm = float(np.linalg.norm(vector))
    if abs(norm - 1) > _NORM_TOLERANCE:
        return "not_unit_norm", f"the engine gave a vector of norm {norm:.4g}"
    return None


def _entry(tokens: Tokens, vector: np.ndarray[Any, Any]) -> Entry:
    return Entry(tokens.count, tokens.truncated, vector.astype("<f4"))
