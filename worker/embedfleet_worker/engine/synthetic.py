"""The synthetic engine: deterministic vectors from a hash, at a set speed. For tests of everything else; no model."""

import contextlib
import logging
import threading
import time
from array import array
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass, field

import embedfleet
from embedfleet.batching import estimated_starts, estimated_tokens
from embedfleet.errors import DeadlineExceeded, EngineFailed, EngineUnavailable
from embedfleet.models import ModelProfile
from embedfleet.settings import FleetSettings
from embedfleet.synthetic import synthetic_vectors
from embedfleet_worker.engine.base import Embedded, Identity, Priority, Tokens

log = logging.getLogger(__name__)

_HUNG_S = 10.0  # for the thread to leave what was aborted


class SyntheticEngine:
    """Says ``synthetic`` in its identity, so that nobody mistakes its vectors for a model's."""

    def __init__(self, profile: ModelProfile, settings: FleetSettings) -> None:
        self.identity = Identity(
            engine="synthetic",
            engine_version=embedfleet.__version__,
            model=profile.name,
            revision=settings.revision,
            weights="synthetic",
            dtype="float32",
            quantization=None,
            pooling="none",
        )
        self.dimensions = profile.dimensions
        self.max_tokens = min(profile.max_tokens, settings.max_tokens or profile.max_tokens)
        self._texts_per_s = settings.synthetic_texts_per_s
        self._pool = ThreadPoolExecutor(1, "engine")
        self.dead = threading.Event()
        self._unfinished: dict[Future[Embedded], _Work] = {}
        log.warning("synthetic engine: vectors are hashes of the texts and mean nothing")

    def tokenise(self, prompts: Sequence[str], *, truncate: bool, max_tokens: int | None = None) -> list[Tokens]:
        """Estimated counts and no ids: there is no vocabulary."""
        limit = min(max_tokens or self.max_tokens, self.max_tokens)
        return [_tokens(prompt, limit, truncate) for prompt in prompts]

    def starts(self, text: str) -> "array[int]":
        """Where the estimated tokens begin."""
        return estimated_starts(text)

    def embed(self, prompts: Sequence[Tokens], priority: Priority) -> "Future[Embedded]":  # noqa: ARG002
        """One request at a time, in order."""
        work = _Work(prompts)
        self._unfinished[work.future] = work
        work.future.add_done_callback(lambda future: self._unfinished.pop(future, None))
        try:
            self._pool.submit(self._do, work)
        except RuntimeError:  # the pool is shut down
            work.end(EngineUnavailable("engine: it was closed"))
        return work.future

    def abort(self, future: "Future[Embedded]") -> None:
        """At once, unless the thread hangs in it: then the engine is dead."""
        work = self._unfinished.get(future)
        if work is None:
            return
        work.abandoned.set()
        if not work.begun or work.left.wait(_HUNG_S):
            work.end(DeadlineExceeded("engine: it took too long and was aborted"))
        else:
            log.error("engine: hung")
            self.dead.set()
            self._fail_all(EngineUnavailable("engine: it hung"))

    def close(self) -> None:
        """Stop without finishing what waits."""
        self._pool.shutdown(wait=False)
        self._fail_all(EngineUnavailable("engine: it was closed"))

    def _fail_all(self, reason: EngineUnavailable) -> None:
        for work in self._unfinished.copy().values():
            work.abandoned.set()
            work.end(reason)

    def _do(self, work: "_Work") -> None:
        if work.future.done():
            return
        work.begun = True
        with contextlib.suppress(InvalidStateError):
            work.future.set_running_or_notify_cancel()
        begun = time.monotonic()
        outcome: Embedded | Exception
        try:
            outcome = self._embed(work.prompts)
        except Exception as exc:  # its message may quote a text
            outcome = EngineFailed(f"engine: it failed ({type(exc).__name__})")
        if self._texts_per_s:
            work.abandoned.wait(max(0.0, begun + len(work.prompts) / self._texts_per_s - time.monotonic()))
        if not work.abandoned.is_set():
            work.end(outcome)
        work.left.set()

    def _embed(self, prompts: Sequence[Tokens]) -> Embedded:
        return Embedded(synthetic_vectors([tokens.prompt for tokens in prompts], self.dimensions))


def _tokens(prompt: str, limit: int, truncate: bool) -> Tokens:
    count = estimated_tokens(prompt)
    if count <= limit:
        return Tokens(prompt, [], count)
    if not truncate:
        return Tokens(prompt, [], count, too_long=count)
    return Tokens(prompt, [], limit, truncated=True, tokens_in=count)


@dataclass(eq=False)
class _Work:
    """One request for vectors."""

    prompts: Sequence[Tokens]
    future: "Future[Embedded]" = field(default_factory=Future)
    begun: bool = False
    abandoned: threading.Event = field(default_factory=threading.Event)
    """Set when nobody waits for it any more."""
    left: threading.Event = field(default_factory=threading.Event)
    """Set when the thread is done with it."""

    def end(self, outcome: Embedded | Exception) -> None:
        """Only the first to say how counts: two threads may."""
        with contextlib.suppress(InvalidStateError):
            if isinstance(outcome, Exception):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)
