"""Records: what a caller hands in, one per text, brought into one form. Not how files are read (inputs.py)."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from embedfleet.contract import ErrorCode
from embedfleet.errors import InputError

RESERVED = frozenset(
    {"id", "text", "chunk", "embedding", "n_tokens", "truncated", "cached", "error", "error_message"}
    | {"chunk_start", "chunk_end", "tokens_in"}
)
"""Column names of the job folder; a carried column of such a name gets an underscore behind it."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """In place of a text that an earlier job could not store: its error there, which it is to have again."""

    code: ErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class Record:
    """One text with its id and the columns to carry along.

    ``text`` is whatever was handed in: what is no usable string becomes that text's error, not an exception.
    """

    id: str
    text: object
    columns: dict[str, str | None] = field(default_factory=dict)


def records_of(items: Iterable[object]) -> Iterator[Record]:
    """Records from strings (the id is the position), (id, text) pairs, mappings or Records.

    Raises InputError naming the position of what is none of these, lacks the text or has an unusable id; and for a
    single text or mapping, whose letters or keys would be taken for texts.
    """
    if isinstance(items, (str, bytes, Mapping)):
        raise InputError(f"records: a single {type(items).__name__} was given. Put it into a list.")
    return _each(items)


def _each(items: Iterable[object]) -> Iterator[Record]:
    for position, item in enumerate(items):
        where = f"record {position}"
        if isinstance(item, Record):
            yield item
        elif isinstance(item, str):
            yield Record(str(position), item)
        elif isinstance(item, tuple) and len(item) == 2:
            yield Record(id_of(item[0], where), item[1])
        elif isinstance(item, Mapping):
            yield record_of(item, str(position), where, id_field="id", text_field="text")
        else:
            raise InputError(
                f"{where}: {type(item).__name__} is no record. Give strings, (id, text) pairs, "
                "or mappings with 'id' and 'text'."
            )


def record_of(row: Mapping[str, Any], default_id: str | None, where: str, *, id_field: str, text_field: str) -> Record:
    """A mapping as a Record. Without the id field the id is ``default_id``; if that is None, InputError."""
    if text_field not in row:
        raise InputError(f"{where}: no field {text_field!r}; it has {_names(row)}.")
    if id_field in row:
        record_id = id_of(row[id_field], where)
    elif default_id is not None:
        record_id = default_id
    else:
        raise InputError(f"{where}: no field {id_field!r}; it has {_names(row)}.")
    columns = {_utf8(str(key)): _carried(key, row[key], where) for key in row if key not in (id_field, text_field)}
    return Record(record_id, row[text_field], _unreserved(columns))


def id_of(value: object, where: str) -> str:
    """An id as a string: any string with a UTF-8 form, or an integer. Raises InputError naming ``where``."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InputError(f"{where}: the id is {type(value).__name__}; a string or an integer was expected.")
    try:
        text = str(value)
    except ValueError:
        raise InputError(f"{where}: the id is an integer of thousands of digits.") from None
    if not text:
        raise InputError(f"{where}: the id is empty.")
    if not _has_utf8(text):
        raise InputError(f"{where}: the id {text!r} has a lone surrogate and can't be stored as UTF-8.")
    return text


def as_column(value: object) -> str | None:
    """A carried value: strings as they are, anything else as JSON text, so that a column has one type throughout."""
    if value is None:
        return None
    is_json = isinstance(value, (bool, int, float, list, tuple, dict))
    return _utf8(json.dumps(value, ensure_ascii=False, default=str) if is_json else str(value))


def check_text(text: object) -> tuple[ErrorCode, str] | None:
    """Why a text can't be embedded, as (code, message), or None. Too long is for the tokeniser to say."""
    if isinstance(text, Unusable):
        return text.code, text.message
    if not isinstance(text, str):
        return "not_a_string", f"the text is {type(text).__name__}; a string was expected"
    if not text or text.isspace():
        return "empty", "the text is empty or blank"
    if not _has_utf8(text):
        return "lone_surrogate", "the text has a lone surrogate and no UTF-8 form"
    return None


def _has_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _carried(key: object, value: object, where: str) -> str | None:
    try:
        return as_column(value)
    except (TypeError, ValueError, RecursionError) as exc:
        raise InputError(f"{where}: field {str(key)!r} can't be carried along ({exc}). Leave it out.") from None


def _utf8(text: str) -> str:
    """The text, or a readable form of one that has no UTF-8 form."""
    return text if _has_utf8(text) else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _names(row: Mapping[str, Any]) -> str:
    shown = ", ".join(repr(name) for name in list(row)[:10])
    return (shown or "none") + (f" and {len(row) - 10} more" if len(row) > 10 else "")


def _unreserved(columns: dict[str, str | None]) -> dict[str, str | None]:
    if not RESERVED.intersection(columns):
        return columns
    renamed = {name: value for name, value in columns.items() if name not in RESERVED}
    for name in columns:
        if name in RESERVED:
            free = name + "_"
            while free in renamed:
                free += "_"
            renamed[free] = columns[name]
    return renamed
