"""The Parquet files: what goes in comes out, and fingerprints of different records differ."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedfleet.contract import Encoding
from embedfleet.errors import ContractError, InputError
from embedfleet.records import Record, check_text, records_of
from embedfleet.tables import (
    Outcome,
    Outcomes,
    fingerprint,
    read_input,
    read_input_info,
    read_part,
    read_part_info,
    read_records,
    vectors_of,
    write_input,
    write_part,
)

storable = st.text(max_size=12)
some_texts = st.one_of(
    storable, st.sampled_from(["", " ", "\ud800", "\ud83d\ude00", "😀", "\0"]), st.none(), st.integers()
)
some_columns = st.dictionaries(st.sampled_from(["a", "b", "ключ", "😀"]), st.none() | storable, max_size=3)
some_records = st.lists(st.builds(Record, storable, some_texts, some_columns), max_size=8)


def outcomes_of(ids: list[str], dimensions: int = 3) -> Outcomes:
    """Alternately a vector and an error."""
    rows = [
        Outcome(name, error=("engine_error", f"about {name}")) if row % 2 else Outcome(name, n_tokens=row)
        for row, name in enumerate(ids)
    ]
    return Outcomes(rows, np.arange(len(ids) * dimensions, dtype=np.float32).reshape(len(ids), dimensions))


# Inputs


@settings(deadline=None)
@given(some_records)
def test_an_input_gives_back_ids_and_texts_and_says_why_a_text_is_missing(records: list[Record]) -> None:
    given_back = read_input(write_input(records, 7), "input")
    assert given_back.ids == [record.id for record in records]
    for row, record in enumerate(records):
        reason = check_text(record.text)
        missing = reason is not None and reason[0] != "empty"
        assert given_back.texts[row] == (None if missing else record.text)
        assert given_back.info.rejected.get(row) == (reason if missing else None)
    assert (given_back.info.sha256, given_back.info.tokens) == (fingerprint(records), 7)


@settings(deadline=None)
@given(some_records)
def test_an_input_gives_back_its_records_with_every_column(records: list[Record]) -> None:
    names = {name for record in records for name in record.columns}
    for before, after in zip(records, read_records(write_input(records, 0), "input"), strict=True):
        assert after.id == before.id
        assert after.columns == {**dict.fromkeys(names), **before.columns}


@settings(deadline=None)
@given(some_records)
def test_the_end_of_an_input_tells_its_count_and_fingerprint(records: list[Record]) -> None:
    data = write_input(records, 7)
    info, count = read_input_info(lambda size: data[-size:], "input")
    assert (info.sha256, count) == (fingerprint(records), len(records))


def test_an_input_is_the_same_bytes_every_time() -> None:
    records = [Record("a", "text", {"x": "1"}), Record("b", None)]
    assert write_input(records, 3) == write_input(records, 3)


def test_the_end_is_found_however_long_the_metadata_is() -> None:
    """A thousand rejected texts make metadata larger than the first guess at the footer."""
    records = [Record(str(row), None) for row in range(1000)]
    data = write_input(records, 0)
    asked: list[int] = []
    info, count = read_input_info(lambda size: (asked.append(size), data[-size:])[1], "input")
    assert (len(info.rejected), count) == (1000, 1000)
    assert len(asked) == 2


# Parts


@settings(deadline=None)
@given(st.lists(storable, max_size=8), st.sampled_from(["float32", "float16"]))
def test_a_part_gives_back_every_outcome_in_order(ids: list[str], encoding: Encoding) -> None:
    outcomes = outcomes_of(ids)
    table, info = read_part(write_part(outcomes, encoding, "j-1", 4), "part")
    assert table["id"].to_pylist() == ids
    assert table["chunk"].to_pylist() == [0] * len(ids)
    for row, (outcome, embedding) in enumerate(zip(outcomes.rows, table["embedding"].to_pylist(), strict=True)):
        assert embedding == (None if outcome.error else outcomes.vectors[row].tolist())
    assert table["error"].to_pylist() == [outcome.error and outcome.error[0] for outcome in outcomes.rows]
    assert table["error_message"].to_pylist() == [outcome.error and outcome.error[1] for outcome in outcomes.rows]
    assert (info.job, info.batch, info.totals) == ("j-1", 4, outcomes.totals())


@settings(deadline=None)
@given(st.lists(storable, max_size=8))
def test_the_end_of_a_part_is_enough_for_its_metadata(ids: list[str]) -> None:
    data = write_part(outcomes_of(ids), "float32", "j-1", 4)
    assert read_part_info(lambda size: data[-size:], "part") == read_part(data, "part")[1]


@pytest.mark.parametrize(("encoding", "dtype"), [("float32", np.float32), ("float16", np.float16)])
def test_vectors_are_written_in_the_encoding_and_bit_for_bit(encoding: Encoding, dtype: type) -> None:
    vectors = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    outcomes = Outcomes([Outcome(str(row), n_tokens=1) for row in range(5)], vectors)
    table, _ = read_part(write_part(outcomes, encoding, "j-1", 0), "part")
    found = vectors_of(table)
    assert found.dtype == dtype
    assert found.tobytes() == vectors.astype(dtype).tobytes()


def test_a_part_is_the_same_bytes_every_time() -> None:
    first, second = (write_part(outcomes_of(["a", "b", "c"]), "float32", "j-1", 0) for _ in range(2))
    assert first == second


def test_the_vector_of_a_failed_text_is_not_looked_at() -> None:
    vectors = np.array([[np.nan, np.inf], [1, 0]], np.float32)
    outcomes = Outcomes([Outcome("a", error=("not_finite", "NaN")), Outcome("b", n_tokens=1)], vectors)
    table, _ = read_part(write_part(outcomes, "float32", "j-1", 0), "part")
    assert table["embedding"].to_pylist() == [None, [1, 0]]


def test_totals_count_the_tokens_of_vectors_only() -> None:
    rows = [
        Outcome("a", n_tokens=5, cached=True, truncated=True),
        Outcome("b", n_tokens=7),
        Outcome("c", n_tokens=9, error=("not_unit_norm", "2")),
        Outcome("d", error=("empty", "blank")),
    ]
    totals = Outcomes(rows, np.zeros((4, 1), np.float32)).totals()
    assert totals.model_dump() == {"texts": 4, "errors": 2, "cached": 1, "truncated": 1, "tokens": 12}


def test_a_file_that_ends_early_is_a_contract_error() -> None:
    data = write_part(outcomes_of(["a", "b"]), "float32", "j-1", 0)
    for length in (0, 3, 8, len(data) // 2, len(data) - 1):
        cut = data[:length]
        with pytest.raises(ContractError, match=r"^part: "):
            read_part(cut, "part")
        with pytest.raises(ContractError, match=r"^part: "):
            read_part_info(lambda size, cut=cut: cut[-size:], "part")


# Fingerprints


@given(some_records, some_records)
def test_fingerprints_are_equal_exactly_for_equal_records(first: list[Record], second: list[Record]) -> None:
    assert (fingerprint(first) == fingerprint(second)) == (distinguished(first) == distinguished(second))


def distinguished(records: list[Record]) -> list[object]:
    """What a fingerprint tells apart: of a text that is no string, only its type."""
    return [
        (record.id, record.text if isinstance(record.text, str) else type(record.text), list(record.columns.items()))
        for record in records
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([Record("ab", "c")], [Record("a", "bc")]),
        ([Record("a", "b"), Record("c", "d")], [Record("a", 'b"],["c","d')]),
        ([Record("a", "b", {"c": "d"})], [Record("a", "b", {"cd": ""})]),
        ([Record("a", "b", {"c": None})], [Record("a", "b")]),
        ([Record("a", "b", {"c": None})], [Record("a", "b", {"c": "null"})]),
        ([Record("a", None)], [Record("a", "")]),
        ([Record("a", None)], [Record("a", "NoneType")]),
        ([Record("a", None)], [Record("a", 0)]),
        ([Record("a", "x"), Record("b", "x")], [Record("b", "x"), Record("a", "x")]),
        ([Record("a", "é")], [Record("a", "e\u0301")]),
        ([Record("a", "\\u0041")], [Record("a", "A")]),
        pytest.param(
            [Record("a", "\ud83d\ude00")], [Record("a", "😀")], id="two lone surrogates and what they look like"
        ),
        ([], [Record("", "")]),
    ],
)
def test_what_is_written_differently_has_another_fingerprint(first: list[Record], second: list[Record]) -> None:
    assert fingerprint(first) != fingerprint(second)


# From the caller's records to the file: nothing that records_of accepts may fail later


@settings(deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.one_of(
                st.text(st.characters(), max_size=4), st.sampled_from(["id", "chunk", "embedding", "\ud800", ""])
            ),
            st.one_of(
                st.text(st.characters(), max_size=6),
                st.none(),
                st.integers(),
                st.floats(),
                st.binary(max_size=3),
                st.just({(1, 2): 3}),
                st.just({"nested": ["\ud800"]}),
            ),
            max_size=4,
        ),
        max_size=4,
    )
)
def test_any_mapping_is_carried_along_or_refused_as_input(rows: list[dict[str, object]]) -> None:
    try:
        records = list(records_of([{**row, "text": "text", "id": str(number)} for number, row in enumerate(rows)]))
    except InputError:
        return
    back = read_records(write_input(records, 0), "input")
    assert [record.id for record in back] == [record.id for record in records]
    json.dumps([record.columns for record in back])


@pytest.mark.parametrize(
    "item",
    [
        {"text": "a", "column": {(1, 2): 3}},
        {"text": "a", "\ud800": "lone surrogate in the name"},
        {"text": "a", "column": 10**5000},
        (10**5000, "a"),
        {"text": "a", "id": 10**5000},
        {"text": "a", "column": "\ud800"},
        {"text": "a", 5: "a name that is no string"},
        {"text": "a", "column": object},
    ],
    ids=[
        "tuple as key",
        "surrogate name",
        "large number",
        "large id",
        "large id field",
        "surrogate",
        "int name",
        "type",
    ],
)
def test_odd_values_are_carried_along_or_refused_as_input(item: object) -> None:
    try:
        records = list(records_of([item]))
    except InputError:
        return
    assert len(read_records(write_input(records, 0), "input")) == 1
