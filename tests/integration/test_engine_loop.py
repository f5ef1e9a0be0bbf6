"""The loop that feeds and steps vLLM: who goes first, what a text may cost, what becomes of work when it breaks."""

import queue
import threading
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from embedfleet.errors import EngineUnavailable
from embedfleet_worker.engine.base import Priority, Tokens

with warnings.catch_warnings():  # of what vLLM imports
    warnings.simplefilter("ignore")
    from embedfleet_worker.engine import vllm as module

STEP_TEXTS = 4


class StubEngine:
    """Takes requests and answers STEP_TEXTS of them a step, by priority, as vLLM's scheduler does."""

    def __init__(self) -> None:
        self.requests: list[tuple[int, int, str, int]] = []
        self.stepped = threading.Semaphore(0)
        self.may_step = threading.Semaphore(0)
        self.failure: Exception | None = None

    def add_request(self, request: str, prompt: Any, params: Any, priority: int) -> None:
        if prompt["prompt_token_ids"] == [0]:
            raise ValueError("VLLMValidationError: no")
        self.requests.append((priority, len(self.requests), request, prompt["prompt_token_ids"][0]))

    def step(self) -> list[Any]:
        self.may_step.acquire()
        if self.failure is not None:
            raise self.failure
        self.requests.sort()
        taken, self.requests = self.requests[:STEP_TEXTS], self.requests[STEP_TEXTS:]
        self.stepped.release()
        return [output(request, token) for _, _, request, token in taken]


def output(request: str, token: int) -> Any:
    length = 3 if token == 3 else 2
    return SimpleNamespace(request_id=request, outputs=SimpleNamespace(data=torch.full((length,), float(token))))


class Running:
    """The loop in its thread."""

    def __init__(self) -> None:
        self.engine = StubEngine()
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.loop = module._Loop(self.engine, self.inbox, STEP_TEXTS)
        self.broke: list[Exception] = []
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.loop.run()
        except RuntimeError as exc:
            self.broke.append(exc)
        self.loop.abandon(EngineUnavailable("it was closed"))

    def want(self, tokens: list[int], priority: Priority = Priority.BULK) -> Any:
        prompts = [Tokens(str(token), [token], 1) for token in tokens]
        work = module._Work(prompts, priority, np.empty((len(tokens), 2), np.float32))
        self.inbox.put(work)
        return work.future

    def step(self) -> None:
        self.engine.may_step.release()
        assert self.engine.stepped.acquire(timeout=10)


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running()
    yield made
    made.inbox.put(None)
    for _ in range(1000):
        made.engine.may_step.release()
    made.thread.join(10)
    assert not made.thread.is_alive()


def test_vectors_come_in_the_order_of_the_prompts(running: Running) -> None:
    wanted = [running.want(list(range(10, 20))), running.want([7, 8])]
    running.thread.start()
    for _ in range(3):
        running.step()
    assert wanted[0].result(10).vectors[:, 0].tolist() == list(range(10, 20))
    assert wanted[1].result(10).vectors.tolist() == [[7, 7], [8, 8]]


def test_an_interactive_text_is_in_the_next_step(running: Running) -> None:
    """Whatever waits: only two steps of bulk are inside the engine, and there priority counts too."""
    bulk = running.want(list(range(10, 500)))
    running.thread.start()
    running.step()
    interactive = running.want([7], Priority.INTERACTIVE)
    running.step()  # it may have begun before the text came
    running.step()
    assert interactive.result(10).vectors.tolist() == [[7, 7]]
    assert not bulk.done()
    assert len(running.engine.requests) <= 2 * STEP_TEXTS


def test_a_text_that_the_engine_refuses_costs_no_other_its_vector(running: Running) -> None:
    wanted = running.want([5, 0, 6])
    running.thread.start()
    running.step()
    found = wanted.result(10)
    assert found.errors == {1: "the engine refused the text (VLLMValidationError: no)"}
    assert found.vectors[[0, 2], 0].tolist() == [5, 6]


def test_a_vector_of_another_length_is_that_texts_error(running: Running) -> None:
    wanted = running.want([5, 3, 6])
    running.thread.start()
    running.step()
    assert list(wanted.result(10).errors) == [1]
    assert "an array of (3,)" in wanted.result(10).errors[1]


def test_when_a_step_fails_everything_waiting_is_given_back(running: Running) -> None:
    inside, waiting = running.want([5] * 20), running.want([6])
    running.engine.failure = RuntimeError("it broke")
    running.thread.start()
    running.engine.may_step.release()
    running.thread.join(10)
    late = running.want([7])
    running.loop.abandon(EngineUnavailable("it broke"))
    for future in (inside, waiting, late):
        with pytest.raises(EngineUnavailable):
            future.result(10)
    assert running.broke
