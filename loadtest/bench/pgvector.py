"""Rows per second into pgvector: PgvectorDestination.deliver over psycopg's own binary COPY of the same rows.

Both write the same parts, a transaction each, into tables alike, keys too, of one PostgreSQL with its own settings,
and take turns. Both begin with rows in memory; what reading them from the store costs besides is a figure of its own.
"""

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import psycopg
from pgvector.psycopg import register_vector
from psycopg.types.json import Jsonb

from embedfleet.contract import Batching, EmbedSettings, JobSpec
from embedfleet.destinations import Pgvector
from embedfleet.folder import Folder
from embedfleet.jobfolder import JobFolder, now
from embedfleet.records import Record
from embedfleet.settings import FleetSettings
from embedfleet.tables import Outcome, Outcomes, write_input, write_part
from embedfleet_worker.destinations.base import Parcel  # noqa: TID251 - what is measured
from embedfleet_worker.destinations.pgvector import PgvectorDestination  # noqa: TID251
from loadtest.bench.cpu import Meter
from loadtest.bench.figures import Figure, at_least
from loadtest.bench.whole_path import NotTheSameWork
from tests.postgres import running_postgres

_TARGET = 0.8
_DIMENSIONS = 1024
_QUIET = 0.08  # processors that others may use during a round, as in whole_path
_MAX_ROUNDS = 3  # times the rounds wanted: so many are tried to get that many quiet ones
_DELIVER, _COPY, _READ = range(3)  # the ways, in their places
_BATCH = 512  # texts, as jobs have by default
_TARGET_TABLE = Pgvector(table="delivered")
_TABLES = "CREATE TABLE {} (id text, chunk integer, embedding vector({}) NOT NULL, metadata jsonb NOT NULL, " \
    "PRIMARY KEY (id, chunk))"  # fmt: skip
_DIFFERENT = """
    SELECT FROM delivered d FULL JOIN copied c USING (id, chunk)
    WHERE d.embedding IS DISTINCT FROM c.embedding OR d.metadata IS DISTINCT FROM c.metadata
    """

_Connection = psycopg.Connection[Any]
_Row = tuple[str, int, "np.ndarray[Any, Any]", Jsonb]


class _Read(Parcel):
    """A part that was read before."""

    @cached_property
    def records(self) -> list[Record]:  # type: ignore[override]
        return super().records


@dataclass(frozen=True)
class _Sides:
    """Both ways to write the same rows, with the connection of the one that is the yardstick."""

    destination: PgvectorDestination
    connection: _Connection
    folder: JobFolder
    parts: Sequence[Sequence[_Row]]

    def deliver(self) -> float:
        """Seconds for every part, each read before."""
        parcels = [_Read(self.folder, batch, _TARGET_TABLE.name) for batch in range(len(self.parts))]
        for parcel in parcels:
            assert parcel.table is not None
            assert parcel.records
        return self._deliver(parcels)

    def read_and_deliver(self) -> float:
        """Seconds for every part, from the store into the table: what a worker does."""
        return self._deliver([Parcel(self.folder, batch, _TARGET_TABLE.name) for batch in range(len(self.parts))])

    def copy(self) -> float:
        """Seconds for psycopg's COPY of every part, row by row, as its documentation and pgvector's show it."""
        return _seconds(lambda: [self._copy(part) for part in self.parts])

    def empty(self, table: Literal["delivered", "copied"]) -> None:
        """Nothing in the table, and no writing left to the server that would fall into the next run."""
        self.connection.execute(f"TRUNCATE {table}")
        self.connection.execute("CHECKPOINT")

    def check(self) -> None:
        """Raises NotTheSameWork unless both tables hold every row, and the same."""
        rows = sum(map(len, self.parts))
        found = self.connection.execute("SELECT FROM delivered").rowcount
        different = self.connection.execute(_DIFFERENT).rowcount
        if found != rows or different:
            raise NotTheSameWork(f"{found} of {rows} rows were delivered, {different} differ from those copied.")

    def _deliver(self, parcels: Sequence[Parcel]) -> float:
        return _seconds(lambda: [self.destination.deliver(_TARGET_TABLE, parcel) for parcel in parcels])

    def _copy(self, part: Sequence[_Row]) -> None:
        statement = "COPY copied (id, chunk, embedding, metadata) FROM STDIN (FORMAT BINARY)"
        with self.connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(["text", "int4", "vector", "jsonb"])
            for row in part:
                copy.write_row(row)


def measure(*, quick: bool) -> list[Figure]:
    """The ratio into empty tables, with and without reading; beside it what it costs to deliver the same again."""
    batches, rounds = (2, 2) if quick else (20, 7)
    with tempfile.TemporaryDirectory(prefix="embedfleet-bench-") as path, running_postgres() as server:
        folder = JobFolder(Folder(path, make=True), "j-bench")
        parts = _write_job(folder, batches)
        destination = PgvectorDestination(FleetSettings(pgvector_url=server.url()))
        try:
            with server.connect() as connection:
                connection.execute("CREATE EXTENSION vector")
                register_vector(connection)
                for table in ("delivered", "copied"):
                    connection.execute(_TABLES.format(table, _DIMENSIONS))
                return _compare(_Sides(destination, connection, folder, parts), rounds)
        finally:
            destination.close()


@dataclass(frozen=True)
class _Round:
    """One run each, and what others used of the processors beside the worst of them."""

    seconds: tuple[float, float, float]
    foreign: float

    def ratio(self, which: int) -> float:
        """Speed of one way in parts of psycopg's."""
        return round(self.seconds[_COPY] / self.seconds[which], 3)


def _compare(sides: _Sides, rounds: int) -> list[Figure]:
    """The median ratios of the quietest rounds behind one to warm up."""
    _round(sides, 0)
    measured: list[_Round] = []
    while sum(done.foreign <= _QUIET for done in measured) < rounds and len(measured) < _MAX_ROUNDS * rounds:
        measured.append(_round(sides, len(measured)))
    quiet = sorted(measured, key=lambda done: done.foreign)[:rounds]
    rows = sum(map(len, sides.parts))
    speeds = [round(rows / statistics.median(done.seconds[which] for done in quiet)) for which in range(3)]
    details: dict[str, object] = {
        "rows_per_s": speeds[_DELIVER],
        "copy_rows_per_s": speeds[_COPY],
        "replaced_rows_per_s": round(rows / _again(sides)),
        "rows": rows,
        "dimensions": _DIMENSIONS,
        "rows_per_transaction": _BATCH,
        "foreign_processors": [round(done.foreign, 2) for done in quiet],
        "pairs_measured": len(measured),
        "pairs_disturbed": sum(done.foreign > _QUIET for done in quiet),
    }
    name = "rows/s into pgvector ÷ psycopg's own COPY"
    ratios = [done.ratio(_DELIVER) for done in quiet]
    spread = [min(ratios), max(ratios)]
    figure = at_least(_TARGET, name, round(statistics.median(ratios), 3), None, spread=spread, ratios=ratios, **details)
    ratios = [done.ratio(_READ) for done in quiet]
    details = {**details, "rows_per_s": speeds[_READ], "spread": [min(ratios), max(ratios)], "ratios": ratios}
    read = Figure(f"{name}, reading the parts too", round(statistics.median(ratios), 3), details=details)
    # Others that share the processors slow the two down by more or less.
    return [replace(figure, met=None) if details["pairs_disturbed"] else figure, read]


def _round(sides: _Sides, number: int) -> _Round:
    """Each way once, in another order each round, so that a drift of the machine's speed cancels out."""
    runs = (sides.deliver, sides.copy, sides.read_and_deliver)
    seconds, foreign = [0.0] * 3, 0.0
    for turn in range(3):
        which = (turn + number) % 3
        sides.empty("copied" if which == _COPY else "delivered")
        meter = Meter(())
        seconds[which] = runs[which]()
        foreign = max(foreign, meter.stop().foreign)
        if number or turn:
            sides.check()
    return _Round((seconds[0], seconds[1], seconds[2]), foreign)


def _again(sides: _Sides) -> float:
    """Seconds for parts whose rows are all there: each is replaced."""
    seconds = sides.deliver()
    sides.check()
    return seconds


def _write_job(folder: JobFolder, batches: int) -> list[list[_Row]]:
    """A job with inputs and parts, as workers leave it, and the same rows for psycopg."""
    spec = JobSpec(job=folder.job, created_at=now(), settings=EmbedSettings(), batching=Batching())
    folder.write_once("job.json", spec.dumps())
    random = np.random.default_rng(0)
    parts = []
    for batch in range(batches):
        vectors = random.standard_normal((_BATCH, _DIMENSIONS)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        ids = [f"articles/{random.integers(1 << 40):012x}-{batch}-{row}" for row in range(_BATCH)]
        columns: list[dict[str, str | None]] = [{"title": f"Title of {record_id}", "lang": "en"} for record_id in ids]
        records = [Record(each, "Some text. " * 30, column) for each, column in zip(ids, columns, strict=True)]
        folder.write_once(f"input/{batch:08d}.parquet", write_input(records, 1))
        outcomes = Outcomes([Outcome(record_id, n_tokens=1) for record_id in ids], vectors)
        folder.write_part(batch, write_part(outcomes, "float32", folder.job, batch))
        parts.append([(each, 0, vectors[row], Jsonb(columns[row])) for row, each in enumerate(ids)])
    return parts


def _seconds(work: Callable[[], object]) -> float:
    gc.collect()  # what one side left is not the other's to tidy up
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
