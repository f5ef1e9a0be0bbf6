"""The synthetic engine: deterministic vectors from a hash, at a set speed. For tests of everything else; no model."""

import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass, field

import embedfleet
from embedfleet.batching import estimated_tokens
from embedfleet.errors import DeadlineExceeded, EngineUnavailable
from embedfleet.models import ModelProfile
from embedfleet.settings import FleetSettings
from embedfleet.synthetic import synthetic_vectors
from embedfleet_worker.engine.base import Embedded, Identity, Priority, Tokens

log = logging.getLogger(__name__)


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

    def tokenise(self, prompts: Sequence[str], *, truncate: bool) -> list[Tokens]:
        """Estimated counts and no ids: there is no vocabulary."""
        return [self._tokens(prompt, truncate) for prompt in prompts]

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
        """At once."""
        work = self._unfinished.get(future)
        if work is not None:
            work.end(DeadlineExceeded("engine: it took too long and was aborted"))

    def close(self) -> None:
        """Stop without finishing what waits."""
        self._pool.shutdown(wait=False)
        for work in self._unfinished.copy().values():
            work.end(EngineUnavailable("engine: it was closed"))

    def _do(self, work: "_Work") -> None:
        if work.future.done():
            return
        begun = time.monotonic()
        vectors = synthetic_vectors([tokens.prompt for tokens in work.prompts], self.dimensions)
        if self._texts_per_s:
            work.ended.wait(max(0.0, begun + len(work.prompts) / self._texts_per_s - time.monotonic()))
        work.end(Embedded(vectors))

    def _tokens(self, prompt: str, truncate: bool) -> Tokens:
        count = estimated_tokens(prompt)
        if count <= self.max_tokens:
            return Tokens(prompt, [], count)
        if not truncate:
            return Tokens(prompt, [], count, too_long=count)
        return Tokens(prompt, [], self.max_tokens, truncated=True)


@dataclass(eq=False)
class _Work:
    """One request for vectors."""

    prompts: Sequence[Tokens]
    future: "Future[Embedded]" = field(default_factory=Future)
    ended: threading.Event = field(default_factory=threading.Event)
    """Set when nobody waits for it any more."""

    def end(self, outcome: Embedded | Exception) -> None:
        """Only the first to say how counts: two threads may."""
        with contextlib.suppress(InvalidStateError):
            if isinstance(outcome, Exception):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)
        self.ended.set()
