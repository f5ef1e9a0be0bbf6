"""A stream of records cut into batches under token, byte and count budgets, in constant memory. Not their storage."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from embedfleet.contract import Batching
from embedfleet.records import Record

# Measured on English docstrings with BERT's and Qwen's vocabularies: 3.5 to 4.5 bytes a token. An estimate is
# enough: it balances batches, limits nothing, and is corrected once the worker has tokenised.
_BYTES_PER_TOKEN = 4
_SPECIAL_TOKENS = 2


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """Records that travel together, in the order of the stream."""

    records: list[Record]
    tokens: int
    """Estimated."""


def size_bytes(record: Record) -> int:
    """UTF-8 bytes of id, text and columns; a text that is no string counts nothing."""
    text = _utf8_len(record.text) if isinstance(record.text, str) else 0
    columns = sum(_utf8_len(name) + _utf8_len(value or "") for name, value in record.columns.items())
    return _utf8_len(record.id) + text + columns


def estimated_tokens(text: object) -> int:
    """Tokens a text will probably have; 0 for what is no string."""
    return _utf8_len(text) // _BYTES_PER_TOKEN + _SPECIAL_TOKENS if isinstance(text, str) else 0


def estimated_starts(text: str) -> "array[int]":
    """Where each of the tokens begins that are estimated, special ones aside, in code points."""
    if text.isascii():
        return array("i", range(0, len(text), _BYTES_PER_TOKEN))
    starts, bytes_before = array("i"), 0
    for position, character in enumerate(text):
        if bytes_before >= len(starts) * _BYTES_PER_TOKEN:
            starts.append(position)
        bytes_before += _utf8_len(character)
    return starts


def batches(records: Iterable[Record], budget: Batching) -> Iterator[PlannedBatch]:
    """Cut the stream: no batch exceeds a budget unless it is a single record that does so alone."""
    held: list[Record] = []
    tokens = size = 0
    for record in records:
        record_tokens, record_size = estimated_tokens(record.text), size_bytes(record)
        full = (
            len(held) >= budget.max_texts
            or tokens + record_tokens > budget.max_tokens
            or size + record_size > budget.max_bytes
        )
        if held and full:
            yield PlannedBatch(held, tokens)
            held, tokens, size = [], 0, 0
        held.append(record)
        tokens += record_tokens
        size += record_size
    if held:
        yield PlannedBatch(held, tokens)


def _utf8_len(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
