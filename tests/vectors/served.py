"""A fleet with one real vLLM worker and a real cache, and the ways in which texts go through it."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embedfleet import EmbedSettings, Fleet
from embedfleet.job import Job
from embedfleet.local import LocalFleet
from embedfleet.tables import vectors_of
from tests.vectors.corpus import long_texts

TRUNCATE = EmbedSettings(on_overflow="truncate")
Vectors = NDArray[Any]


@dataclass(frozen=True)
class Served:
    """The fleet, its worker, and the Redis of the vector cache."""

    local: LocalFleet
    fleet: Fleet
    cache: Any

    def forget(self) -> None:
        """Empty the cache."""
        self.cache.flushall()

    def pieces(self, texts: Sequence[str], size: int, settings: EmbedSettings = TRUNCATE) -> Vectors:
        """Round trips of so many texts, one after the other: nothing else is in the engine."""
        starts = range(0, len(texts), size)
        return np.concatenate(
            [self.fleet.embed(texts[at : at + size], settings=settings, timeout_s=300) for at in starts]
        )

    def job(self, texts: Sequence[object], settings: EmbedSettings = TRUNCATE) -> pa.Table:
        """Every outcome of a job of these texts, in their order."""
        job = self.fleet.submit(texts, settings=settings)
        job.wait(timeout_s=600)
        return table_of(job)


def table_of(job: Job) -> pa.Table:
    """A finished job's outcomes in the order of its texts, whose ids are their positions."""
    table = job.results().to_table()
    return table.take(np.argsort([int(position) for position in table["id"].to_pylist()]))


def vectors(table: pa.Table) -> Vectors:
    """The vectors of a table in which no text failed."""
    assert table["error"].null_count == len(table), table["error_message"].drop_null().to_pylist()[:3]
    return vectors_of(table)


def alone(served: Served, texts: Sequence[str]) -> Vectors:
    return served.pieces(texts, 1)


def in_twos(served: Served, texts: Sequence[str]) -> Vectors:
    return served.pieces(texts, 2)


def in_64s(served: Served, texts: Sequence[str]) -> Vectors:
    return served.pieces(texts, 64)


def beside_the_longest(served: Served, texts: Sequence[str]) -> Vectors:
    """Fifteen texts and one that is over the limit, which is another one each time: none comes from the cache."""
    size = 15
    pieces = [list(texts[at : at + size]) for at in range(0, len(texts), size)]
    found = [served.pieces([long, *piece], 16)[1:] for long, piece in zip(long_texts(len(pieces)), pieces, strict=True)]
    return np.concatenate(found)


def in_512s_sorted(served: Served, texts: Sequence[str]) -> Vectors:
    """Of about the same length; batches are of 512 texts, and fewer where they are long."""
    return _ordered(served, texts, sorted(range(len(texts)), key=lambda place: len(texts[place])))


def in_512s_shuffled(served: Served, texts: Sequence[str]) -> Vectors:
    """The texts of a batch have all lengths."""
    return _ordered(served, texts, random.Random(3).sample(range(len(texts)), len(texts)))


def _ordered(served: Served, texts: Sequence[str], order: Sequence[int]) -> Vectors:
    table = served.job([texts[place] for place in order])
    assert not any(table["cached"].to_pylist())
    found = vectors(table)
    return found[np.argsort(order)]


ARRANGEMENTS: dict[str, Callable[[Served, Sequence[str]], Vectors]] = {
    "alone": alone,
    "in twos": in_twos,
    "in 64s": in_64s,
    "beside the longest": beside_the_longest,
    "in 512s, sorted": in_512s_sorted,
    "in 512s, shuffled": in_512s_shuffled,
}
