"""The synthetic engine: deterministic vectors from a hash, at a set speed. For tests of everything else; no model."""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import embedfleet
from embedfleet.batching import estimated_tokens
from embedfleet.errors import EngineUnavailable
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
        self._stopping = threading.Event()
        log.warning("synthetic engine: vectors are hashes of the texts and mean nothing")

    def tokenise(self, prompts: Sequence[str], *, truncate: bool) -> list[Tokens]:
        """Estimated counts and no ids: there is no vocabulary."""
        return [self._tokens(prompt, truncate) for prompt in prompts]

    def embed(self, prompts: Sequence[Tokens], priority: Priority) -> "Future[Embedded]":  # noqa: ARG002
        """One request at a time, in order."""
        if self._stopping.is_set():
            return self._pool_closed()
        return self._pool.submit(self._embed, prompts)

    def close(self) -> None:
        """Stop without finishing what waits."""
        self._stopping.set()
        self._pool.shutdown(wait=False)

    def _pool_closed(self) -> "Future[Embedded]":
        closed: Future[Embedded] = Future()
        closed.set_exception(EngineUnavailable("engine: it was closed"))
        return closed

    def _embed(self, prompts: Sequence[Tokens]) -> Embedded:
        if self._stopping.is_set():
            raise EngineUnavailable("engine: it was closed")
        begun = time.monotonic()
        vectors = synthetic_vectors([tokens.prompt for tokens in prompts], self.dimensions)
        if self._texts_per_s:
            self._stopping.wait(max(0.0, begun + len(prompts) / self._texts_per_s - time.monotonic()))
        return Embedded(vectors)

    def _tokens(self, prompt: str, truncate: bool) -> Tokens:
        count = estimated_tokens(prompt)
        if count <= self.max_tokens:
            return Tokens(prompt, [], count)
        if not truncate:
            return Tokens(prompt, [], count, too_long=count)
        return Tokens(prompt, [], self.max_tokens, truncated=True)
