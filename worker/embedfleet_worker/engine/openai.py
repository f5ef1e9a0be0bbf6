"""Any OpenAI-compatible server as the engine: vLLM's own, SGLang, TEI, Infinity, Ollama, llama.cpp.

What is asked of it is the full vector of a text, and nothing else: prompts, truncation, dimensions and encodings are
ours, so that they mean the same on every server. How it is asked is in openai_server.py.
"""

import logging
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from embedfleet import policies
from embedfleet.errors import ConfigurationError, DeadlineExceeded, EngineFailed, EngineUnavailable, EngineUnreachable
from embedfleet.models import ModelProfile
from embedfleet.settings import FleetSettings
from embedfleet_worker import logs, weights
from embedfleet_worker.engine.base import Embedded, Priority, Tokens
from embedfleet_worker.engine.openai_answers import Answer
from embedfleet_worker.engine.openai_server import Busy, Refused, Server, Unfit
from embedfleet_worker.engine.openai_start import look
from embedfleet_worker.engine.openai_texts import TextTokeniser
from embedfleet_worker.engine.openai_work import Work

log = logging.getLogger(__name__)

# Requests in flight. Bulk never takes the places of interactive texts; at the server they are equals.
_REQUESTS = {Priority.BULK: 8, Priority.INTERACTIVE: 4}
_TEXTS, _LEAST_TEXTS = 64, 4  # a request; halved when a server takes fewer: TEI's default is 32
_TOKENS = 16_384  # a request: enough for a step of any engine
_SOUND_S = 5.0  # for so long the answer to the probe counts for others too
_PROBE = "a probe"
_PROBE_TOLERANCE = 0.01  # as of the loop: bfloat16 rounds to 0.004, another model gives another vector
_TRIES = 3  # then it is looked at whether the server fails at these texts alone
_UNSOUND = (EngineUnreachable, Refused, Unfit)


class OpenaiEngine:
    """Full unit-norm vectors from a server. The process outlives it: ``dead`` is never set."""

    def __init__(self, profile: ModelProfile, settings: FleetSettings) -> None:
        """Raises ConfigurationError, and EngineUnreachable for a server that is not there, or not yet."""
        if settings.openai_url is None:
            raise ConfigurationError(
                "engine openai: no server. Set EMBEDFLEET_OPENAI_URL to its API, such as http://host:8000/v1."
            )
        self.dimensions = profile.dimensions
        self.max_tokens = min(profile.max_tokens, settings.max_tokens or profile.max_tokens)
        folder = weights.locate(profile.name, settings.revision, weights=False)
        self._tokeniser = TextTokeniser(folder, self.max_tokens)
        self.dead = threading.Event()
        self._texts = _TEXTS
        self._unfinished: dict[Future[Embedded], Work] = {}
        self._closing = threading.Event()
        self._looking = threading.Lock()
        self._looked: tuple[float, str | None] = (-_SOUND_S, None)
        # A server that hangs is found, by the probe, before a batch has used up its time.
        self._server = Server(settings.openai_url, settings.openai_api_key, settings.deadline_s / 4)
        (self._probe,) = self.tokenise([_PROBE], truncate=True)
        try:
            self._served = look(self._server, profile, settings, self._probe, self.max_tokens)
        except BaseException:
            self._server.close()
            raise
        self.identity = self._served.identity
        self._pools = {priority: ThreadPoolExecutor(count, "engine") for priority, count in _REQUESTS.items()}
        log.info("server %s ready: %s, model %s", self._server.url, self.identity.engine_version, self._served.model)

    def tokenise(self, prompts: Sequence[str], *, truncate: bool, max_tokens: int | None = None) -> list[Tokens]:
        """Counted by the model's own tokenizer; what is cut is cut between characters."""
        return self._tokeniser.encode(prompts, truncate=truncate, max_tokens=max_tokens)

    def starts(self, text: str) -> "array[int]":
        """Where the tokens of the model's own tokenizer begin."""
        return self._tokeniser.starts(text)

    def embed(self, prompts: Sequence[Tokens], priority: Priority) -> "Future[Embedded]":
        """Requests of bounded size, several in flight. Fails with EngineUnreachable too."""
        pieces = list(self._pieces(prompts))
        work = Work(prompts, self.dimensions, len(pieces))
        self._unfinished[work.future] = work
        work.future.add_done_callback(lambda future: self._unfinished.pop(future, None))
        try:
            for piece in pieces:
                self._pools[priority].submit(self._do, work, piece)
        except RuntimeError:  # the pool is shut down
            work.fail(EngineUnavailable("engine: it was closed"))
        return work.future

    def abort(self, future: "Future[Embedded]") -> None:
        """At once; its requests are given up, which a server that looks notices."""
        work = self._unfinished.get(future)
        if work is not None:
            work.fail(DeadlineExceeded("engine: it took too long and was aborted"))

    def close(self) -> None:
        """Give up what is under way."""
        self._closing.set()
        for work in self._unfinished.copy().values():
            work.fail(EngineUnavailable("engine: it was closed"))
        for pool in self._pools.values():
            pool.shutdown(cancel_futures=True)
        self._server.close()

    def _pieces(self, prompts: Sequence[Tokens]) -> Iterator[list[int]]:
        """Rows for a request each, in order."""
        piece: list[int] = []
        tokens = 0
        for row, item in enumerate(prompts):
            if piece and (len(piece) == self._texts or tokens + item.count > _TOKENS):
                yield piece
                piece, tokens = [], 0
            piece.append(row)
            tokens += item.count
        if piece:
            yield piece

    def _do(self, work: Work, rows: list[int]) -> None:
        """One piece, in a thread of the pool; whatever goes wrong is the work's failure."""
        if not work.begin():
            return
        try:
            self._fill(work, rows)
            work.piece_done()
        except EngineFailed as exc:
            work.fail(exc)
        except EngineUnreachable as exc:
            if not work.abandoned.is_set():  # else it is why there was no answer
                work.fail(self._blame(exc))
        except Unfit as exc:
            work.fail(EngineUnreachable(str(exc)))
        except Exception as exc:  # its message may quote a text
            name = type(exc).__name__
            log.error("engine: a request failed", extra={"error": name, "frames": logs.frames(exc.__traceback__)})
            work.fail(EngineFailed(f"engine: it failed ({name})"))

    def _fill(self, work: Work, rows: list[int]) -> bool:
        """Vectors of the rows; whether nothing was refused. What is, is halved, down to the texts that are alone."""
        try:
            answer = self._asked([work.prompts[row] for row in rows], work.abandoned)
        except Refused as exc:
            if len(rows) == 1:
                self._check_sound()  # else it refuses everything, and no text is at fault
                work.errors[rows[0]] = f"the server refused the text ({exc})"
                return False
            middle = len(rows) // 2
            first, second = self._fill(work, rows[:middle]), self._fill(work, rows[middle:])
            if first and second and middle >= _LEAST_TEXTS:
                self._texts = min(self._texts, middle)
            return False
        work.vectors[rows] = answer.vectors
        work.errors |= {rows[row]: reason for row, reason in answer.errors.items()}
        return True

    def _asked(self, prompts: Sequence[Tokens], abandoned: threading.Event) -> Answer:
        """In bounded tries; raises EngineFailed after three, if it is these texts at which the server fails."""
        failures = 0

        def ask() -> Answer:
            nonlocal failures
            try:
                return self._ask(prompts, abandoned)
            except EngineUnreachable as exc:
                failures += 1
                if failures == _TRIES and not isinstance(exc, Busy) and self._is_sound():
                    raise _at_these(exc) from None
                raise

        return policies.ENGINE.copy(sleep=abandoned.wait)(ask)

    def _ask(self, prompts: Sequence[Tokens], abandoned: threading.Event) -> Answer:
        """Once. Raises Refused too for a server that used fewer tokens than the texts have."""
        served = self._served
        texts = [item.prompt if item.text is None else item.text for item in prompts]
        answer = self._server.embed(texts, served.model, self.dimensions, served.format, abandoned)
        tokens = sum(item.count for item in prompts)
        if served.counts_alike and answer.tokens is not None and answer.tokens < tokens:
            raise Refused(f"it used {answer.tokens} of {tokens} tokens: its limit is below EMBEDFLEET_MAX_TOKENS")
        return answer

    def _blame(self, failure: EngineUnreachable) -> EngineFailed | EngineUnreachable:
        """A server that still gives the probe's vector failed at these texts; else it is down for all of them."""
        if isinstance(failure, Busy):
            return failure
        try:
            self._check_sound()
        except EngineUnreachable as exc:
            return exc
        return _at_these(failure)

    def _check_sound(self) -> None:
        """Raises EngineUnreachable for a server that does not give the probe's vector, in bounded tries.

        What was found counts for the others too, for a while.
        """
        with self._looking:
            looked, failure = self._looked
            if time.monotonic() - looked > _SOUND_S:
                try:
                    policies.ENGINE.copy(sleep=self._closing.wait)(self._probe_once)
                    failure = None
                except _UNSOUND as exc:
                    failure = str(exc)
                self._looked = time.monotonic(), failure
        if failure is not None:
            raise EngineUnreachable(failure)

    def _is_sound(self) -> bool:
        try:
            self._probe_once()
        except _UNSOUND:
            return False
        return True

    def _probe_once(self) -> None:
        answer = self._ask([self._probe], self._closing)
        if answer.errors or not np.linalg.norm(answer.vectors[0] - self._served.probe) <= _PROBE_TOLERANCE:
            raise EngineUnreachable(f"server {self._server.url}: it gives the probe another vector than at the start")


def _at_these(failure: EngineUnreachable) -> EngineFailed:
    return EngineFailed(f"{failure}, and at a short text it does not")
