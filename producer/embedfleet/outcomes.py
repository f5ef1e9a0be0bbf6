"""Reading outcomes back over a chain of a job and its retries. Not how they are written (tables.py).

A batch whose input no worker could read has a part with one row: an error whose id is the input's name. It stands for
texts that nobody knows, so it has no columns. A retry tries them if the input can be read again by then.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from embedfleet.errors import ContractError, NotFound
from embedfleet.jobfolder import JobFolder, input_name
from embedfleet.records import Record
from embedfleet.tables import by_text, complete, part_schema, read_part

if TYPE_CHECKING:
    import pyarrow.dataset

_HOPELESS = frozenset({"empty", "not_a_string", "lone_surrogate"})
"""Errors that the same text will always have."""


def dataset(chain: Sequence[JobFolder]) -> "pyarrow.dataset.Dataset":
    """The parts of a chain, oldest job first, as one Dataset in which each text has one outcome, or its chunks."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    later: set[str] = set()
    datasets = []
    for folder in reversed(chain):
        paths = [folder.part_path(number) for number in folder.parts()]
        if paths:
            found = folder.store.dataset(paths)
            found = found.replace_schema(complete(found.schema))  # parts may be of workers of several versions
            datasets.append(
                found.filter(~pc.field("id").isin(pa.array(sorted(later), pa.string()))) if later else found
            )
        if folder is not chain[0]:
            later |= _ids(folder)
    if len(datasets) == 1:
        return datasets[0]
    # A union of filtered Datasets does not exist in pyarrow, so a chain of retries is read into memory.
    settings = chain[0].spec().settings
    empty = part_schema(settings.dimensions or 0, settings.encoding).empty_table()
    return ds.dataset(pa.concat_tables([empty, *(found.to_table() for found in reversed(datasets))]))


def rows(chain: Sequence[JobFolder]) -> Iterator[dict[str, Any]]:
    """Each outcome, or each chunk's, as a dict with the carried columns; one batch in memory at a time."""
    later = {folder.job: set[str]() for folder in chain}
    for older, newer in zip(reversed(chain[:-1]), reversed(chain[1:]), strict=True):
        later[older.job] = later[newer.job] | _ids(newer)
    for folder in chain:
        for number in folder.parts():
            found = _part_rows(folder, number)
            records = [Record(found[0]["id"], None)] if _is_nameless(found, number) else folder.records(number)
            for record, text in _matched(records, found, folder, number):
                if record.id not in later[folder.job]:
                    yield from ({**row, **record.columns} for row in text)


def error_counts(chain: Sequence[JobFolder]) -> Counter[str]:
    """How many texts have which error; of a part only what failed is read."""
    counts: Counter[str] = Counter()
    later: set[str] = set()
    for folder in reversed(chain):
        for number in folder.parts():
            if folder.part_info(number).totals.errors:
                rows = _part_rows(folder, number, ["id", "error"])
                counts.update(row["error"] for row in rows if row["error"] and row["id"] not in later)
        if folder is not chain[0]:
            later |= _ids(folder)
    return counts


def is_dead(folder: JobFolder, number: int) -> bool:
    """Whether a batch ended without being done: its part says so of its texts."""
    if not folder.has_part(number) or not folder.part_info(number).totals.errors:
        return False
    return any(row["error"] == "dead_letter" for row in _part_rows(folder, number, ["error"]))


def failed(folder: JobFolder, *, may_overflow: bool) -> Iterator[Record]:
    """The records of a job that failed and could do better in a second try, in order."""
    for number in folder.parts():
        if not folder.part_info(number).totals.errors:
            continue
        found = _part_rows(folder, number, ["id", "chunk", "error"])
        if _is_nameless(found, number):
            with suppress(NotFound, ContractError):
                yield from folder.records(number)
            continue
        for record, text in _matched(folder.records(number), found, folder, number):
            error = text[0]["error"]  # a text that failed is one row
            if error is not None and error not in _HOPELESS and (may_overflow or error != "too_long"):
                yield record


def _matched(
    records: Sequence[Record], rows: list[dict[str, Any]], folder: JobFolder, number: int
) -> Iterator[tuple[Record, list[dict[str, Any]]]]:
    """Each record with its rows. Position alone does not tell whose a row is: a text in chunks has several."""
    texts = by_text(rows, [row["chunk"] for row in rows])
    if [[record.id] for record in records] != [list(dict.fromkeys(row["id"] for row in text)) for text in texts]:
        raise ContractError(f"{folder.part_path(number)}: its ids are not those of its input. Embed the texts anew.")
    return zip(records, texts, strict=True)


def _part_rows(folder: JobFolder, number: int, columns: list[str] | None = None) -> list[dict[str, Any]]:
    path = folder.part_path(number)
    table, _ = read_part(folder.store.get(path), path)
    selected: list[dict[str, Any]] = (table.select(columns) if columns else table).to_pylist()
    return selected


def _ids(folder: JobFolder) -> set[str]:
    """Ids that have an outcome in this job."""
    found: set[str] = set()
    for number in folder.parts():
        with suppress(NotFound, ContractError):
            found.update(folder.input(number).ids)
    return found


def _is_nameless(rows: list[dict[str, Any]], number: int) -> bool:
    return len(rows) == 1 and rows[0]["id"] == input_name(number)
