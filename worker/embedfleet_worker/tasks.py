"""What a message leads to: pipeline → part, handed over, or reply. Not how a task ends (settling.py)."""

import logging
import time
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from embedfleet import models
from embedfleet.broker import Broker
from embedfleet.contract import Batch, EmbedSettings, JobSpec, Request
from embedfleet.errors import ContractError, DeadlineExceeded, EngineFailed, EngineUnavailable, NotFound, Permanent
from embedfleet.jobfolder import JobFolder, delivery
from embedfleet.redis import RedisBroker
from embedfleet.store import check_allowed, open_store
from embedfleet.tables import Input, Outcome, Outcomes, write_part
from embedfleet_worker import logs, telemetry
from embedfleet_worker.engine.base import Priority
from embedfleet_worker.pipeline import Pipeline, Problem
from embedfleet_worker.settling import STORE_POLICY, Turns, dead_letter, log_defect, settle
from embedfleet_worker.starts import Counts, FolderCounts, Hopeless, RedisCounts, Starts

log = logging.getLogger(__name__)

_WIDEST = 65_536  # more dimensions than any model has


@dataclass(frozen=True)
class Tasks:
    """The two kinds of work of a worker."""

    pipeline: Pipeline
    broker: Broker
    model: str
    allowed_stores: tuple[str, ...]
    metrics: telemetry.Metrics = field(default_factory=telemetry.Metrics)
    starts: Starts = field(default_factory=Starts)
    turns: Turns = field(default_factory=Turns)

    def embed(self, message: object, times: int = 1) -> None:
        """One batch of a job: a part when this returns, or a dead letter. Raises GiveBack only."""
        with self.metrics.batch("bulk"), logs.about():
            settle(self.broker, partial(self._embed, times=times), message, self.broker.queue(self.model, "bulk"))

    def answer(self, message: object, times: int = 1) -> None:  # noqa: ARG002 - SQS has no answers
        """A round trip: the answer where the caller waits for it. Raises GiveBack only."""
        with self.metrics.batch("interactive"), logs.about():
            settle(self.broker, self._answer, message, self.broker.queue(self.model, "interactive"))

    def _embed(self, message: object, times: int) -> None:
        batch = Batch.parse(message, "message")
        logs.bind(job=batch.job, batch=batch.batch)
        folder = JobFolder(open_store(check_allowed(batch.to, self.allowed_stores)), batch.job)
        name = f"{batch.job}/{batch.batch}"
        with self.turns.turn(f"{batch.to}/{name}"):
            if not folder.has_part(batch.batch):
                self._commit(folder, batch, self._counts(name) or FolderCounts(folder, batch.batch, times))
            self._hand_over(folder, batch.batch)

    def _answer(self, message: object) -> None:
        request = Request.parse(message, "message")
        if self.broker.clock() > request.expires_at:
            telemetry.ended(telemetry.EXPIRED)
            return  # nobody waits any more
        outcomes = self._request_outcomes(request)
        with self.metrics.stage("write"):
            self.broker.reply(request.reply_to, write_part(outcomes, request.settings.encoding, "embed", 0))
        self.metrics.written(outcomes)

    def _request_outcomes(self, request: Request) -> Outcomes:
        """A request that can't be done is answered too: its caller waits."""
        ids = [str(row) for row in range(len(request.texts))]
        try:
            self._check_model(request.settings)
            settings = models.resolve(request.settings, self.model)
        except Permanent as exc:
            return _failed(ids, request.settings, ("dead_letter", str(exc)))
        counts = self._counts(request.reply_to)
        assert counts is not None  # noqa: S101 - only Redis carries requests
        try:
            with self.starts.start(counts) as alone:
                return self._outcomes(ids, list(request.texts), settings, Priority.INTERACTIVE, {}, alone=alone)
        except Hopeless as exc:
            return _failed(ids, request.settings, ("dead_letter", str(exc)))

    def _commit(self, folder: JobFolder, batch: Batch, counts: Counts) -> None:
        """Admit, prepare, embed, commit."""
        begun = time.monotonic()
        spec = folder.spec()
        self._check_model(spec.settings)
        self._check_spec(spec)
        hopeless: Permanent | None = None
        try:
            with self.starts.start(counts) as alone:
                with self.metrics.stage("read"):
                    given = STORE_POLICY.copy()(folder.input, batch.batch)
                outcomes = self._batch_outcomes(folder, given, spec.settings, alone=alone)
        except (Hopeless, ContractError, NotFound) as exc:
            hopeless = exc
            outcomes = _dead(folder, batch.batch, spec.settings, exc)
        with self.metrics.stage("write"):
            part = write_part(outcomes, spec.settings.encoding, folder.job, batch.batch)
            written = STORE_POLICY.copy()(folder.write_part, batch.batch, part)
        if hopeless is not None:
            counts.clear()
            queue = self.broker.queue(self.model, "bulk")
            dead_letter(self.broker, batch.model_dump(), str(hopeless), queue, part=True)
        self._said(outcomes, time.monotonic() - begun, first=written)

    def _said(self, outcomes: Outcomes, seconds: float, *, first: bool) -> None:
        counts = outcomes.totals().model_dump()
        what = "batch done" if first else "batch done (another worker was first)"
        log.info(what, extra={**counts, "seconds": round(seconds, 3)})
        self.metrics.written(outcomes, first=first)

    def _counts(self, name: str) -> Counts | None:
        """Where starts are counted; None on SQS, where a batch's job folder has to do."""
        if isinstance(self.broker, RedisBroker):
            return RedisCounts(self.broker, self.broker.queue(self.model, "bulk"), name)
        return None

    def _hand_over(self, folder: JobFolder, number: int) -> None:
        """Have the part delivered. Done again after a crash: a delivery that has its receipt is not repeated."""
        for destination in folder.spec().deliver_to:
            receipt = folder.receipt(destination.name, number)
            if receipt is None or receipt.state == "waiting":
                self.broker.publish(delivery(folder, number, destination.name), self.broker.deliver_queue)

    def _batch_outcomes(self, folder: JobFolder, given: Input, settings: EmbedSettings, *, alone: bool) -> Outcomes:
        """Every end of a batch is outcomes: vectors, cancelled, or settings that this worker can't satisfy."""
        if folder.is_cancelled():
            return _failed(given.ids, settings, ("cancelled", "the job was cancelled before this text was embedded"))
        try:
            resolved = models.resolve(settings, self.model)
        except Permanent as exc:
            return _failed(given.ids, settings, ("dead_letter", str(exc)))
        return self._outcomes(given.ids, given.texts, resolved, Priority.BULK, given.info.rejected, alone=alone)

    def _check_model(self, settings: EmbedSettings) -> None:
        if settings.model != self.model:
            raise ContractError(f"model {settings.model!r}: this worker runs {self.model!r} and embeds for no other.")

    def _check_spec(self, spec: JobSpec) -> None:
        """Messages of one queue, but for mistakes, agree with its workers."""
        mine = self.pipeline.identity
        if spec.revision != mine.revision:
            raise ContractError(
                f"revision {spec.revision!r}: this worker has {mine.revision!r} and embeds for no other."
            )
        if spec.synthetic != (mine.engine == "synthetic"):
            raise ContractError(f"engine: this worker's is {mine.engine!r}, and the job wants another kind.")

    def _outcomes(
        self,
        ids: list[str],
        texts: list[str | None],
        settings: EmbedSettings,
        priority: Priority,
        rejected: dict[int, Problem],
        *,
        alone: bool,  # noqa: ARG002 - soon
    ) -> Outcomes:
        """The pipeline's outcomes; a defect of ours becomes the error of each text, and is logged."""
        try:
            return self.pipeline.run(ids, texts, settings, priority=priority, rejected=rejected)
        except (EngineUnavailable, EngineFailed, DeadlineExceeded):
            raise
        except Exception as exc:
            log_defect("batch", exc)
            problem: Problem = ("internal_error", f"its batch failed in the worker ({type(exc).__name__}); see its log")
            return _failed(ids, settings, problem)


def _dead(folder: JobFolder, number: int, settings: EmbedSettings, reason: Permanent) -> Outcomes:
    """The outcomes of a batch that can't be done. Raises the reason when it is none of the job's."""
    try:
        ids = STORE_POLICY.copy()(folder.input, number).ids
    except (ContractError, NotFound):
        sealed = folder.sealed()
        if sealed is None or number >= sealed.batches:
            raise reason from None
        ids = [f"input/{number:08d}.parquet"]  # nobody can say any more which texts it held
    return _failed(ids, settings, ("dead_letter", str(reason)))


def _failed(ids: list[str], settings: EmbedSettings, problem: Problem) -> Outcomes:
    rows = [Outcome(record_id, error=problem) for record_id in ids]
    dimensions = settings.dimensions or 1  # perhaps refused because nobody has as many
    return Outcomes(rows, np.zeros((len(rows), dimensions if dimensions <= _WIDEST else 1), np.float32))
