"""A handle on a job: status, wait, watch, results, retry, cancel. Everything is read from its folder."""

import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from embedfleet import outcomes, reembedding
from embedfleet.contract import EmbedSettings, JobSpec, Overflow, Sealed
from embedfleet.delivering import Delivering, DeliveryStatus
from embedfleet.destinations import Target
from embedfleet.errors import NotFinished, StoreUnavailable, WaitTimeout
from embedfleet.jobfolder import JobFolder, job_id_of
from embedfleet.jobstatus import JobStatus, PartsSeen, State, unfinished
from embedfleet.records import Record
from embedfleet.settings import FleetSettings

if TYPE_CHECKING:
    import pyarrow.dataset

_POLL_FIRST_S, _POLL_S = 0.02, 0.5


class Fleet(Protocol):
    """What a job needs of the fleet that handed it out."""

    settings: FleetSettings

    def submit(
        self,
        records: Iterable[object],
        *,
        settings: EmbedSettings | None = None,
        to: str | None = None,
        key: str | None = None,
        deliver_to: Sequence[Target] = (),
        expires_in_s: float | None = None,
        callback: str | None = None,
    ) -> "Job":
        """A new job."""

    def resubmit(self, key: str, records: Iterator[Record], settings: EmbedSettings, parent: "Job") -> "Job":
        """The child job of a retry."""

    def send_on(self, job: "Job", destination: Target) -> None:
        """Queue the deliveries that were not confirmed."""


class Job:
    """One job. Get it from ``Fleet.submit`` or ``Fleet.job``. Thread-safe.

    >>> from embedfleet.testing import InMemoryFleet
    >>> with InMemoryFleet() as fleet:
    ...     job = fleet.submit(["a text", "word " * 2000])
    ...     status = job.wait(timeout_s=10)
    ...     status.state, status.totals.errors, job.error_counts()["too_long"]
    ...     job.results().to_table(columns=["id", "truncated"]).num_rows
    ...     child = job.retry(on_overflow="truncate")
    ...     [row["error"] for row in job.rows()]
    ('done', 1, 1)
    2
    [None, None]
    """

    def __init__(self, folder: JobFolder, fleet: Fleet) -> None:
        self.folder = folder
        self._fleet = fleet
        self._seen = PartsSeen()
        self._delivering = Delivering(folder)
        self._sealed: Sealed | None = None
        self._closed = False
        self._lock = threading.Lock()  # a part is counted once, whoever else looks

    def __repr__(self) -> str:
        return f"Job({self.folder.uri!r})"

    @property
    def id(self) -> str:
        """The job's id, which is its folder's name."""
        return self.folder.job

    @property
    def uri(self) -> str:
        """The job folder's URI."""
        return self.folder.uri

    @property
    def spec(self) -> JobSpec:
        """``job.json``. Raises NotFound."""
        return self.folder.spec()

    def status(self) -> JobStatus:
        """Where the job is, from its folder. Whoever first sees every part writes the manifest. Raises NotFound."""
        self.spec  # noqa: B018 - raises NotFound for a folder that holds no job
        with self._lock:
            if self._sealed is None:
                self._sealed = self.folder.sealed()
                self._read_manifest()
            for number in self.folder.parts(self._seen.low):
                if number not in self._seen.numbers:
                    self._seen.add(number, self.folder.part_info(number))
            embedded = self._has_every_part() and (self._sealed is not None or self.folder.is_cancelled())
            deliveries = self._delivering.status() if embedded else ()
            state, finished = self._state(embedded, deliveries)
            return JobStatus(
                job=self.id,
                state=state,
                embedded=embedded,
                finished=finished,
                deliveries=deliveries,
                batches_done=len(self._seen.numbers),
                batches=self._sealed.batches if self._sealed else None,
                texts=self._sealed.texts if self._sealed else None,
                totals=self._seen.totals.model_copy(),
            )

    def watch(self) -> Iterator[JobStatus]:
        """The job's status, again and again until it is finished; the last one says so.

        Looks often at first and every half second later: short jobs end at once, long ones cost nothing.
        """
        for pause_s in self.pauses_s():
            status = self.status()
            yield status
            if status.finished:
                return
            time.sleep(pause_s)

    def pauses_s(self) -> Iterator[float]:
        """How long to wait between two looks, without an end."""
        begun = time.monotonic()
        while True:
            yield min(max((time.monotonic() - begun) / 20, _POLL_FIRST_S), _POLL_S)

    def wait(self, timeout_s: float | None = None) -> JobStatus:
        """Wait until the job is done or cancelled. Raises WaitTimeout; the job goes on then."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        for status in self.watch():
            if status.finished:
                return status
            if end is not None and time.monotonic() > end:
                raise WaitTimeout(unfinished(self.id, status, timeout_s))
        raise AssertionError("watch ends with a finished status")

    def results(self) -> "pyarrow.dataset.Dataset":
        """Every outcome so far as a pyarrow Dataset, a row a text or chunk, in no particular order.

        Columns: id, chunk, embedding (fixed-size list), n_tokens, truncated, cached, error, error_message, chunk_start,
        chunk_end, tokens_in. The chain of retries is followed in both directions: a later outcome replaces the earlier
        one of its text.
        """
        return outcomes.dataset([job.folder for job in self.chain()])

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every outcome so far with the columns that were carried along, a dict a text or chunk, batch by batch."""
        return outcomes.rows([job.folder for job in self.chain()])

    def error_counts(self) -> Counter[str]:
        """How many texts of this job, without its retries, have which error so far."""
        return outcomes.error_counts([self.folder])

    def errors_left(self) -> Counter[str]:
        """How many texts have which error so far, after this job's retries."""
        return outcomes.error_counts([job.folder for job in self.chain()])

    def retry(self, *, on_overflow: Overflow | None = None) -> "Job | None":
        """Submit the failed texts again as a child job, with another overflow policy if given.

        None if no text failed that could do better. The last job of a chain of retries is the one that is
        retried; a retry that was begun and has not ended is gone on with. Raises NotFinished while the first
        job runs, JobMismatch for another policy than the retry that is gone on with was begun with.
        """
        *earlier, last = self.chain()
        status = last.status()
        if not status.embedded and not earlier:
            raise NotFinished(
                f"job {last.id}: {status.batches_done} of {status.batches or '?'} batches have an outcome. "
                "Retry it when all have."
            )
        parent = last if status.embedded else earlier[-1]
        settings = last.spec.settings
        if on_overflow is not None:
            chunking = settings.chunking if on_overflow == "chunk" else None
            settings = settings.model_copy(update={"on_overflow": on_overflow, "chunking": chunking})
        # What is too long for chunks too, as a character of more tokens than one holds, always will be.
        hopeless = settings.on_overflow == "error" or settings.on_overflow == parent.spec.settings.on_overflow
        failed = outcomes.failed(parent.folder, may_overflow=not hopeless)
        first = next(failed, None)
        if first is None:
            return None
        return self._fleet.resubmit(_retry_key(parent.id), itertools.chain([first], failed), settings, parent)

    def reembed(
        self,
        *,
        settings: EmbedSettings | None = None,
        to: str | None = None,
        key: str | None = None,
        deliver_to: Sequence[Target] = (),
        expires_in_s: float | None = None,
        callback: str | None = None,
    ) -> "Job":
        """Submit the same inputs as a new job: every text, with its id and columns, also those that have an error.

        What ``settings`` does not set stays as it was; of another model dimensions and instruction are that model's.
        ``to``: default: the job's store. ``key``: default: made from the job and the settings, so that the same call
        goes on where it stopped. The rest is as with :meth:`Fleet.submit`. The job need not be finished.

        Raises NotFinished while the job is not sealed, JobMismatch for settings and a store that are the same as its
        own without a key, and what submit raises.
        """
        new = reembedding.plan(self, settings, self._fleet.settings, to=to, key=key)
        return self._fleet.submit(
            new.records(),
            settings=new.settings,
            to=new.to,
            key=new.key,
            deliver_to=deliver_to,
            expires_in_s=expires_in_s,
            callback=callback,
        )

    def deliver(self, destination: Target) -> None:
        """Send the parts on, without embedding: those that this destination has not confirmed yet, of retries too.

        Raises NotFinished while batches have no outcome, BrokerUnavailable. ``wait`` waits for the deliveries too, of
        each job of the :meth:`chain` for its own.
        """
        for job in self.chain():
            status = job.status()
            if not status.embedded:
                raise NotFinished(
                    f"job {job.id}: {status.batches_done} of {status.batches or '?'} batches have an outcome. "
                    "Send it on when all have."
                )
        for job in self.chain():
            self._fleet.send_on(job, destination)

    def cancel(self) -> JobStatus:
        """Stop the job: batches that no worker has begun end with the error ``cancelled``. Raises NotFound.

        A job whose batches all have their outcome is not: its deliveries go on.
        """
        status = self.status()
        if not status.embedded:
            self.folder.cancel()
        return self.status()

    def _has_every_part(self) -> bool:
        """Of a job that was never sealed: for every input there is."""
        if self._sealed is not None:
            return self._seen.numbers.issuperset(range(self._sealed.batches))
        return self._seen.numbers.issuperset(self.folder.inputs())

    def _state(self, embedded: bool, deliveries: Sequence[DeliveryStatus]) -> tuple[State, bool]:
        """The state, and whether nothing more will come."""
        if not embedded:
            state: State = "open" if self._sealed is None else "running"
            return ("cancelled", False) if self.folder.is_cancelled() else (state, False)
        if self._sealed is not None:
            self._close(self._sealed.batches)
        parts = len(self._seen.numbers)
        delivered = all(delivery.confirmed + delivery.dead >= parts for delivery in deliveries)
        if self.folder.is_cancelled():
            return "cancelled", delivered
        return ("done", True) if delivered else ("embedded", False)

    def _read_manifest(self) -> None:
        """What a finished job's manifest says need not be counted again."""
        manifest = self.folder.manifest() if self._sealed is not None else None
        if manifest is not None:
            self._seen = PartsSeen(set(range(manifest.batches)), manifest.batches - 1, manifest.totals)
            self._closed = True

    def _close(self, batches: int) -> None:
        if not self._closed:
            with contextlib.suppress(StoreUnavailable):  # whoever only reads may not write
                self.folder.write_manifest(batches, self._seen.totals, list(self._seen.provenance.values()))
        self._closed = True

    def chain(self) -> "list[Job]":
        """This job with its parents and its retries, oldest first."""
        chain = [self]
        while (parent := chain[0].spec.parent) is not None:
            chain.insert(0, self._sibling(parent))
        while (child := self._sibling(job_id_of(_retry_key(chain[-1].id)))).folder.exists():
            chain.append(child)
        return chain

    def _sibling(self, job: str) -> "Job":
        return Job(JobFolder(self.folder.store, job), self._fleet)


def _retry_key(job: str) -> str:
    """A job has one retry, whoever asks for it and however often; that one may have the next."""
    return f"retry\0{job}"
