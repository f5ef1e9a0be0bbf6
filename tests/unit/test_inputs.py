"""Inputs: what each format becomes, that anything goes round unchanged, and that every bad input is named."""

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedfleet.errors import InputError
from embedfleet.inputs import Scan, read, scan
from embedfleet.records import Record

BOM = b"\xef\xbb\xbf"


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def pairs(*inputs: str, **options: Any) -> list[tuple[str, object]]:
    """(id, text) of every record; that scan counts as many is checked on the way."""
    found = [(record.id, record.text) for record in read(inputs, **options)]
    if "stdin" not in options:
        assert scan(inputs, **options).texts == len(found)
    return found


def refusal(*inputs: str, **options: Any) -> str:
    """The message of the InputError that scan and read agree on."""
    with pytest.raises(InputError) as scanned:
        scan(inputs, **options)
    with pytest.raises(InputError) as met:
        list(read(inputs, **options))
    assert str(scanned.value) == str(met.value)
    return str(met.value)


# What each format becomes


@pytest.mark.parametrize("extension", ["jsonl", "ndjson", "JSONL", "csv", "tsv", "parquet"])
def test_formats_with_fields_give_the_same_records(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    rows = [{"id": "x", "text": "one", "url": "u1"}, {"id": "y", "text": "two", "url": "u2"}]
    if extension == "parquet":
        write_parquet(path, {key: [row[key] for row in rows] for key in rows[0]})
    elif extension in ("csv", "tsv"):
        delimiter = "," if extension == "csv" else "\t"
        write(
            path,
            "".join(delimiter.join(cells) + "\r\n" for cells in [list(rows[0]), *(list(row.values()) for row in rows)]),
        )
    else:
        write(path, "".join(json.dumps(row) + "\n" for row in rows))
    expected = [Record("x", "one", {"url": "u1"}), Record("y", "two", {"url": "u2"})]
    assert list(read([str(path)])) == expected
    assert scan([str(path)]).texts == 2
    assert pairs(str(path), id_field="url", text_field="id") == [("u1", "x"), ("u2", "y")]


@pytest.mark.parametrize("name", ["a.txt", "a.log", "a"])
def test_plain_lines_end_at_newlines_only_and_blank_ones_count(tmp_path: Path, name: str) -> None:
    lines = ["one", "", "  ", "carriage\rreturn", "u\u2028\u0085\x0b\x0c\x1cu", "last\r"]
    assert pairs(write(tmp_path / name, "one\r\n\n  \n" + "\n".join(lines[3:]))) == [
        (str(number), line) for number, line in enumerate(lines, 1)
    ]
    assert pairs(write(tmp_path / name, "\n")) == [("1", "")]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_byte_order_mark_and_windows_line_ends_are_no_content(tmp_path: Path, name: str) -> None:
    content = {
        "a.txt": b"one\r\ntwo\r\n",
        "a.jsonl": b'{"text":"one"}\r\n{"text":"two"}\r\n',
        "a.csv": b"text\r\none\r\ntwo",
    }
    assert pairs(write(tmp_path / name, BOM + content[name])) == [("1", "one"), ("2", "two")]


def test_jsonl_skips_blank_lines_and_hands_texts_through_that_are_no_strings(tmp_path: Path) -> None:
    lines = [
        '{"text": 7}',
        "",
        '{"text": null}',
        " \t",
        '{"text": ["a"]}',
        '{"text": "\\ud800"}',
        '{"text":1,"text":""}',
    ]
    assert pairs(write(tmp_path / "a.jsonl", "\n".join(lines))) == [
        ("1", 7), ("2", None), ("3", ["a"]), ("4", "\ud800"), ("5", ""),
    ]  # fmt: skip


def test_csv_cells_hold_delimiters_quotes_and_line_ends(tmp_path: Path) -> None:
    content = 'id,text\n\na,"one, ""two""\nthree\r\nfour"\n\nb,5" disk\n'
    assert pairs(write(tmp_path / "a.csv", content)) == [("a", 'one, "two"\nthree\r\nfour'), ("b", '5" disk')]


def test_a_line_a_cell_and_a_value_may_be_long(tmp_path: Path) -> None:
    long = "long " * 300_000
    assert pairs(write(tmp_path / "a.txt", long)) == [("1", long)]
    assert pairs(write(tmp_path / "a.jsonl", json.dumps({"text": long}))) == [("1", long)]
    assert pairs(write(tmp_path / "a.csv", f"text\n{long}\n")) == [("1", long)]
    assert pairs(write_parquet(tmp_path / "a.parquet", {"text": [long]})) == [("1", long)]


def test_parquet_columns_are_carried_as_strings(tmp_path: Path) -> None:
    columns = {
        "id": [7, 8],
        "text": pa.array(["a", None]).dictionary_encode(),
        "at": pa.array([1, 2], pa.timestamp("ns", tz="UTC")),
        "day": pa.array([10_000_000, None], pa.date32()),
        "list": [[1], []],
    }
    assert list(read([write_parquet(tmp_path / "a.parquet", columns)])) == [
        Record("7", "a", {"at": "1970-01-01 00:00:00.000000001Z", "day": "29349-01-26", "list": "[1]"}),
        Record("8", None, {"at": "1970-01-01 00:00:00.000000002Z", "day": None, "list": "[]"}),
    ]


def test_parquet_ids_and_texts_are_not_converted(tmp_path: Path) -> None:
    day = pa.array([1], pa.date32())
    assert not isinstance(pairs(write_parquet(tmp_path / "a.parquet", {"text": day}))[0][1], str)
    assert "the id is date" in refusal(write_parquet(tmp_path / "b.parquet", {"id": day, "text": ["a"]}))


def test_parquet_is_read_over_row_groups(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(5000)]
    path = write_parquet(tmp_path / "a.parquet", {"text": texts}, row_group_size=1700)
    assert pairs(path) == [(str(n), text) for n, text in enumerate(texts, 1)]


# Which files, which ids


def test_a_directory_is_read_recursively_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/c.jsonl", ".hidden.txt", ".git/x.txt", "a/.y.txt"):
        write(tmp_path / "in" / name, '{"text": "c"}' if name.endswith("jsonl") else f"{name}\nsecond")
    directory = str(tmp_path / "in")
    ids = ["a/c.jsonl:1", "a/z.txt:1", "a/z.txt:2", "b.txt:1", "b.txt:2"]
    assert [record.id for record in read([directory])] == ids
    other = write(tmp_path / "other.txt", "other")
    assert [record.id for record in read([other, directory])] == [f"{other}:1", *ids]


def test_a_directory_with_one_file_gives_plain_numbers_and_links_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "real" / "a.txt", "one\ntwo")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "real")
    assert pairs(str(tmp_path / "in")) == [("1", "one"), ("2", "two")]


def test_given_ids_come_before_made_up_ones(tmp_path: Path) -> None:
    assert pairs(write(tmp_path / "a.jsonl", '{"text":"a"}\n{"id":5,"text":"b"}\n{"text":"c"}')) == [
        ("1", "a"), ("5", "b"), ("3", "c"),
    ]  # fmt: skip


def test_a_file_name_that_is_no_utf8_still_gives_usable_ids(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    write(tmp_path / name, "one")
    write(tmp_path / "b.txt", "two")
    assert [record.id for record in read([str(tmp_path)])] == ["b.txt:1", "caf\\udce9.txt:1"]


# Standard input


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'\n{"id":"x","text":"one"}\n\n{"text":"two"}', [("x", "one"), ("2", "two")]),
        (BOM + b' {"text":"one"}', [("1", "one")]),
        (b'\none\n{"text":"two"}\n', [("1", ""), ("2", "one"), ("3", '{"text":"two"}')]),
        (BOM + b"one\r\n", [("1", "one")]),
        (b"\n \n", [("1", ""), ("2", " ")]),
    ],
)
def test_standard_input_is_jsonl_or_plain_lines(content: bytes, expected: list[tuple[str, str]]) -> None:
    assert pairs("-", stdin=io.BytesIO(content)) == expected


def test_standard_input_is_not_scanned() -> None:
    assert scan(["-"]) == Scan(fingerprint=None, texts=None)


def test_standard_input_is_the_process_own_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one")))
    assert pairs("-", stdin=None) == [("1", "one")]
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match=r"standard input: it is closed"):
        list(read(["-"]))


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        (b"", "standard input: no records"),
        (b'{"text":"a"}\n{"text":', "standard input:2: malformed JSON"),
        (b"a\n\xff", "standard input:2: not UTF-8 (byte 0xff at offset 2"),
        (b'{"id":1,"text":"a"}\n{"id":1,"text":"b"}', "standard input:2: the id '1' was used before"),
    ],
)
def test_what_is_wrong_in_standard_input_comes_at_its_line(content: bytes, culprit: str) -> None:
    with pytest.raises(InputError) as met:
        list(read(["-"], stdin=io.BytesIO(content)))
    assert culprit in str(met.value)


def test_records_before_a_bad_line_come_before_its_error(tmp_path: Path) -> None:
    content = "".join(f'{{"id": {n}, "text": "a"}}\n' for n in range(700)) + "no json\n"
    for records in (read([write(tmp_path / "a.jsonl", content)]), read(["-"], stdin=io.BytesIO(content.encode()))):
        assert [record.id for record in islice(records, 700)] == [str(n) for n in range(700)]
        with pytest.raises(InputError, match=":701: malformed JSON"):
            next(records)


class Endless(io.RawIOBase):
    """A pipe that never ends."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        buffer[:] = (b"line\n" * len(buffer))[: len(buffer)]
        return len(buffer)


def test_reading_is_lazy() -> None:
    first = [record.text for record in islice(read(["-"], stdin=io.BufferedReader(Endless())), 3)]
    assert first[0] == "line"
    assert len(first) == 3


def test_memory_stays_constant(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", (json.dumps({"text": "x" * 100_000}) + "\n") * 300)
    assert scan([path]).texts == 300  # whatever is imported or cached at first use
    tracemalloc.start()
    try:
        scan([path])
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4_000_000, "30 MB are read"


def test_a_row_group_is_not_loaded_whole(tmp_path: Path) -> None:
    texts = [f"{n}" * 1000 for n in range(1000, 6000)]
    path = write_parquet(tmp_path / "a.parquet", {"text": texts}, compression="none", use_dictionary=False)
    assert scan([path]).texts == 5000  # whatever is imported or cached at first use
    tracemalloc.start()  # pyarrow reads through a Python file, whose buffers are traced
    try:
        assert next(read([path])).text == texts[0]
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 10_000_000, "the row group has 20 MB"


# The fingerprint


def test_the_fingerprint_is_of_formats_and_contents_in_order(tmp_path: Path) -> None:
    def fingerprint(*contents: str, folder: str = "one", extension: str = "txt") -> str | None:
        paths = [write(tmp_path / folder / f"{n}.{extension}", content) for n, content in enumerate(contents)]
        return scan(paths).fingerprint

    same = fingerprint("ab\n", "c\n")
    assert same == fingerprint("ab\n", "c\n", folder="two", extension="log")
    assert same == scan([str(tmp_path / "one")]).fingerprint
    assert (
        same == hashlib.sha256(b"".join(b"lines\n" + hashlib.sha256(c).digest() for c in (b"ab\n", b"c\n"))).hexdigest()
    )
    others = [
        fingerprint("c\n", "ab\n"),
        fingerprint("a", "b\nc\n"),
        fingerprint("ab\nc\n"),
        fingerprint("ab\n", "c"),
        fingerprint("ab\r\n", "c\n"),
        fingerprint('text\n"a"\n', extension="csv"),
        fingerprint('text\n"a"\n', extension="txt"),
    ]
    assert len({same, *others}) == len(others) + 1


def test_the_fingerprint_of_parquet_is_of_its_bytes(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": ["a"]})
    digest = hashlib.sha256(Path(path).read_bytes()).digest()
    assert scan([path]).fingerprint == hashlib.sha256(b"parquet\n" + digest).hexdigest()


# What is refused


@pytest.mark.parametrize(
    ("name", "content", "options", "expected"),
    [
        ("a.jsonl", "", {}, "a.jsonl: no records"),
        ("a.jsonl", "\n \n", {}, "a.jsonl: no records"),
        ("a.txt", "", {}, "a.txt: no records"),
        ("a.txt", BOM, {}, "a.txt: no records"),
        ("a.csv", "", {}, "a.csv: no records"),
        ("a.csv", "id,text\n", {}, "a.csv: no records"),
        ("a.jsonl", '{"text":"a"}\n{"text":"é\n', {}, "a.jsonl:2: malformed JSON at column 11 (Invalid control"),
        ("a.jsonl", '{"text":"a"}\n\n["a"]\n', {}, "a.jsonl:3: the JSON is no object"),
        ("a.jsonl", '{"text":"a"}{"text":"b"}', {}, "a.jsonl:1: malformed JSON at column 13 (Extra data)"),
        ("a.jsonl", '{"text":"a"}\n{"body":"b","n":1}', {}, "a.jsonl:2: no field 'text'; it has 'body', 'n'"),
        (
            "a.jsonl",
            '{"text":"a","key":1}\n{"text":"b"}',
            {"id_field": "key"},
            "a.jsonl:2: no field 'key'; it has 'text'",
        ),
        ("a.jsonl", '{"text":"a","id":null}', {}, "a.jsonl:1: the id is NoneType"),
        ("a.jsonl", '{"text":"a","id":1.5}', {}, "a.jsonl:1: the id is float"),
        ("a.jsonl", '{"text":"a","id":""}', {}, "a.jsonl:1: the id is empty"),
        ("a.jsonl", '{"text":"a","id":"\\ud800"}', {}, "a.jsonl:1: the id '\\ud800' has a lone surrogate"),
        ("a.jsonl", '{"text":"a","id":"x"}\n' * 2, {}, "a.jsonl:2: the id 'x' was used before"),
        ("a.jsonl", '{"text":"a"}\n{"text":"a","id":1}\n', {}, "a.jsonl:2: the id '1' was used before"),
        ("a.jsonl", f'{{"text":"a","n":{"1" * 5000}}}', {}, "a.jsonl:1: a number in the JSON has too many digits"),
        ("a.jsonl", '{"text":"a","n":' + "[" * 100_000, {}, "a.jsonl:1: the JSON is nested too deeply"),
        ("a.jsonl", b'{"text":"a"}\n{"text":"b\xff"}', {}, "a.jsonl:2: not UTF-8 (byte 0xff at offset 23 of the file)"),
        ("a.txt", BOM + "é\né".encode() + b"\xe9", {}, "a.txt:2: not UTF-8 (byte 0xe9 at offset 8 of the file)"),
        ("a.txt", BOM + b"\xff", {}, "a.txt:1: not UTF-8 (byte 0xff at offset 3 of the file)"),
        ("a.txt", "ab".encode("utf-16"), {}, "a.txt:1: not UTF-8 (byte 0xff at offset 0"),
        ("a.txt", "one", {"id_field": "key"}, "a.txt: plain lines have no field 'key'"),
        ("a.csv", b"text\na\n\xff\n", {}, "a.csv:3: not UTF-8 (byte 0xff at offset 7"),
        (
            "a.csv",
            "one text\nanother\n",
            {},
            "a.csv:1: the header (first line) has no column 'text'; it has 'one text'",
        ),
        ("a.csv", "text\na\n", {"id_field": "key"}, "a.csv:1: the header (first line) has no column 'key'"),
        ("a.csv", "text,a,a\n1,2,3\n", {}, "a.csv:1: the header (first line) has the column 'a' more than once"),
        ("a.csv", 'id,text\n1,"a\nb"\n2,b,c\n', {}, "a.csv:4: cells: 3 in this row and 2 in the header"),
        ("a.csv", "id,text\n1,a\n2\n", {}, "a.csv:3: cells: 1 in this row and 2 in the header"),
        ("a.csv", 'text\na\n"b\nc\n', {}, "a.csv:3: malformed CSV (unexpected end of data)"),
        ("a.csv", 'text\na\n"b"c\n', {}, "a.csv:3: malformed CSV"),
        ("a.csv", 'id,text\n1,"a\nb"\n1,c\n', {}, "a.csv:4: the id '1' was used before"),
        ("a.csv", "id,text\n,a\n", {}, "a.csv:2: the id is empty"),
        ("a.parquet", "", {}, "a.parquet: can't be read as Parquet"),
        ("a.parquet", "PAR1 no parquet PAR1", {}, "a.parquet: can't be read as Parquet"),
    ],
)
def test_a_bad_file_is_named_with_its_line(
    tmp_path: Path, name: str, content: str | bytes, options: dict[str, str], expected: str
) -> None:
    path = write(tmp_path / name, content)
    message = refusal(path, **options)
    assert message.startswith(f"{path}"), "the whole path"
    assert message[len(str(tmp_path)) + 1 :].startswith(expected)


def test_a_refusal_says_what_to_do(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "a.jsonl", "[\n"))
    assert message.endswith("Give one JSON object a line; `jq -c` brings other JSON into this form.")


@pytest.mark.parametrize(
    ("columns", "options", "expected"),
    [
        ({"body": ["a"]}, {}, "a.parquet: the schema has no column 'text'; it has 'body'"),
        ({"text": ["a"]}, {"id_field": "key"}, "a.parquet: the schema has no column 'key'"),
        ({"id": ["x", "y", "x"], "text": ["a"] * 3}, {}, "a.parquet, row 3: the id 'x' was used before"),
        ({"id": ["x", None], "text": ["a"] * 2}, {}, "a.parquet, row 2: the id is NoneType"),
        ({"text": pa.array([], pa.string())}, {}, "a.parquet: no records"),
    ],
)
def test_a_bad_parquet_file_is_named_with_its_row(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, str], expected: str
) -> None:
    assert expected in refusal(write_parquet(tmp_path / "a.parquet", columns), **options)


def test_a_parquet_file_with_a_column_twice_or_bytes_missing_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"] * 500)] * 2, names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert "the schema has the column 'text' more than once" in refusal(str(tmp_path / "a.parquet"))
    whole = Path(write_parquet(tmp_path / "b.parquet", {"text": [str(n) for n in range(500)]})).read_bytes()
    assert "c.parquet: can't be read" in refusal(write(tmp_path / "c.parquet", whole[:100] + whole[150:]))


def test_a_changed_page_is_found_when_the_file_has_checksums(tmp_path: Path) -> None:
    path = Path(
        write_parquet(
            tmp_path / "a.parquet", {"text": ["needle"]}, compression="none", write_page_checksum=True,
            write_statistics=False,
        )
    )  # fmt: skip
    path.write_bytes(path.read_bytes().replace(b"needle", b"noodle"))
    assert "a.parquet: can't be read as Parquet" in refusal(str(path))


def test_what_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.txt")
    assert f"{gone}: no such file or directory" in refusal(gone)
    assert "can't be read" in refusal("nul\0nul")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty" / ".hidden", "a")
    assert f"{tmp_path / 'empty'}: the directory has no files" in refusal(str(tmp_path / "empty"))
    os.mkfifo(tmp_path / "pipe")
    assert f"{tmp_path / 'pipe'}: no regular file" in refusal(str(tmp_path / "pipe"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert "in/loop: a link back" in refusal(str(tmp_path / "in"))


@pytest.fixture
def without_privileges() -> Iterator[Path]:
    """A directory anyone can enter, with root's right to read anything laid down (tests may run as root)."""
    was = os.geteuid()
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        locked = Path(write(Path(directory) / "locked.txt", "a"))
        locked.chmod(0)
        if was == 0:
            os.seteuid(65534)
        yield locked
        os.seteuid(was)


def test_a_file_without_permission_is_refused(without_privileges: Path) -> None:
    assert f"{without_privileges}: permission denied" in refusal(str(without_privileges))


def test_standard_input_goes_alone_and_something_must_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a")
    assert "must be the only input" in refusal("-", path)
    assert "must be the only input" in refusal("-", "-")
    assert "no inputs" in refusal()
    assert "'id' can't be both" in refusal(path, text_field="id")
    assert "'x' can't be both" in refusal(path, text_field="x", id_field="x")


def test_ids_must_differ_over_files_too(tmp_path: Path) -> None:
    first = write(tmp_path / "1.jsonl", '{"id":"x","text":"a"}')
    second = write(tmp_path / "2.jsonl", '{"text":"a"}\n{"id":"x","text":"b"}')
    assert f"{second}:2: the id 'x' was used before" in refusal(first, second)
    assert f"{first}:1: the id 'x' was used before" in refusal(first, first)


def test_made_up_ids_that_collide_are_found(tmp_path: Path) -> None:
    for directory in ("one", "two"):
        write(tmp_path / directory / "a.txt", directory)
    assert f"{tmp_path / 'two' / 'a.txt'}:1: the id 'a.txt:1' was used before" in refusal(
        str(tmp_path / "one"), str(tmp_path / "two")
    )


def test_a_duplicate_far_behind_is_found(tmp_path: Path) -> None:
    ids = [*range(40_000), 3]
    path = write(tmp_path / "a.jsonl", "".join(f'{{"id":{n},"text":"a"}}\n' for n in ids))
    assert "a.jsonl:40001: the id '3' was used before" in refusal(path)


def test_errors_quote_no_whole_text(tmp_path: Path) -> None:
    text = "secret " * 1000
    for name, content in {
        "header.csv": f"{text}\n{text}\n",
        "broken.jsonl": f'{{"text": "{text}"',
        "broken.csv": f'text\n"{text}"{text}\n',
        "wide.csv": f"text\n{text},{text}\n",
        "id.jsonl": json.dumps({"text": "a", "id": text}) + "\n" + json.dumps({"text": "b", "id": text}),
    }.items():
        assert len(refusal(write(tmp_path / name, content)).removeprefix(str(tmp_path))) < 300


# Anything goes round

any_text = st.text(alphabet=st.characters(codec="utf-8"), max_size=30) | st.text(
    alphabet=',"\n\r\t \u2028\ufeff\0a', max_size=8
)
any_records = st.lists(st.tuples(any_text.filter(bool), any_text, any_text), min_size=1, unique_by=lambda row: row[0])


def assert_comes_back(path: Path, rows: list[tuple[str, str, str]]) -> None:
    assert list(read([str(path)])) == [Record(id_, text, {"more": more}) for id_, text, more in rows]
    assert scan([str(path)]).texts == len(rows)


@settings(deadline=None, max_examples=60)
@given(rows=any_records, ascii_only=st.booleans(), end=st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_any_unicode_goes_through_jsonl(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], ascii_only: bool, end: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.jsonl"
    lines = (json.dumps({"id": i, "text": t, "more": m}, ensure_ascii=ascii_only) + end for i, t, m in rows)
    write(path, "".join(lines))
    assert_comes_back(path, rows)


@settings(deadline=None, max_examples=60)
@given(rows=any_records, end=st.sampled_from(["\n", "\r\n"]), tabs=st.booleans())
def test_any_unicode_goes_through_csv(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], end: str, tabs: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / ("round.tsv" if tabs else "round.csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if tabs else ",", lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerows([("id", "text", "more"), *rows])
    assert_comes_back(path, rows)


@settings(deadline=None, max_examples=40)
@given(rows=any_records)
def test_any_unicode_goes_through_parquet(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.parquet"
    ids, texts, more = zip(*rows, strict=True)
    write_parquet(path, {"id": ids, "text": texts, "more": more})
    assert_comes_back(path, rows)


@settings(deadline=None, max_examples=200)
@given(
    content=st.binary(max_size=60) | st.text(alphabet='{}[]",:\n\r\t textid1\\u', max_size=60).map(str.encode),
    extension=st.sampled_from(["txt", "jsonl", "csv", "tsv", "parquet"]),
)
def test_any_bytes_are_records_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, extension: str
) -> None:
    path = write(tmp_path_factory.getbasetemp() / f"any.{extension}", content)
    try:
        scan([path])
    except InputError as exc:
        assert path in str(exc)  # noqa: PT017


@settings(deadline=None, max_examples=60)
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=3))
def test_any_damage_to_a_parquet_file_gives_records_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    write_parquet(path, {"id": list(range(20)), "text": [f"text {n}" for n in range(20)]})
    content = bytearray(path.read_bytes())
    for at, value in changes:
        content[at % len(content)] = value
    path.write_bytes(content)
    try:
        scan([str(path)])
    except InputError as exc:
        assert str(path) in str(exc)  # noqa: PT017


def test_importing_it_imports_neither_numpy_nor_pyarrow() -> None:
    code = "import sys, embedfleet.inputs; sys.exit(str(sorted({'numpy', 'pyarrow'} & sys.modules.keys())))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"
