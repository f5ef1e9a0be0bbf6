"""Fleet: what application code holds. Verbs only; the work is done in submission.py, broker.py and job.py."""

import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any

from embedfleet import openjobs
from embedfleet.broker import Broker, connect
from embedfleet.chunking import check_round_trip
from embedfleet.company import Company
from embedfleet.contract import JOB_ID, Batching, EmbedSettings, JobSpec, Request
from embedfleet.destinations import Target, parse_callback
from embedfleet.errors import BrokerUnavailable, ConfigurationError, NotFound, StoreUnavailable
from embedfleet.fewtexts import check_embed, embeddings, few_records
from embedfleet.job import Job
from embedfleet.jobfolder import JobFolder, job_id_of, now
from embedfleet.publishing import Publisher
from embedfleet.records import Record, records_of
from embedfleet.settings import FleetSettings, load
from embedfleet.store import Store, open_store
from embedfleet.submission import check_expiry, enqueue, publish_missing, publish_undelivered, submit
from embedfleet.tables import PartInfo, read_part

if TYPE_CHECKING:
    import numpy as np


class Fleet:
    """A fleet of embedding workers, reached through its broker. Thread-safe; make one per process.

    Arguments are those of :class:`~embedfleet.settings.FleetSettings`; what is not given comes from
    EMBEDFLEET_* variables, ``.env`` and ``embedfleet.toml``. Raises ConfigurationError.

    >>> fleet = Fleet(broker_url="redis://localhost:6379/0", store="/tmp/vectors")
    >>> fleet.settings.model
    'sentence-transformers/all-MiniLM-L6-v2'
    """

    def __init__(self, **settings: Any) -> None:
        self.settings: FleetSettings = load(**settings)
        self._stores: dict[str, Store] = {}
        self._connected: tuple[int, Broker] | None = None
        self._company = Company()
        self.while_waiting: Callable[[], object] = lambda: None
        """Called every second while ``submit`` waits because the queue is too deep."""

    @property
    def broker(self) -> Broker:
        """The connection to the broker, made when first needed; anew in a forked process, which must not share it."""
        connected = self._connected
        if connected is None or connected[0] != os.getpid():
            self._connected = connected = (os.getpid(), self._connect())
        return connected[1]

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
    ) -> Job:
        """Embed any number of texts; returns when all are queued, in constant memory.

        ``records``: strings (their id is their position), (id, text) pairs, or mappings with ``id`` and
        ``text``, whose other entries are carried along as strings. ``to``: folder or URI under which the job
        folder is made; default: EMBEDFLEET_STORE. ``key``: idempotency key; submitting again under the same
        key goes on where it stopped and does nothing twice. ``deliver_to``: where the vectors go after the store.
        ``expires_in_s``: texts whose batch no worker has begun by then get the error ``expired``; a job that is gone on
        with keeps its first expiry, and a retry has none.
        ``callback``: a URL that is told once the job is finished, by a signed webhook; it needs EMBEDFLEET_STORE.

        Raises SettingsError, ConfigurationError and BrokerUnavailable before anything is queued; InputError
        at a record that can't be used and JobMismatch at the first difference from an earlier submit. A text
        that can't be embedded is that text's error in the results, never an exception.

        >>> from embedfleet.testing import InMemoryFleet
        >>> with InMemoryFleet() as fleet:
        ...     job = fleet.submit([{"id": "a", "text": "what is a lease?", "lang": "en"}, ("b", "")], key="docs")
        ...     job.wait().totals.texts, [(row["id"], row["error"]) for row in job.rows()]
        (2, [('a', None), ('b', 'empty')])
        """
        folder, spec = self._begin(settings, to, key, deliver_to, callback, expires_in_s=expires_in_s)
        self._submit(folder, spec, records_of(records))
        return Job(folder, self)

    def enqueue(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        settings: EmbedSettings | None = None,
        to: str | None = None,
        key: str | None = None,
        deliver_to: Sequence[Target] = (),
        expires_in_s: float | None = None,
        callback: str | None = None,
    ) -> Job:
        """Embed a few texts, from application code: a job of one batch and one message.

        The texts are in ``job.json``: 200 KB at most. ``ids``: one a text; default: their positions. What else is
        given, and raised, is as with :meth:`submit`. Returns when the message is queued; ``job.wait()`` waits.

        >>> from embedfleet.testing import InMemoryFleet
        >>> with InMemoryFleet() as fleet:
        ...     job = fleet.enqueue(["what is a lease?", "what is a lane?"], ids=["q-1", "q-2"])
        ...     job.wait().totals.texts, [row["id"] for row in job.rows()]
        (2, ['q-1', 'q-2'])
        """
        records = few_records(texts, ids)
        folder, spec = self._begin(settings, to, key, deliver_to, callback, expires_in_s=expires_in_s)
        try:
            # Noted before the message only: an application that enqueues all day shall write one object less a job.
            queue = self.broker.queue_of(spec)
            before_first = partial(self._before_first, folder, queue, spec.settings.model)
            with Publisher(self.broker, queue, None, before_first) as publish:
                enqueue(folder, spec, records, publish)
        except BrokerUnavailable as exc:
            said = f"job {folder.job}: it is written, and its message was not sent: {exc} Enqueue it again under the"
            raise BrokerUnavailable(f"{said} same key, or let `embedfleet reconcile` send it.") from None
        return Job(folder, self)

    def embed(
        self,
        texts: Sequence[str],
        *,
        settings: EmbedSettings | None = None,
        timeout_s: float = 60.0,
    ) -> "np.ndarray[Any, Any]":
        """Vectors of a few texts, straight back: an array (texts, dimensions), unit norm, in the order of ``texts``.

        Overtakes bulk work at the queue, leaves no job folder, and is as durable as the broker. Raises
        TextError naming the positions of texts without a vector, WaitTimeout after ``timeout_s``,
        SettingsError, InputError and BrokerUnavailable.

        >>> from embedfleet.testing import InMemoryFleet
        >>> with InMemoryFleet() as fleet:
        ...     fleet.embed(["what is a lease?", "what is a lane?"]).shape
        (2, 384)
        """
        answer, _ = self.answer(texts, settings, timeout_s, Event())
        return embeddings(answer)

    def answer(
        self, texts: Sequence[str], settings: EmbedSettings | None, timeout_s: float, abandoned: Event
    ) -> tuple[Any, PartInfo]:
        """The part that a worker makes for :meth:`embed`. Given up within 2 s once its caller sets ``abandoned``."""
        resolved = self.settings.resolve(settings or EmbedSettings())
        check_round_trip(resolved)
        check_embed(texts)
        key = self.broker.reply_key()
        expires_at = self.broker.clock() + timeout_s
        request = Request(reply_to=key, settings=resolved, texts=list(texts), expires_at=expires_at)
        queue = self._queue(resolved, "interactive")
        self._company.look_for(self.broker, queue, str(resolved.model))
        self.broker.publish(request, queue)
        return read_part(self.broker.await_reply(key, timeout_s, abandoned), "the worker's answer")

    def job(self, job: str) -> Job:
        """A job by its id (in EMBEDFLEET_STORE), or by its folder's path or URI. Raises NotFound."""
        store, _, name = job.rstrip("/").rpartition("/")
        if not re.fullmatch(JOB_ID, name):
            raise NotFound(f"job {job!r}: that is no job's name. It looks like j-0123456789abcdef0123.")
        handle = Job(JobFolder(open_store(store or self._store()), name), self)
        try:
            handle.spec  # noqa: B018 - raises NotFound
        except StoreUnavailable as exc:
            if handle.uri.startswith("s3:"):  # it may be there again in a moment; a folder that is no store is none
                raise
            raise NotFound(f"job {name}: {exc}") from None
        return handle

    def republish(self, job: Job) -> int:
        """Publish again every batch of a job that is not settled; how many there were. A duplicate is harmless."""
        with self._publisher(job.folder, self.broker.queue_of(job.spec), job.spec.settings.model) as publish:
            return publish_missing(job.folder, publish)

    def resubmit(self, key: str, records: Iterator[Record], settings: EmbedSettings, parent: Job) -> Job:
        """The child job of a retry; it goes where its parent went. :meth:`Job.retry` calls this."""
        begun = JobFolder(parent.folder.store, job_id_of(key))
        destinations = begun.spec().deliver_to if begun.exists() else parent.folder.destinations()
        folder, spec = self._begin(settings, parent.folder.store.uri, key, destinations, parent=parent.id)
        self._submit(folder, spec, records)
        return Job(folder, self)

    def send_on(self, job: Job, destination: Target) -> None:
        """Queue the deliveries that a destination has not confirmed. :meth:`Job.deliver` calls this."""
        self.broker.check(self.broker.deliver_queue)
        self._note(job.folder, "deliver")
        job.folder.add_destination(destination)
        with self._publisher(job.folder, self.broker.deliver_queue) as publish:
            publish_undelivered(job.folder, destination.name, publish, self.broker.now())

    def workers(self, model: str | None = None) -> list[str] | None:
        """Names of the workers of a model that are running, as far as they lately said so; None: SQS can't say."""
        return self.broker.workers(self._queue(EmbedSettings(model=model), "bulk"))

    def deliverers(self) -> list[str] | None:
        """Names of the workers that deliver, as with :meth:`workers`."""
        return self.broker.workers(self.broker.deliver_queue)

    def close(self) -> None:
        """Close the connections."""
        if self._connected is not None and self._connected[0] == os.getpid():
            self._connected[1].close()

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(
        self,
        settings: EmbedSettings | None,
        to: str | None,
        key: str | None,
        deliver_to: Sequence[Target],
        callback: str | None = None,
        parent: str | None = None,
        expires_in_s: float | None = None,
    ) -> tuple[JobFolder, JobSpec]:
        """The folder and job.json of a new job, after everything that can be checked was."""
        told = parse_callback(callback) if callback is not None else None
        if told and self.settings.store is None:
            raise ConfigurationError("callback: no store. Set EMBEDFLEET_STORE: it names the jobs to look after.")
        resolved = self.settings.resolve(settings or EmbedSettings())
        check_expiry(expires_in_s)
        store = self._writable(to or self._store())
        if self.settings.store is not None:
            self._writable(self.settings.store)  # it names the open jobs
        self.broker.check(self._queue(resolved, "bulk"), *([self.broker.deliver_queue] if deliver_to else []))
        expires_at = self.broker.clock() + expires_in_s if expires_in_s is not None else None
        folder = JobFolder(store, job_id_of(key if key is not None else uuid.uuid4().hex))
        spec = JobSpec(
            job=folder.job,
            parent=parent,
            created_at=now(),
            settings=resolved,
            revision=self.settings.revision,
            synthetic=self.settings.engine == "synthetic",
            deliver_to=tuple({destination.name: destination for destination in deliver_to}.values()),
            batching=Batching(),
            expires_at=expires_at,
            callback=told,
        )
        return folder, spec

    def _note(self, folder: JobFolder, stage: openjobs.Stage = "embed", within_s: float = openjobs.SOON_S) -> None:
        """Name the job as open in the fleet's store: the janitor looks there."""
        if self.settings.store is not None:
            openjobs.note(self._writable(self.settings.store), self.broker, folder, stage, within_s)

    def _writable(self, uri: str) -> Store:
        """A store that was tried once: an application that enqueues all day keeps its connections."""
        found = self._stores.get(uri)
        if found is None:
            found = open_store(uri, make=True)
            found.check_writable()
            self._stores[uri] = found
        return found

    def _submit(self, folder: JobFolder, spec: JobSpec, records: Iterator[Record]) -> None:
        with self._publisher(folder, self.broker.queue_of(spec), spec.settings.model) as publish:
            submit(folder, spec, records, publish, publish.sent)

    def _publisher(self, folder: JobFolder, queue: str, model: str | None = None) -> Publisher:
        """Notes the job as open: before the first message, and when all are published. No ``model``: deliveries."""

        def after_last() -> None:
            with suppress(StoreUnavailable):  # all is done; what was noted before the first message stands
                self._note(folder, "embed" if model else "deliver", within_s=0)

        before_first = partial(self._before_first, folder, queue, model)
        return Publisher(self.broker, queue, self.while_waiting, before_first, after_last)

    def _before_first(self, folder: JobFolder, queue: str, model: str | None) -> None:
        self._note(folder, "embed" if model else "deliver")
        if model:
            self._company.look_for(self.broker, queue, model)

    def _queue(self, settings: EmbedSettings, lane: str) -> str:
        return self.broker.queue(settings.model or self.settings.model, lane)

    def _connect(self) -> Broker:
        return connect(self.settings)

    def _store(self) -> str:
        if self.settings.store is None:
            said = "no store: set EMBEDFLEET_STORE (`store=`, --store), or name a folder: `to=`, a job by its path."
            raise ConfigurationError(said)
        return self.settings.store
