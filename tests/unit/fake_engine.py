"""An engine for tests: deterministic unit vectors, counted calls, and whatever failure a test asks of it."""

import hashlib
import re
import threading
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from embedfleet.errors import DeadlineExceeded, EngineFailed, EngineUnavailable
from embedfleet_worker.engine.base import Embedded, Identity, Priority, Tokens

IDENTITY = Identity(
    engine="fake",
    engine_version="1",
    model="a model",
    revision=None,
    weights="0" * 64,
    dtype="float32",
    quantization=None,
    pooling="mean",
)


class FakeEngine:
    """One token a word and one at the end. ``spoiled``: wrong vectors by prompt; ``refused``: reasons by prompt."""

    def __init__(self, dimensions: int = 8, max_tokens: int = 12, weights: str = IDENTITY.weights) -> None:
        self.identity = replace(IDENTITY, weights=weights)
        self.dimensions = dimensions
        self.max_tokens = max_tokens
        self.dead = threading.Event()
        self.spoiled: dict[str, NDArray[np.float32]] = {}
        self.refused: dict[str, str] = {}
        self.failure: BaseException | None = None
        self.breaking: set[str] = set()
        """Prompts that fail whatever they are with."""
        self.slow: set[str] = set()
        """Prompts with which nothing ends before it is aborted."""
        self.untokenisable: set[str] = set()
        self.hangs = False
        """Whether nothing can be aborted."""
        self.before: Callable[[], object] = lambda: None
        """Called when vectors are wanted, in the thread that wants them."""
        self.asked: list[list[str]] = []
        self.priorities: list[Priority] = []

    @property
    def computed(self) -> list[str]:
        """Every prompt a vector was computed for, in order."""
        return [prompt for call in self.asked for prompt in call]

    def vector(self, prompt: str) -> NDArray[np.float32]:
        """What this engine gives for a prompt."""
        seed = hashlib.sha256(f"{self.identity.weights}{prompt}".encode()).digest()
        vector = np.random.default_rng(list(seed)).standard_normal(self.dimensions).astype(np.float32)
        return vector / np.linalg.norm(vector)

    def tokenise(self, prompts: Sequence[str], *, truncate: bool, max_tokens: int | None = None) -> list[Tokens]:
        if self.untokenisable.intersection(prompts):
            raise ValueError("a text")
        return [self._tokens(prompt, truncate, max_tokens or self.max_tokens) for prompt in prompts]

    def starts(self, text: str) -> "array[int]":
        return array("i", (match.start() for match in re.finditer(r"\S+", text)))

    def embed(self, prompts: Sequence[Tokens], priority: Priority) -> "Future[Embedded]":
        self.before()
        self.asked.append([tokens.prompt for tokens in prompts])
        self.priorities.append(priority)
        future: Future[Embedded] = Future()
        wanted = set(self.asked[-1])
        if self.failure is not None:
            future.set_exception(self.failure)
        elif wanted & self.breaking:
            future.set_exception(EngineFailed("a step of the engine failed (RuntimeError)"))
        elif not wanted & self.slow:
            errors = {row: self.refused[t.prompt] for row, t in enumerate(prompts) if t.prompt in self.refused}
            future.set_result(Embedded(self._vectors(prompts), errors))
        else:
            future.set_running_or_notify_cancel()
        return future

    def abort(self, future: "Future[Embedded]") -> None:
        if future.done():
            return
        if self.hangs:
            self.dead.set()
            future.set_exception(EngineUnavailable("engine: it hung"))
        else:
            future.set_exception(DeadlineExceeded("aborted"))

    def close(self) -> None:
        pass

    def _tokens(self, prompt: str, truncate: bool, limit: int) -> Tokens:
        count = len(prompt.split()) + 1
        if count <= limit:
            return Tokens(prompt, list(range(count)), count)
        if not truncate:
            return Tokens(prompt, [], count, too_long=count)
        return Tokens(prompt, list(range(limit)), limit, truncated=True, tokens_in=count)

    def _vectors(self, prompts: Sequence[Tokens]) -> "np.ndarray[object, np.dtype[object]]":
        vectors = [self.spoiled.get(tokens.prompt, self.vector(tokens.prompt)) for tokens in prompts]
        if len({vector.shape for vector in vectors}) == 1:
            return np.stack(vectors)
        ragged = np.empty(len(vectors), dtype=object)  # an engine that gives one vector of another length
        ragged[:] = vectors
        return ragged
