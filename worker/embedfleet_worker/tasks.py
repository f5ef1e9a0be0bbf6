"""What a message leads to: pipeline → part, handed over, or reply. Not how a task ends (settling.py)."""

import logging
import time
from dataclasses import dataclass, field
from functools import partial

from embedfleet import models, policies
from embedfleet.broker import Broker
from embedfleet.chunking import check_round_trip
from embedfleet.contract import Batch, EmbedSettings, JobSpec, Request
from embedfleet.errors import ContractError, DeadlineExceeded, NotFound, Permanent, Retryable, SettingsError
from embedfleet.jobfolder import JobFolder, delivery
from embedfleet.redis import RedisBroker
from embedfleet.settings import DEADLINE_S
from embedfleet.store import check_allowed, open_store
from embedfleet.tables import Input, InputInfo, Outcomes, write_part
from embedfleet_worker import logs, telemetry
from embedfleet_worker.burial import dead_outcomes, failed
from embedfleet_worker.engine.base import Priority
from embedfleet_worker.pipeline import Pipeline, Problem
from embedfleet_worker.settling import Turns, dead_letter, log_defect, settle
from embedfleet_worker.starts import Hopeless, Starts
from embedfleet_worker.transport.counts import Counts, RedisCounts, counts_of_batch

log = logging.getLogger(__name__)


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
    deadline_s: float = DEADLINE_S

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
        with self.turns.turn(f"{batch.to}/{batch.job}/{batch.batch}"):
            counts = counts_of_batch(self.broker, self.broker.queue(self.model, "bulk"), folder, batch.batch, times)
            if folder.has_part(batch.batch):
                counts.clear()  # who wrote it died before it could
            else:
                self._commit(folder, batch, counts)
            self._hand_over(folder, batch.batch)

    def _answer(self, message: object) -> None:
        request = Request.parse(message, "message")
        assert isinstance(self.broker, RedisBroker)  # noqa: S101 - only Redis carries requests
        counts = RedisCounts(self.broker, self.broker.queue(self.model, "bulk"), request.reply_to)
        if request.expires_at < self.broker.clock():
            counts.clear()
            telemetry.ended(telemetry.EXPIRED)
            return  # nobody waits any more
        ids = [str(row) for row in range(len(request.texts))]
        given = Input(ids, list(request.texts), InputInfo(sha256="", tokens=0, rejected={}))
        try:
            self._check_model(request.settings)
            settings = models.resolve(request.settings, self.model)
            check_round_trip(settings)
            with self.starts.start(counts) as alone:  # until it is answered: that too may end the worker
                self._reply(request, self._in_time(request, given, settings, alone=alone))
        except Permanent as exc:  # a request that can't be done is answered too: its caller waits
            self._reply(request, failed(ids, 1, ("dead_letter", str(exc))))
            counts.clear()

    def _reply(self, request: Request, outcomes: Outcomes) -> None:
        with self.metrics.stage("write"):
            self.broker.reply(request.reply_to, write_part(outcomes, request.settings.encoding, "embed", 0))
        self.metrics.written(outcomes)

    def _in_time(self, request: Request, given: Input, settings: EmbedSettings, *, alone: bool) -> Outcomes:
        """What takes longer than its caller waits is nobody's fault, and is not tried again."""
        left_s = request.expires_at - self.broker.now()  # it may have waited for company to leave
        try:
            if left_s > 0:
                deadline_s = min(self.deadline_s, left_s)
                return self._outcomes(given, settings, Priority.INTERACTIVE, deadline_s, alone=alone)
        except DeadlineExceeded:
            if left_s > self.deadline_s:
                raise
        return failed(given.ids, 1, ("expired", "it took longer than its caller waits"))

    def _commit(self, folder: JobFolder, batch: Batch, counts: Counts) -> None:
        """Admit, prepare, embed, commit."""
        begun = time.monotonic()
        spec = folder.spec()
        self._check_model(spec.settings)
        self._check_spec(spec)
        try:
            with self.starts.start(counts) as alone:  # until the part is written: that too may end the worker
                with self.metrics.stage("read"):
                    given = policies.STORE(folder.input, batch.batch)
                outcomes = self._batch_outcomes(folder, given, spec, alone=alone)
                written = self._write(folder, batch.batch, spec, outcomes)
        except (Hopeless, ContractError, NotFound) as exc:
            outcomes = dead_outcomes(folder, batch.batch, spec.settings, exc)
            queue = self.broker.queue(self.model, "bulk")  # first: who finds the part writes no letter
            dead_letter(self.broker, batch.model_dump(), str(exc), queue, part=True)
            written = self._write(folder, batch.batch, spec, outcomes)
            counts.clear()
        self._said(outcomes, time.monotonic() - begun, first=written)

    def _write(self, folder: JobFolder, number: int, spec: JobSpec, outcomes: Outcomes) -> bool:
        with self.metrics.stage("write"):
            part = write_part(outcomes, spec.settings.encoding, folder.job, number)
            return policies.STORE(folder.write_part, number, part)

    def _said(self, outcomes: Outcomes, seconds: float, *, first: bool) -> None:
        counts = outcomes.totals().model_dump()
        what = "batch done" if first else "batch done (another worker was first)"
        log.info(what, extra={**counts, "seconds": round(seconds, 3)})
        self.metrics.written(outcomes, first=first)

    def _hand_over(self, folder: JobFolder, number: int) -> None:
        """Have the part delivered. Done again after a crash: a delivery that has its receipt is not repeated."""
        for destination in folder.spec().deliver_to:
            receipt = folder.receipt(destination.name, number)
            if receipt is None or receipt.state == "waiting":
                self.broker.hand_over(delivery(folder, number, destination.name), self.broker.deliver_queue)

    def _batch_outcomes(self, folder: JobFolder, given: Input, spec: JobSpec, *, alone: bool) -> Outcomes:
        """Every end of a batch is outcomes: vectors, cancelled, expired, or settings that this worker can't satisfy."""
        fail = partial(failed, given.ids, spec.settings.dimensions)
        if folder.is_cancelled():
            return fail(("cancelled", "the job was cancelled before this text was embedded"))
        if spec.expires_at is not None and self.broker.clock() > spec.expires_at:
            return fail(("expired", "the job expired before this text was embedded"))
        try:
            resolved = models.resolve(spec.settings, self.model)
        except Permanent as exc:
            return fail(("dead_letter", str(exc)))
        return self._outcomes(given, resolved, Priority.BULK, self.deadline_s, alone=alone)

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
        self, given: Input, settings: EmbedSettings, priority: Priority, deadline_s: float, *, alone: bool
    ) -> Outcomes:
        """The pipeline's outcomes; a defect of ours becomes the error of each text, and is logged."""
        try:
            return self.pipeline.run(
                given.ids,
                given.texts,
                settings,
                priority=priority,
                deadline_s=deadline_s,
                rejected=given.info.rejected,
                alone=alone,
            )
        except (Retryable, MemoryError):  # the engine's
            raise
        except SettingsError as exc:  # what only a tokenizer can tell
            return failed(given.ids, settings.dimensions, ("dead_letter", str(exc)))
        except Exception as exc:
            log_defect("batch", exc)
            problem: Problem = ("internal_error", f"its batch failed in the worker ({type(exc).__name__}); see its log")
            return failed(given.ids, settings.dimensions, problem)
