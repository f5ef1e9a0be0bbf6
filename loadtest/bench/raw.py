"""The yardstick, in a process of its own: vLLM's offline ``LLM.embed``, loaded once and then asked again and again."""

import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from embedfleet.batching import estimated_tokens
from embedfleet.models import profile_of
from embedfleet.settings import FleetSettings
from embedfleet.synthetic import synthetic_vectors


@dataclass(frozen=True)
class Run:
    """One pass over the texts."""

    seconds: float
    vectors: np.ndarray[Any, Any]
    """(texts, dimensions) float32, in the order of the texts."""
    tokens: int
    """Given to the model, special tokens included."""


_PR_SET_PDEATHSIG = 1
_STOP_S = 10.0

Embed = Callable[[list[str]], list[tuple[Any, int]]]
"""Texts to a vector and a number of tokens each; not yet an array, so that turning them into one is not measured."""


class Raw:
    """The process and the pipe to it."""

    def __init__(self, settings: FleetSettings) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, settings), name="raw", daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> "Raw":
        self._pipe.recv()  # raises EOFError when it could not load
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()  # the process ends itself then
        self._process.join(_STOP_S)
        self._process.kill()
        self._process.join()

    def run(self, texts: list[str]) -> Run:
        """Embed the texts; its own clock runs from when it has them until it has their vectors."""
        self._pipe.send(texts)
        run: Run = self._pipe.recv()
        return run


def _serve(pipe: Connection, settings: FleetSettings) -> None:
    # A stopped process would not notice that its parent is gone.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    embed = _synthetic(settings) if settings.engine == "synthetic" else _vllm(settings)
    pipe.send("ready")
    while True:
        try:
            texts = pipe.recv()
        except EOFError:
            return
        begun = time.perf_counter()
        outputs = embed(texts)
        seconds = time.perf_counter() - begun
        vectors = np.array([vector for vector, _ in outputs], np.float32)
        pipe.send(Run(seconds, vectors, sum(tokens for _, tokens in outputs)))


def _vllm(settings: FleetSettings) -> Embed:
    """``LLM.embed`` with the worker's settings of the engine."""
    os.environ.update(VLLM_LOGGING_LEVEL="ERROR", VLLM_NO_USAGE_STATS="1", VLLM_ENABLE_V1_MULTIPROCESSING="0")
    from vllm import LLM  # noqa: TID251 - what embedfleet is compared with

    from embedfleet_worker import weights  # noqa: TID251
    from embedfleet_worker.engine.vllm import STEPS, device_name  # noqa: TID251

    profile, step = profile_of(settings.model), STEPS[device_name()]
    llm = LLM(
        model=str(weights.locate(profile.name, settings.revision)),
        runner="pooling",
        dtype=settings.dtype,
        max_model_len=profile.max_tokens,
        max_num_batched_tokens=step.tokens,
        max_num_seqs=step.texts,
        enforce_eager=True,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=1,  # an encoder has no attention cache; vLLM would claim nearly all memory for it
    )

    def embed(texts: list[str]) -> list[tuple[Any, int]]:
        outputs = llm.embed(texts, use_tqdm=False)
        return [(output.outputs.embedding, len(output.prompt_token_ids)) for output in outputs]

    return embed


def _synthetic(settings: FleetSettings) -> Embed:
    dimensions = profile_of(settings.model).dimensions

    def embed(texts: list[str]) -> list[tuple[Any, int]]:
        return list(zip(synthetic_vectors(texts, dimensions), map(estimated_tokens, texts), strict=True))

    return embed
