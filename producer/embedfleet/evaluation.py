"""Which settings are good enough for labelled data: embed once, measure for each. The command is in evaluating.py.

Settings that differ in dimensions or encoding only share their vectors: the full ones are embedded and cut here, which
gives what a worker would have written.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedfleet.client import Fleet
from embedfleet.contract import EmbedSettings
from embedfleet.errors import SettingsError
from embedfleet.job import Job
from embedfleet.labels import Pairs, Retrieval
from embedfleet.quality import NDCG_AT, Nearest, as_written, need, retrieval, spearman
from embedfleet.settings import FleetSettings
from embedfleet.vectors import Embed, Embedding, all_vectors, blocks, check_one_vector, fingerprint_of

if TYPE_CHECKING:
    import numpy as np

RECALL_AT = (10, 100)


@dataclass(frozen=True)
class Measured:
    """What one of the settings came to."""

    settings: dict[str, Any]
    """Dimensions, encoding, and what else was chosen."""
    vector_bytes: int
    metrics: dict[str, float | None]
    """By name: spearman, or ndcg@10 and recall@k. None: undefined."""
    errors: int
    """Texts without a vector. Their pairs are left out; a document is not found, and a query finds nothing."""


@dataclass(frozen=True)
class Evaluation:
    """Results side by side, in the order of the settings."""

    model: str
    counts: dict[str, int]
    """pairs and texts; or documents, queries, and queries that were left out because nothing is relevant to them."""
    rows: list[Measured]
    jobs: list[Job]


@dataclass(frozen=True)
class _Plan:
    """Settings of one row: what is asked, and the full-length settings under which each side is embedded."""

    asked: EmbedSettings
    document: EmbedSettings
    query: EmbedSettings

    def written(self, vectors: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """Full vectors as these settings would have them, for comparing in float32."""
        shaped: np.ndarray[Any, Any] = as_written(vectors, self.asked.dimensions or 0, self.asked.encoding)
        return shaped.astype("float32")

    def measured(self, metrics: dict[str, float | None], errors: int) -> Measured:
        """The row."""
        chosen = {**self.asked.model_dump(exclude_unset=True), "encoding": self.asked.encoding}
        chosen.pop("input_type", None)
        size = (self.asked.dimensions or 0) * (2 if self.asked.encoding == "float16" else 4)
        return Measured(chosen, size, metrics, errors)


def evaluate(
    fleet: Fleet,
    data: Pairs | Retrieval,
    settings: Sequence[EmbedSettings] = (),
    *,
    to: str | None = None,
    recall_at: Sequence[int] = (),
    embed: Embed | None = None,
) -> Evaluation:
    """Embed labelled data and measure each of the settings; without any: the model's lengths, halved and halved again.

    Queries are embedded as queries, documents as documents. Pairs are alike on both sides: documents, or queries when
    the settings say so or have an instruction. ``recall_at``: k of recall@k; default: 10, and 100 in a corpus of as
    many. ``to`` is as with ``Fleet.submit``. ``embed``: another way to submit and wait. Needs the extra `eval`.

    Raises SettingsError and ConfigurationError before anything is queued, and what ``Fleet.submit`` raises.
    """
    need("scipy" if isinstance(data, Pairs) else "pytrec_eval")
    plans = [_plan(fleet.settings, data, each) for each in settings or default_settings(fleet.settings)]
    embedding = Embedding(fleet, to, embed)
    if isinstance(data, Pairs):
        rows = _evaluate_pairs(embedding, data, plans)
        counts = {"pairs": len(data.pairs), "texts": len(data.texts)}
    else:
        at = recall_at or [k for k in RECALL_AT if k <= max(data.documents, RECALL_AT[0])]
        rows = _evaluate_retrieval(embedding, data, plans, sorted(set(at)))
        counts = {"documents": data.documents, "queries": len(data.queries), "without_relevant": data.without}
    return Evaluation(plans[0].asked.model or fleet.settings.model, counts, rows, list(embedding.jobs.values()))


def default_settings(fleet: FleetSettings, base: EmbedSettings | None = None) -> list[EmbedSettings]:
    """The base's dimensions if it has some, else the full length and its halves down to the smallest allowed."""
    base = base or EmbedSettings()
    if base.dimensions is not None:
        return [base]
    profile = fleet.profile(base.model)
    halves = [profile.dimensions >> step for step in range(profile.dimensions.bit_length())]
    return [base.model_copy(update={"dimensions": length}) for length in halves if profile.allows(length)]


def check(fleet: FleetSettings, data: Pairs | Retrieval, settings: Sequence[EmbedSettings]) -> None:
    """Raise SettingsError for what :func:`evaluate` would refuse."""
    for each in settings:
        _plan(fleet, data, each)


def _plan(fleet: FleetSettings, data: Pairs | Retrieval, settings: EmbedSettings) -> _Plan:
    check_one_vector(settings)
    if isinstance(data, Pairs):
        instructed = settings.instruction is not None or settings.prompt_name is not None
        query = document = settings.model_copy(update={"input_type": "query"} if instructed else {})
    elif "input_type" in settings.model_fields_set:
        raise SettingsError("input_type: eval embeds queries as queries and the corpus as documents. Leave it out.")
    else:
        query = settings.model_copy(update={"input_type": "query"})
        document = settings.model_copy(update={"instruction": None, "prompt_name": None})
    return _Plan(
        settings.model_copy(update={"dimensions": fleet.resolve(document).dimensions}),
        _full(fleet, document),
        _full(fleet, query),
    )


def _full(fleet: FleetSettings, settings: EmbedSettings) -> EmbedSettings:
    """The same at full length: one job for all lengths and encodings."""
    return fleet.resolve(settings.model_copy(update={"dimensions": None, "encoding": "float32"}))


def _evaluate_pairs(embedding: Embedding, data: Pairs, plans: Sequence[_Plan]) -> list[Measured]:
    rows = []
    for plan in plans:
        at, vectors = all_vectors(embedding.job(data.fingerprint, data.records, plan.document))
        usable = [row for row, pair in enumerate(data.pairs) if all(str(each) in at for each in pair)]
        written = plan.written(vectors)
        left, right = (written[[at[str(data.pairs[row][side])] for row in usable]] for side in (0, 1))
        metrics = {"spearman": spearman(left, right, [data.scores[row] for row in usable])}
        rows.append(plan.measured(metrics, len(data.texts) - len(at)))
    return rows


class _Search:
    """The queries of one plan while the corpus goes by."""

    def __init__(self, data: Retrieval, plan: _Plan, queries: Job, keep: int) -> None:
        self._data, self._plan = data, plan
        self._at, vectors = all_vectors(queries)
        self._nearest = Nearest(plan.written(vectors), keep)

    def add(self, documents: "np.ndarray[Any, Any]") -> None:
        """Compare with more documents, as full vectors."""
        self._nearest.add(self._plan.written(documents))

    def measured(self, rows: dict[str, int], documents: int, recall_at: Sequence[int]) -> Measured:
        """``rows``: of the relevant documents that have a vector; ``documents``: how many have one in all."""
        found = {query: self._nearest.rows[row].tolist() for query, row in self._at.items()}
        relevant = {
            # A document without a vector is relevant all the same, and never found: it gets a row that there is not.
            query.id: {rows.get(each, -number): grade for number, (each, grade) in enumerate(query.relevant.items(), 1)}
            for query in self._data.queries
        }
        errors = self._data.documents - documents + len(self._data.queries) - len(self._at)
        return self._plan.measured(dict(retrieval(found, relevant, recall_at)), errors)


def _evaluate_retrieval(
    embedding: Embedding, data: Retrieval, plans: Sequence[_Plan], recall_at: Sequence[int]
) -> list[Measured]:
    queries_print = fingerprint_of([query.id, query.text] for query in data.queries)
    measured: dict[int, Measured] = {}
    for document in dict.fromkeys(plan.document for plan in plans):
        searches = {}
        for number, plan in enumerate(plans):
            if plan.document == document:
                job = embedding.job(queries_print, data.query_records, plan.query)
                searches[number] = _Search(data, plan, job, max(*recall_at, NDCG_AT))
        rows, documents = _search(embedding.job(data.fingerprint, data.records, document), data, searches.values())
        measured |= {number: each.measured(rows, documents, recall_at) for number, each in searches.items()}
    return [measured[number] for number in range(len(plans))]


def _search(job: Job, data: Retrieval, searches: Collection[_Search]) -> tuple[dict[str, int], int]:
    """Let the corpus go by, a part at a time. Rows of the relevant documents, and how many documents have a vector."""
    wanted = {document for query in data.queries for document in query.relevant}
    rows: dict[str, int] = {}
    seen = 0
    for ids, vectors in blocks(job):
        for search in searches:
            search.add(vectors)
        rows |= {document: seen + offset for offset, document in enumerate(ids) if document in wanted}
        seen += len(ids)
    return rows, seen
