"""vLLM in this process, driven by one thread. The only file that imports vllm.

``LLMEngine`` stepped by our own thread runs in-process; ``AsyncLLM`` would start child processes and double
the CPU time per text. The thread (loop.py) does nothing but feed and step; what it is given is tokenised already.
"""

import logging
import os
import threading
from array import array
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # read when vllm is imported: the engine in this process

import torch
import vllm
from vllm import EngineArgs, LLMEngine, PoolingParams
from vllm.config import PoolerConfig
from vllm.inputs import TokensPrompt
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

from embedfleet.errors import ConfigurationError
from embedfleet.models import ModelProfile, check_dtype
from embedfleet.settings import FleetSettings
from embedfleet_worker import weights
from embedfleet_worker.engine.base import Embedded, Identity, Priority, Tokens
from embedfleet_worker.engine.loop import Loop, Vector, Work
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
        check_quantization(settings.quantization)
        weights.check_pooling(profile, folder)
        self.dimensions = profile.dimensions
        self.max_tokens = min(profile.max_tokens, settings.max_tokens or profile.max_tokens)
        cache_bytes = weights.check_fits(
            profile, folder, dtype, self.max_tokens, STEPS[device], available_bytes(device)
        )
        self._tokeniser = Tokeniser(folder, self.max_tokens)
        self._step_texts = STEPS[device].texts
        self._started: Future[tuple[Loop, _Vllm]] = Future()
        arguments = _engine_arguments(folder, profile, device, dtype, self.max_tokens, cache_bytes)
        arguments.quantization = settings.quantization
        # The thread that steps also loads: vLLM binds the OpenMP threads of the thread it is created in.
        threading.Thread(target=self._run, args=(arguments,), name="engine", daemon=True).start()
        self._loop, engine = self._started.result()
        self.dead = self._loop.dead
        self.identity = Identity(
            engine=f"vllm-{device}",
            engine_version=vllm.__version__,
            model=profile.name,
            revision=settings.revision,
            weights=weights.digest(folder),
            dtype=dtype,
            quantization=engine.quantization,
            pooling=profile.pooling,
        )
        log.info("vllm %s ready: %s in %s on %s", vllm.__version__, profile.name, dtype, device)

    def tokenise(self, prompts: Sequence[str], *, truncate: bool, max_tokens: int | None = None) -> list[Tokens]:
        """Token ids by the model's own tokenizer, end token kept."""
        return self._tokeniser.encode(prompts, truncate=truncate, max_tokens=max_tokens)

    def starts(self, text: str) -> "array[int]":
        """Where the tokens of the model's own tokenizer begin."""
        return self._tokeniser.starts(text)

    def embed(self, prompts: Sequence[Tokens], priority: Priority) -> "Future[Embedded]":
        """Queue the prompts for the engine thread."""
        work = Work(prompts, priority, np.empty((len(prompts), self.dimensions), np.float32))
        if prompts:
            self._loop.submit(work)
        else:
            work.finish_if_complete()
        return work.future

    def abort(self, future: "Future[Embedded]") -> None:
        """Take the work out of vLLM; ten seconds or ten times the longest step without that, and it hangs."""
        self._loop.abort(future)

    def close(self) -> None:
        """Stop the thread after the step it is in."""
        self._loop.close()

    def _run(self, arguments: EngineArgs) -> None:
        try:
            (probe,) = self.tokenise(["a probe"], truncate=True)
            engine = _Vllm(arguments)
            loop = Loop(engine, probe.ids, self._step_texts)
        except Exception as exc:
            log.exception("vllm could not load the model")
            self._started.set_exception(_refusal(arguments, exc))
            return
        self._started.set_result((loop, engine))
        loop.run()


class _Vllm:
    """vLLM's engine, as the loop steps it."""

    def __init__(self, arguments: EngineArgs) -> None:
        self._engine = LLMEngine.from_engine_args(arguments)
        self._params = PoolingParams(task="embed")
        self._on_cpu = device_name() == "cpu"
        self.quantization: str | None = self._engine.model_config.quantization
        """What vLLM does with the weights: what it was told, or what the model's files say."""

    def add(self, request: str, ids: list[int], priority: Priority) -> None:
        """Raises vLLM's validation errors, which are ValueErrors."""
        prompt = TokensPrompt(prompt_token_ids=ids)
        self._engine.add_request(request, prompt, self._params, priority=int(priority))

    def step(self) -> list[tuple[str, Vector]]:
        """The tensors are on the CPU already."""
        answers = [(output.request_id, output.outputs.data.numpy()) for output in self._engine.step()]
        if self._on_cpu and not all(np.isfinite(vector).all() for _, vector in answers):
            self._empty_free_blocks()
        return answers

    def abort(self, requests: list[str]) -> None:
        """vLLM passes over those it does not know."""
        self._engine.abort_request(requests)

    def _empty_free_blocks(self) -> None:
        """Of the attention cache: what a block does not use counts with zero, and zero times NaN is NaN.

        A finished text's blocks are free before its vector is out, so nobody has them yet. vLLM has no way for this;
        its build for CPUs is pinned exactly.
        """
        core = self._engine.engine_core.engine_core
        free = core.scheduler.kv_cache_manager.block_pool.free_block_queue.get_all_free_blocks()
        for blocks in core.model_executor.driver_worker.worker.model_runner.kv_caches:
            blocks[[block.block_id for block in free]] = 0


def device_name() -> str:
    """``cuda`` where there is such a device, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_dtype(wanted: str, profile: ModelProfile, device: str) -> str:
    """The engine's number format. ``auto``: bfloat16 where the hardware has it natively, else float32.

    Never vLLM's own ``auto``: that takes float16, many times slower on CPUs and not sound for every model.
    """
    if wanted == "auto":
        return "bfloat16" if has_bfloat16(device) else "float32"
    check_dtype(wanted, profile)
    if wanted == "bfloat16" and device == "cuda" and not has_bfloat16(device):
        raise ConfigurationError("dtype bfloat16: this card has none. Take float32.")
    return wanted


def check_quantization(wanted: str | None) -> None:
    """Raise ConfigurationError for a method that this vLLM has none of, whether or not the device can do it."""
    if wanted is not None and wanted not in QUANTIZATION_METHODS:
        raise ConfigurationError(
            f"quantization {wanted!r}: vLLM {vllm.__version__} has no such method. It has "
            f"{', '.join(QUANTIZATION_METHODS)}; leave it out for the weights as they are."
        )


def _refusal(arguments: EngineArgs, exc: Exception) -> ConfigurationError:
    """What vLLM says of a method that a device can't do may be anything, down to the signature of a kernel."""
    if arguments.quantization is None:
        return ConfigurationError(f"model {arguments.model}: vLLM can't load it ({_reason(exc)}).")
    return ConfigurationError(
        f"model {arguments.model}: vLLM can't load it with EMBEDFLEET_QUANTIZATION={arguments.quantization} on this "
        f"{device_name()} ({_reason(exc)}). Leave it out, or take another method or a folder that is quantised already."
    )


def _reason(exc: Exception) -> str:
    """In one line; of pydantic's errors what is behind the heading."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()] or [type(exc).__name__]
    said = next((line.partition(" [type=")[0] for line in lines if " [type=" in line), lines[0])
    return f"{said} {lines[1]}" if said.endswith(":") and len(lines) > 1 else said


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
        # The profile's, which may be declared: without modules.json vLLM would take the architecture's default.
        pooler_config=PoolerConfig(seq_pooling_type=profile.pooling.upper()),
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
