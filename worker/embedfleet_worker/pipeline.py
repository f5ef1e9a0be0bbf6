"""Texts to outcomes: prompts → cache → tokens → engine → checks → dimensions. Imports no driver and no store."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from dataclasses import asdict
from typing import Any, Protocol

from embedfleet.contract import EmbedSettings
from embedfleet.errors import DeadlineExceeded
from embedfleet.models import ModelProfile
from embedfleet.records import check_text
from embedfleet.tables import Outcomes
from embedfleet_worker.bisection import bisect
from embedfleet_worker.cache import Entry, KeyMaker
from embedfleet_worker.chunking import Chunker
from embedfleet_worker.engine.base import Embedded, Engine, Priority, Tokens
from embedfleet_worker.prompts import render
from embedfleet_worker.tokenising import prompt_tokens, tokenise
from embedfleet_worker.work import Piece, Problem, Work, too_long

__all__ = ["Cache", "NoCache", "Pipeline", "Problem"]

_LOOK_S = 0.2  # between two looks at whether the engine has begun with a batch
_PORTION_TOKENS = 131_072  # twice what is planned for a batch
_PORTIONS = 6
"""How many times its deadline a batch of chunks may take, in portions: less than one that is done in pieces may."""


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
        the reason. SettingsError: what only the engine's tokenizer could tell of the settings.
        """
        work = Work(ids, texts, rejected or {})
        chunker = Chunker(self.engine, self._profile, settings) if settings.on_overflow == "chunk" else None
        self._prepare(work, settings, chunker, alone=alone)
        prompts = work.prompts()
        # A chunk is a prompt like any other that fits, whatever text it is of: the key is that of the policy "error".
        policy = "truncate" if settings.on_overflow == "truncate" else "error"
        keys = KeyMaker(self.engine.identity, self.engine.max_tokens, policy, self._salt)
        with work.timed("cache"):
            entries = self._known(prompts, keys) if settings.cache in ("on", "read") else {}
        missing = [prompt for prompt in prompts if prompt not in entries]
        try:
            if missing:
                self._compute(work, missing, settings, priority, deadline_s, alone=alone)
        finally:  # what was computed before the engine died need not be computed again
            if settings.cache in ("on", "write"):
                with work.timed("cache"):
                    self._cache.set([(keys.key(prompt), entry) for prompt, entry in work.computed.items()])
        with work.timed("check"):
            mean = settings.chunking is not None and settings.chunking.output == "mean"
            rows, vectors = work.settle(
                {**entries, **work.computed},
                settings.dimensions or self.engine.dimensions,
                mean_without=chunker.prompt_tokens if mean and chunker is not None else None,
            )
        return Outcomes(rows, vectors, work.stages_s, self._provenance(settings))

    def _prepare(self, work: Work, settings: EmbedSettings, chunker: Chunker | None, *, alone: bool) -> None:
        """Find what is wrong with a text; give the others their prompts."""
        with work.timed("prepare"):
            for row, text in enumerate(work.texts):
                problem = work.wrong.get(row) or check_text(text)
                if problem is not None:
                    work.wrong[row] = problem
                elif chunker is None:
                    work.pieces[row] = [Piece(render(text or "", settings, self._profile))]
        if chunker is not None:
            with work.timed("tokenise"):
                chunker.cut(work, alone=alone)
        elif settings.instruction is not None and work.pieces:
            prompt_tokens(self.engine, settings, self._profile)  # raises where no text would fit behind it

    def _known(self, prompts: Sequence[str], keys: KeyMaker) -> dict[str, Entry]:
        found = self._cache.get([keys.key(prompt) for prompt in prompts])
        return {prompt: entry for prompt, entry in zip(prompts, found, strict=True) if entry is not None}

    def _compute(
        self,
        work: Work,
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
            for portion, end in _portions(tokens, begun, seconds, share=not alone and priority is Priority.BULK):
                embedded = self._embedded(work, portion, priority, end - time.monotonic(), seconds)
                work.receive(portion, embedded, self.engine.dimensions)

        if not alone:
            attempt(prompts, deadline_s)
            return
        failures = bisect(prompts, attempt, deadline_s)
        if len(failures) == len(prompts) > 1 and not work.computed:
            raise next(iter(failures.values()))  # it is the engine: it does none of them
        for prompt, failure in failures.items():
            work.problems[prompt] = "engine_error", f"the engine fails at this text ({failure})"

    def _tokens(self, work: Work, prompts: Sequence[str], *, truncate: bool) -> list[Tokens]:
        """Of the prompts that are not too long. Raises EngineFailed."""
        with work.timed("tokenise"):
            new = [prompt for prompt in prompts if prompt not in work.ready]
            tokens = tokenise(self.engine, new, truncate=truncate) if new else []
        tokens += [work.ready[prompt] for prompt in prompts if prompt in work.ready]
        work.counted |= {item.prompt: item.tokens_in for item in tokens}
        work.problems |= {
            item.prompt: too_long(item.too_long, self.engine.max_tokens) for item in tokens if item.too_long is not None
        }
        return [item for item in tokens if item.too_long is None]

    def _embedded(
        self, work: Work, tokens: Sequence[Tokens], priority: Priority, left_s: float, allowed_s: float
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
            **({"chunking": settings.chunking.model_dump()} if settings.chunking is not None else {}),
        }


def _portions(
    tokens: Sequence[Tokens], begun: float, seconds: float, *, share: bool
) -> Iterator[tuple[Sequence[Tokens], float]]:
    """What goes to the engine at once, and when it has to be done, on the monotonic clock.

    Texts in chunks may be many times what a batch is planned for. With ``share`` each portion has the time of a batch,
    so that the deadline means what it does for others.
    """
    end = begun + (_PORTIONS * seconds if share else seconds)
    portion: list[Tokens] = []
    size = 0
    for position, item in enumerate(tokens, 1):
        portion.append(item)
        size += item.count
        if size >= _PORTION_TOKENS or position == len(tokens):
            yield portion, min(end, begun + seconds)
            portion, size, begun = [], 0, time.monotonic()
