"""Labelled data: what is read, and that everything wrong with them is named before anything is embedded."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedfleet.errors import InputError
from embedfleet.labels import Pairs, read_pairs, read_retrieval

CORPUS = [{"id": "d1", "text": "one"}, {"id": "d2", "text": "two"}, {"id": 3, "text": "three"}]


def jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def retrieval(folder: Path, queries: list[Any]) -> Any:
    return read_retrieval([jsonl(folder / "corpus.jsonl", CORPUS)], [jsonl(folder / "queries.jsonl", queries)])


PAIRS = [("a", "b", 1.0), ("a", "c, d", 0.5)]


@pytest.mark.parametrize("names", [("text1", "text2"), ("sentence1", "sentence2")])
@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_pairs(tmp_path: Path, names: tuple[str, str], form: str) -> None:
    one, other = names
    rows = [{one: left, other: right, "score": score} for left, right, score in PAIRS]
    file = tmp_path / f"pairs.{form}"
    if form == "jsonl":
        jsonl(file, rows)
    elif form == "csv":
        file.write_text(f'{one},{other},score\na,b,1\na,"c, d",0.5\n', encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    read = read_pairs([str(file)])
    assert (read.texts, read.pairs, read.scores) == (("a", "b", "c, d"), ((0, 1), (0, 2)), (1.0, 0.5))


def test_a_text_that_is_no_string_stays_and_will_be_its_own_error(tmp_path: Path) -> None:
    rows = [{"text1": [1], "text2": "b", "score": 1}, {"text1": "a", "text2": None, "score": 2}]
    read = read_pairs([jsonl(tmp_path / "pairs.jsonl", rows)])
    assert (read.texts, read.pairs) == ((None, "b", "a"), ((0, 1), (2, 0)))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"a": 1}], "no field 'text1'; it has 'a'. Pairs have text1, text2 and score, or sentence1"),
        ([{"text1": "a", "text2": "b"}], "pair '1': no score; it has 'text2'"),
        ([{"text1": "a", "score": 1}], "pair '1': no text2"),
        ([{"text1": "a", "text2": "b", "score": "good"}], "pair '1': the score is 'good'; a number"),
        ([{"text1": "a", "text2": "b", "score": None, "id": "p7"}], "pair 'p7': the score is missing"),
        ([{"text1": "a", "text2": "b", "score": "nan"}], "a number was expected"),
        ([{"text1": "a", "text2": "b", "score": 1}] * 3, "pairs: 3 with 1 different scores"),
    ],
)
def test_what_is_wrong_with_pairs(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        read_pairs([jsonl(tmp_path / "pairs.jsonl", rows)])
    assert said in str(refused.value)


def test_no_pairs_at_all() -> None:
    with pytest.raises(InputError, match="pairs: 0 with 0 different scores"):
        Pairs.of([])


def test_relevant_documents_as_list_and_as_grades(tmp_path: Path) -> None:
    queries = [
        {"id": "a", "text": "x", "relevant": ["d1", 3]},
        {"id": "b", "text": "y", "relevant": {"d2": 2, "d1": 0, "d9": None}},
        {"id": "c", "text": "z", "relevant": []},
        {"id": "d", "text": "z", "relevant": None},
    ]
    read = retrieval(tmp_path, queries)
    assert [dict(query.relevant) for query in read.queries] == [{"d1": 1, "3": 1}, {"d2": 2}]
    assert (read.documents, read.without) == (3, 2)


def test_relevant_documents_in_csv_are_between_blanks(tmp_path: Path) -> None:
    (tmp_path / "queries.csv").write_text("id,text,relevant\na,x,d1 3\nb,y,\nc,z,3\n", encoding="utf-8")
    read = read_retrieval([jsonl(tmp_path / "corpus.jsonl", CORPUS)], [str(tmp_path / "queries.csv")])
    assert [dict(query.relevant) for query in read.queries] == [{"d1": 1, "3": 1}, {"3": 1}]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"relevant": ["d1", "d7", "d8"]}, "query 'q': its relevant document 'd7' is not in the corpus, and 1 other"),
        ({"relevant": []}, "none of 1 has a relevant document"),
        ({"answer": "d1"}, "query 'q': no relevant; it has 'answer'"),
        ({"relevant": {"d1": -1}}, "query 'q': the grade of 'd1' must be 0, 1, 2"),
        ({"relevant": {"d1": 0.5}}, "the grade of 'd1' must be"),
        ({"relevant": [["d1"]]}, "query 'q': the id is list"),
    ],
)
def test_what_is_wrong_with_queries(tmp_path: Path, query: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        retrieval(tmp_path, [{"id": "q", "text": "x", **query}])
    assert said in str(refused.value)


def test_standard_input_is_refused() -> None:
    with pytest.raises(InputError, match="read more than once"):
        read_pairs(["-"])
    with pytest.raises(InputError, match="read more than once"):
        read_retrieval(["-"], ["queries.jsonl"])
