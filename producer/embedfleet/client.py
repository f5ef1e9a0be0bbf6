"""Fleet: what application code holds. Verbs only; the work is done in submission.py, broker.py and job.py."""

import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from embedfleet import models
from embedfleet.broker import Broker
from embedfleet.contract import JOB_ID, Batch, Batching, EmbedSettings, JobSpec, Request
from embedfleet.errors import ConfigurationError, InputError, NotFound, StoreUnavailable, TextError
from embedfleet.job import Job
from embedfleet.jobfolder import JobFolder, job_id_of, now
from embedfleet.records import Record, check_text, records_of
from embedfleet.settings import FleetSettings, load
from embedfleet.store import open_store
from embedfleet.submission import publish_missing, submit
from embedfleet.tables import read_part, vectors_of

if TYPE_CHECKING:
    import numpy as np

MAX_QUEUE_DEPTH = 100_000
"""Messages of a lane above which submit slows down: 130 MB of the broker's memory, fifty million texts."""
_DEPTH_EVERY = 200  # messages between two looks at the depth
_DEPTH_WAIT_S = 1.0
_MAX_EMBED_BYTES = 1024 * 1024  # texts of one round trip: they travel in the message


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
        self.while_waiting: Callable[[], object] = lambda: None
        """Called every second while ``submit`` waits because the queue is too deep."""

    @cached_property
    def broker(self) -> Broker:
        """The connection to the broker, made when first needed."""
        return Broker(self.settings)

    def submit(
        self,
        records: Iterable[object],
        *,
        settings: EmbedSettings | None = None,
        to: str | None = None,
        key: str | None = None,
    ) -> Job:
        """Embed any number of texts; returns when all are queued, in constant memory.

        ``records``: strings (their id is their position), (id, text) pairs, or mappings with ``id`` and
        ``text``, whose other entries are carried along as strings. ``to``: folder or URI under which the job
        folder is made; default: EMBEDFLEET_STORE. ``key``: idempotency key; submitting again under the same
        key goes on where it stopped and does nothing twice.

        Raises SettingsError, ConfigurationError and BrokerUnavailable before anything is queued; InputError
        at a record that can't be used and JobMismatch at the first difference from an earlier submit. A text
        that can't be embedded is that text's error in the results, never an exception.

        >>> from embedfleet.testing import InMemoryFleet
        >>> with InMemoryFleet() as fleet:
        ...     job = fleet.submit([{"id": "a", "text": "what is a lease?", "lang": "en"}, ("b", "")], key="docs")
        ...     job.wait().totals.texts, [(row["id"], row["error"]) for row in job.rows()]
        (2, [('a', None), ('b', 'empty')])
        """
        return self._submit(records_of(records), settings or EmbedSettings(), to, key)

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
        resolved = models.resolve(settings or EmbedSettings(), self.settings.model)
        _check_embed(texts)
        key = f"{self.settings.queue_prefix}-reply-{uuid.uuid4().hex}"
        expires_at = self.broker.clock() + timeout_s
        request = Request(reply_to=key, settings=resolved, texts=list(texts), expires_at=expires_at)
        self.broker.publish(request, self._queue(resolved, "interactive"))
        table, _ = read_part(self.broker.await_reply(key, timeout_s), "the worker's answer")
        _raise_text_errors(table)
        return vectors_of(table)

    def job(self, job: str) -> Job:
        """A job by its id (in EMBEDFLEET_STORE), or by its folder's path or URI. Raises NotFound."""
        store, _, name = job.rstrip("/").rpartition("/")
        if not re.fullmatch(JOB_ID, name):
            raise NotFound(f"job {job!r}: that is no job's name. It looks like j-0123456789abcdef0123.")
        handle = self._handle(JobFolder(open_store(store or self._store()), name))
        try:
            handle.spec  # noqa: B018 - raises NotFound
        except StoreUnavailable as exc:
            raise NotFound(f"job {name}: {exc}") from None
        return handle

    def republish(self, job: Job) -> None:
        """Publish again every batch of a job that has no part: after a crash lost messages. A duplicate is harmless."""
        publish_missing(job.folder, self._publisher(job.spec.settings))

    def workers(self, model: str | None = None) -> list[str]:
        """Names of the workers of a model that are running, as far as they lately said so."""
        return self.broker.workers(self.broker.queue(model or self.settings.model, "bulk"))

    def close(self) -> None:
        """Close the connections."""
        if "broker" in self.__dict__:
            self.broker.close()

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(
        self,
        records: Iterable[Record],
        settings: EmbedSettings,
        to: str | None,
        key: str | None,
        parent: str | None = None,
    ) -> Job:
        resolved = models.resolve(settings, self.settings.model)
        store = open_store(to or self._store(), make=True)
        store.check_writable()
        self.broker.check()
        folder = JobFolder(store, job_id_of(key if key is not None else uuid.uuid4().hex))
        spec = JobSpec(
            job=folder.job,
            parent=parent,
            created_at=now(),
            settings=resolved,
            revision=self.settings.revision,
            synthetic=self.settings.engine == "synthetic",
            batching=Batching(),
        )
        submit(folder, spec, records, self._publisher(resolved))
        return self._handle(folder)

    def _publisher(self, settings: EmbedSettings) -> "_Publisher":
        return _Publisher(self.broker, self._queue(settings, "bulk"), self.while_waiting)

    def _queue(self, settings: EmbedSettings, lane: str) -> str:
        return self.broker.queue(settings.model or self.settings.model, lane)

    def _handle(self, folder: JobFolder) -> Job:
        def resubmit(key: str, records: Iterator[Record], settings: EmbedSettings, parent: str) -> Job:
            return self._submit(records, settings, folder.store.uri, key, parent)

        return Job(folder, resubmit)

    def _store(self) -> str:
        if self.settings.store is None:
            raise ConfigurationError(
                "no store: set EMBEDFLEET_STORE (`store=`, --store), or name a folder: `to=`, a job by its path."
            )
        return self.settings.store


class _Publisher:
    """Publishes to one queue and slows down while it is too deep."""

    def __init__(self, broker: Broker, queue: str, while_waiting: Callable[[], object]) -> None:
        self._broker = broker
        self._queue = queue
        self._while_waiting = while_waiting
        self._count = 0

    def __call__(self, message: Batch) -> None:
        if self._count % _DEPTH_EVERY == 0:
            while self._broker.depth(self._queue) > MAX_QUEUE_DEPTH:
                self._while_waiting()
                time.sleep(_DEPTH_WAIT_S)
        self._count += 1
        self._broker.publish(message, self._queue)


def _check_embed(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not texts:
        raise InputError("embed: a list of at least one text was expected.")
    errors = {i: f"{reason[0]}: {reason[1]}" for i, text in enumerate(texts) if (reason := check_text(text))}
    _raise(errors)
    if sum(len(text.encode()) for text in texts) > _MAX_EMBED_BYTES:
        raise InputError("embed: the texts are over 1 MiB together. Use submit for as much.")


def _raise_text_errors(table: Any) -> None:
    rows = table.select(["error", "error_message"]).to_pylist()
    _raise({i: f"{row['error']}: {row['error_message']}" for i, row in enumerate(rows) if row["error"] is not None})


def _raise(errors: dict[int, str]) -> None:
    if errors:
        first = next(iter(errors))
        more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
        raise TextError(f"text {first} has no vector: {errors[first]}{more}.", errors)
