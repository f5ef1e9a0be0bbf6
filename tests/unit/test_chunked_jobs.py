"""Texts in chunks in all that reads parts: each row goes to the text it is of, and texts are counted, not rows."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from embedfleet import Fleet
from embedfleet.cli import cli
from embedfleet.contract import Chunking, EmbedSettings
from embedfleet.errors import ContractError, JobMismatch, SettingsError
from embedfleet.job import Job
from embedfleet.models import DEFAULT_MODEL, resolve
from embedfleet.synthetic import synthetic_vectors
from embedfleet.tables import Outcome, Outcomes, read_part, vectors_of, write_part
from embedfleet.testing import InMemoryFleet
from embedfleet_worker.destinations import webhook
from embedfleet_worker.destinations.base import Parcel
from embedfleet_worker.destinations.pgvector import _binary
from tests.unit.redis_server import RedisServer

CHUNKED = EmbedSettings(on_overflow="chunk", chunking=Chunking(max_tokens=32))
TEXTS = {"a": "a text", "b": "words of it " * 40, "c": "", "d": "other words " * 30, "e": "the end"}
PLACE = ("id", "n_tokens", "chunk", "chunk_start", "chunk_end", "tokens_in")
RECORDS = [{"id": name, "text": text, "title": f"of {name}"} for name, text in TEXTS.items()]


@pytest.fixture
def fleet(redis_server: RedisServer, tmp_path: Path) -> Any:
    with Fleet(broker_url=redis_server.url, store=str(tmp_path / "store")) as connected:
        yield connected


def commit(job: Job, chunks: dict[str, int], errors: dict[str, Any] | None = None, number: int = 0) -> None:
    """What a worker does: so many chunks of each text, whose vectors are those of ``id/chunk``."""
    rows = []
    for name in job.folder.input(number).ids:
        if name in (errors or {}):
            rows.append(Outcome(name, error=((errors or {})[name], "said so"), tokens_in=9))
        else:
            rows += [
                Outcome(name, 2, chunk=chunk, chunk_start=chunk, chunk_end=chunk + 1, tokens_in=9)
                for chunk in range(chunks.get(name, 1))
            ]
    vectors = synthetic_vectors([f"{row.id}/{row.chunk}" for row in rows], 384)
    assert job.folder.write_part(number, write_part(Outcomes(rows, vectors), "float32", job.id, number))


# Results, retries, totals


def test_every_row_has_the_columns_of_its_own_text(fleet: Fleet) -> None:
    job = fleet.submit(RECORDS, settings=CHUNKED)
    commit(job, {"b": 4, "d": 2}, {"c": "empty"})
    rows = list(job.rows())
    assert [(row["id"], row["chunk"]) for row in rows] == [
        ("a", 0), ("b", 0), ("b", 1), ("b", 2), ("b", 3), ("c", 0), ("d", 0), ("d", 1), ("e", 0),
    ]  # fmt: skip
    for row in rows:
        assert row["title"] == f"of {row['id']}"
        if row["error"] is None:
            (expected,) = synthetic_vectors([f"{row['id']}/{row['chunk']}"], 384)
            assert np.array_equal(np.array(row["embedding"], np.float32), expected)
    assert job.results().to_table(columns=["id", "chunk"]).to_pylist() == [
        {"id": row["id"], "chunk": row["chunk"]} for row in rows
    ]


def test_totals_and_error_counts_are_of_texts(fleet: Fleet) -> None:
    job = fleet.submit(RECORDS, settings=CHUNKED)
    commit(job, {"b": 4, "d": 2}, {"c": "empty"})
    status = job.wait(timeout_s=5)
    assert (status.texts, status.totals.texts, status.totals.errors, status.totals.tokens) == (5, 5, 1, 16)
    assert job.error_counts() == {"empty": 1}


def test_a_part_whose_ids_are_not_those_of_its_input_is_refused(fleet: Fleet) -> None:
    job = fleet.submit(RECORDS, settings=CHUNKED)
    ids = ["a", "b", "d", "c", "e"]
    outcomes = Outcomes([Outcome(name, 2) for name in ids], synthetic_vectors(ids, 384))
    job.folder.write_part(0, write_part(outcomes, "float32", job.id, 0))
    with pytest.raises(ContractError, match="its ids are not those of its input"):
        list(job.rows())


def test_a_retry_takes_just_the_texts_that_failed_and_its_chunks_replace_their_errors(fleet: Fleet) -> None:
    job = fleet.submit(RECORDS, settings=CHUNKED)
    commit(job, {"b": 3}, {"c": "empty", "d": "not_finite"})
    child = job.retry()
    assert child is not None
    assert [(record.id, record.columns["title"]) for record in child.folder.records(0)] == [("d", "of d")]
    commit(child, {"d": 2})
    found = [(row["id"], row["chunk"], row["error"], row["title"]) for row in job.rows()]
    assert sorted(found) == [
        ("a", 0, None, "of a"), ("b", 0, None, "of b"), ("b", 1, None, "of b"), ("b", 2, None, "of b"),
        ("c", 0, "empty", "of c"), ("d", 0, None, "of d"), ("d", 1, None, "of d"), ("e", 0, None, "of e"),
    ]  # fmt: skip
    table = job.results().to_table(columns=["id", "chunk"]).to_pylist()
    assert sorted((row["id"], row["chunk"]) for row in table) == [found[:2] for found in sorted(found)]


def test_texts_too_long_can_be_cut_in_a_retry(fleet: Fleet) -> None:
    job = fleet.submit(RECORDS)
    commit(job, {}, {"b": "too_long"})
    assert job.retry() is None
    child = job.retry(on_overflow="chunk")
    assert child is not None
    assert child.spec.settings.chunking == Chunking()
    commit(child, {}, {"b": "too_long"})
    assert child.retry() is None, "what is too long for chunks too will be so again"
    again = child.retry(on_overflow="truncate")
    assert again is not None
    assert again.spec.settings.chunking is None


def test_parts_of_older_workers_are_read_together_with_newer_ones(fleet: Fleet) -> None:
    job = fleet.submit([{"id": str(number), "text": "a text"} for number in range(600)])
    commit(job, {}, number=1)
    newer = Path(job.folder.store.dataset([job.folder.part_path(1)]).files[0])
    commit(job, {}, number=0)
    older = newer.with_name("00000000.parquet")
    table = pq.read_table(older)
    pq.write_table(table.drop_columns(["chunk_start", "chunk_end", "tokens_in"]), older)
    table = job.results().to_table()
    assert table.num_rows == 600
    assert table["tokens_in"].to_pylist() == [None] * 512 + [9] * 88
    assert [row["tokens_in"] for row in job.rows()] == [None] * 512 + [9] * 88


# Destinations


def parcel_of(job: Job) -> Parcel:
    return Parcel(job.folder, 0, "docs")


def copied(data: bytes) -> list[tuple[str, int, bytes, bytes]]:
    """The rows of a binary COPY."""
    stream = io.BytesIO(data)
    stream.read(19)
    rows = []
    while (fields := struct.unpack(">h", stream.read(2))[0]) != -1:
        values = [stream.read(struct.unpack(">i", stream.read(4))[0]) for _ in range(fields)]
        rows.append((values[0].decode(), struct.unpack(">i", values[1])[0], values[2], values[3]))
    return rows


def test_a_vector_store_gets_each_chunk_under_the_id_and_metadata_of_its_text(fleet: Fleet) -> None:
    job = fleet.submit(RECORDS, settings=CHUNKED)
    commit(job, {"b": 4, "d": 2}, {"c": "empty"})
    parcel = parcel_of(job)
    rows = parcel.table.filter(pa.compute.is_valid(parcel.table["embedding"]))
    columns = {record.id: record.columns for record in parcel.records}
    stored = copied(b"".join(_binary(rows, vectors_of(rows), "vector", columns)))
    assert [(name, chunk) for name, chunk, _, _ in stored] == [
        ("a", 0), ("b", 0), ("b", 1), ("b", 2), ("b", 3), ("d", 0), ("d", 1), ("e", 0),
    ]  # fmt: skip
    for name, chunk, embedding, metadata in stored:
        (expected,) = synthetic_vectors([f"{name}/{chunk}"], 384)
        assert np.array_equal(np.frombuffer(embedding, ">f4", offset=4), expected)
        assert f"of {name}".encode() in metadata


def test_a_webhook_is_told_of_texts_not_of_rows(fleet: Fleet) -> None:
    job = fleet.submit(RECORDS, settings=CHUNKED)
    commit(job, {"b": 4, "d": 2}, {"c": "empty"})
    assert b'"texts":5,"errors":1,' in webhook._embedded(parcel_of(job))
    assert b'"texts":5,"errors":1,' in webhook._done(job.folder, job.wait(timeout_s=5))


# The fleet in memory


def test_the_fleet_in_memory_cuts_texts_too(tmp_path: Path) -> None:
    with InMemoryFleet(store=str(tmp_path)) as memory:
        overlapping = Chunking(max_tokens=32, overlap=8)
        given = [*RECORDS, {"id": "f", "text": None, "title": "of f"}]
        job = memory.submit(given, settings=EmbedSettings(on_overflow="chunk", chunking=overlapping))
        rows = list(job.rows())
        assert job.wait().totals.texts == 6
        assert {row["id"]: row["error"] for row in rows if row["error"]} == {"c": "empty", "f": "not_a_string"}
        chunks = [row for row in rows if row["id"] == "b"]
        assert [row["chunk"] for row in chunks] == list(range(len(chunks)))
        assert len(chunks) > 3
        for row in rows:
            assert row["title"] == f"of {row['id']}"
            assert row["n_tokens"] is None or row["n_tokens"] <= 32
        covered = {at for row in chunks for at in range(row["chunk_start"], row["chunk_end"])}
        assert all(TEXTS["b"][at].isspace() for at in set(range(len(TEXTS["b"]))) - covered)
        mean = EmbedSettings(on_overflow="chunk", chunking=Chunking(output="mean"))
        assert memory.embed(["a", "word " * 1000], settings=mean).shape == (2, 384)
        assert [row["chunk_end"] for row in memory.submit(["a", "word " * 1000], settings=mean).rows()] == [1, 5000]


# Settings, before anything is queued


def refusal(**fields: Any) -> str:
    with pytest.raises(SettingsError) as refused:
        resolve(EmbedSettings(**fields), DEFAULT_MODEL)
    return str(refused.value)


def test_chunking_is_made_explicit_and_needs_its_policy() -> None:
    assert resolve(EmbedSettings(on_overflow="chunk"), DEFAULT_MODEL).chunking == Chunking()
    assert resolve(EmbedSettings(), DEFAULT_MODEL).chunking is None
    said = "chunking: on_overflow is 'truncate', so no text is cut into chunks."
    assert refusal(chunking=Chunking(), on_overflow="truncate").startswith(said)


def test_chunks_the_model_has_no_room_for_are_refused_before_anything_is_queued(fleet: Fleet) -> None:
    assert "the limit of sentence-transformers/all-MiniLM-L6-v2 is 256" in refusal(
        on_overflow="chunk", chunking=Chunking(max_tokens=300)
    )
    assert "Take 20 or less" in refusal(on_overflow="chunk", chunking=Chunking(max_tokens=42, overlap=30))
    with pytest.raises(SettingsError, match="too little room"):
        fleet.submit(["a"], settings=EmbedSettings(on_overflow="chunk", chunking=Chunking(max_tokens=4)))
    assert fleet.broker.depth(fleet.broker.lane("bulk")) == 0


def test_an_instruction_longer_than_the_limit_is_refused_before_anything_is_queued(tiny_qwen3: Path) -> None:
    how = EmbedSettings(model=str(tiny_qwen3), input_type="query", instruction="word " * 600)
    with pytest.raises(
        SettingsError, match=r"instruction: with the prompt it has 602 words, and the limit of .* is 512"
    ):
        resolve(how, DEFAULT_MODEL)


def test_embed_gives_one_vector_a_text_and_refuses_chunks(fleet: Fleet) -> None:
    for how in (CHUNKED, EmbedSettings(on_overflow="chunk")):
        with pytest.raises(SettingsError, match=r'embed gives one vector a text. Set output="mean"'):
            fleet.embed(["a"], settings=how)
    assert fleet.broker.depth(fleet.broker.lane("interactive")) == 0


def test_another_chunking_under_the_same_key_is_another_job(fleet: Fleet) -> None:
    fleet.submit(RECORDS, settings=CHUNKED, key="one")
    with pytest.raises(JobMismatch, match="chunking"):
        fleet.submit(RECORDS, settings=EmbedSettings(on_overflow="chunk"), key="one")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("max_tokens=many", "max_tokens: Input should be a valid integer"),
        ("max_tokens=0", "max_tokens: Input should be greater than or equal to 1"),
        ("overlap=-1", "overlap: Input should be greater than or equal to 0"),
        ("size=3", "unknown field 'size'. Fields: max_tokens, overlap, output."),
        ("output=all", "output: Input should be 'chunks' or 'mean'"),
        ("256", "give each field once, as max_tokens=256,overlap=32,output=mean."),
        ("overlap=1,overlap=2", "give each field once"),
        ("", "give each field once"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_a_usage_error(typed: str, said: str) -> None:
    ran = CliRunner().invoke(cli, ["embed", "x", "--on-overflow", "chunk", "--chunking", typed])
    assert ran.exit_code == 2
    assert said in " ".join(ran.output.replace("│", " ").split())


def test_what_is_typed_reaches_the_job(tmp_path: Path, redis_server: RedisServer) -> None:
    (tmp_path / "x.txt").write_text("a text\n")
    command = ["submit", str(tmp_path / "x.txt"), "--to", str(tmp_path / "store"), "--broker-url", redis_server.url]
    chosen = ["--on-overflow", "chunk", "--chunking", "output=mean, overlap=3,max_tokens=64", "--cache", "read"]
    ran = CliRunner().invoke(cli, [*command, *chosen], standalone_mode=False)
    assert ran.exception is None, ran.output
    with Fleet(broker_url=redis_server.url) as fleet:
        settings = fleet.job(ran.output.strip()).spec.settings
    assert settings.chunking == Chunking(max_tokens=64, overlap=3, output="mean")
    assert settings.cache == "read"


def test_a_part_keeps_the_place_of_each_chunk() -> None:
    rows = [
        Outcome("a", 3, chunk_start=0, chunk_end=4, tokens_in=5),
        Outcome("a", 2, chunk=1, chunk_start=3, chunk_end=9, tokens_in=5),
    ]
    table, info = read_part(write_part(Outcomes(rows, np.eye(2, 4, dtype=np.float32)), "float32", "j-1", 0), "part")
    assert info.totals.texts == 1
    for found, row in zip(table.to_pylist(), rows, strict=True):
        assert {name: getattr(row, name) for name in PLACE} == {name: found[name] for name in PLACE}
