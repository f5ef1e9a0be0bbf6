"""The texts of one batch on their way: pieces, vectors, problems, and the rows at the end. Not the way (pipeline.py).

A piece is what one vector is made of: a text, or a chunk of one.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from embedfleet.contract import ErrorCode
from embedfleet.tables import Outcome
from embedfleet_worker.cache import Entry
from embedfleet_worker.checks import wrong
from embedfleet_worker.engine.base import Embedded, Tokens

Problem = tuple[ErrorCode, str]
Vectors = np.ndarray[Any, Any]

_NOISE = 1e-6  # a mean this short is what float32 rounding left of vectors that cancel out: it points nowhere


class Piece(NamedTuple):
    """A prompt and, where the task chunks, the code points of the text that are in it."""

    prompt: str
    start: int | None = None
    end: int | None = None


class Work:
    """The rows of one batch, by position of their text."""

    def __init__(self, ids: Sequence[str], texts: Sequence[str | None], rejected: dict[int, Problem]) -> None:
        self.ids = ids
        self.texts = texts
        self.wrong = dict(rejected)
        """Texts that have no pieces, and why."""
        self.pieces: dict[int, list[Piece]] = {}
        self.whole: dict[int, int] = {}
        """Tokens of the whole text, where it is in chunks or too long for them."""
        self.ready: dict[str, Tokens] = {}
        """What was tokenised already, by prompt."""
        self.counted: dict[str, int] = {}
        """Tokens of the whole prompt, by prompt."""
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

    def prompts(self) -> list[str]:
        """Each distinct prompt: duplicates in a batch are computed once."""
        return list(dict.fromkeys(piece.prompt for pieces in self.pieces.values() for piece in pieces))

    def receive(self, tokens: Sequence[Tokens], embedded: Embedded, dimensions: int) -> None:
        """Keep the vectors that are sound, and what is wrong with the others."""
        for row, item in enumerate(tokens):
            refused = embedded.errors.get(row)
            problem: Problem | None = ("engine_error", refused) if refused is not None else None
            problem = problem or wrong(embedded.vectors[row], dimensions)
            if problem is not None:
                self.problems[item.prompt] = problem
            else:
                vector = embedded.vectors[row].astype("<f4")
                self.computed[item.prompt] = Entry(item.count, item.tokens_in, item.truncated, vector)

    def settle(
        self, entries: Mapping[str, Entry], dimensions: int, *, mean_without: int | None = None
    ) -> tuple[list[Outcome], Vectors]:
        """The outcomes, and their vectors: (rows, dimensions) float32, zero where there is an error.

        ``mean_without``: one row a text, the mean of its chunks weighted by their tokens less so many: the prompt's.
        """
        prompts = list(entries)
        made = self._cut([entries[prompt].vector for prompt in prompts], prompts, dimensions)
        at = {prompt: row for row, prompt in enumerate(prompts)}
        rows: list[Outcome] = []
        taken = np.zeros(sum(max(1, len(pieces)) for pieces in self.pieces.values()) + len(self.wrong), np.int64)
        means: dict[int, Vectors] = {}
        for row, record_id in enumerate(self.ids):
            error = self._error(row)
            if error is not None:
                rows.append(Outcome(record_id, error=error, tokens_in=self._tokens_in(row)))
                means[len(rows) - 1] = np.zeros(dimensions, np.float32)
            elif mean_without is None or len(self.pieces[row]) == 1:
                for outcome, prompt in self._each(row, entries):
                    taken[len(rows)] = at[prompt]
                    rows.append(outcome)
            else:
                outcome, means[len(rows)] = self._mean(row, entries, made, at, mean_without)
                rows.append(outcome)
        vectors = made[taken[: len(rows)]] if prompts else np.zeros((len(rows), dimensions), np.float32)
        for position, vector in means.items():
            vectors[position] = vector
        return rows, vectors

    def _error(self, row: int) -> Problem | None:
        """A text with one failed chunk has failed: half of a text is no answer."""
        if row in self.wrong:
            return self.wrong[row]
        pieces = self.pieces[row]
        for number, piece in enumerate(pieces):
            problem = self.problems.get(piece.prompt)
            if problem is not None:
                where = f" (chunk {number}, characters {piece.start} to {piece.end})" if len(pieces) > 1 else ""
                return problem[0], problem[1] + where
        return None

    def _tokens_in(self, row: int) -> int | None:
        if row in self.whole or row not in self.pieces:
            return self.whole.get(row)
        return self.counted.get(self.pieces[row][0].prompt)

    def _each(self, row: int, entries: Mapping[str, Entry]) -> Iterator[tuple[Outcome, str]]:
        for number, piece in enumerate(self.pieces[row]):
            entry = entries[piece.prompt]
            outcome = Outcome(
                self.ids[row],
                n_tokens=entry.n_tokens,
                truncated=entry.truncated,
                cached=piece.prompt not in self.computed,
                tokens_in=self.whole.get(row, entry.tokens_in),
                chunk=number,
                chunk_start=piece.start,
                chunk_end=piece.end,
            )
            yield outcome, piece.prompt

    def _mean(
        self, row: int, entries: Mapping[str, Entry], made: Vectors, at: Mapping[str, int], without: int
    ) -> tuple[Outcome, Vectors]:
        """One row for the chunks of a text; in float64, so that the order of many chunks does not matter."""
        prompts = [piece.prompt for piece in self.pieces[row]]
        weights = np.array([max(1, entries[prompt].n_tokens - without) for prompt in prompts], np.float64)
        mean = weights @ made[[at[prompt] for prompt in prompts]].astype(np.float64) / weights.sum()
        norm = float(np.linalg.norm(mean))
        outcome = Outcome(self.ids[row], tokens_in=self.whole[row])
        if norm < _NOISE:
            outcome.error = "not_unit_norm", f"the mean of its {len(prompts)} chunks is zero: they cancel each other"
            return outcome, np.zeros_like(made[0])
        outcome.n_tokens = sum(entries[prompt].n_tokens for prompt in prompts)
        outcome.cached = not any(prompt in self.computed for prompt in prompts)
        outcome.chunk_start, outcome.chunk_end = 0, len(self.texts[row] or "")
        return outcome, (mean / norm).astype(np.float32)

    def _cut(self, vectors: Sequence[Vectors], prompts: Sequence[str], dimensions: int) -> Vectors:
        """The first components, renormalised where any were dropped (Matryoshka)."""
        if not vectors:
            return np.zeros((0, dimensions), np.float32)
        result = np.stack([vector[:dimensions] for vector in vectors]).astype(np.float32, copy=False)
        if dimensions < len(vectors[0]):
            norms = np.linalg.norm(result.astype(np.float64), axis=1, keepdims=True)  # float32 squares underflow
            for row in np.flatnonzero(norms[:, 0] == 0):
                said = f"the first {dimensions} components of its vector are all zero"
                self.problems[prompts[row]] = "not_unit_norm", said
            result = (result / np.where(norms == 0, 1, norms)).astype(np.float32)
        return result


def too_long(tokens: int, limit: int) -> Problem:
    """A text over the limit, and what would help."""
    return "too_long", f"{tokens} tokens and the limit is {limit}; on_overflow=truncate would cut it, chunk split it"
