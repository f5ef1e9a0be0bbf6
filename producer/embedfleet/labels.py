"""Labelled data of `embedfleet eval`: pairs with a score, or queries with their relevant documents, read and checked.

Everything that can be wrong with them is an InputError before anything is embedded.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from embedfleet import inputs
from embedfleet.errors import InputError
from embedfleet.formats import quote, quoted
from embedfleet.records import Record, id_of
from embedfleet.vectors import fingerprint_of

_SECOND = {"text1": "text2", "sentence1": "sentence2"}
_SCORE, _RELEVANT = "score", "relevant"


@dataclass(frozen=True)
class Pairs:
    """Pairs of texts with a label of how alike they are. Make them with :meth:`of` or :func:`read_pairs`."""

    texts: tuple[str | None, ...]
    """Distinct; a pair is two positions among them. None: no string, which will be that text's error."""
    pairs: tuple[tuple[int, int], ...]
    scores: tuple[float, ...]

    @classmethod
    def of(cls, rows: Iterable[tuple[object, object, float]]) -> "Pairs":
        """From (text, text, score). Raises InputError when there is nothing to correlate with."""
        texts: dict[str | None, int] = {}
        pairs, scores = [], []
        for one, other, score in rows:
            left, right = (text if isinstance(text, str) else None for text in (one, other))
            pairs.append((texts.setdefault(left, len(texts)), texts.setdefault(right, len(texts))))
            scores.append(score)
        if len(set(scores)) < 2:
            raise InputError(
                f"pairs: {len(scores):,} with {len(set(scores))} different scores; a correlation needs two at least."
            )
        return cls(tuple(texts), tuple(pairs), tuple(scores))

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the texts."""
        return fingerprint_of(self.texts)

    def records(self) -> Iterator[Record]:
        """The texts, by their positions."""
        return (Record(str(position), text) for position, text in enumerate(self.texts))


@dataclass(frozen=True)
class Query:
    """A query and the grades of its relevant documents by their ids."""

    id: str
    text: object
    relevant: Mapping[str, int]


@dataclass(frozen=True)
class Retrieval:
    """A corpus in files and queries that know their relevant documents. Make it with :func:`read_retrieval`."""

    corpus: tuple[str, ...]
    documents: int
    fingerprint: str
    """SHA-256 (hex) over the corpus."""
    queries: tuple[Query, ...]
    without: int
    """Queries that were left out, because they have no relevant document."""
    store: str | None = None
    """URI of a store whose files below a directory are no corpus."""

    def records(self) -> Iterator[Record]:
        """The documents, read anew each time, without what else they carry."""
        return (Record(record.id, record.text) for record in inputs.read(self.corpus, store=self.store))

    def query_records(self) -> Iterator[Record]:
        """The queries."""
        return (Record(query.id, query.text) for query in self.queries)


def read_pairs(names: Sequence[str], store: str | None = None) -> Pairs:
    """Pairs from JSONL, CSV or Parquet with text1, text2 and score, or sentence1, sentence2 and score.

    Raises InputError naming the pair, by its id or else its line, whose score is missing or no number.
    """
    _refuse_stdin(names)
    first = _first_field(names, store)
    return Pairs.of(_pair(record, _SECOND[first]) for record in inputs.read(names, text_field=first, store=store))


def read_retrieval(corpus: Sequence[str], queries: Sequence[str], store: str | None = None) -> Retrieval:
    """A corpus with id and text, and queries with id, text and relevant: a list of ids, or grades by id.

    In CSV, ids are separated by blanks. Raises InputError for relevant ids that are not in the corpus, and when no
    query has a relevant document.
    """
    _refuse_stdin([*corpus, *queries])
    read = [Query(each.id, each.text, _relevant(each)) for each in inputs.read(queries, store=store)]
    usable = tuple(query for query in read if query.relevant)
    if not usable:
        raise InputError(f"queries: none of {len(read):,} has a relevant document. Name them in {_RELEVANT!r}.")
    scan = inputs.scan(corpus, store=store)
    found = Retrieval(tuple(corpus), scan.texts or 0, scan.fingerprint or "", usable, len(read) - len(usable), store)
    _check_ids(found)
    return found


def _refuse_stdin(names: Sequence[str]) -> None:
    if inputs.STDIN in names:
        raise InputError("- (standard input): labelled data are read more than once. Put them into a file.")


def _first_field(names: Sequence[str], store: str | None) -> str:
    """Which of the two sets of names the files use."""
    said = []
    for text_field in _SECOND:
        try:
            next(inputs.read(names, text_field=text_field, store=store))
        except InputError as exc:
            said.append(exc)
        else:
            return text_field
    raise InputError(f"{said[0]} Pairs have text1, text2 and score, or sentence1, sentence2 and score.")


def _pair(record: Record, second: str) -> tuple[object, object, float]:
    for name in (second, _SCORE):
        if name not in record.columns:
            raise InputError(f"pair {quote(record.id)}: no {name}; it has {quoted(record.columns)}.")
    return record.text, record.columns[second], _score(record)


def _score(record: Record) -> float:
    said = record.columns[_SCORE]
    try:
        score = float(said or "")
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        shown = "missing" if said is None else quote(said)
        raise InputError(f"pair {quote(record.id)}: the score is {shown}; a number was expected.")
    return score


def _relevant(record: Record) -> dict[str, int]:
    """By id the grades of a query's relevant documents. A grade of 0 is none."""
    where = f"query {quote(record.id)}"
    if _RELEVANT not in record.columns:
        raise InputError(f"{where}: no {_RELEVANT}; it has {quoted(record.columns)}. Name the ids of its documents.")
    said = _json(record.columns[_RELEVANT] or "")
    if isinstance(said, list):
        return {id_of(document, where): 1 for document in said}
    return {document: _grade(grade, document, where) for document, grade in said.items() if grade not in (0, None)}


def _grade(grade: object, document: str, where: str) -> int:
    if isinstance(grade, bool) or not isinstance(grade, int) or grade < 0:
        raise InputError(f"{where}: the grade of {quote(document)} must be 0, 1, 2 and so on.")
    return grade


def _json(said: str) -> dict[str, object] | list[object]:
    """What JSONL and Parquet had as a list or an object, and CSV as JSON; else ids between blanks."""
    try:
        value = json.loads(said)
    except ValueError:
        return list(said.split())
    return value if isinstance(value, dict | list) else list(said.split())


def _check_ids(data: Retrieval) -> None:
    missing = {document: query.id for query in data.queries for document in query.relevant}
    for record in data.records():
        missing.pop(record.id, None)
    if missing:
        document, query = next(iter(missing.items()))
        more = f", and {len(missing) - 1:,} other ids are not either" if len(missing) > 1 else ""
        raise InputError(
            f"query {quote(query)}: its relevant document {quote(document)} is not in the corpus{more}. "
            "Give the whole corpus, or leave the id out."
        )
