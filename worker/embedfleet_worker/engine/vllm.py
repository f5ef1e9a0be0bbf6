"""vLLM in this process, driven by one thread. The only file that imports vllm.

``LLMEngine`` stepped by our own thread runs in-process; ``AsyncLLM`` would start child processes and double
the CPU time per text. The thread does nothing but feed and step; everything it is given is tokenised already.
"""

import contextlib
import heapq
import itertools
import logging
import os
import queue
import threading
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # read when vllm is imported: the engine in this process

import torch
import vllm
from vllm import EngineArgs, LLMEngine, PoolingParams
from vllm.inputs import TokensPrompt

from embedfleet.errors import ConfigurationError, EngineUnavailable
from embedfleet.models import ModelProfile
from embedfleet.settings import FleetSettings
from embedfleet_worker import weights
from embedfleet_worker.engine.base import Embedded, Identity, Priority, Tokens
from embedfleet_worker.tokens import Tokeniser

log = logging.getLogger(__name__)

# Per step, measured on 2 cores with MiniLM: 8192 tokens of at most 64 texts was the fastest.
STEPS = {"cpu": weights.Step(tokens=8192, texts=64), "cuda": weights.Step(tokens=32_768, texts=512)}


class VllmEngine:
    """Full unit-norm vectors from vLLM on a CPU or a CUDA device."""

    def __init__(self, profile: ModelProfile, settings: FleetSettings) -> None:
        folder = weights.locate(profile.name, settings.revision)
        device = device_name()
        dtype = choose_dtype(settings.dtype, profile, device)
        self.dimensions = profile.dimensions
        self.max_tokens = min(profile.max_tokens, settings.max_tokens or profile.max_tokens)
        cache_bytes = weights.check_fits(
            profile, folder, dtype, self.max_tokens, STEPS[device], available_bytes(device)
        )
        self.identity = Identity(
            engine=f"vllm-{device}",
            engine_version=vllm.__version__,
            model=profile.name,
            revision=settings.revision,
            weights=settings.revision or weights.digest(folder),
            dtype=dtype,
            quantization=None,
            pooling=profile.pooling,
        )
        self._tokeniser = Tokeniser(folder, self.max_tokens)
        self._step_texts = STEPS[device].texts
        self._inbox: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._started: Future[None] = Future()
        self._reason: EngineUnavailable | None = None
        self.dead = threading.Event()
        arguments = _engine_arguments(folder, profile, device, dtype, self.max_tokens, cache_bytes)
        # The thread that steps also loads: vLLM binds the OpenMP threads of the thread it is created in.
        self._thread = threading.Thread(target=self._run, args=(arguments,), name="engine", daemon=True)
        self._thread.start()
        self._started.result()
        log.info("vllm %s ready: %s in %s on %s", vllm.__version__, profile.name, dtype, device)

    def tokenise(self, prompts: Sequence[str], *, truncate: bool) -> list[Tokens]:
        """Token ids by the model's own tokenizer, end token kept."""
        return self._tokeniser.encode(prompts, truncate=truncate)

    def embed(self, prompts: Sequence[Tokens], priority: Priority) -> "Future[Embedded]":
        """Queue the prompts for the engine thread."""
        work = _Work(prompts, priority, np.empty((len(prompts), self.dimensions), np.float32))
        if not prompts:
            work.finish_if_complete()
        elif self._reason is not None:
            work.future.set_exception(self._reason)
        else:
            self._inbox.put(work)
            if self._reason is not None:  # it broke meanwhile, and its inbox may have been emptied before the put
                work.fail(self._reason)
        return work.future

    def close(self) -> None:
        """Stop the thread after the step it is in."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self, arguments: EngineArgs) -> None:
        try:
            engine = LLMEngine.from_engine_args(arguments)
        except Exception as exc:
            log.exception("vllm could not load the model")
            reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
            self._started.set_exception(ConfigurationError(f"model {arguments.model}: vLLM can't load it ({reason})."))
            return
        self._started.set_result(None)
        loop = _Loop(engine, self._inbox, self._step_texts)
        try:
            loop.run()
            self._reason = EngineUnavailable("engine: it was closed")
        except BaseException as exc:
            # Without the exception's message, which may quote a text.
            log.error("engine: a step failed\n%s", "".join(traceback.format_tb(exc.__traceback__)))
            self._reason = EngineUnavailable(f"engine: a step failed ({type(exc).__name__})")
            self.dead.set()
        loop.abandon(self._reason)


@dataclass
class _Work:
    """One request for vectors, being filled."""

    prompts: Sequence[Tokens]
    priority: Priority
    vectors: np.ndarray[Any, Any]
    future: "Future[Embedded]" = field(default_factory=Future)
    errors: dict[int, str] = field(default_factory=dict)
    fed: int = 0
    done: int = 0

    def fail(self, reason: EngineUnavailable) -> None:
        """Only the first to say so counts: two threads may."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(reason)

    def finish_if_complete(self) -> None:
        if self.done == len(self.prompts):
            self.future.set_result(Embedded(self.vectors, self.errors))


class _Loop:
    """Feeds and steps the engine. Only what the next two steps need is inside it, so that priority still counts."""

    def __init__(self, engine: Any, inbox: "queue.SimpleQueue[_Work | None]", step_texts: int) -> None:
        self._engine = engine
        self._inbox = inbox
        self._limit = 2 * step_texts
        self._waiting: list[tuple[int, int, _Work]] = []
        self._arrival = itertools.count()
        self._request_ids = itertools.count()
        self._inside: dict[str, tuple[_Work, int]] = {}
        self._params = PoolingParams(task="embed")

    def run(self) -> None:
        """Until None arrives in the inbox."""
        while self._take():
            self._feed()
            if self._inside:
                for output in self._engine.step():
                    self._receive(output)

    def abandon(self, reason: EngineUnavailable) -> None:
        """Fail everything that was not finished."""
        while not self._inbox.empty():
            if (work := self._inbox.get()) is not None:
                self._wait(work)
        works = {id(work): work for _, _, work in self._waiting} | {id(w): w for w, _ in self._inside.values()}
        for work in works.values():
            work.fail(reason)

    def _take(self) -> bool:
        """Move the inbox to the heap; block only when there is nothing to do."""
        block = not self._inside and not self._waiting
        while block or not self._inbox.empty():
            work = self._inbox.get()
            if work is None:
                return False
            self._wait(work)
            block = False
        return True

    def _wait(self, work: _Work) -> None:
        heapq.heappush(self._waiting, (work.priority, next(self._arrival), work))

    def _feed(self) -> None:
        while self._waiting and len(self._inside) < self._limit:
            _, _, work = self._waiting[0]
            self._add(work, work.fed)
            work.fed += 1
            if work.fed == len(work.prompts):
                heapq.heappop(self._waiting)
                work.finish_if_complete()

    def _add(self, work: _Work, row: int) -> None:
        request = str(next(self._request_ids))
        prompt = TokensPrompt(prompt_token_ids=work.prompts[row].ids)
        try:
            self._engine.add_request(request, prompt, self._params, priority=int(work.priority))
        except ValueError as exc:  # vLLM's validation errors; the engine itself is sound
            work.errors[row] = f"the engine refused the text ({str(exc).splitlines()[0]})"
            work.done += 1
            return
        self._inside[request] = work, row

    def _receive(self, output: Any) -> None:
        work, row = self._inside.pop(output.request_id)
        vector = output.outputs.data.numpy()
        if vector.shape == work.vectors[row].shape:
            work.vectors[row] = vector
        else:
            work.errors[row] = (
                f"the engine gave an array of {vector.shape} and the model's profile says {work.vectors.shape[1]}"
            )
        work.done += 1
        work.finish_if_complete()


def device_name() -> str:
    """``cuda`` where there is such a device, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_dtype(wanted: str, profile: ModelProfile, device: str) -> str:
    """The engine's number format. ``auto``: bfloat16 where the hardware has it natively, else float32.

    Never vLLM's own ``auto``: that takes float16, many times slower on CPUs and not sound for every model.
    """
    if wanted == "auto":
        return "bfloat16" if has_bfloat16(device) else "float32"
    if wanted not in profile.dtypes:
        raise ConfigurationError(
            f"dtype {wanted}: {profile.name} is not sound in it (it overflows). Take {' or '.join(profile.dtypes)}."
        )
    if wanted == "bfloat16" and device == "cuda" and not has_bfloat16(device):
        raise ConfigurationError("dtype bfloat16: this card has none. Take float32.")
    return wanted


def has_bfloat16(device: str) -> bool:
    """Whether bfloat16 arithmetic is native: Ampere and later, or a CPU with AVX512-BF16 or AMX."""
    if device == "cuda":
        return bool(torch.cuda.get_device_capability() >= (8, 0))
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def available_bytes(device: str) -> int:
    """Memory that is free for a model."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def _engine_arguments(
    folder: Path, profile: ModelProfile, device: str, dtype: str, max_tokens: int, cache_bytes: int
) -> EngineArgs:
    step = STEPS[device]
    return EngineArgs(
        model=str(folder),
        runner="pooling",
        dtype=dtype,
        max_model_len=max_tokens,
        # A text goes through an encoder in one piece, so a step holds the longest one.
        max_num_batched_tokens=step.tokens if profile.pooling == "last" else max(step.tokens, max_tokens),
        max_num_seqs=step.texts,
        # On a CPU compiling costs half a minute at start and gained nothing.
        enforce_eager=device == "cpu",
        scheduling_policy="priority",
        enable_prefix_caching=False,  # a hit changes the last bits of a vector, by what travelled before
        disable_log_stats=True,
        hf_overrides={"is_matryoshka": True} if profile.min_dimensions is not None else {},
        # On a CPU we size the attention cache: vLLM would claim, and touch, 92 % of a node's memory.
        kv_cache_memory_bytes=max(cache_bytes, 1) if device == "cpu" else None,
    )
