"""A table with a document in its metadata, as a Parquet file's bytes and back. Not which tables there are (tables.py).

pyarrow is imported where it is used.
"""

from collections.abc import Callable
from typing import Any

from embedfleet.contract import Document
from embedfleet.errors import ContractError

_METADATA_KEY = b"embedfleet"
_FOOTER_GUESS_BYTES = 16 * 1024  # parts have about 6 KB, so that one request does


def to_bytes(table: Any, described: Document, dictionary: bool | list[str]) -> bytes:
    """The file. ``dictionary``: the columns whose values recur, or whether all do."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = table.replace_schema_metadata({_METADATA_KEY: described.dumps()})
    sink = pa.BufferOutputStream()
    # No BYTE_STREAM_SPLIT: DuckDB can't read it for float16.
    pq.write_table(table, sink, compression="zstd", use_dictionary=dictionary, write_statistics=False)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def from_bytes(data: bytes, where: str, columns: list[str] | None = None) -> tuple[Any, bytes]:
    """The table and its document. Raises ContractError naming ``where``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(data), columns=columns)
    except (pa.ArrowException, OSError) as exc:
        raise ContractError(f"{where}: not a Parquet file of embedfleet ({str(exc).splitlines()[0]}).") from None
    return table, metadata_of(table.schema.metadata, where)


def footer_of(tail: Callable[[int], bytes], where: str) -> Any:
    """The Parquet footer. The last 8 bytes are its length and a magic number, so two reads always do."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = tail(_FOOTER_GUESS_BYTES)
    needed = int.from_bytes(data[-8:-4], "little") + 8
    if needed > len(data):
        data = tail(needed)
    try:
        return pq.read_metadata(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as exc:
        raise ContractError(f"{where}: not a Parquet file of embedfleet ({str(exc).splitlines()[0]}).") from None


def metadata_of(metadata: dict[bytes, bytes] | None, where: str) -> bytes:
    """The document in a schema's metadata. Raises ContractError naming ``where``."""
    if not metadata or _METADATA_KEY not in metadata:
        raise ContractError(f"{where}: it has no embedfleet metadata; something else wrote it.")
    return metadata[_METADATA_KEY]
