"""Version 1 of everything serialised: exact bytes, still read, and refused by name when it is something else."""

import json
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedfleet.contract import Document
from embedfleet.errors import ContractError
from embedfleet.tables import part_schema, read_input, read_part, read_part_info, read_records, write_input, write_part
from tests.contract.conftest import Golden
from tests.contract.documents import DOCUMENT, DOCUMENTS, JOB, MESSAGES, OUTCOMES, RECORDS

EVERYTHING = {**MESSAGES, **DOCUMENTS}


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ContractError) as refused:
        call()
    return str(refused.value)


def changed(document: Document, **fields: object) -> str:
    return json.dumps(document.model_dump(mode="json") | fields)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_sent_in_exactly_this_form(golden: Golden, name: str) -> None:
    assert json.dumps(MESSAGES[name].model_dump(mode="json"), ensure_ascii=False) == golden.text(name)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_written_in_exactly_these_bytes(golden: Golden, name: str) -> None:
    assert DOCUMENTS[name].dumps() == golden.text(name)


@pytest.mark.parametrize("name", EVERYTHING)
def test_what_version_1_wrote_is_still_read(golden: Golden, name: str) -> None:
    kind = type(EVERYTHING[name])
    assert kind.loads(golden.text(name), name) == EVERYTHING[name]
    assert kind.loads(golden.bytes(name), name) == EVERYTHING[name]
    assert kind.parse(golden.json(name), name) == EVERYTHING[name]


@pytest.mark.parametrize("name", EVERYTHING)
def test_an_unknown_field_is_refused_by_name(name: str) -> None:
    document = EVERYTHING[name]
    said = refusal(lambda: type(document).loads(changed(document, colour="red"), "the file"))
    assert said == "the file: unknown field 'colour'"


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_an_unknown_version_is_refused_before_anything_else(name: str, version: object) -> None:
    document = EVERYTHING[name]
    said = refusal(lambda: type(document).loads(changed(document, version=version, colour="red"), "the file"))
    shown = repr(version) if not isinstance(version, str) else "'str'"  # a text would end in a log
    assert said.startswith(f"the file: version {shown} is not one this embedfleet reads (1).")


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_missing_version_is_refused(name: str) -> None:
    fields = EVERYTHING[name].model_dump(mode="json")
    del fields["version"]
    assert "version None" in refusal(lambda: type(EVERYTHING[name]).parse(fields, "the file"))


def test_an_unknown_setting_inside_a_document_is_refused_by_name(golden: Golden) -> None:
    for name, kind in (("request-v1.json", MESSAGES), ("job-v1.json", DOCUMENTS)):
        fields = golden.json(name)
        fields["settings"]["normalise"] = False
        document = kind[name]
        assert "unknown field 'settings.normalise'" in refusal(lambda: type(document).parse(fields, "it"))  # noqa: B023


@pytest.mark.parametrize(
    "data", ["", "{", "[]", "null", '"text"', b"\xff\xfe", "[" * 100_000, None, 1, [], ["version"]]
)
def test_what_is_no_document_is_a_contract_error(data: object) -> None:
    assert refusal(lambda: type(MESSAGES["batch-v1.json"]).parse(data, "message")).startswith("message: ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("job", "../j-1"),
        ("job", "j-1\n"),
        ("job", "J-1"),
        ("job", ""),
        ("batch", -1),
        ("batch", 100_000_000),
        ("batch", "seven"),
        ("tokens", -1),
        ("to", None),
    ],
)
def test_a_batch_message_with_a_wrong_value_is_refused_naming_the_field(field: str, value: object) -> None:
    batch = MESSAGES["batch-v1.json"]
    assert refusal(lambda: type(batch).loads(changed(batch, **{field: value}), "message")).startswith(
        f"message: {field}: "
    )


def test_a_request_answers_to_plain_keys_only() -> None:
    request = MESSAGES["request-v1.json"]
    for key in ("a key", "key\n", "", "k" * 201, "ключ"):
        assert "reply_to: " in refusal(lambda: type(request).loads(changed(request, reply_to=key), "message"))  # noqa: B023


# Parquet: what pyarrow makes of it differs between its versions, so schema and metadata are compared, not bytes.

PART_SCHEMA = """\
id: string
chunk: int32
embedding: fixed_size_list<element: {number}>[4]
n_tokens: int32
truncated: bool
cached: bool
error: string
error_message: string
chunk_start: int32
chunk_end: int32
tokens_in: int32"""


def schema_of(data: bytes) -> str:
    schema = pq.read_schema(pa.BufferReader(data)).remove_metadata()
    return "\n".join(f"{field.name}: {field.type}".replace("item:", "element:") for field in schema)


def metadata_of(data: bytes) -> dict[bytes, bytes]:
    metadata: dict[bytes, bytes] = pq.read_schema(pa.BufferReader(data)).metadata
    return metadata


@pytest.mark.parametrize(("encoding", "number"), [("float32", "float"), ("float16", "halffloat")])
def test_a_part_has_exactly_this_schema_and_metadata(golden: Golden, encoding: str, number: str) -> None:
    part = write_part(OUTCOMES, encoding, JOB, 7)
    assert schema_of(part) == PART_SCHEMA.format(number=number)
    assert metadata_of(part) == {b"embedfleet": golden.text("part-metadata-v1.json").encode()}


def test_an_input_has_exactly_this_schema_and_metadata(golden: Golden) -> None:
    data = write_input(RECORDS, 11)
    assert schema_of(data) == "id: string\ntext: string\nlang: string\npage: string"
    assert metadata_of(data) == {b"embedfleet": golden.text("input-metadata-v1.json").encode()}


def test_a_part_that_version_1_wrote_is_still_read(golden: Golden) -> None:
    data = golden.bytes("part-v1.parquet")
    table, info = read_part(data, "part-v1.parquet")
    assert info == DOCUMENTS["part-metadata-v1.json"]
    assert read_part_info(lambda size: data[-size:], "part-v1.parquet") == info
    assert table.to_pylist() == [
        outcome("a", [1, 0, 0, 0], n_tokens=5, truncated=True, cached=True),
        outcome("ü/😀", None, error="empty", error_message="the text is empty or blank"),
        outcome("c", [0.5, -0.5, 0.5, -0.5], n_tokens=3),
    ]


def test_a_part_with_chunks_that_version_1_wrote_is_still_read(golden: Golden) -> None:
    table, info = read_part(golden.bytes("part-chunks-v1.parquet"), "part-chunks-v1.parquet")
    assert (info.totals.texts, info.totals.errors, info.totals.tokens) == (3, 1, 161)
    assert table.to_pylist() == [
        outcome("a", [1, 0, 0, 0], n_tokens=128, tokens_in=140, chunk_start=0, chunk_end=400),
        outcome("a", [0, 1, 0, 0], n_tokens=30, tokens_in=140, chunk=1, chunk_start=380, chunk_end=450, cached=True),
        outcome("ü/😀", None, error="not_finite", error_message="the engine gave NaN or infinity", tokens_in=300),
        outcome("c", [0.5, -0.5, 0.5, -0.5], n_tokens=3, tokens_in=3, chunk_start=0, chunk_end=1),
    ]
    assert table.schema.remove_metadata() == part_schema(4, "float32")


def test_settings_that_are_not_used_are_not_written(golden: Golden) -> None:
    """A worker of before, which refuses what it does not know, goes on with the jobs that don't need it."""
    assert not {"chunking", "cache"} & set(golden.json("job-defaults-v1.json")["settings"])
    assert not {"chunking", "cache"} & set(DOCUMENT.model_dump(mode="json"))


def test_an_input_that_version_1_wrote_is_still_read(golden: Golden) -> None:
    data = golden.bytes("input-v1.parquet")
    given = read_input(data, "input-v1.parquet")
    assert (given.ids, given.texts) == (["a", "ü/😀", "c"], ["the first text", "", None])
    assert given.info == DOCUMENTS["input-metadata-v1.json"]
    assert [record.columns for record in read_records(data, "input-v1.parquet")] == [
        {"lang": "en", "page": "1"},
        {"lang": None, "page": None},
        {"lang": None, "page": "3"},
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": "red"}, "it: unknown field 'colour'"),
        ({"version": 2}, "it: version 2 is not one this embedfleet reads"),
        ({"totals": {"texts": 1, "colours": 2}}, "it: unknown field 'totals.colours'"),
    ],
)
def test_unknown_metadata_of_a_part_is_refused_by_name(golden: Golden, change: dict[str, object], said: str) -> None:
    part = with_metadata(golden.bytes("part-v1.parquet"), json.dumps(golden.json("part-metadata-v1.json") | change))
    assert refusal(lambda: read_part(part, "it")).startswith(said)
    assert refusal(lambda: read_part_info(lambda size: part[-size:], "it")).startswith(said)


@pytest.mark.parametrize("metadata", [None, "{", "[]", "\x00"])
def test_a_parquet_file_of_somebody_else_is_a_contract_error(golden: Golden, metadata: str | None) -> None:
    data = with_metadata(golden.bytes("part-v1.parquet"), metadata)
    assert refusal(lambda: read_part(data, "it")).startswith("it: ")
    assert refusal(lambda: read_input(data, "it")).startswith("it: ")
    assert refusal(lambda: read_part_info(lambda size: data[-size:], "it")).startswith("it: ")


def test_an_input_without_its_columns_is_a_contract_error(golden: Golden) -> None:
    table = pa.table({"name": ["a"]}).replace_schema_metadata({b"embedfleet": golden.text("input-metadata-v1.json")})
    assert refusal(lambda: read_input(to_bytes(table), "it")).startswith("it: ")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no Parquet at all", b"PAR1" + b"\xff" * 100 + b"PAR1"])
def test_bytes_that_are_no_parquet_file_are_a_contract_error(data: bytes) -> None:
    for read in (read_part, read_input, read_records):
        assert "it: not a Parquet file" in refusal(lambda: read(data, "it"))  # noqa: B023
    assert "it: not a Parquet file" in refusal(lambda: read_part_info(lambda size: data[-size:], "it"))


def outcome(name: str, embedding: list[float] | None, **fields: object) -> dict[str, object]:
    row = {"id": name, "chunk": 0, "embedding": embedding, "n_tokens": None, "truncated": False, "cached": False}
    later = {"chunk_start": None, "chunk_end": None, "tokens_in": None}
    return {**row, "error": None, "error_message": None, **later, **fields}


def with_metadata(data: bytes, metadata: str | None) -> bytes:
    table = pq.read_table(pa.BufferReader(data))
    return to_bytes(table.replace_schema_metadata(None if metadata is None else {b"embedfleet": metadata}))


def to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("field", ["a secret text, with a comma", "x" * 61])
def test_a_field_whose_name_may_be_a_text_is_not_quoted(field: str) -> None:
    said = refusal(
        lambda: type(MESSAGES["batch-v1.json"]).loads(changed(MESSAGES["batch-v1.json"], **{field: 1}), "message")
    )
    assert said == "message: unknown field '…'"
