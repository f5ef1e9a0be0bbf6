"""The whole path against the engine alone: submit → Redis → Celery → worker → Parquet, over raw ``LLM.embed``.

Both stay loaded in processes of their own and take turns on the same texts, so that what the machine does beside
them hits both. The kernel stops the one that stands by, whose threads would wake a thousand times a second. What is
compared is checked to be the same work: tokens, vectors, no cache, nothing cut.
"""

import contextlib
import os
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from embedfleet import Fleet, Job
from embedfleet.batching import estimated_tokens
from embedfleet.local import LocalFleet
from embedfleet.models import profile_of
from embedfleet.settings import FleetSettings, load
from loadtest.bench import texts
from loadtest.bench.cpu import Meter, Shares, children
from loadtest.bench.figures import Figure, at_least
from loadtest.bench.raw import Raw, Run

_SHORT_TARGET = 0.92
_LONG_TARGET = 0.95
_MIN_COSINE = 0.999  # bfloat16 differs by 1e-4 between batch compositions
_MAX_IDLE = 0.01  # processors the side that stands by may use: it is stopped, so none but what rounding makes
_SETTLE_S = 0.5  # what waits in a side that was stopped is done then: timers, a heartbeat
_POLL_S = 0.02  # the end of a job is seen this late at most
_POLLS = 50  # looks for parts between two looks at the worker
_QUIET = 0.08  # processors that others may use during a pair; an idle machine's kernel and daemons use 0.03
_MAX_PAIRS = 3  # times the pairs wanted: so many are tried to get that many quiet ones


class NotTheSameWork(Exception):
    """The two sides did different things: their times say nothing."""


@dataclass(frozen=True)
class _Pair:
    """One run of each side."""

    raw: Run
    whole: Run
    raw_load: Shares
    whole_load: Shares

    @property
    def ratio(self) -> float:
        """Speed of the whole path in parts of the raw one's."""
        return self.raw.seconds / self.whole.seconds

    @property
    def foreign(self) -> float:
        """Processors that others used beside one of the two, at worst."""
        return max(self.raw_load.foreign, self.whole_load.foreign)

    @property
    def idle(self) -> float:
        """Processors that the side used that was to stand by, at worst."""
        return max(self.raw_load.idle, self.whole_load.idle)


class Whole:
    """A fleet on this machine with one worker; this process is the producer."""

    def __init__(self, settings: FleetSettings) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="embedfleet-bench-"))
        self._local = LocalFleet(settings, stores=(str(self._folder),))

    def __enter__(self) -> "Whole":
        self._local.__enter__()
        self._local.wait_ready()
        self._fleet = Fleet(**dict(self._local.settings))
        return self

    def __exit__(self, *_: object) -> None:
        self._fleet.close()
        self._local.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, texts: list[str]) -> Run:
        """Submit a new job and wait for its last part; the clock runs from the one to the other."""
        begun = time.perf_counter()
        job = self._fleet.submit(texts, to=str(self._folder))
        while not self._has_all_parts(job) or not job.status().finished:
            if self._local.check():
                raise NotTheSameWork("the worker died and was started again: a bug, or too little memory.")
        seconds = time.perf_counter() - begun
        totals = job.status().totals
        if (totals.texts, totals.errors, totals.truncated, totals.cached) != (len(texts), 0, 0, 0):
            raise NotTheSameWork(f"job {job.id}: {totals} for {len(texts)} texts.")
        run = Run(seconds, _vectors(job), totals.tokens)
        shutil.rmtree(self._folder / job.id)
        return run

    def _has_all_parts(self, job: Job) -> bool:
        """Whether a part for every input appears within a second.

        Cheaper than ``job.watch`` that often, which takes a hundredth of the processors for itself.
        """
        folder = self._folder / job.id
        inputs = len(list((folder / "input").glob("*.parquet")))
        for _ in range(_POLLS):
            if len(list((folder / "parts").glob("*.parquet"))) == inputs:
                return True
            time.sleep(_POLL_S)
        return False


def measure(*, quick: bool) -> list[Figure]:
    """The ratio for short and for long texts. ``quick``: few texts, the synthetic engine, figures without meaning."""
    settings = load(engine="synthetic" if quick else "vllm", dtype="float32" if quick else "bfloat16")
    source = texts.docstrings(300 if quick else None)
    count = estimated_tokens if quick else _token_counter(settings)
    short = texts.short_texts(source, 60 if quick else 5000, count)
    long = texts.long_texts(source, 20 if quick else 650, count)
    rounds = 2 if quick else 5
    with Whole(settings) as whole:
        fleet = children()
        with Raw(settings) as raw:  # loaded after the worker, not beside it
            sides = _Sides(raw, children() - fleet, whole, fleet, 0.05 if quick else _SETTLE_S)
            return [
                sides.compare("whole path ÷ raw LLM.embed, short texts", short, rounds, _SHORT_TARGET, quick=quick),
                sides.compare("whole path ÷ raw LLM.embed, long texts", long, rounds, _LONG_TARGET, quick=quick),
            ]


@dataclass(frozen=True)
class _Sides:
    """Both sides, loaded, with their processes."""

    raw: Raw
    raw_pids: Iterable[int]
    whole: Whole
    whole_pids: Iterable[int]
    settle_s: float

    def compare(self, name: str, given: list[str], rounds: int, target: float, *, quick: bool) -> Figure:
        """The median ratio over the ``rounds`` quietest pairs behind one to warm up, with its spread."""
        self._pair(given, 0)
        measured: list[_Pair] = []
        while sum(pair.foreign <= _QUIET for pair in measured) < rounds and len(measured) < _MAX_PAIRS * rounds:
            measured.append(self._pair(given, len(measured)))
        pairs = sorted(measured, key=lambda pair: pair.foreign)[:rounds]
        idle = max(pair.idle for pair in pairs)
        if not quick and idle > _MAX_IDLE:
            raise NotTheSameWork(f"{name}: the side that stood by used {idle:.2f} processors.")
        ratios = [pair.ratio for pair in pairs]
        disturbed = sum(pair.foreign > _QUIET for pair in pairs)
        figure = at_least(
            target,
            name,
            round(statistics.median(ratios), 3),
            None,
            spread=[round(min(ratios), 3), round(max(ratios), 3)],
            ratios=[round(ratio, 3) for ratio in ratios],
            raw_s=[round(pair.raw.seconds, 2) for pair in pairs],
            whole_s=[round(pair.whole.seconds, 2) for pair in pairs],
            raw_texts_per_s=round(len(given) / statistics.median(pair.raw.seconds for pair in pairs), 1),
            whole_texts_per_s=round(len(given) / statistics.median(pair.whole.seconds for pair in pairs), 1),
            texts=len(given),
            tokens_per_text=round(pairs[0].raw.tokens / len(given), 1),
            min_cosine=round(min(_cosine(pair) for pair in pairs), 6),
            standby_processors=round(idle, 3),
            foreign_processors=[round(pair.foreign, 2) for pair in pairs],
            pairs_measured=len(measured),
            pairs_disturbed=disturbed,
        )
        # A ratio of which one side shared its processors says nothing about the other's speed.
        return replace(figure, met=None) if disturbed else figure

    def _pair(self, given: list[str], number: int) -> _Pair:
        """One run each; who begins alternates too, so that a drift of the machine's speed cancels out."""
        if number % 2:
            raw, raw_load = self._raw_run(given)
            whole, whole_load = self._whole_run(given)
        else:
            whole, whole_load = self._whole_run(given)
            raw, raw_load = self._raw_run(given)
        pair = _Pair(raw, whole, raw_load, whole_load)
        if raw.tokens != whole.tokens or _cosine(pair) < _MIN_COSINE:
            raise NotTheSameWork(f"{raw.tokens} and {whole.tokens} tokens, cosine {_cosine(pair):.5f} at worst.")
        return pair

    def _raw_run(self, given: list[str]) -> tuple[Run, Shares]:
        with _stopped(self.whole_pids, self.settle_s):
            meter = Meter(self.whole_pids)
            return self.raw.run(given), meter.stop()

    def _whole_run(self, given: list[str]) -> tuple[Run, Shares]:
        with _stopped(self.raw_pids, self.settle_s):
            meter = Meter(self.raw_pids)
            return self.whole.run(given), meter.stop()


@contextlib.contextmanager
def _stopped(pids: Iterable[int], settle_s: float) -> Iterator[None]:
    """Processes that get no processor inside; it begins when the others had time to settle."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(settle_s)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _vectors(job: Job) -> "np.ndarray[Any, Any]":
    """What the job wrote, in the order of its texts: their ids are their positions."""
    table = job.results().to_table(columns=["id", "embedding"])
    order = np.argsort(table["id"].to_numpy().astype(int))
    column = table["embedding"].combine_chunks()
    vectors: np.ndarray[Any, Any] = column.flatten().to_numpy().reshape(len(column), -1)[order]
    return vectors


def _cosine(pair: _Pair) -> float:
    """The smallest among the texts; both sides' vectors have unit norm."""
    return float(np.einsum("ij,ij->i", pair.raw.vectors, pair.whole.vectors).min())


def _token_counter(settings: FleetSettings) -> texts.Count:
    from embedfleet_worker import weights  # noqa: TID251 - the model's own tokenizer
    from embedfleet_worker.tokens import Tokeniser  # noqa: TID251

    profile = profile_of(settings.model)
    tokeniser = Tokeniser(weights.locate(profile.name, settings.revision), profile.max_tokens)

    def count(text: str) -> int:
        tokens = tokeniser.encode([text], truncate=False)[0]
        return tokens.too_long or tokens.count

    return count
