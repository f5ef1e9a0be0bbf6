"""The Parquet files of a job folder: inputs and parts, to bytes and back. Not their names (jobfolder.py).

pyarrow and numpy are imported where they are used: ``import embedfleet`` stays light.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from embedfleet.batching import estimated_tokens
from embedfleet.contract import Document, Encoding, ErrorCode, Inline, Totals
from embedfleet.parquet import footer_of, from_bytes, metadata_of, to_bytes
from embedfleet.records import Record, Unusable, check_text

if TYPE_CHECKING:
    import numpy as np

_LATER = ("chunk_start", "chunk_end", "tokens_in")  # columns that parts of the first workers do not have

Row = TypeVar("Row")


class InputInfo(Document):
    """Metadata of an input file."""

    sha256: str
    tokens: int
    rejected: dict[int, tuple[ErrorCode, str]]
    """By row: texts that can't be stored as a string, and why. Their ``text`` is null."""


class PartInfo(Document):
    """Metadata of a part: counts, stage times and provenance, so that a watcher reads no vectors."""

    job: str
    batch: int
    totals: Totals
    stages_s: dict[str, float]
    provenance: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Input:
    """What a worker reads of one batch; all lists have one entry a text."""

    ids: list[str]
    texts: list[str | None]
    info: InputInfo


@dataclass(slots=True)
class Outcome:
    """What became of one text, or of one chunk of it: its vector, or an error."""

    id: str
    n_tokens: int | None = None
    """Tokens given to the model."""
    truncated: bool = False
    cached: bool = False
    error: tuple[ErrorCode, str] | None = None
    tokens_in: int | None = None
    """Tokens of the whole text with its prompt and special tokens; None where nobody counted."""
    chunk: int = 0
    chunk_start: int | None = None
    chunk_end: int | None = None
    """Code points of the text that the chunk is made of; None unless the task chunks."""


@dataclass(slots=True)
class Outcomes:
    """Every outcome of one batch, in the order of its texts: a row a text, or a row for each of its chunks."""

    rows: list[Outcome]
    vectors: "np.ndarray[Any, Any]"
    """(rows, dimensions) float32, unit norm; rows of texts with an error are not looked at."""
    stages_s: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def totals(self) -> Totals:
        """Counts over the texts; ``cached`` are those that needed no engine at all."""
        texts = self.texts()
        return Totals(
            texts=len(texts),
            errors=sum(rows[0].error is not None for rows in texts),
            cached=sum(all(row.cached for row in rows) for rows in texts),
            truncated=sum(rows[0].truncated for rows in texts),
            tokens=sum(row.n_tokens or 0 for row in self.rows if row.error is None),
        )

    def texts(self) -> list[list[Outcome]]:
        """The rows of each text."""
        return by_text(self.rows, [row.chunk for row in self.rows])


def by_text(rows: Sequence[Row], chunks: Sequence[int]) -> list[list[Row]]:
    """The rows of a part, those of one text together: they stand in a row, and its first one is chunk 0."""
    texts: list[list[Row]] = []
    for row, chunk in zip(rows, chunks, strict=True):
        if chunk and texts:
            texts[-1].append(row)
        else:
            texts.append([row])
    return texts


def fingerprint(records: Sequence[Record]) -> str:
    """SHA-256 over ids, texts and columns of a batch, injective: JSON keeps every border."""
    rows = [[record.id, _hashable(record.text), record.columns] for record in records]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def _rejected(records: Sequence[Record]) -> dict[int, tuple[ErrorCode, str]]:
    """By row: texts that can't be stored as a string, and why."""
    reasons = {row: check_text(record.text) for row, record in enumerate(records) if not storable(record.text)}
    return {row: reason for row, reason in reasons.items() if reason}


def write_input(records: Sequence[Record], tokens: int) -> bytes:
    """An input file: id, text, then the carried columns as strings."""
    import pyarrow as pa

    rejected = _rejected(records)
    names = dict.fromkeys(name for record in records for name in record.columns)
    columns = {
        "id": [record.id for record in records],
        "text": [None if row in rejected else record.text for row, record in enumerate(records)],
        **{name: [record.columns.get(name) for record in records] for name in names},
    }
    info = InputInfo(sha256=fingerprint(records), tokens=tokens, rejected=rejected)
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    return to_bytes(table, info, dictionary=False)


def inline_of(records: Sequence[Record]) -> Inline:
    """The same as :func:`write_input` would keep, for job.json."""
    rejected = _rejected(records)
    return Inline(
        ids=[record.id for record in records],
        texts=[None if row in rejected else str(record.text) for row, record in enumerate(records)],
        sha256=fingerprint(records),
        tokens=sum(estimated_tokens(record.text) for record in records),
        rejected=rejected,
    )


def read_input(data: bytes, where: str) -> Input:
    """An input file's ids and texts. Raises ContractError naming ``where``."""
    table, info = from_bytes(data, where, ["id", "text"])
    return Input(table["id"].to_pylist(), table["text"].to_pylist(), InputInfo.loads(info, where))


def read_records(data: bytes, where: str) -> list[Record]:
    """An input file as the records it was made of; rejected texts come back as None."""
    table, _ = from_bytes(data, where)
    rows = table.to_pylist()
    return [Record(row.pop("id"), row.pop("text"), row) for row in rows]


def write_part(outcomes: Outcomes, encoding: Encoding, job: str, batch: int) -> bytes:
    """A part: one row a text or chunk, a vector or an error. Bytes are deterministic but for times."""
    import pyarrow as pa

    described = PartInfo(
        job=job,
        batch=batch,
        totals=outcomes.totals(),
        stages_s=outcomes.stages_s,
        provenance=outcomes.provenance,
    )
    rows = outcomes.rows
    columns = [
        [row.id for row in rows],
        [row.chunk for row in rows],
        _embeddings(outcomes, encoding),
        [row.n_tokens for row in rows],
        [row.truncated for row in rows],
        [row.cached for row in rows],
        [row.error and row.error[0] for row in rows],
        [row.error and row.error[1] for row in rows],
        [row.chunk_start for row in rows],
        [row.chunk_end for row in rows],
        [row.tokens_in for row in rows],
    ]
    schema = part_schema(outcomes.vectors.shape[1], encoding)
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, kind.type)
        for column, kind in zip(columns, schema, strict=True)
    ]
    table = pa.Table.from_arrays(arrays, schema=schema)
    return to_bytes(table, described, dictionary=["error", "error_message"])


def part_schema(dimensions: int, encoding: Encoding) -> Any:
    """The pyarrow schema of a part. ``chunk`` is 0 where a text is one row."""
    import pyarrow as pa

    number = pa.float32() if encoding == "float32" else pa.float16()
    return pa.schema(
        {
            "id": pa.string(),
            "chunk": pa.int32(),
            "embedding": pa.list_(number, dimensions),
            "n_tokens": pa.int32(),
            "truncated": pa.bool_(),
            "cached": pa.bool_(),
            "error": pa.string(),
            "error_message": pa.string(),
            **dict.fromkeys(_LATER, pa.int32()),
        }
    )


def complete(schema: Any) -> Any:
    """A part's schema with the columns that parts of older workers lack; there they are null."""
    import pyarrow as pa

    for name in _LATER:
        if name not in schema.names:
            schema = schema.append(pa.field(name, pa.int32()))
    return schema


def read_part(data: bytes, where: str) -> tuple[Any, PartInfo]:
    """A part as a pyarrow Table with its metadata. Raises ContractError naming ``where``."""
    import pyarrow as pa

    table, info = from_bytes(data, where)
    for name in _LATER:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, pa.int32()))
    return table, PartInfo.loads(info, where)


def read_part_info(tail: Callable[[int], bytes], where: str) -> PartInfo:
    """A part's metadata from its end; ``tail(n)`` gives the file's last n bytes."""
    return PartInfo.loads(metadata_of(footer_of(tail, where).metadata, where), where)


def read_input_info(tail: Callable[[int], bytes], where: str) -> tuple[InputInfo, int]:
    """An input file's metadata and number of texts, from its end."""
    footer = footer_of(tail, where)
    return InputInfo.loads(metadata_of(footer.metadata, where), where), footer.num_rows


def vectors_of(table: Any) -> "np.ndarray[Any, Any]":
    """The embeddings of a part without errors: (rows, dimensions), in the encoding's number format."""
    column = table["embedding"].combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    vectors: np.ndarray[Any, Any] = flat.reshape(len(column), column.type.list_size).copy()  # Arrow's are read-only
    return vectors


def storable(text: object) -> bool:
    """Whether a text can be kept as a Parquet string; an empty one can, though it has no vector."""
    reason = check_text(text)
    return reason is None or reason[0] == "empty"


def _hashable(text: object) -> object:
    if isinstance(text, Unusable):
        return [text.code, text.message]
    if not isinstance(text, str):
        return [type(text).__name__]
    # What has no UTF-8 form is wrapped: JSON would write two halves of a pair as it writes the whole.
    return text if storable(text) else ["str", ascii(text)]


def _embeddings(outcomes: Outcomes, encoding: Encoding) -> Any:
    import numpy as np
    import pyarrow as pa

    vectors = np.ascontiguousarray(outcomes.vectors, dtype=encoding)
    missing = np.array([row.error is not None for row in outcomes.rows], dtype=bool)
    values = pa.array(vectors.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(
        values, type=pa.list_(values.type, vectors.shape[1]), mask=pa.array(missing)
    )
