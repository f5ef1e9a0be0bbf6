"""Looking after open jobs: closing what is finished, publishing again what was lost. Not who asks, nor what was lost.

Who asks are the janitor in every worker and `embedfleet reconcile`; lost.py says what was lost. All of this is
idempotent: two that do it at once, or a message too many, change nothing.
"""

import math
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from embedfleet import openjobs
from embedfleet.broker import Broker
from embedfleet.client import Fleet
from embedfleet.contract import Completion
from embedfleet.delivering import Delivering
from embedfleet.destinations import CALLBACK
from embedfleet.envelope import Message
from embedfleet.errors import ConfigurationError, NotFound, StoreUnavailable
from embedfleet.job import Job
from embedfleet.jobfolder import JobFolder
from embedfleet.lost import Lanes, lost_batches, lost_deliveries
from embedfleet.openjobs import OpenJob, Stage
from embedfleet.publishing import Publisher
from embedfleet.queueview import Work
from embedfleet.store import Store, check_allowed, open_store

RUNNING = "running"
UNDECIDED = "running; its queue seems empty, which takes three looks a minute apart"
"""Whoever can wait asks again in a minute."""

_GONE_S = 3600.0  # a producer notes a job right after it has begun it; nobody is that slow
_AGAIN_S, _AGAIN_MAX_S, _AGAIN_SOON = 60.0, 3600.0, 3
_SLOW_S = 5.0  # what fails after so long timed out: the store, not the one object, is at fault


@dataclass
class Sweep:
    """A look at open jobs, one after the other."""

    fleet: Fleet
    lanes: Lanes
    ends_at: float = math.inf
    """On this process' monotonic clock: then a job with many lost messages is left for the next sweep."""
    down: set[str] = field(default_factory=set)
    """Stores that did not answer: the other jobs in them are left for the next sweep."""
    receipts: dict[str, Delivering] = field(default_factory=dict)
    """By URI of the job, what was read of them; whoever sweeps again hands it on, or each sweep reads them all."""

    _stores: dict[str, Store] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        """The fleet's store. Raises ConfigurationError where there is none."""
        if self.fleet.settings.store is None:
            raise ConfigurationError("reconcile: no store. Set EMBEDFLEET_STORE: it names the open jobs.")
        return self._opened(self.fleet.settings.store)

    def open_job(self, name: str) -> str:
        """See to a job that the store names as open; what was done. Raises NotFound when another was quicker."""
        entry = openjobs.read(self.store, name)
        where, _, job = entry.uri.rpartition("/")
        # An entry in the store is not trusted further than the stores that are allowed anyway.
        where = check_allowed(where, self.fleet.settings.stores)
        if where in self.down:
            raise StoreUnavailable(f"store {where}: it did not answer a moment ago.")
        begun = time.monotonic()
        try:
            folder = JobFolder(self._opened(where), job)
            return self.job(Job(folder, self.fleet)) if folder.exists() else self._gone(name, entry)
        except StoreUnavailable:
            if time.monotonic() - begun > _SLOW_S:
                self.down.add(where)
            raise

    def job(self, job: Job) -> str:
        """See to a job; what was done. Its manifest is written if it can be."""
        entry = None
        if self.fleet.settings.store is not None:
            with suppress(NotFound):
                entry = openjobs.read(self.store, job.id)
        case = _Case(self, job, entry)
        if not _is_embedded(job.folder):
            return case.embed_again()
        if job.folder.sealed() is not None and job.folder.manifest() is None:
            job.status()  # writes it
        if any(case.delivering.pending()):
            return case.deliver_again()
        self.receipts.pop(job.uri, None)
        return case.close()

    def _opened(self, uri: str) -> Store:
        """A store once opened keeps its connections for the other jobs in it."""
        if uri not in self._stores:
            self._stores[uri] = open_store(uri)
        return self._stores[uri]

    def _gone(self, name: str, entry: OpenJob) -> str:
        """Its folder was removed; or it is being submitted again right now, and the note is older than its job.json."""
        if entry.published_at is not None and self.fleet.broker.now() - entry.published_at < _GONE_S:
            return "gone; its entry is removed in an hour"
        openjobs.remove(self.store, name, entry)
        return "gone"


@dataclass(frozen=True)
class _Case:
    """A job that is looked after, and what was noted of it."""

    sweep: Sweep
    job: Job
    entry: OpenJob | None

    def embed_again(self) -> str:
        """Publish the batches that were lost. While the producer is at it, or died: only if the queue is empty."""
        folder, lanes, queue = self.job.folder, self.sweep.lanes, self._broker.queue_of(self.job.spec)
        sealed, noted = folder.sealed(), self._noted("embed")
        known = max(sealed.at or 0.0, noted or 0.0) if sealed is not None and self.entry is not None else 0.0
        numbers = range(sealed.batches) if sealed is not None else folder.inputs()
        view = lanes.view(queue, known)
        if not known and view is not None and view.empty:
            view = lanes.view(queue, fresh=True)
        if view is None:
            return UNDECIDED
        if view.may_hold(known) or not (known or view.empty):
            return RUNNING
        return self._publish("embed", queue, lost_batches(folder, numbers, view))

    def deliver_again(self) -> str:
        """Publish the deliveries that were lost."""
        since, case = self._noted("deliver"), self
        if since is None:
            # Every part is there, so whatever was handed over was published by now, unless its batch is still held.
            since = self._broker.now() if self.entry is not None or self._broker.looks == 1 else 0.0
            if not any(job == self.job.id for job, _, _ in self._held(since)):
                case = self._note("deliver", since)
        held = self._held(since)
        view = self.sweep.lanes.view(self._broker.deliver_queue, since)
        if view is None:
            return UNDECIDED
        if view.may_hold(since):
            return RUNNING
        messages = lost_deliveries(self.job.folder, self.delivering, held | view.leased)
        return case._publish("deliver", self._broker.deliver_queue, messages)

    def _held(self, since: float) -> frozenset[Work]:
        """Batches that somebody held after ``since``; where that can't be seen, none."""
        view = self.sweep.lanes.view(self._broker.queue_of(self.job.spec), since) if self._broker.looks == 1 else None
        return view.leased if view is not None else frozenset()

    def close(self) -> str:
        """Have the callback told, if there is one; after that nothing more is to be done for the job."""
        folder = self.job.folder
        if self.job.spec.callback is not None:
            receipt = folder.receipt(CALLBACK, 0)
            if receipt is None or receipt.state == "waiting":
                return self._call_back()
        if self.entry is not None:
            openjobs.remove(self.sweep.store, self.job.id, self.entry)
        return "finished"

    def _call_back(self) -> str:
        queue, noted = self._broker.deliver_queue, self._noted("complete")
        if noted is not None:
            view = self.sweep.lanes.view(queue, noted)
            if view is None:
                return UNDECIDED
            if view.may_hold(noted) or (self.job.id, 0, CALLBACK) in view.leased:
                return "finished; its callback is being told"
        message = Completion(to=self.job.folder.store.uri, job=self.job.id)
        if self._publish("complete", queue, [message]) == RUNNING:
            return "finished; its callback is being told"
        return f"finished; its callback is queued{'' if noted is None else ' again'}"

    def _publish(self, stage: Stage, queue: str, messages: Iterable[Message]) -> str:
        """Publish, and note when; what was done. What is lost again and again is published less and less often."""
        again = self.entry.again if self.entry is not None and self.entry.stage == stage else 0
        pause_s = min(_AGAIN_S * 2 ** max(again - _AGAIN_SOON, 0), _AGAIN_MAX_S) if again else 0.0
        if pause_s and self._broker.now() < (self._noted(stage) or 0.0) + pause_s:
            return RUNNING
        count, times = 0, again + 1
        waits = self.sweep.fleet.while_waiting if self.sweep.ends_at == math.inf else None
        with Publisher(self._broker, queue, waits) as publish:
            for message in messages:
                if time.monotonic() > self.sweep.ends_at:
                    times = again  # the rest was not published yet: it need not wait
                    break
                if count == 0:  # another sweep at the same time leaves it alone
                    self._note(stage, self._broker.now(), times)
                publish(message)
                count += 1
        if count:
            self._note(stage, self._broker.now(), times)
        return f"published again: {count}" if count else RUNNING

    @property
    def delivering(self) -> Delivering:
        """What is known of its receipts."""
        return self.sweep.receipts.setdefault(self.job.uri, Delivering(self.job.folder))

    @property
    def _broker(self) -> Broker:
        return self.sweep.fleet.broker

    def _noted(self, stage: Stage) -> float | None:
        """When the messages of this stage were published, as far as that was noted."""
        return self.entry.published_at if self.entry is not None and self.entry.stage == stage else None

    def _note(self, stage: Stage, published_at: float, again: int = 0) -> "_Case":
        if self.sweep.fleet.settings.store is None:
            return self
        return replace(self, entry=openjobs.write(self.sweep.store, self.job.folder, stage, published_at, again))


def _is_embedded(folder: JobFolder) -> bool:
    """Whether every batch has its part. Of a job that runs, the last one is missing: no need to list the others."""
    sealed = folder.sealed()
    if sealed is None:
        return folder.is_cancelled() and set(folder.parts()).issuperset(folder.inputs())
    if sealed.batches == 0 or folder.manifest() is not None:
        return True
    return folder.has_part(sealed.batches - 1) and set(folder.parts()).issuperset(range(sealed.batches))
