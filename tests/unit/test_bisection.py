"""Bisection: whatever is bad in a batch is found, nothing else is blamed, and it ends."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedfleet.errors import DeadlineExceeded, EngineFailed, EngineUnavailable
from embedfleet_worker.bisection import bisect, longest_s


class Batch:
    """Prompts by number: those that fail, and the seconds that each takes."""

    def __init__(self, size: int, bad: set[int], seconds: dict[int, float] | None = None) -> None:
        self.prompts = [str(number) for number in range(size)]
        self.bad = {str(number) for number in bad}
        self.seconds = {str(number): taken for number, taken in (seconds or {}).items()}
        self.now = 0.0
        self.calls: list[tuple[list[str], float]] = []
        self.computed: set[str] = set()

    def attempt(self, prompts: Sequence[str], seconds: float) -> None:
        self.calls.append((list(prompts), seconds))
        needed = sum(self.seconds.get(prompt, 0.0) for prompt in prompts)
        self.now += min(needed, seconds)
        if needed > seconds:
            raise DeadlineExceeded(f"longer than {seconds:g} s")
        if self.bad.intersection(prompts):
            raise EngineFailed("it failed")
        self.computed.update(prompts)

    def bisect(self, deadline_s: float = 600, least_s: float = 10) -> dict[str, EngineFailed | DeadlineExceeded]:
        return bisect(self.prompts, self.attempt, deadline_s, least_s=least_s, clock=lambda: self.now)


batches = st.integers(0, 130).flatmap(
    lambda size: st.tuples(st.just(size), st.sets(st.integers(0, size - 1)) if size else st.just(set()))
)


@given(batches)
def test_the_bad_ones_are_found_and_every_other_is_computed(made: tuple[int, set[int]]) -> None:
    size, bad = made
    batch = Batch(size, bad)
    assert set(batch.bisect()) == batch.bad
    assert batch.computed == set(batch.prompts) - batch.bad
    assert len(batch.calls) <= max(2 * size - 1, size)


@given(st.integers(1, 2000), st.data())
def test_one_bad_one_is_found_in_two_tries_a_level(size: int, data: st.DataObject) -> None:
    batch = Batch(size, {data.draw(st.integers(0, size - 1))})
    batch.bisect()
    assert len(batch.calls) <= 2 * math.ceil(math.log2(size)) + 1


@given(st.integers(1, 200), st.data())
def test_one_that_takes_too_long_is_found_and_the_others_are_computed(size: int, data: st.DataObject) -> None:
    slow = data.draw(st.integers(0, size - 1))
    batch = Batch(size, set(), dict.fromkeys(range(size), 1.0) | {slow: math.inf})
    assert set(batch.bisect()) == {str(slow)}
    assert batch.computed == set(batch.prompts) - {str(slow)}


@given(
    st.integers(1, 200),
    st.dictionaries(st.integers(0, 199), st.floats(0, 10_000)),
    st.sets(st.integers(0, 199)),
    st.floats(0.1, 1000),
)
def test_it_ends_in_time_and_every_text_is_computed_or_blamed(
    size: int, seconds: dict[int, float], bad: set[int], deadline_s: float
) -> None:
    batch = Batch(size, bad, seconds)
    failed = batch.bisect(deadline_s)
    assert batch.computed | set(failed) == set(batch.prompts)
    assert not batch.computed & set(failed)
    assert batch.now <= longest_s(deadline_s) * 1.001
    assert all(0 < given <= deadline_s for _, given in batch.calls)


def test_halves_get_three_quarters_of_the_time_down_to_the_least() -> None:
    batch = Batch(64, {0})
    batch.bisect(deadline_s=60)
    given = [given for _, given in batch.calls[::2]]
    assert given == pytest.approx([60, 45, 33.75, 25.31, 18.98, 14.24, 10.68], abs=0.01)


@pytest.mark.parametrize("times", [1.1, 1.5, 2])
def test_a_batch_that_is_slower_than_it_may_be_is_done_in_pieces(times: float) -> None:
    batch = Batch(512, set(), dict.fromkeys(range(512), times * 600 / 512))
    assert batch.bisect(deadline_s=600) == {}
    assert batch.computed == set(batch.prompts)


def test_what_is_left_when_the_time_is_over_says_that_it_was_not_tried() -> None:
    batch = Batch(512, set(), dict.fromkeys(range(512), 100.0))
    failed = batch.bisect(deadline_s=60)
    assert set(failed) == set(batch.prompts)
    assert "its batch took longer than 680 s in pieces" in {str(failure) for failure in failed.values()}


@pytest.mark.parametrize("error", [EngineUnavailable("gone"), ValueError("a defect")])
def test_other_errors_go_up_at_once(error: Exception) -> None:
    calls = []

    def attempt(prompts: Sequence[str], seconds: float) -> None:
        calls.append((prompts, seconds))
        raise error

    with pytest.raises(type(error)):
        bisect(["a", "b"], attempt, 60)
    assert len(calls) == 1
