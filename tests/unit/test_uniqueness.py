"""SeenIds against a plain set; its memory; what happens beyond its limit."""

import tracemalloc
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedfleet import uniqueness
from embedfleet.uniqueness import SeenIds

CALL = 512


class PlainSet:
    """The same in the obvious way."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def add(self, ids: Sequence[str]) -> int | None:
        for position, text in enumerate(ids):
            if text in self.seen or text in ids[:position]:
                return position
        self.seen.update(ids)
        return None


def calls(count: int) -> Iterator[list[str]]:
    return ([f"id-{n}" for n in range(start, min(start + CALL, count))] for start in range(0, count, CALL))


# Few different ids, so that duplicates happen; the lone surrogate because records pass through here before a check.
some_ids = st.one_of(st.sampled_from("abcdefghijklmnop"), st.text(max_size=3), st.just("\ud800"))


@settings(deadline=None)
@given(st.lists(st.lists(some_ids, max_size=8), max_size=30), st.integers(1, 6))
def test_agrees_with_a_plain_set_while_runs_are_made_and_merged(ids: list[list[str]], recent: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uniqueness, "_RECENT_IDS", recent)
        seen, plain = SeenIds(), PlainSet()
        assert [seen.add(call) for call in ids] == [plain.add(call) for call in ids]


def test_finds_the_first_of_several_duplicates_in_runs_recent_ids_and_the_call_itself() -> None:
    seen = SeenIds()
    for call in calls(40_000):
        assert seen.add(call) is None
    assert seen._runs
    assert seen._recent
    assert seen.add(["x", "y", "id-3", "x"]) == 2
    assert seen.add(["x", "id-39999"]) == 1
    assert seen.add(["x", "y", "x", "id-3"]) == 2
    assert seen.add(["x", "y"]) is None, "a refused call leaves nothing behind"
    assert seen.add([]) is None


def test_every_one_of_many_ids_is_found_again() -> None:
    seen = SeenIds()
    for call in calls(120_000):
        assert seen.add(call) is None
    assert len(seen._runs) > 1
    assert all(seen.add([f"id-{n}"]) == 0 for n in range(0, 120_000, 1013))
    assert all(seen.add(["new", f"id-{n}"]) == 1 for n in range(119_990, 120_000))


def test_digests_that_share_half_or_end_in_zeros_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ids whose digests differ in the second half or in trailing NULs must not count as one."""

    class Digest:
        def __init__(self, data: bytes, digest_size: int) -> None:
            self.data = data

        def digest(self) -> bytes:
            return self.data.ljust(16, b"\0")

    monkeypatch.setattr(uniqueness, "blake2b", Digest)
    monkeypatch.setattr(uniqueness, "_RECENT_IDS", 2)
    seen = SeenIds()
    ids = ["a", "a\x01", "prefix--", "prefix--x", "prefix--y", "prefix--\0z", "\0\0\0\0\0\0\0\0q", "\0\0\0\0\0\0\0\0r"]
    assert [seen.add([text]) for text in ids] == [None] * len(ids)
    assert [seen.add(["new", text]) for text in ids] == [1] * len(ids)


def test_the_digest_has_128_bits() -> None:
    seen = SeenIds()
    seen.add(["a"])
    assert seen._recent == {blake2b(b"a", digest_size=16).digest()}


def test_beyond_the_limit_only_duplicates_within_a_call_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SeenIds, "MAX_EXACT", 1000)
    seen = SeenIds()
    assert seen.add([str(n) for n in range(1000)]) is None
    assert seen.add(["7"]) == 0
    assert seen.add(["1000", "7"]) == 1, "the call that passes the limit is still compared"
    assert seen.add(["1000"]) is None
    assert seen.add(["7", "1000"]) is None
    assert seen.add(["a", "b", "b"]) == 2
    assert not seen._recent, "the memory is given back"
    assert not seen._runs


def test_a_million_ids_need_at_most_two_digests_each() -> None:
    import numpy  # noqa: F401  (its import is not what is measured)

    seen = SeenIds()
    ids = [str(n) for n in range(1_000_000)]
    tracemalloc.start()
    try:
        for start in range(0, len(ids), 8192):  # longer calls than usual: tracing makes small ones slow
            seen.add(ids[start : start + 8192])
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 16_000_000 < peak_bytes < 36_000_000
