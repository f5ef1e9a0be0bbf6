"""The table that pgvector.py writes to: found, made when it is absent, and checked. Not how rows get into it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors, sql

from embedfleet.destinations import Pgvector
from embedfleet.errors import DestinationRefused, DestinationUnavailable
from embedfleet.store import first_line

Connection = psycopg.Connection[tuple[Any, ...]]

_MAX_INDEXED = 2000  # dimensions of a `vector` that pgvector can index; of a `halfvec` it is 4000
_LOCK = 0x656D626564_706776  # of those who make tables: "embed", "pgv"
_COLUMNS = {"id": ("text", "text"), "chunk": ("int4", "integer"), "metadata": ("jsonb", "jsonb")}  # catalog's, SQL's


@dataclass(frozen=True)
class Table:
    """A table that is there: its name in full, and the type and type modifier of each column."""

    schema: str
    name: str
    kind: str
    columns: Mapping[str, tuple[str, int]]

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def identifier(self) -> sql.Identifier:
        """The name, quoted."""
        return sql.Identifier(self.schema, self.name)


def table_for(connection: Connection, target: Pgvector, dimensions: int) -> tuple[Table, str]:
    """The table for vectors of ``dimensions``, made if absent, and its embedding's type: vector or halfvec.

    The connection is one in autocommit. Raises DestinationRefused when the table or the database can't hold them.
    """
    table = _find(connection, target) or _make(connection, target, dimensions)
    _check_columns(table, dimensions)
    kind, has = table.columns["embedding"]
    if has != dimensions:
        raise DestinationRefused(
            f"pgvector table {table}: its embedding has {has if has > 0 else 'no fixed number of'} dimensions, and "
            f"the vectors have {dimensions}. Deliver to another table, embed with as many dimensions as this one has, "
            f"or, if it is empty: ALTER TABLE {table} ALTER COLUMN embedding TYPE {kind}({dimensions})."
        )
    return table, kind


def _find(connection: Connection, target: Pgvector) -> Table | None:
    """The table as it is now, looked up as any SQL would; None if there is none."""
    name = sql.Identifier(*target.table.split(".")).as_string(connection)
    found = connection.execute(
        """
        SELECT n.nspname, c.relname, c.relkind::text, a.attname, t.typname, a.atttypmod
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_type t ON t.oid = a.atttypid
        WHERE c.oid = to_regclass(%s)
        """,
        (name,),
    ).fetchall()
    if not found:
        return None
    schema, table, kind = found[0][:3]
    return Table(schema, table, kind, {row[3]: (row[4], row[5]) for row in found if row[3]})


def _make(connection: Connection, target: Pgvector, dimensions: int) -> Table:
    """Make the table, one worker at a time. Whoever comes second finds it."""
    try:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            connection.execute(
                sql.SQL(
                    "CREATE TABLE IF NOT EXISTS {} (id text, chunk integer, embedding {} NOT NULL, "
                    "metadata jsonb NOT NULL, PRIMARY KEY (id, chunk))"
                ).format(sql.Identifier(*target.table.split(".")), _embedding_type(connection, dimensions))
            )
    except (errors.UniqueViolation, errors.DuplicateObject, errors.DuplicateTable) as exc:
        raise DestinationUnavailable(
            f"pgvector table {target.table}: somebody else made it in this moment ({first_line(exc)})."
        ) from None
    table = _find(connection, target)
    if table is None:
        raise DestinationUnavailable(f"pgvector table {target.table}: it was made and is gone again.")
    return table


def _embedding_type(connection: Connection, dimensions: int) -> sql.Composed:
    """The column's type, in whatever schema the extension is: that need not be on the search path."""
    name = "vector" if dimensions <= _MAX_INDEXED else "halfvec"
    schema, version, there = _extension(connection, name) or _make_extension(connection, name)
    if not there:
        raise DestinationRefused(
            f"pgvector: vectors of {dimensions} dimensions need the type halfvec, and database "
            f"{connection.info.dbname} has pgvector {version}. Have its administrator install 0.7 or later and run "
            "there: ALTER EXTENSION vector UPDATE."
        )
    return sql.SQL("{}({})").format(sql.Identifier(schema, name), sql.Literal(dimensions))


def _extension(connection: Connection, name: str) -> tuple[Any, ...] | None:
    """Schema and version of the extension, and whether it has the type; None if it is not in this database."""
    return connection.execute(
        """
        SELECT n.nspname, e.extversion,
               EXISTS (SELECT FROM pg_type t WHERE t.typnamespace = e.extnamespace AND t.typname = %s)
        FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'
        """,
        (name,),
    ).fetchone()


def _make_extension(connection: Connection, name: str) -> tuple[Any, ...]:
    try:
        connection.execute("CREATE EXTENSION vector")
    except (errors.InsufficientPrivilege, errors.FeatureNotSupported, errors.UndefinedFile) as exc:
        raise DestinationRefused(
            f"pgvector: database {connection.info.dbname} lacks the extension, and it can't be made "
            f"({first_line(exc)}). Have its administrator run there: CREATE EXTENSION vector."
        ) from None
    made = _extension(connection, name)
    if made is None:
        raise DestinationUnavailable("pgvector: the extension was made and is gone again.")
    return made


def _check_columns(table: Table, dimensions: int) -> None:
    if table.kind not in ("r", "p"):  # plain or partitioned
        raise DestinationRefused(f"pgvector table {table}: it is a view or the like. Deliver to a table.")
    types = {column: kind for column, (kind, _) in table.columns.items()}
    wrong = [
        f"{column} is {types.get(column, 'missing')}"
        for column, (kind, _) in _COLUMNS.items()
        if types.get(column) != kind
    ]
    if types.get("embedding") not in ("vector", "halfvec"):
        wrong.append(f"embedding is {types.get('embedding', 'missing')}")
    if wrong:
        wanted = ", ".join(f"{column} {name}" for column, (_, name) in _COLUMNS.items())
        raise DestinationRefused(
            f"pgvector table {table}: column {', '.join(wrong)}. It needs {wanted} and embedding vector({dimensions}) "
            f"or halfvec({dimensions}). Change it, or deliver to a table that is not there, which is made then."
        )
