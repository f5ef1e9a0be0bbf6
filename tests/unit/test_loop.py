"""The loop that feeds and steps an engine: who goes first, what is aborted, what becomes of work when a step fails."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest
from numpy.typing import NDArray

from embedfleet.errors import DeadlineExceeded, EngineFailed, EngineUnavailable
from embedfleet_worker.engine.base import Embedded, Priority, Tokens
from embedfleet_worker.engine.loop import Loop, Work
from tests.waiting import wait_until

STEP_TEXTS = 4
PROBE = 1
HUNG_S = 0.5


class StubEngine:
    """Takes requests and answers STEP_TEXTS of them a step, by priority, as vLLM's scheduler does."""

    def __init__(self) -> None:
        self.requests: list[tuple[int, int, str, int]] = []
        self.aborted: list[str] = []
        self.stepped = threading.Semaphore(0)
        self.may_step = threading.Semaphore(0)
        self.failures: dict[int, BaseException] = {}
        """Raised by a step that has the token; of token 0, by taking it in."""
        self.probe = 1.0
        """What every component of the probe's vector is."""

    def add(self, request: str, ids: list[int], priority: Priority) -> None:
        if ids == [0]:
            raise self.failures.get(0, ValueError("VLLMValidationError: no"))
        self.requests.append((priority, len(self.requests), request, ids[0]))

    def step(self) -> list[tuple[str, NDArray[np.float32]]]:
        assert self.may_step.acquire(timeout=30)
        self.requests.sort()
        taken = self.requests[:STEP_TEXTS]
        for *_, token in taken:
            if token in self.failures:
                raise self.failures[token]  # and keeps what it was given
        self.requests = self.requests[STEP_TEXTS:]
        self.stepped.release()
        return [(request, self._vector(token)) for _, _, request, token in taken]

    def abort(self, requests: list[str]) -> None:
        self.aborted += requests
        self.requests = [entry for entry in self.requests if entry[2] not in requests]

    def _vector(self, token: int) -> NDArray[np.float32]:
        if token == PROBE:
            return np.full(2, self.probe, np.float32)
        return np.full(3 if token == 3 else 2, token, np.float32)


class Running:
    """The loop in its thread."""

    def __init__(self) -> None:
        self.engine = StubEngine()
        self.engine.may_step.release()
        self.loop = Loop(self.engine, [PROBE], STEP_TEXTS, hung_s=HUNG_S)
        assert self.engine.stepped.acquire(timeout=10), "of the probe"
        self.thread = threading.Thread(target=self.loop.run)

    def want(self, tokens: list[int], priority: Priority = Priority.BULK) -> "Future[Embedded]":
        prompts = [Tokens(str(token), [token], 1) for token in tokens]
        work = Work(prompts, priority, np.empty((len(tokens), 2), np.float32))
        self.loop.submit(work)
        return work.future

    def step(self) -> None:
        self.engine.may_step.release()
        assert self.engine.stepped.acquire(timeout=10)

    def go(self) -> None:
        """As many steps as it likes."""
        self.engine.may_step.release(10_000)


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running()
    yield made
    made.go()
    made.loop.close()
    if made.thread.ident is not None:
        made.thread.join(10)
    assert not made.thread.is_alive()


def components(future: "Future[Embedded]") -> list[float]:
    found: list[float] = future.result(10).vectors[:, 0].tolist()
    return found


def test_vectors_come_in_the_order_of_the_prompts(running: Running) -> None:
    wanted = [running.want(list(range(10, 20))), running.want([7, 8])]
    running.thread.start()
    for _ in range(3):
        running.step()
    assert components(wanted[0]) == list(range(10, 20))
    assert wanted[1].result(10).vectors.tolist() == [[7, 7], [8, 8]]


def test_an_interactive_text_is_in_the_next_step(running: Running) -> None:
    """Whatever waits: only two steps of bulk are inside the engine, and there priority counts too."""
    bulk = running.want(list(range(10, 500)))
    running.thread.start()
    running.step()
    interactive = running.want([7], Priority.INTERACTIVE)
    running.step()  # it may have begun before the text came
    running.step()
    assert components(interactive) == [7]
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


# Aborting


def test_what_is_aborted_leaves_the_engine_and_nothing_else_does(running: Running) -> None:
    """It may be partly done, partly inside and partly waiting."""
    before, aborted, after = running.want([5]), running.want(list(range(10, 500))), running.want([6])
    running.thread.start()
    running.step()
    aborting = threading.Thread(target=running.loop.abort, args=(aborted,))
    aborting.start()
    running.go()
    aborting.join(10)
    with pytest.raises(DeadlineExceeded):
        aborted.result(0)
    assert (components(before), components(after)) == ([5], [6])
    assert running.engine.aborted
    assert components(running.want([8])) == [8]
    assert running.engine.requests == []
    assert not running.loop.dead.is_set()


def test_what_waits_in_the_inbox_can_be_aborted(running: Running) -> None:
    aborted, other = running.want([5]), running.want([6])
    aborting = threading.Thread(target=running.loop.abort, args=(aborted,))
    aborting.start()
    running.go()
    running.thread.start()
    aborting.join(10)
    assert isinstance(aborted.exception(0), DeadlineExceeded)
    assert components(other) == [6]


def test_aborting_what_is_done_changes_nothing(running: Running) -> None:
    wanted = running.want([5])
    running.thread.start()
    running.step()
    assert components(wanted) == [5]
    running.loop.abort(wanted)
    assert components(wanted) == [5]


# Hanging


def test_a_step_that_hangs_is_found_out_by_who_aborts(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    inside, waiting = running.want([5]), running.want(list(range(10, 500)))
    running.thread.start()
    begun = time.monotonic()
    running.loop.abort(inside)
    assert HUNG_S <= time.monotonic() - begun < 10
    assert running.loop.dead.is_set()
    for future in (inside, waiting, running.want([7])):
        with pytest.raises(EngineUnavailable, match="hung"):
            future.result(0)
    assert "hung" in caplog.text


def test_a_thread_that_comes_back_after_it_was_given_up_stops(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    inside = running.want([5])
    running.thread.start()
    running.loop.abort(inside)
    running.go()
    running.thread.join(10)
    assert not running.thread.is_alive()
    assert isinstance(inside.exception(0), EngineUnavailable), "its future keeps what it was told"
    assert "failed" not in caplog.text, "that it comes too late breaks nothing"


def test_closing_does_not_wait_for_a_step_that_hangs(running: Running) -> None:
    inside = running.want([5])
    running.thread.start()
    begun = time.monotonic()
    running.loop.close()
    assert time.monotonic() - begun < 10
    assert isinstance(inside.exception(0), EngineUnavailable)


def test_a_slow_engine_is_not_a_hung_one(running: Running) -> None:
    """A step may take ten times as long as the longest so far."""
    running.thread.start()
    first = running.want([5])
    time.sleep(HUNG_S / 2)
    running.step()
    assert components(first) == [5]
    second = running.want([6])
    threading.Timer(2 * HUNG_S, running.go).start()
    running.loop.abort(second)
    assert not running.loop.dead.is_set()
    assert second.exception(0) is None or isinstance(second.exception(0), DeadlineExceeded)


# Failing


@pytest.mark.parametrize("failure", [RuntimeError("a text"), MemoryError(), KeyError("a text")], ids=repr)
def test_what_was_in_a_failed_step_fails_and_the_engine_goes_on(
    running: Running, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    running.engine.failures[5] = failure
    inside = [running.want([10, 5]), running.want([11] * 4)]
    partly, outside = running.want(list(range(20, 40))), running.want([6])
    running.go()
    running.thread.start()
    for future in (*inside, partly):
        with pytest.raises(EngineFailed, match=type(failure).__name__):
            future.result(10)
    assert components(outside) == [6], "it was wholly outside"
    assert components(running.want(list(range(30, 50)))) == list(range(30, 50))
    assert not running.loop.dead.is_set()
    assert "a text" not in caplog.text
    assert "test_loop.py" in caplog.text, "where it happened"


def test_a_failure_at_taking_a_text_in_is_a_failed_step(running: Running) -> None:
    running.engine.failures[0] = RuntimeError("it broke")
    bad, good = running.want([0]), running.want([6])
    running.go()
    running.thread.start()
    assert isinstance(bad.exception(10), EngineFailed)
    assert components(good) == [6]


def test_every_failed_step_is_mended(running: Running) -> None:
    running.engine.failures = {token: RuntimeError() for token in range(5, 10)}
    running.go()
    running.thread.start()
    for token in range(5, 10):
        assert isinstance(running.want([token]).exception(10), EngineFailed)
        assert components(running.want([token + 10])) == [token + 10]


@pytest.mark.parametrize("broken", ["the probe fails too", "the probe has another vector", "NaN", "no Exception"])
def test_an_engine_that_a_failed_step_broke_is_dead(running: Running, broken: str) -> None:
    inside, outside = running.want([5] * 20), running.want([6])
    running.engine.failures[5] = RuntimeError("it broke")
    if broken == "the probe fails too":
        running.engine.failures[PROBE] = RuntimeError("it is broken")
    elif broken == "no Exception":
        running.engine.failures[5] = SystemExit()
    else:
        running.engine.probe = float("nan") if broken == "NaN" else 0.97
    running.go()
    running.thread.start()
    for future in (inside, outside):
        with pytest.raises(EngineUnavailable):
            future.result(10)
    assert running.loop.dead.is_set()
    wait_until(lambda: not running.thread.is_alive(), "the end of the thread", 10)
    with pytest.raises(EngineUnavailable):
        running.want([7]).result(0)


def test_an_engine_that_never_answers_the_probe_is_dead(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running.engine.failures[5] = RuntimeError("it broke")
    inside = running.want([5])
    add = running.engine.add
    monkeypatch.setattr(running.engine, "add", lambda request, ids, how: ids == [PROBE] or add(request, ids, how))
    running.go()
    running.thread.start()
    assert isinstance(inside.exception(10), EngineUnavailable)
    assert running.loop.dead.is_set()


def test_what_is_under_way_at_the_end_can_be_given_back(running: Running) -> None:
    inside, waiting = running.want([5] * 20), running.want([6])
    running.thread.start()
    closing = threading.Thread(target=running.loop.close)
    closing.start()
    running.step()
    closing.join(10)
    for future in (inside, waiting, running.want([7])):
        with pytest.raises(EngineUnavailable):
            future.result(10)
    assert not running.loop.dead.is_set()
