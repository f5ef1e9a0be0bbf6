"""The inputs of the command `embed`: files, directories and standard input as records. Not their formats (formats.py).

What is wrong with an input is an InputError naming file and line. A text that is no string is not: it becomes
that text's own error.
"""

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO

from embedfleet.batching import size_bytes
from embedfleet.errors import InputError
from embedfleet.formats import BOM, Fields, Format, Row, line_rows, parquet_rows, quote
from embedfleet.records import Record, record_of
from embedfleet.sources import Source, sources_of, unreadable
from embedfleet.uniqueness import SeenIds

if TYPE_CHECKING:
    from hashlib import _Hash

STDIN = "-"
_STDIN_SHOWN = "standard input"

# Ids are compared some hundred at a time, which is many times faster than one by one. Records wait for that no
# longer than until these limits, so that memory stays constant for texts of any length.
_LOOKAHEAD_RECORDS = 512
_LOOKAHEAD_BYTES = 1024 * 1024


Located = tuple[str, Record]
"""Where a record stands, and the record."""


@dataclass(frozen=True)
class Scan:
    """What is known about inputs after reading them once."""

    fingerprint: str | None
    """SHA-256 (hex) over formats and contents of the files in order, whatever they are called; None for stdin."""
    texts: int | None
    """Number of records; None for stdin."""


def scan(
    inputs: Sequence[str], *, text_field: str = "text", id_field: str | None = None, store: str | None = None
) -> Scan:
    """Read all files once, in constant memory, so that what is wrong comes up before anything is queued.

    ``store``: URI of the store of the job, whose files below a directory are no input.
    Standard input can't be read twice: nothing but its being the only input is checked.

    Raises InputError for everything :func:`read` raises it for.
    """
    fields = _checked_fields(text_field, id_field)
    if _is_stdin(inputs):
        return Scan(None, None)
    fingerprint = hashlib.sha256()
    texts = sum(1 for _ in _unique(_file_records(sources_of(inputs, store), fields, fingerprint)))
    return Scan(fingerprint.hexdigest(), texts)


def read(
    inputs: Sequence[str],
    *,
    text_field: str = "text",
    id_field: str | None = None,
    store: str | None = None,
    stdin: BinaryIO | None = None,
) -> Iterator[Record]:
    """The records of files, directories (recursively, sorted, hidden files left out) or ``-``, standard input.

    A record's id is its ``id_field``. With None it is its field ``id``, or else its number in the file, from 1, behind
    ``<file>:`` when there are several files. Records come up to 512 late, because ids are compared in groups; the
    records before an error come before it. Beyond 10 million records duplicates are found only within a group.

    Raises InputError for missing, unreadable, empty or malformed inputs, for records without text or usable id, and
    for duplicate ids.
    """
    fields = _checked_fields(text_field, id_field)
    if _is_stdin(inputs):
        located = _records(_stdin_rows(stdin, fields), _STDIN_SHOWN, "", fields)
    else:
        located = _file_records(sources_of(inputs, store), fields, None)
    return (record for _, record in _unique(located))


def _checked_fields(text_field: str, id_field: str | None) -> Fields:
    fields = Fields(text_field, "id" if id_field is None else id_field, id_required=id_field is not None)
    if fields.text == fields.id:
        raise InputError(
            f"the field {quote(text_field)} can't be both the text and the id. Name another text field or id field."
        )
    return fields


def _is_stdin(inputs: Sequence[str]) -> bool:
    if not inputs:
        raise InputError("no inputs. Name files, directories, or - for standard input.")
    if STDIN in inputs and len(inputs) > 1:
        raise InputError("- (standard input) must be the only input. Leave the others out; a file named - is ./-")
    return STDIN in inputs


def _file_records(sources: Sequence[Source], fields: Fields, fingerprint: "_Hash | None") -> Iterator[Located]:
    for source in sources:
        prefix = f"{source.name}:" if len(sources) > 1 else ""
        yield from _records(_file_rows(source, fields, fingerprint), source.shown, prefix, fields)


def _file_rows(source: Source, fields: Fields, fingerprint: "_Hash | None") -> Iterator[Row]:
    """Rows of a file. When all were read, its format (a line) and digest (32 bytes) go into ``fingerprint``."""
    content = hashlib.sha256() if fingerprint else None
    try:
        with open(source.path, "rb") as file:  # noqa: PTH123
            if source.format == "parquet":
                if content:
                    _hash_whole(file, content)
                yield from parquet_rows(file, source.shown, fields)
            else:
                lines = _hashed(file, content) if content else file
                yield from line_rows(lines, source.shown, source.format, fields)
    except OSError as exc:
        raise unreadable(source.shown, exc) from None
    if fingerprint and content:
        fingerprint.update(source.format.encode() + b"\n" + content.digest())


def _hash_whole(file: BinaryIO, content: "_Hash") -> None:
    while block := file.read(1024 * 1024):
        content.update(block)
    file.seek(0)


def _hashed(lines: Iterable[bytes], content: "_Hash") -> Iterator[bytes]:
    for line in lines:
        content.update(line)
        yield line


def _stdin_rows(stdin: BinaryIO | None, fields: Fields) -> Iterator[Row]:
    """JSONL if the first line that is not blank starts with a brace, else plain lines."""
    if stdin is None and sys.stdin is None:
        raise InputError(f"{_STDIN_SHOWN}: it is closed. Pipe something in, or name files.")
    try:
        lines = iter(stdin or sys.stdin.buffer)
        first: list[bytes] = []
        content = b""
        while not content and (line := next(lines, b"")):
            content = (line if first else line.removeprefix(BOM)).lstrip()
            first.append(line)
        kind: Format = "jsonl" if content.startswith(b"{") else "lines"
        yield from line_rows(chain(first, lines), _STDIN_SHOWN, kind, fields)
    except OSError as exc:
        raise unreadable(_STDIN_SHOWN, exc) from None


def _records(rows: Iterator[Row], shown: str, prefix: str, fields: Fields) -> Iterator[Located]:
    """Records of one file's rows; an id made up is ``prefix`` and the record's number."""
    number = 0
    for number, (where, row) in enumerate(rows, 1):
        made_up = None if fields.id_required else f"{prefix}{number}"
        try:
            record = record_of(row, made_up, where, id_field=fields.id, text_field=fields.text)
        except RecursionError:
            raise InputError(f"{where}: a field is nested too deeply to carry along. Leave it out.") from None
        yield where, record
    if not number:
        raise InputError(f"{shown}: no records. Leave it out, or check what should have written it.")


def _unique(located: Iterator[Located]) -> Iterator[Located]:
    """The same, up to a record whose id was there before. An error of the stream comes behind what came before it."""
    seen = SeenIds()
    failure: InputError | None = None
    while failure is None:
        group, failure = _group(located)
        duplicate = seen.add([record.id for _, record in group])
        yield from group[:duplicate]
        if duplicate is not None:
            where, record = group[duplicate]
            raise InputError(
                f"{where}: the id {quote(record.id)} was used before. Make ids unique, or name the field that holds "
                "unique ones."
            )
        if not group:
            break
    if failure is not None:
        raise failure


def _group(located: Iterator[Located]) -> tuple[list[Located], InputError | None]:
    """The next records, and the error that ended them if one did."""
    group: list[Located] = []
    size = 0
    try:
        for item in located:
            group.append(item)
            size += size_bytes(item[1])
            if len(group) >= _LOOKAHEAD_RECORDS or size >= _LOOKAHEAD_BYTES:
                break
    except InputError as exc:
        return group, exc
    return group, None
