"""What a worker counts, for Prometheus: batches, texts, stages, queues. Not its log (logs.py), nor who serves it.

Counting never breaks the work: whatever fails here is passed by. Each worker has a registry of its own.
"""

import logging
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import embedfleet
from embedfleet.contract import ErrorCode
from embedfleet.settings import LANES, Lane
from embedfleet.tables import Outcome, Outcomes
from embedfleet_worker.cache import Entry, VectorCache
from embedfleet_worker.engine.base import Identity

log = logging.getLogger(__name__)

EMBEDDED, FAILED, DUPLICATE, EXPIRED = "embedded", "failed", "duplicate", "expired"
GIVEN_BACK, DEAD_LETTER = "given_back", "dead_letter"
_BATCH_OUTCOMES = (EMBEDDED, FAILED, DUPLICATE, EXPIRED, GIVEN_BACK, DEAD_LETTER)
_STAGES = ("read", "prepare", "cache", "tokenise", "engine", "check", "write")
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_DEPTHS_S = 5.0  # queue depths are asked of the broker at most this often
_ASKING_S = 1.0  # and a scrape waits this long for them: Prometheus gives up after ten seconds


_ended: ContextVar[str] = ContextVar("ended")


def ended(outcome: str) -> None:
    """Say how the message ends that this thread works on; said last counts. See :meth:`Metrics.batch`."""
    _ended.set(outcome)


class Metrics:
    """The counters of one worker. Thread-safe; no method raises."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self._info = Info("embedfleet", "What this worker runs.", registry=own)
        self._batches = Counter("embedfleet_batches", "Messages by lane and end.", ["lane", "outcome"], registry=own)
        self._in_flight = Gauge("embedfleet_batches_in_flight", "Messages begun, not ended.", ["lane"], registry=own)
        self._texts = Counter("embedfleet_texts", "Texts by outcome, as written.", ["outcome"], registry=own)
        self._tokens = Counter("embedfleet_tokens", "Tokens of the texts that have a vector.", registry=own)
        self._truncated = Counter("embedfleet_truncated_texts", "Texts cut at the token limit.", registry=own)
        self._stages = Histogram(
            "embedfleet_stage_seconds", "Seconds of a batch in a stage.", ["stage"], buckets=_BUCKETS_S, registry=own
        )
        self._lookups = Counter("embedfleet_cache_lookups", "Prompts asked of the cache.", ["result"], registry=own)
        self._deliveries = Counter(
            "embedfleet_deliveries", "Tries to deliver a part.", ["kind", "result"], registry=own
        )
        self._begin_at_zero()

    def describe(self, identity: Identity) -> None:
        """Say which engine this worker has."""
        with _passed_by():
            about = {"model": identity.model, "engine": identity.engine, "dtype": identity.dtype}
            self._info.info({**about, "version": embedfleet.__version__})

    def watch(self, depth: Callable[[str], int], queues: Mapping[Lane, str]) -> None:
        """Show how many messages wait in these queues; ``depth`` asks the broker."""
        with _passed_by():
            self.registry.register(_Depths(depth, queues))

    @contextmanager
    def batch(self, lane: Lane) -> Iterator[None]:
        """Around the work of one message: in flight, then counted as what :func:`ended` was told.

        What raises was given back; when nothing was said there was nothing left to do: a duplicate.
        """
        token = _ended.set(DUPLICATE)
        with _passed_by():
            self._in_flight.labels(lane).inc()
        try:
            yield
        except BaseException:
            ended(GIVEN_BACK)
            raise
        finally:
            with _passed_by():
                self._in_flight.labels(lane).dec()
                self._batches.labels(lane, _ended.get()).inc()
            _ended.reset(token)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Around a stage: its seconds."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            with _passed_by():
                self._stages.labels(name).observe(time.perf_counter() - begun)

    def written(self, outcomes: Outcomes, *, first: bool = True) -> None:
        """Count a part or an answer. Not ``first``: another worker wrote it, and counts its texts."""
        with _passed_by():
            for stage, seconds in outcomes.stages_s.items():
                self._stages.labels(stage).observe(seconds)
            if not first:
                return
            rows = outcomes.rows
            found = Tally(_outcome(text) for text in outcomes.texts())
            for outcome, count in found.items():
                self._texts.labels(outcome).inc(count)
            self._tokens.inc(sum([row.n_tokens or 0 for row in rows if row.error is None]))
            self._truncated.inc(sum([row.truncated for row in rows]))  # never in chunks
            ended(EMBEDDED if found[EMBEDDED] or found["cached"] else FAILED)

    def delivery(self, kind: str, result: str) -> None:
        """Count one try to deliver to a kind of destination."""
        with _passed_by():
            self._deliveries.labels(kind, result).inc()

    def lookups(self, hits: int, misses: int) -> None:
        """Count what was asked of the cache."""
        with _passed_by():
            self._lookups.labels("hit").inc(hits)
            self._lookups.labels("miss").inc(misses)

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)

    def _begin_at_zero(self) -> None:
        """Series that are there from the start: ``rate()`` sees the first one of them too."""
        for lane in LANES:
            self._in_flight.labels(lane)
        for lane in ("interactive", "bulk"):
            for outcome in _BATCH_OUTCOMES:
                self._batches.labels(lane, outcome)
        for outcome in (EMBEDDED, "cached", *get_args(ErrorCode)):
            self._texts.labels(outcome)
        for stage in _STAGES:
            self._stages.labels(stage)
        self.lookups(0, 0)


class CountedCache:
    """The vector cache, with hits and misses counted. What is asked while it is passed by is a miss."""

    def __init__(self, cache: VectorCache, metrics: Metrics) -> None:
        self.set = cache.set
        self._cache = cache
        self._metrics = metrics

    def get(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """One entry a key, None where there is none."""
        found = self._cache.get(keys)
        misses = found.count(None)
        self._metrics.lookups(len(found) - misses, misses)
        return found


class _Depths(Collector):
    """Queue depths, asked when scraped. Absent, not 0, when the broker can't be asked in time."""

    def __init__(self, depth: Callable[[str], int], queues: Mapping[Lane, str]) -> None:
        self._depth = depth
        self._queues = dict(queues)
        self._known: dict[Lane, int] = {}
        self._asked_at = float("-inf")
        self._lock = threading.Lock()
        self._asking: threading.Thread | None = None

    def describe(self) -> Iterable[Metric]:
        """The name, without asking the broker."""
        return [self._family()]

    def collect(self) -> Iterable[Metric]:
        """The depths of now, give or take some seconds."""
        family = self._family()
        for lane, depth in self._depths().items():
            family.add_metric([lane], depth)
        return [family]

    def _family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily("embedfleet_queue_depth", "Messages waiting.", labels=["lane"])

    def _depths(self) -> dict[Lane, int]:
        with self._lock:
            if time.monotonic() - self._asked_at < _DEPTHS_S:
                return self._known
            # A thread of its own: a broker that hangs holds it, and no scrape.
            if self._asking is None or not self._asking.is_alive():
                self._asking = threading.Thread(target=self._ask, name="queue depths", daemon=True)
                self._asking.start()
            self._asking.join(_ASKING_S)
            return {} if self._asking.is_alive() else self._known

    def _ask(self) -> None:
        known: dict[Lane, int] = {}
        with _passed_by():
            known = {lane: self._depth(queue) for lane, queue in self._queues.items()}
        self._known, self._asked_at = known, time.monotonic()


def _outcome(text: Sequence[Outcome]) -> str:
    """Of a text, by its rows."""
    error = text[0].error
    if error is not None:
        return error[0]
    return "cached" if all(row.cached for row in text) else EMBEDDED


@contextmanager
def _passed_by() -> Iterator[None]:
    """Inside, failing costs a number and nothing else."""
    try:
        yield
    except Exception as exc:
        log.debug("not counted (%s)", type(exc).__name__)
