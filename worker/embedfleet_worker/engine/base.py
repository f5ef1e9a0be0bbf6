"""What an engine is. Engines know token ids and vectors, not jobs, settings or stores."""

import threading
from array import array
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

import numpy as np


class Priority(IntEnum):
    """Who goes first inside the engine; the smaller number, as in vLLM."""

    INTERACTIVE = 0
    BULK = 1


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt as the engine takes it."""

    prompt: str
    ids: list[int]
    """Token ids, special tokens included; empty where the engine takes the prompt itself."""
    count: int
    """Tokens given to the model."""
    truncated: bool = False
    too_long: int | None = None
    """Tokens the whole prompt has, if that is over the limit and truncating was not allowed."""
    text: str | None = None
    """What is sent of the prompt to an engine that takes text, if it was cut."""
    tokens_in: int = 0
    """Tokens the whole prompt has; unless it is said, as many as were given to the model."""

    def __post_init__(self) -> None:
        if not self.tokens_in:
            object.__setattr__(self, "tokens_in", self.count)


@dataclass(frozen=True)
class Identity:
    """What makes the vectors of an engine what they are: part of the provenance and of every cache key."""

    engine: str
    engine_version: str
    model: str
    revision: str | None
    weights: str
    """SHA-256 over the weights: a revision may be moved. The synthetic engine says ``synthetic``."""
    dtype: str
    quantization: str | None
    pooling: str


@dataclass
class Embedded:
    """What came of one request for vectors."""

    vectors: np.ndarray[Any, Any]
    """(prompts, full dimensions) float32."""
    errors: dict[int, str] = field(default_factory=dict)
    """By row: what the engine refused, and why."""


class Engine(Protocol):
    """Computes full, unit-norm vectors. All methods may be called from any thread."""

    identity: Identity
    dimensions: int
    """Full length of the vectors."""
    max_tokens: int
    """Token limit of one prompt, special tokens included."""
    dead: threading.Event
    """Set when the engine broke or hung: its process is of no use any more."""

    def tokenise(self, prompts: Sequence[str], *, truncate: bool, max_tokens: int | None = None) -> list[Tokens]:
        """One Tokens a prompt. Over the limit: cut, keeping the special tokens, or marked ``too_long``.

        ``max_tokens``: a lower limit than the engine's.
        """

    def starts(self, text: str) -> "array[int]":
        """Where each token of the bare text begins, in code points, in order; special tokens are not among them."""

    def embed(self, prompts: Sequence[Tokens], priority: Priority) -> "Future[Embedded]":
        """Vectors in the order of the prompts. The future is running from when the engine begins with them.

        Fails with EngineUnavailable when the engine is dead, hung or closed: the process is of no use any more; with
        EngineFailed when a step failed that these prompts were in, and the engine goes on; with EngineUnreachable when
        the engine is a server that is not there, which no prompt is to blame for.
        """

    def abort(self, future: "Future[Embedded]") -> None:
        """Drop the work of a future that :meth:`embed` gave; it is done when this returns, which is soon.

        It fails with DeadlineExceeded, unless it finished meanwhile. An engine that can't do so is hung: ``dead`` is
        set, and every future fails with EngineUnavailable.
        """

    def close(self) -> None:
        """Stop, in bounded time; what is under way fails with EngineUnavailable."""
