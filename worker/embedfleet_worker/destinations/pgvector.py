"""Parts into a table of PostgreSQL with pgvector: COPY into a temporary table, then one upsert. Not the table's making.

A part is one transaction, and a row is told from others by (id, chunk): delivered again, it is written again.
"""

import json
import os
import socket
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Timer
from typing import Any

import numpy as np
import psycopg
import pyarrow.compute as pc
from psycopg import errors, sql
from psycopg.conninfo import conninfo_to_dict

from embedfleet.destinations import Pgvector
from embedfleet.errors import ConfigurationError, DestinationRefused, DestinationUnavailable
from embedfleet.settings import FleetSettings
from embedfleet.store import first_line
from embedfleet.tables import vectors_of
from embedfleet_worker.destinations.base import Parcel
from embedfleet_worker.destinations.pgvector_table import Connection, Table, table_for

_STATEMENT_S = 300  # a batch into a large HNSW index takes tens of seconds
_DELIVERY_S = 360  # a server that hangs minds no timeouts of its own
_ANSWER_S = 5
_CONNECTION: dict[str, Any] = {
    "application_name": "embedfleet",
    "connect_timeout": 5,  # seconds
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # ms
}
_BLOCK_ROWS = 64  # the server reads a block while the next is made
_COPY_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # signature, flags, length of what else is in the header
_ENCODER = json.JSONEncoder(ensure_ascii=False)  # made once: json.dumps would make one a row
_COPY_END = struct.pack(">h", -1)
# psycopg's classes follow those of SQLSTATE. Everything else, known or not, may be better another time.
_REFUSING = (psycopg.DataError, psycopg.IntegrityError, psycopg.NotSupportedError, psycopg.ProgrammingError)
_LIMITS = "54"  # a row or key too large: psycopg counts it among OperationalError
_REMEDIES: tuple[tuple[type[psycopg.Error], str], ...] = (
    (errors.InsufficientPrivilege, "Grant the role in EMBEDFLEET_PGVECTOR_URL what docs/pgvector.md lists."),
    (errors.InvalidSchemaName, "Make the schema, and grant the role in EMBEDFLEET_PGVECTOR_URL the use of it."),
    (errors.CardinalityViolation, "Ids must be unique within a job."),
    (errors.InvalidColumnReference, "Rows are told apart by PRIMARY KEY (id, chunk): add it."),
    (errors.ProgramLimitExceeded, "A key holds ids of up to 2,600 bytes: use shorter ones."),
)

_Columns = Mapping[str, str | None]


class PgvectorDestination:
    """Upserts parts into tables of the database in ``pgvector_url``. Thread-safe; nothing is opened before it is used.

    A connection serves one delivery at a time and is kept for the next one.
    """

    def __init__(self, settings: FleetSettings) -> None:
        self._url = settings.pgvector_url.get_secret_value() if settings.pgvector_url else ""
        self._idle: deque[Connection] = deque()
        self._closed = False

    def deliver(self, target: Pgvector, parcel: Parcel) -> str:
        """Upsert the vectors of a part; texts without one are left out. Returns e.g. "512 rows in public.docs".

        Raises DestinationUnavailable, DestinationRefused, and ConfigurationError for a ``pgvector_url`` that is none.
        """
        arguments = _arguments(self._url)
        rows = parcel.table
        if rows["embedding"].null_count:
            rows = rows.filter(pc.is_valid(rows["embedding"]))
        if not rows.num_rows:
            return f"0 rows in {target.table}: no text of this part has a vector"
        _check_ids(rows["id"].to_pylist(), target.table)
        vectors = vectors_of(rows)
        columns = {record.id: record.columns for record in parcel.records}
        with _mapped(target.table), self._connection(arguments) as connection, _cut_after(_DELIVERY_S, connection):
            table, kind = table_for(connection, target, vectors.shape[1])
            _upsert(connection, table, _binary(rows, vectors, kind, columns), len(vectors))
        return f"{len(vectors)} rows in {table}"

    def close(self) -> None:
        """Close the connections; one that delivers is closed when it is done."""
        self._closed = True
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    @contextmanager
    def _connection(self, arguments: dict[str, Any]) -> Iterator[Connection]:
        # Nothing is prepared: a pooler between may give each transaction another session.
        connection = self._take() or psycopg.connect(**arguments, autocommit=True, prepare_threshold=None)
        try:
            yield connection
        except BaseException:
            connection.close()  # whatever state it is in
            raise
        self._idle.append(connection)
        if self._closed:
            self.close()

    def _take(self) -> Connection | None:
        """The connection used last that still answers: servers restart, and firewalls forget who is silent."""
        with suppress(IndexError):
            while True:
                connection = self._idle.pop()
                try:
                    with _cut_after(_ANSWER_S, connection):
                        connection.execute("")
                    return connection
                except psycopg.Error:
                    connection.close()
        return None


def _arguments(url: str) -> dict[str, Any]:
    """What psycopg connects with. What is wrong with the URL is not quoted: it may be a piece of the password."""
    if not url:
        reason = "it is not set, and deliveries to pgvector need it"
    elif not _is_plain(url):
        reason = "it is no URL of a database"
    else:
        return {**_CONNECTION, **conninfo_to_dict(url)}
    raise ConfigurationError(
        f"EMBEDFLEET_PGVECTOR_URL: {reason}. Give postgresql://user:password@host/database where this worker runs, "
        "with %40 for @, %2F for / and %25 for % in the password."
    )


def _is_plain(url: str) -> bool:
    """Whether the driver reads it as it was meant: behind a raw @ or / in a password it sees a host, port or name."""
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error:
        return False
    ports = str(given.get("port") or "5432").split(",")
    names = f"{given.get('host', '')}{given.get('dbname', '')}"
    return (
        url.startswith(("postgresql://", "postgres://"))
        and "@" not in names
        and all(port.isascii() and port.isdigit() for port in ports)
    )


def _check_ids(ids: list[str], table: str) -> None:
    """PostgreSQL's text holds every character but one."""
    bad = [record_id for record_id in ids if "\0" in record_id]
    if bad:
        raise DestinationRefused(
            f"pgvector table {table}: {len(bad)} ids of this part have a NUL, which PostgreSQL can't hold "
            f"({bad[0][:100]!r}). Nothing of the part was written. Submit these texts under other ids."
        )


def _json(columns: _Columns) -> bytes:
    """The carried columns. A NUL, which jsonb can't hold, is made readable, as records do with half a surrogate."""
    text = _ENCODER.encode(columns)
    if "\\u0000" in text:
        text = _ENCODER.encode({_visible(name): value and _visible(value) for name, value in columns.items()})
    return text.encode()


def _visible(text: str) -> str:
    return text.replace("\0", "\\x00")


def _binary(rows: Any, vectors: "np.ndarray[Any, Any]", kind: str, columns: Mapping[str, _Columns]) -> Iterator[bytes]:
    """The rows as blocks of a binary COPY, in order of their ids: in other orders two upserts would block each other.

    The form is PostgreSQL's: https://www.postgresql.org/docs/current/sql-copy.html, and vector_recv of pgvector.
    """
    ids, chunks = rows["id"].to_pylist(), rows["chunk"].to_pylist()
    order = sorted(range(len(ids)), key=lambda row: (ids[row], chunks[row]))
    dimensions = vectors.shape[1]
    number = ">f4" if kind == "vector" else ">f2"
    field = np.dtype([("size", ">i4"), ("dimensions", ">u2"), ("unused", ">u2"), ("numbers", number, dimensions)])
    yield _COPY_HEAD
    for first in range(0, len(order), _BLOCK_ROWS):
        block = order[first : first + _BLOCK_ROWS]
        fields = np.zeros(len(block), field)
        fields["size"], fields["dimensions"], fields["numbers"] = field.itemsize - 4, dimensions, vectors[block]
        yield b"".join(
            _row(ids[row].encode(), chunks[row], embedding.tobytes(), _json(columns[ids[row]]))
            for row, embedding in zip(block, fields, strict=True)
        )
    yield _COPY_END


def _row(record_id: bytes, chunk: int, embedding: bytes, metadata: bytes) -> bytes:
    """Four fields, each behind its length; jsonb is a version and the JSON."""
    return b"".join(
        (
            struct.pack(">hi", 4, len(record_id)),
            record_id,
            struct.pack(">ii", 4, chunk),
            embedding,
            struct.pack(">iB", 1 + len(metadata), 1),
            metadata,
        )
    )


def _upsert(connection: Connection, table: Table, data: Iterable[bytes], rows: int) -> None:
    """Write the rows in one transaction."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(
            sql.SQL(
                # Rows up to a page stay in it: what goes to the table's own TOAST would be written and read once more.
                "SET LOCAL statement_timeout = {limit}; SET LOCAL idle_in_transaction_session_timeout = {limit}; "
                "CREATE TEMPORARY TABLE embedfleet_part WITH (toast_tuple_target = 8160) ON COMMIT DROP "
                "AS SELECT id, chunk, embedding, metadata FROM {table} WITH NO DATA"
            ).format(limit=sql.Literal(_STATEMENT_S * 1000), table=table.identifier)
        )
        with cursor.copy("COPY pg_temp.embedfleet_part FROM STDIN (FORMAT BINARY)") as copy:
            for block in data:
                copy.write(block)
        cursor.execute(
            sql.SQL(
                # No ORDER BY: a temporary table gives its rows as they came, and sorting copies every vector.
                "INSERT INTO {} (id, chunk, embedding, metadata) "
                "SELECT id, chunk, embedding, metadata FROM pg_temp.embedfleet_part "
                "ON CONFLICT (id, chunk) DO UPDATE SET embedding = EXCLUDED.embedding, metadata = EXCLUDED.metadata"
            ).format(table.identifier)
        )
        if cursor.rowcount != rows:
            raise DestinationRefused(
                f"pgvector table {table}: it took {cursor.rowcount} of {rows} rows. A trigger or rule of the table "
                "drops the others: remove it."
            )


@contextmanager
def _cut_after(seconds: float, connection: Connection) -> Iterator[None]:
    """End the connection when it takes longer: a server that is frozen keeps a connection and times nothing out."""
    line = socket.socket(fileno=os.dup(connection.fileno()))  # its own number, which nobody uses again meanwhile

    def cut() -> None:
        with suppress(OSError):
            line.shutdown(socket.SHUT_RDWR)

    timer = Timer(seconds, cut)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        line.close()


@contextmanager
def _mapped(table: str) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as exc:
        raise error_of(exc, table) from None


def error_of(exc: psycopg.Error, table: str) -> DestinationRefused | DestinationUnavailable:
    """What a driver's error means. Only the server's first line is quoted: others may show a row."""
    reason = exc.diag.message_primary or first_line(exc)
    if not isinstance(exc, _REFUSING) and not (exc.sqlstate or "").startswith(_LIMITS):
        return DestinationUnavailable(f"pgvector table {table}: not delivered ({reason}).")
    remedy = next((remedy for kind, remedy in _REMEDIES if isinstance(exc, kind)), "Change it, or deliver elsewhere.")
    return DestinationRefused(f"pgvector table {table}: refused ({reason}). {remedy}")
