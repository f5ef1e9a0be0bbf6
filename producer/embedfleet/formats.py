"""Rows of one file: JSONL, CSV, TSV, plain lines, Parquet. Not which files there are, nor their ids (inputs.py).

A row is where it stands (``file:line``) and its fields. pyarrow is imported where it is used.
"""

import csv
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from embedfleet.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["jsonl", "csv", "tsv", "parquet", "lines"]
Row = tuple[str, Mapping[str, Any]]

BOM = b"\xef\xbb\xbf"
_JSON_WHITESPACE = " \t\r\n"
_PARQUET_ROWS = 1024
_PARQUET_BYTES = 8 * 1024 * 1024  # of rows decoded at a time, by the file's own account of its row groups
_PARQUET_BUFFER_BYTES = 1024 * 1024  # pages are streamed through this, and nothing is loaded ahead


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of the fields that hold the text and the id."""

    text: str
    id: str
    id_required: bool
    """Whether a record without the id field is an error; otherwise its id is made up."""


def format_of(path: str) -> Format:
    """The format a file's extension stands for; whatever is not known is plain lines."""
    known: dict[str, Format] = {
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
        ".csv": "csv",
        ".tsv": "tsv",
        ".parquet": "parquet",
    }
    suffix = PurePath(path).suffix.lower()
    if suffix == ".json":
        raise InputError(f"{path}: one JSON document is no input. Make it JSON lines, .jsonl: jq -c '.[]' does that.")
    return known.get(suffix, "lines")


def line_rows(lines: Iterable[bytes], name: str, kind: Format, fields: Fields) -> Iterator[Row]:
    """Rows of a format made of lines, which end in \\n. ``name`` is what errors call the file.

    Raises InputError for bytes that are no UTF-8 and for what is malformed in the format.
    """
    decoded = _decoded(lines, name)
    if kind == "jsonl":
        return _jsonl_rows(decoded, name)
    if kind == "lines":
        return _text_rows(decoded, name, fields)
    return _csv_rows(decoded, name, "\t" if kind == "tsv" else ",", fields)


def parquet_rows(file: BinaryIO, name: str, fields: Fields) -> Iterator[Row]:
    """Rows of a Parquet file, some MB at a time. Dates and times become strings, in pyarrow's form.

    Raises InputError for a file that pyarrow can't read.
    """
    number = 0
    for names, batch in _parquet_batches(file, name, fields):
        for values in batch:
            number += 1
            yield f"{name}, row {number}", dict(zip(names, values, strict=True))


def quoted(names: Iterable[str]) -> str:
    """Names for an error: at most 20 of them, none longer than a name should be."""
    shown = list(names)
    more = f" and {len(shown) - 20} more" if len(shown) > 20 else ""
    return (", ".join(quote(name) for name in shown[:20]) or "none") + more


def quote(name: str) -> str:
    """A name or an id for an error, cut at 60 characters: it could be a text put in the wrong place."""
    return repr(name if len(name) <= 60 else name[:59] + "…")


def _decoded(lines: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends. No character's bytes contain \\n, so that lines can be decoded one by one."""
    offset = 0
    for number, line in enumerate(lines, 1):
        skipped = len(BOM) if number == 1 and line.startswith(BOM) else 0
        try:
            text = (line[skipped:] if skipped else line).decode("utf-8")
        except UnicodeDecodeError as exc:
            at = offset + skipped + exc.start
            raise InputError(
                f"{name}:{number}: not UTF-8 (byte 0x{exc.object[exc.start]:02x} at offset {at} of the file). "
                "Convert the file to UTF-8 (iconv), or unpack it if it is compressed."
            ) from None
        if text:  # a file may be a byte order mark and nothing else
            yield number, text
        offset += len(line)


def _text_rows(lines: Iterable[tuple[int, str]], name: str, fields: Fields) -> Iterator[Row]:
    if fields.id_required:
        raise InputError(
            f"{name}: plain lines have no field {quote(fields.id)}. Leave out the id field, or give JSONL."
        )
    for number, line in lines:
        text = line.removesuffix("\n")
        yield f"{name}:{number}", {fields.text: text if text is line else text.removesuffix("\r")}


def _jsonl_rows(lines: Iterable[tuple[int, str]], name: str) -> Iterator[Row]:
    for number, line in lines:
        if not line.strip(_JSON_WHITESPACE):
            continue
        where = f"{name}:{number}"
        value = _json(line, where)
        if not isinstance(value, dict):
            raise InputError(f'{where}: the JSON is no object. Give one object a line, like {{"text": "…"}}.')
        yield where, value


def _json(line: str, where: str) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError as exc:
        raise InputError(
            f"{where}: malformed JSON at column {exc.colno} ({exc.msg}). "
            "Give one JSON object a line; `jq -c` brings other JSON into this form."
        ) from None
    except ValueError:
        raise InputError(f"{where}: a number in the JSON has too many digits. Give it as a string.") from None
    except RecursionError:
        raise InputError(f"{where}: the JSON is nested too deeply. Leave that field out.") from None


def _csv_rows(lines: Iterable[tuple[int, str]], name: str, delimiter: str, fields: Fields) -> Iterator[Row]:
    header: list[str] | None = None
    for where, cells in _csv_cells(lines, name, delimiter):
        if header is None:
            header = cells
            _check_columns(header, f"{where}: the header (first line)", fields)
        elif len(cells) != len(header):
            raise InputError(
                f"{where}: cells: {len(cells)} in this row and {len(header)} in the header. "
                f"Quote cells that contain {delimiter!r} or line ends, and give every cell."
            )
        else:
            yield where, dict(zip(header, cells, strict=True))


def _csv_cells(lines: Iterable[tuple[int, str]], name: str, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Rows that are not blank, each with the line it starts on."""
    _lift_field_size_limit()
    # Strict, because otherwise a forgotten quote takes the rest of the file for one cell and says nothing.
    reader = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    while True:
        where = f"{name}:{reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as exc:
            raise InputError(f"{where}: malformed CSV ({exc}) in the row that starts here. Check its quotes.") from None
        if cells is None:
            return
        if cells:
            yield where, cells


def _lift_field_size_limit() -> None:
    """csv refuses cells over 128 KB unless told otherwise, for the whole process."""
    try:
        csv.field_size_limit(sys.maxsize)
    except OverflowError:  # where a C long has 32 bits
        csv.field_size_limit(2**31 - 1)


def _check_columns(columns: Sequence[str], where: str, fields: Fields) -> None:
    doubled = [column for column, count in Counter(columns).items() if count > 1]
    if doubled:
        raise InputError(f"{where} has the column {quoted(doubled)} more than once. Rename one of them.")
    for option, field in [("text", fields.text), ("id", fields.id)][: 1 + fields.id_required]:
        if field not in columns:
            raise InputError(
                f"{where} has no column {quote(field)}; it has {quoted(columns)}. Name the column with the {option}."
            )


def _parquet_batches(
    file: BinaryIO, name: str, fields: Fields
) -> Iterator[tuple[list[str], Iterable[tuple[object, ...]]]]:
    """Column names and rows of each record batch. pyarrow's errors of all kinds end here."""
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(
            file, buffer_size=_PARQUET_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
        )
        names = list(parquet.schema_arrow.names)
        _check_columns(names, f"{name}: the schema", fields)
        for batch in parquet.iter_batches(batch_size=_batch_rows(parquet.metadata)):
            columns = [_values(batch.column(each), each in (fields.text, fields.id)) for each in names]
            yield names, zip(*columns, strict=True)
    except InputError:
        raise
    except Exception as exc:  # besides its own it raises OSError, ValueError, OverflowError, whatever a converter meets
        said = str(exc).partition("\n")[0][:200]
        raise InputError(f"{name}: can't be read as Parquet ({said}). Write the file again.") from None


def _batch_rows(metadata: Any) -> int:
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    row_bytes = max((group.total_byte_size / group.num_rows for group in groups if group.num_rows), default=1)
    return int(max(1, min(_PARQUET_ROWS, _PARQUET_BYTES / max(row_bytes, 1))))


def _values(column: "pa.Array", as_is: bool) -> list[object]:
    """A column as Python values; one to carry along with dates and times as strings, unless it must stay ``as_is``.

    Python's dates know no nanoseconds and few years.
    """
    import pyarrow as pa

    kind = column.type
    if not as_is and (pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind)):
        column = column.cast(pa.string())
    values: list[object] = column.to_pylist()
    return values
