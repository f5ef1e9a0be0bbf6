"""Texts to outcomes: prompts → cache → tokens → engine → checks → dimensions. Imports no driver and no store."""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np

from embedfleet.contract import EmbedSettings, ErrorCode
from embedfleet.errors import DeadlineExceeded, EmbedfleetError, EngineFailed
from embedfleet.models import ModelProfile
from embedfleet.records import check_text
from embedfleet.tables import Outcome, Outcomes
from embedfleet_worker.bisection import bisect
from embedfleet_worker.cache import Entry, KeyMaker
from embedfleet_worker.checks import wrong
from embedfleet_worker.engine.base import Embedded, Engine, Priority, Tokens
from embedfleet_worker.logs import frames
from embedfleet_worker.prompts import render

log = logging.getLogger(__name__)

_LOOK_S = 0.2  # between two looks at whether the engine has begun with a batch

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
        deadline_s: float,
        alone: bool = False,
        rejected: dict[int, Problem] | None = None,
    ) -> Outcomes:
        """One outcome a text, in order. ``settings`` are resolved ones.

        ``alone``: nothing else is in the engine. Then a failure that the process survives is traced to the texts that
        cause it, and is theirs; else it goes up: EngineFailed, or DeadlineExceeded after ``deadline_s`` in tokenizer
        and engine. Raises EngineUnavailable too. ``rejected``: texts that the producer could not store, by row, with
        the reason.
        """
        work = _Work(ids, texts, rejected or {})
        with work.timed("prepare"):
            prompts = self._prompts(work, settings)
        keys = KeyMaker(self.engine.identity, self.engine.max_tokens, settings.on_overflow, self._salt)
        with work.timed("cache"):
            found = dict(zip(prompts, self._cache.get([keys.key(prompt) for prompt in prompts]), strict=True))
        missing = [prompt for prompt in prompts if found[prompt] is None]
        try:
            if missing:
                self._compute(work, missing, settings, priority, deadline_s, alone=alone)
        finally:  # what was computed before the engine died need not be computed again
            with work.timed("cache"):
                self._cache.set([(keys.key(prompt), entry) for prompt, entry in work.computed.items()])
        with work.timed("check"):
            entries = {**{p: e for p, e in found.items() if e is not None}, **work.computed}
            work.settle(prompts, entries)
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
        self,
        work: "_Work",
        prompts: list[str],
        settings: EmbedSettings,
        priority: Priority,
        deadline_s: float,
        *,
        alone: bool,
    ) -> None:
        """Vectors, or what is wrong, of the prompts that the cache does not have."""

        def attempt(piece: Sequence[str], seconds: float) -> None:
            begun = time.monotonic()
            tokens = self._tokens(work, piece, truncate=settings.on_overflow == "truncate")
            if tokens:
                left_s = seconds - (time.monotonic() - begun)
                embedded = self._embedded(work, tokens, priority, left_s, seconds)
                work.receive(tokens, embedded, self.engine.dimensions)

        if not alone:
            attempt(prompts, deadline_s)
            return
        failures = bisect(prompts, attempt, deadline_s)
        if len(failures) == len(prompts) > 1 and not work.computed:
            raise next(iter(failures.values()))  # it is the engine: it does none of them
        for prompt, failure in failures.items():
            work.problems[prompt] = "engine_error", f"the engine fails at this text ({failure})"

    def _tokens(self, work: "_Work", prompts: Sequence[str], *, truncate: bool) -> list[Tokens]:
        """Of the prompts that are not too long. Raises EngineFailed for whatever the tokenizer raises."""
        with work.timed("tokenise"):
            try:
                tokens = self.engine.tokenise(prompts, truncate=truncate)
            except EmbedfleetError:
                raise
            except Exception as exc:  # its message may quote a text
                name = type(exc).__name__
                log.error("the tokenizer failed", extra={"error": name, "frames": frames(exc.__traceback__)})
                raise EngineFailed(f"the tokenizer failed: {name}") from None
        work.problems |= {
            item.prompt: _too_long(item.too_long, self.engine.max_tokens)
            for item in tokens
            if item.too_long is not None
        }
        return [item for item in tokens if item.too_long is None]

    def _embedded(
        self, work: "_Work", tokens: list[Tokens], priority: Priority, left_s: float, allowed_s: float
    ) -> Embedded:
        """The engine's answer in so many seconds from when it begins; else it is told to forget the work.

        Waiting behind other batches is nobody's fault. A request goes first, and its caller's time runs.
        """
        with work.timed("engine"):
            future = self.engine.embed(tokens, priority)
            begun = time.monotonic() if priority is Priority.INTERACTIVE else None
            while not wait([future], _LOOK_S if begun is None else max(0.0, begun + left_s - time.monotonic())).done:
                if begun is not None:
                    self.engine.abort(future)
                    break
                begun = time.monotonic() if future.running() else None
            try:
                return future.result()
            except DeadlineExceeded:
                raise DeadlineExceeded(f"the engine took longer than {allowed_s:g} s") from None

    def _provenance(self, settings: EmbedSettings) -> dict[str, Any]:
        return {
            **asdict(self.engine.identity),
            "template": self._profile.template(settings.input_type, settings.prompt_name),
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
        self.computed: dict[str, Entry] = {}
        self.problems: dict[str, Problem] = {}
        """By prompt."""
        self.stages_s: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of the block to a stage."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.stages_s[stage] = self.stages_s.get(stage, 0.0) + time.perf_counter() - begun

    def receive(self, tokens: list[Tokens], embedded: Embedded, dimensions: int) -> None:
        """Keep the vectors that are sound, and what is wrong with the others."""
        for row, item in enumerate(tokens):
            problem = _refused(embedded.errors.get(row)) or wrong(embedded.vectors[row], dimensions)
            if problem is not None:
                self.problems[item.prompt] = problem
            else:
                self.computed[item.prompt] = _entry(item, embedded.vectors[row])

    def settle(self, prompts: dict[str, list[int]], entries: dict[str, Entry]) -> None:
        """Give each row its tokens or its error."""
        for prompt, rows in prompts.items():
            for row in rows:
                outcome = self.rows[row]
                if prompt in self.problems:
                    outcome.error = self.problems[prompt]
                else:
                    outcome.n_tokens = entries[prompt].n_tokens
                    outcome.truncated = entries[prompt].truncated
                    outcome.cached = prompt not in self.computed

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


def _entry(tokens: Tokens, vector: np.ndarray[Any, Any]) -> Entry:
    return Entry(tokens.count, tokens.truncated, vector.astype("<f4"))
