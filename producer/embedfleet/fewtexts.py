"""Texts and vectors of a call that waits or asks for little: what is checked first, and read at the end."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from embedfleet.errors import InputError, TextError
from embedfleet.records import Record, check_text, records_of
from embedfleet.tables import vectors_of

if TYPE_CHECKING:
    import numpy as np

_MAX_EMBED_BYTES = 1024 * 1024  # texts of one round trip: they travel in the message


def few_records(texts: Sequence[str], ids: Sequence[str] | None) -> list[Record]:
    """The records of ``Fleet.enqueue``. Raises InputError."""
    if isinstance(texts, str) or not texts:
        raise InputError("enqueue: a list of at least one text was expected.")
    if ids is not None and len(ids) != len(texts):
        raise InputError(f"enqueue: {len(texts)} texts and {len(ids)} ids were given; each text has one id.")
    if any(isinstance(text, Mapping | tuple) for text in texts):
        raise InputError("enqueue: texts were expected, with their ids in `ids`. Records with columns go to submit.")
    return list(records_of(zip(ids or map(str, range(len(texts))), texts, strict=True)))


def check_embed(texts: Sequence[str]) -> None:
    """Raise InputError or TextError for what ``Fleet.embed`` can't send."""
    if isinstance(texts, str) or not texts:
        raise InputError("embed: a list of at least one text was expected.")
    errors = {i: f"{reason[0]}: {reason[1]}" for i, text in enumerate(texts) if (reason := check_text(text))}
    _raise(errors)
    if sum(len(text.encode()) for text in texts) > _MAX_EMBED_BYTES:
        raise InputError("embed: the texts are over 1 MiB together. Use submit for as much.")


def embeddings(table: Any) -> "np.ndarray[Any, Any]":
    """The vectors of a part. Raises TextError naming the positions of texts without one."""
    rows = table.select(["error", "error_message"]).to_pylist()
    _raise({i: f"{row['error']}: {row['error_message']}" for i, row in enumerate(rows) if row["error"] is not None})
    return vectors_of(table)


def _raise(errors: dict[int, str]) -> None:
    if errors:
        first = next(iter(errors))
        more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
        raise TextError(f"text {first} has no vector: {errors[first]}{more}.", errors)
