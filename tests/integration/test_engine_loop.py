"""vLLM in this process, in the engine's loop: what is aborted leaves nothing behind, what a failed step costs, hanging.

One engine for all, in the order of the file: the last test breaks it.
"""

import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from embedfleet.contract import EmbedSettings
from embedfleet.errors import DeadlineExceeded, EngineFailed, EngineUnavailable
from embedfleet.models import profile_of
from embedfleet.settings import load
from embedfleet_worker.engine.base import Embedded, Priority
from embedfleet_worker.pipeline import NoCache, Pipeline

with warnings.catch_warnings():  # of what vLLM imports
    warnings.simplefilter("ignore")
    from embedfleet_worker.engine.vllm import VllmEngine

TEXTS = [f"text number {number} " * (1 + number % 9) for number in range(150)]  # more than are inside at once
POISON = "a text with a ~ in it"
"""``~`` is in no other text, and a token of its own."""


class Engine:
    """The engine, and what vLLM holds of its requests."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.engine = VllmEngine(profile_of(str(folder)), load(model=str(folder), dtype="float32"))
        self.loop = self.engine._loop
        vllm: Any = self.loop._engine
        self.core = vllm._engine.engine_core.engine_core
        self.front = vllm._engine
        self.runner = self.core.model_executor.driver_worker.worker.model_runner
        self.poison = self.engine.tokenise(["~"], truncate=False)[0].ids[0]
        self.free_blocks = self.blocks()

    def embed(self, texts: list[str]) -> "Future[Embedded]":
        return self.engine.embed(self.engine.tokenise(texts, truncate=False), Priority.BULK)

    def vectors(self, texts: list[str]) -> NDArray[np.float32]:
        return self.embed(texts).result(60).vectors

    def blocks(self) -> int:
        free: int = self.core.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        return free

    def holds_nothing(self) -> bool:
        """No request anywhere, and the whole attention cache free."""
        scheduler = self.core.scheduler
        requests = len(scheduler.requests) + len(scheduler.running) + len(scheduler.waiting)
        return (requests, self.front.get_num_unfinished_requests(), self.blocks()) == (0, 0, self.free_blocks)

    @contextmanager
    def failing(self, where: str, fail: Callable[[], object]) -> Iterator[None]:
        """Inside, ``fail`` is called when the model computes, or vLLM takes in or finishes, a step with the poison."""
        owner, name = {
            "the model": (self.runner.model, "forward"),
            "the runner": (self.runner, "execute_model"),
            "the scheduler": (self.core.scheduler, "update_from_output"),
        }[where]
        method = getattr(owner, name)

        def failing(*args: Any, **kwargs: Any) -> Any:
            given = args[0] if args else kwargs["input_ids"]
            if self._has_poison(given):
                fail()
            return method(*args, **kwargs)

        setattr(owner, name, failing)
        try:
            yield
        finally:
            delattr(owner, name)

    def _has_poison(self, given: Any) -> bool:
        if isinstance(given, torch.Tensor):
            return bool((given == self.poison).any())
        return any(self.poison in (request.prompt_token_ids or []) for request in given.scheduled_new_reqs)


@pytest.fixture(scope="module")
def made(tiny_qwen3: Path) -> Iterator[Engine]:
    """vLLM looks into everything in every module that is loaded; werkzeug's proxies, which moto brings, refuse that."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if any(type(value).__module__ == "werkzeug.local" for value in list(vars(module).values())):
                patch.delitem(sys.modules, name)
        found = Engine(tiny_qwen3)
    yield found
    found.engine.close()


@pytest.fixture(scope="module")
def before(made: Engine) -> NDArray[np.float32]:
    """The vectors of an engine to which nothing has happened."""
    return made.vectors(TEXTS)


def out_of_memory() -> None:
    torch.empty(10**15)


def break_down() -> None:
    raise RuntimeError(POISON)


def test_what_is_aborted_leaves_nothing_behind(made: Engine, before: NDArray[np.float32]) -> None:
    aborted, other = made.embed(TEXTS * 20), made.embed(TEXTS)
    time.sleep(0.05)  # it may be inside by then, wholly waiting, or in a step
    made.engine.abort(aborted)
    with pytest.raises(DeadlineExceeded):
        aborted.result(0)
    np.testing.assert_allclose(other.result(60).vectors, before, atol=1e-5)  # in other company: the last bits differ
    assert made.holds_nothing()
    assert made.vectors(TEXTS).tobytes() == before.tobytes()


@pytest.mark.parametrize("where", ["the model", "the runner", "the scheduler"])
@pytest.mark.parametrize("fail", [break_down, out_of_memory])
def test_after_a_failed_step_the_vectors_are_those_of_before(
    made: Engine,
    before: NDArray[np.float32],
    where: str,
    fail: Callable[[], object],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with made.failing(where, fail):
        inside = made.embed([*TEXTS[:40], POISON, *TEXTS[40:]])
        outside = made.embed(TEXTS)
        with pytest.raises(EngineFailed, match="RuntimeError"):
            inside.result(60)
        np.testing.assert_allclose(outside.result(60).vectors, before, atol=1e-5)
    assert made.vectors(TEXTS).tobytes() == before.tobytes()
    assert made.holds_nothing()
    assert not made.engine.dead.is_set()
    assert POISON not in caplog.text + "".join(capfd.readouterr())


def test_a_batch_that_is_alone_loses_only_the_text_that_breaks_the_engine(
    made: Engine, before: NDArray[np.float32], tiny_qwen3: Path
) -> None:
    pipeline = Pipeline(made.engine, profile_of(str(tiny_qwen3)), NoCache())
    texts = [*TEXTS[:77], POISON, *TEXTS[77:]]
    settings = EmbedSettings(model=str(tiny_qwen3), dimensions=128)
    with made.failing("the model", break_down):
        outcomes = pipeline.run(
            [str(row) for row in range(len(texts))],
            texts,
            settings,
            priority=Priority.BULK,
            alone=True,
            deadline_s=60,
        )
    assert [row.id for row in outcomes.rows if row.error is not None] == ["77"]
    assert outcomes.rows[77].error == (
        "engine_error",
        "the engine fails at this text (a step of the engine failed (RuntimeError))",
    )
    good = np.delete(outcomes.vectors, 77, axis=0)
    np.testing.assert_allclose(good, before, atol=1e-5)


def test_a_step_that_hangs_ends_every_wait(made: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made.loop, "_hung_s", lambda: 0.5)
    released, hanging = threading.Event(), threading.Event()

    def hang() -> None:
        hanging.set()
        released.wait(60)

    with made.failing("the model", hang):
        inside, waiting = made.embed([POISON]), made.embed(TEXTS * 20)
        assert hanging.wait(30)
        made.engine.abort(inside)
        for future in (inside, waiting, made.embed(TEXTS)):
            with pytest.raises(EngineUnavailable, match="hung"):
                future.result(0)
        assert made.engine.dead.is_set()
        begun = time.monotonic()
        made.engine.close()
        assert time.monotonic() - begun < 10
        released.set()
        assert made.loop._ended.wait(30), "a thread that comes back ends"
