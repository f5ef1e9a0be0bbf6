"""What a load test does and times: users that submit, enqueue and round-trip. How to run and read it: README.md.

Every call runs in a thread, as an application's does. Under gevent's patches, which locust makes unless told not to,
the drivers of stores and of Parquet, which are not Python's, would hold up all users with every call.
"""

import random
import sys
import time
from abc import abstractmethod
from collections.abc import Iterator
from threading import Event
from typing import Any, ClassVar

from gevent.monkey import is_module_patched
from gevent.threadpool import ThreadPool
from locust import User, between, events, task
from locust.runners import WorkerRunner

from embedfleet import EmbedSettings, Fleet, Job
from embedfleet.errors import TextError, WaitTimeout
from embedfleet.fewtexts import embeddings
from embedfleet.tables import PartInfo

if is_module_patched("socket"):
    sys.exit("loadtest: start it with `python -m loadtest.run`, or set LOCUST_SKIP_MONKEY_PATCH=1.")

FLEET = Fleet()
THREADS = ThreadPool(1000)  # started as they are needed: one for each user at work
DOCUMENT = EmbedSettings(on_overflow="truncate")
QUERY = EmbedSettings(on_overflow="truncate", input_type="query")
TIMEOUT_S = 120.0
LOOK_S = 0.02  # between two looks for a part: a wait is seen this much too long at most

# Lengths of texts are spread as real ones are: half below 150 characters, one in a hundred above 1,000.
MEDIAN_CHARACTERS, SPREAD, MAX_CHARACTERS = 150, 0.85, 4_000
SENTENCE = (
    "a batch of texts waits in the queue until some worker takes its lease and hands it to the engine which packs "
    "many short ones into one step while every vector is checked and written once before anybody is told about it"
)
WORDS = SENTENCE.split()

Phase = tuple[str, float]
"""Name and seconds."""


def text() -> str:
    """One that never was before: no cache helps."""
    characters = min(random.lognormvariate(0, SPREAD) * MEDIAN_CHARACTERS, MAX_CHARACTERS)
    words = random.choices(WORDS, k=max(1, int(characters / 5.3)))  # a word of these and its blank
    return f"{random.getrandbits(48):x} {' '.join(words)}"


class FleetUser(User):
    """One caller of the fleet that does the same again and again."""

    abstract = True

    texts: ClassVar[tuple[int, int]]
    """How many of them, at least and at most."""

    @abstractmethod
    def phases(self, texts: list[str]) -> Iterator[Phase]:
        """Have them embedded; say what each phase took as soon as it is over."""

    @task
    def once(self) -> None:
        """A request in the report for each phase, and ``total``, which is the one that fails."""
        took: list[Phase] = []
        total_s, error = THREADS.apply(self._do, (took,))
        for name, seconds in took:
            self._report(name, seconds)
        self._report("total", total_s, error)

    def _do(self, took: list[Phase]) -> tuple[float, Exception | None]:
        texts = [text() for _ in range(random.randint(*self.texts))]
        begun = time.perf_counter()
        error = None
        try:
            took.extend(self.phases(texts))
        except Exception as exc:  # a defect of ours is a failure too
            error = exc
        return time.perf_counter() - begun, error

    def _report(self, name: str, seconds: float, error: Exception | None = None) -> None:
        self.environment.events.request.fire(
            request_type=type(self).__name__,
            name=name,
            response_time=seconds * 1000,
            response_length=0,
            exception=error,
            context={},
        )


class Submit(FleetUser):
    """A job of a few thousand texts, now and then."""

    weight = 1
    texts = (1_000, 3_000)
    wait_time = between(2, 6)

    def phases(self, texts: list[str]) -> Iterator[Phase]:
        """Submit, then wait for every part."""
        begun = time.perf_counter()
        job = FLEET.submit(texts, settings=DOCUMENT)
        yield "enqueue", time.perf_counter() - begun
        yield from awaited(job, job.status().batches or 0)


class Enqueue(FleetUser):
    """A few texts from application code, whose result is read later."""

    weight = 6
    texts = (1, 20)
    wait_time = between(0.2, 1)

    def phases(self, texts: list[str]) -> Iterator[Phase]:
        """Enqueue, then wait for the one part."""
        begun = time.perf_counter()
        job = FLEET.enqueue(texts, settings=DOCUMENT)
        yield "enqueue", time.perf_counter() - begun
        yield from awaited(job, 1)


class RoundTrip(FleetUser):
    """A query whose vector is wanted at once. Needs a broker that replies: Redis."""

    weight = 3
    texts = (1, 1)
    wait_time = between(0.1, 0.5)

    def phases(self, texts: list[str]) -> Iterator[Phase]:
        """As ``Fleet.embed``, with the seconds that the worker says it took."""
        begun = time.perf_counter()
        table, info = FLEET.answer(texts, QUERY, TIMEOUT_S, Event())
        embeddings(table)
        yield from apart(time.perf_counter() - begun, [info])


def awaited(job: Job, batches: int) -> Iterator[Phase]:
    """Wait for the parts; the time of their embedding, and what was waited beside it."""
    begun = time.perf_counter()
    for number in range(batches):
        while not job.folder.has_part(number):
            if time.perf_counter() - begun > TIMEOUT_S:
                raise WaitTimeout(f"a part is missing after {TIMEOUT_S:g} s")
            time.sleep(LOOK_S)
    waited_s = time.perf_counter() - begun
    infos = [job.folder.part_info(number) for number in range(batches)]
    if any(info.totals.errors for info in infos):
        raise TextError("texts have no vector")
    yield from apart(waited_s, infos)


def apart(waited_s: float, infos: list[PartInfo]) -> Iterator[Phase]:
    """``embedding`` for each part, and ``wait``: what the longest of them leaves of the time."""
    embedding_s = [sum(info.stages_s.values()) for info in infos]
    yield "wait", max(0.0, waited_s - max(embedding_s))
    for seconds in embedding_s:
        yield "embedding", seconds


@events.quitting.add_listener
def every_kind_was_answered(environment: Any, **_: Any) -> None:
    """A fleet that does nothing gives no failures either, only less to report."""
    if isinstance(environment.runner, WorkerRunner):
        return  # of several processes, the one that counts them all says it
    for kind in environment.user_classes:
        if not environment.stats.get("total", kind.__name__).num_requests:
            print(f"loadtest: not one call of {kind.__name__} came to its end.", file=sys.stderr)
            environment.process_exit_code = 1
