"""Cutting a stream into batches: nothing lost, nothing reordered, no budget exceeded but by a record alone."""

from collections.abc import Iterator
from itertools import count, islice, pairwise

from hypothesis import given
from hypothesis import strategies as st

from embedfleet.batching import PlannedBatch, batches, estimated_tokens, size_bytes
from embedfleet.contract import Batching
from embedfleet.records import Record

texts = st.one_of(st.text(max_size=60), st.none(), st.integers(), st.just("\ud800\ud800"))
columns = st.dictionaries(st.text(max_size=4), st.none() | st.text(max_size=20), max_size=3)
records = st.lists(st.builds(Record, st.text(max_size=8), texts, columns), max_size=40)
budgets = st.builds(Batching, max_texts=st.integers(1, 9), max_tokens=st.integers(1, 60), max_bytes=st.integers(1, 200))


def tokens_of(batch: PlannedBatch) -> int:
    return sum(estimated_tokens(record.text) for record in batch.records)


def bytes_of(batch: PlannedBatch) -> int:
    return sum(size_bytes(record) for record in batch.records)


def exceeds(batch: PlannedBatch, budget: Batching) -> bool:
    return (
        len(batch.records) > budget.max_texts
        or tokens_of(batch) > budget.max_tokens
        or bytes_of(batch) > budget.max_bytes
    )


@given(records, budgets)
def test_every_record_travels_once_and_in_order(stream: list[Record], budget: Batching) -> None:
    found = [record for batch in batches(stream, budget) for record in batch.records]
    assert found == stream


@given(records, budgets)
def test_only_a_record_alone_may_exceed_a_budget(stream: list[Record], budget: Batching) -> None:
    for batch in batches(stream, budget):
        assert not exceeds(batch, budget) or len(batch.records) == 1


@given(records, budgets)
def test_no_batch_is_empty_and_none_could_have_taken_the_next_record(stream: list[Record], budget: Batching) -> None:
    planned = list(batches(stream, budget))
    assert all(batch.records for batch in planned)
    for batch, after in pairwise(planned):
        larger = PlannedBatch([*batch.records, after.records[0]], 0)
        assert exceeds(larger, budget)


@given(records, budgets)
def test_the_estimate_of_a_batch_is_the_sum_over_its_texts(stream: list[Record], budget: Batching) -> None:
    assert all(batch.tokens == tokens_of(batch) for batch in batches(stream, budget))


def test_an_endless_stream_is_cut_as_it_comes() -> None:
    endless: Iterator[Record] = (Record(str(n), "text") for n in count())
    first, second = islice(batches(endless, Batching(max_texts=2)), 2)
    assert [record.id for record in (*first.records, *second.records)] == ["0", "1", "2", "3"]
    assert next(endless).id == "5", "one record beyond the second batch was looked at, and no more"


def test_sizes_are_those_in_utf8() -> None:
    assert size_bytes(Record("ü", "東京", {"naïve": "é", "none": None})) == 2 + 6 + 6 + 2 + 4
    assert size_bytes(Record("a", None)) == size_bytes(Record("a", 5)) == 1
    assert estimated_tokens("東" * 400) == estimated_tokens("a" * 1200)
    assert estimated_tokens(None) == 0
