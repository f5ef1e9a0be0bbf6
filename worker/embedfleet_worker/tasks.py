"""What a message leads to: pipeline → part or reply → acknowledge, give back or dead-letter. Never raises otherwise.

Celery loses what raises: a failed task is acknowledged or stuck. So every way out is written down here: a return
acknowledges, ``GiveBack`` puts the message back, everything else has become an outcome of each text.
"""

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, stop_after_delay, wait_exponential_jitter

from embedfleet import models
from embedfleet.broker import Broker
from embedfleet.contract import Batch, EmbedSettings, JobSpec, Request
from embedfleet.errors import (
    BrokerUnavailable,
    ContractError,
    EngineUnavailable,
    Permanent,
    Retryable,
    StoreUnavailable,
)
from embedfleet.jobfolder import JobFolder
from embedfleet.store import check_allowed, open_store
from embedfleet.tables import Input, Outcome, Outcomes, write_part
from embedfleet_worker.engine.base import Priority
from embedfleet_worker.pipeline import Pipeline, Problem

log = logging.getLogger(__name__)

# Creating a part again is safe: it either wins or finds that it is there.
_STORE_POLICY = Retrying(
    retry=retry_if_exception_type(StoreUnavailable),
    stop=stop_after_attempt(5) | stop_after_delay(20),
    wait=wait_exponential_jitter(multiplier=0.2, max=5),
    reraise=True,
)


class GiveBack(Exception):
    """The message is to go back to the queue: another try, here or elsewhere, may succeed."""


@dataclass(frozen=True)
class Tasks:
    """The two kinds of work of a worker."""

    pipeline: Pipeline
    broker: Broker
    model: str
    allowed_stores: tuple[str, ...]

    def embed(self, message: object) -> None:
        """One batch of a job: a part when this returns, or a dead letter. Raises GiveBack only."""
        self._settle(self._embed, message, message)

    def answer(self, message: object) -> None:
        """A round trip: the answer where the caller waits for it. Raises GiveBack only."""
        self._settle(self._answer, message, {"task": "answer"})  # a letter without the texts

    def _settle(self, work: Callable[[object], None], message: object, letter: object) -> None:
        """Do the work; whatever goes wrong becomes GiveBack or a dead letter."""
        try:
            work(message)
        except Retryable as exc:
            log.warning("given back: %s", exc)
            raise GiveBack(str(exc)) from None
        except Permanent as exc:
            self._dead_letter(letter, str(exc))
        except Exception as exc:
            _log_defect("task", exc)
            self._dead_letter(letter, f"a defect of the worker ({type(exc).__name__}); see its log")

    def _embed(self, message: object) -> None:
        batch = Batch.parse(message, "message")
        folder = JobFolder(open_store(check_allowed(batch.to, self.allowed_stores)), batch.job)
        self._commit(folder, batch.batch)

    def _answer(self, message: object) -> None:
        request = Request.parse(message, "message")
        if self.broker.clock() > request.expires_at:
            return  # nobody waits any more
        outcomes = self._request_outcomes(request)
        self.broker.reply(request.reply_to, write_part(outcomes, request.settings.encoding, "embed", 0))

    def _request_outcomes(self, request: Request) -> Outcomes:
        """A request that can't be done is answered too: its caller waits."""
        ids = [str(row) for row in range(len(request.texts))]
        try:
            self._check_model(request.settings)
            settings = models.resolve(request.settings, self.model)
        except Permanent as exc:
            return _failed(ids, request.settings, ("dead_letter", str(exc)))
        return self._outcomes(ids, list(request.texts), settings, Priority.INTERACTIVE, {})

    def _commit(self, folder: JobFolder, number: int) -> None:
        """Admit, prepare, embed, commit. A part that is there means that all of it was done."""
        if folder.has_part(number):
            return
        spec = folder.spec()
        self._check_model(spec.settings)
        self._check_spec(spec)
        given = _STORE_POLICY(folder.input, number)
        outcomes = self._batch_outcomes(folder, given, spec.settings)
        part = write_part(outcomes, spec.settings.encoding, folder.job, number)
        written = _STORE_POLICY(folder.write_part, number, part)
        totals = outcomes.totals()
        log.info(
            "batch job=%s batch=%d texts=%d errors=%d cached=%d tokens=%d%s",
            folder.job, number, totals.texts, totals.errors, totals.cached, totals.tokens,
            "" if written else " (another worker was first)",
        )  # fmt: skip

    def _batch_outcomes(self, folder: JobFolder, given: Input, settings: EmbedSettings) -> Outcomes:
        """Every end of a batch is outcomes: vectors, cancelled, or settings that this worker can't satisfy."""
        if folder.is_cancelled():
            return _failed(given.ids, settings, ("cancelled", "the job was cancelled before this text was embedded"))
        try:
            resolved = models.resolve(settings, self.model)
        except Permanent as exc:
            return _failed(given.ids, settings, ("dead_letter", str(exc)))
        return self._outcomes(given.ids, given.texts, resolved, Priority.BULK, given.info.rejected)

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

    def _dead_letter(self, message: object, reason: str) -> None:
        log.error("dead letter: %s", reason)
        try:
            self.broker.dead_letter(message, reason)
        except BrokerUnavailable as exc:
            raise GiveBack(str(exc)) from None

    def _outcomes(
        self,
        ids: list[str],
        texts: list[str | None],
        settings: EmbedSettings,
        priority: Priority,
        rejected: dict[int, Problem],
    ) -> Outcomes:
        """The pipeline's outcomes; a defect of ours becomes the error of each text, and is logged."""
        try:
            return self.pipeline.run(ids, texts, settings, priority=priority, rejected=rejected)
        except EngineUnavailable:
            raise
        except Exception as exc:
            _log_defect("batch", exc)
            problem: Problem = ("internal_error", f"its batch failed in the worker ({type(exc).__name__}); see its log")
            return _failed(ids, settings, problem)


def _log_defect(what: str, exc: Exception) -> None:
    """Where it happened, without the exception's message, which may quote a text."""
    log.error("%s failed: %s\n%s", what, type(exc).__name__, "".join(traceback.format_tb(exc.__traceback__)))


def _failed(ids: list[str], settings: EmbedSettings, problem: Problem) -> Outcomes:
    rows = [Outcome(record_id, error=problem) for record_id in ids]
    return Outcomes(rows, np.zeros((len(rows), settings.dimensions or 1), np.float32))
