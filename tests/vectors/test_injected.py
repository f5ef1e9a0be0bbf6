"""Answers of a broken engine: what is wrong with a vector is named, and whose it is, is never guessed.

From the pipeline through the loop that steps vLLM; only vLLM itself is a stand-in. The loop knows a vector by its
request, so order means nothing. What cannot be seen in an answer is two requests with each other's vector: both are
sound. That is why an engine has to give its probes, alone and in a batch, the same vectors before it serves, and why
the other tests here compare every text with a reference.
"""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from embedfleet.contract import EmbedSettings
from embedfleet.errors import DeadlineExceeded, EngineFailed
from embedfleet.models import ModelProfile
from embedfleet.tables import Outcomes
from embedfleet_worker.engine.base import Embedded, Priority, Tokens
from embedfleet_worker.engine.loop import Loop, Work
from embedfleet_worker.pipeline import NoCache, Pipeline
from tests.unit.fake_engine import FakeEngine

Vector = NDArray[np.float32]
Answers = list[tuple[str, Vector]]
TEXTS = [f"text {number}" for number in range(12)]
BAD = 5
STEP_TEXTS = 4
PROFILE = ModelProfile(name="a model", dimensions=8, max_tokens=12, pooling="mean", parameters=1)


class Stepped:
    """Answers some requests a step, as vLLM does, and does to the answers what a test asks for."""

    def __init__(self, vectors: dict[int, Vector]) -> None:
        self.vectors = vectors
        """By token id."""
        self.waiting: list[tuple[str, int]] = []
        self.tamper: Callable[[Answers], Answers] = lambda answers: answers

    def add(self, request: str, ids: list[int], priority: Priority) -> None:
        self.waiting.append((request, ids[0]))

    def step(self) -> Answers:
        taken, self.waiting = self.waiting[:STEP_TEXTS], self.waiting[STEP_TEXTS:]
        answers = [(request, self.vectors[token]) for request, token in taken]
        return self.tamper(answers) if len(answers) > 1 else answers

    def abort(self, requests: list[str]) -> None:
        self.waiting = [each for each in self.waiting if each[0] not in requests]


class Engine(FakeEngine):
    """Its vectors come through the real loop."""

    def __init__(self) -> None:
        super().__init__()
        self.stepped = Stepped({number: self.vector(text) for number, text in enumerate(["probe", *TEXTS])})
        self.loop = Loop(self.stepped, [0], STEP_TEXTS)
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def embed(self, prompts: Sequence[Tokens], priority: Priority) -> "Future[Embedded]":
        numbered = [replace(tokens, ids=[1 + TEXTS.index(tokens.prompt)]) for tokens in prompts]
        work = Work(numbered, priority, np.empty((len(prompts), self.dimensions), np.float32))
        self.loop.submit(work)
        return work.future

    def abort(self, future: "Future[Embedded]") -> None:
        self.loop.abort(future)

    def close(self) -> None:
        self.loop.close()
        self.thread.join(10)


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.close()


def run(engine: Engine, deadline_s: float = 30) -> Outcomes:
    settings = EmbedSettings(model="a model", dimensions=8)
    pipeline = Pipeline(engine, PROFILE, NoCache())
    return pipeline.run(TEXTS, TEXTS, settings, priority=Priority.BULK, deadline_s=deadline_s)


def right(engine: Engine, outcomes: Outcomes) -> list[str]:
    """The texts that have their own vector and no error."""
    rows = zip(outcomes.rows, outcomes.vectors, strict=True)
    return [row.id for row, vector in rows if row.error is None and np.array_equal(vector, engine.vector(row.id))]


def numbers(*components: float) -> Vector:
    return np.array([*components, *[0] * 8][:8], np.float32)


WRONG: dict[str, tuple[Vector, str, str]] = {
    "NaN": (numbers(1, np.nan), "not_finite", "NaN or infinity"),
    "infinity": (numbers(-np.inf), "not_finite", "NaN or infinity"),
    "zero": (numbers(), "not_unit_norm", "a vector of norm 0"),
    "not normalised": (numbers(3), "not_unit_norm", "a vector of norm 3"),
    "short": (numbers(1)[:7], "engine_error", r"an array of \(7,\) and the model's profile says 8"),
    "of tokens": (np.ones((2, 8), np.float32), "engine_error", r"an array of \(2, 8\)"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_vector_is_named_and_shifts_no_other(engine: Engine, kind: str) -> None:
    engine.stepped.vectors[1 + BAD], code, said = WRONG[kind]
    outcomes = run(engine)
    assert right(engine, outcomes) == TEXTS[:BAD] + TEXTS[BAD + 1 :]
    error = outcomes.rows[BAD].error
    assert error is not None
    assert error[0] == code
    assert re.search(said, error[1])


def test_answers_in_another_order_are_each_texts_own(engine: Engine) -> None:
    engine.stepped.tamper = lambda answers: answers[::-1]
    assert right(engine, run(engine)) == TEXTS


SWAPPED_OR_LOST: dict[str, Callable[[Answers], Answers]] = {
    "an answer twice": lambda answers: [*answers, answers[0]],
    "one for another's request": lambda answers: [answers[0], (answers[0][0], answers[1][1]), *answers[2:]],
    "one for a request that is not there": lambda answers: [*answers[1:], ("99999", answers[0][1])],
}


@pytest.mark.parametrize("kind", SWAPPED_OR_LOST)
def test_answers_that_do_not_fit_the_requests_fail_the_step(engine: Engine, kind: str) -> None:
    """No text of the batch gets a vector; it is given back and tried again."""
    engine.stepped.tamper = SWAPPED_OR_LOST[kind]
    with pytest.raises(EngineFailed, match=r"a step of the engine failed \(KeyError\)"):
        run(engine)
    engine.stepped.tamper = lambda answers: answers
    assert right(engine, run(engine)) == TEXTS


def test_an_answer_that_never_comes_is_a_deadline(engine: Engine) -> None:
    engine.stepped.tamper = lambda answers: answers[1:]
    with pytest.raises(DeadlineExceeded):
        run(engine, deadline_s=0.5)


def test_vectors_exchanged_between_requests_look_sound(engine: Engine) -> None:
    """The limit of what checks of an answer can see; it is seen by comparing texts with what they must be."""
    engine.stepped.tamper = lambda answers: [
        (request, vector) for (request, _), (_, vector) in zip(answers, answers[::-1], strict=True)
    ]
    outcomes = run(engine)
    assert [row.error for row in outcomes.rows] == [None] * len(TEXTS)
    assert right(engine, outcomes) == []
