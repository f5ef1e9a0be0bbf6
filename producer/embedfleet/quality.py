"""How well vectors agree with labels: Spearman, nDCG and recall. Not where vectors or labels come from.

scipy and pytrec_eval (trec_eval's own code, which MTEB and BEIR use too) come with the extra `eval`; they and numpy
are imported where they are used.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from embedfleet.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np

NDCG_AT = 10

_QUERIES = 2048  # compared with a block of documents at a time: 4 MB of scores for a part of 512 texts
_DECIMALS = 7  # of a cosine: what float32 can't tell apart is a tie


def need(*modules: str) -> None:
    """Raise ConfigurationError naming the extra if one of its modules is not installed."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ConfigurationError(
            f'eval: {", ".join(missing)} not installed. Install the extra: pip install "embedfleet[eval]".'
        )


def spearman(one: "np.ndarray[Any, Any]", other: "np.ndarray[Any, Any]", labels: Sequence[float]) -> float | None:
    """Spearman's rank correlation of the cosines of pairs, row by row, with their labels; ties get mean ranks.

    None where it is undefined: fewer than two pairs, or all cosines or all labels are equal.
    """
    import numpy as np
    from scipy.stats import spearmanr

    left, right = one.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines = np.round(np.einsum("ij,ij->i", left, right) / np.where(norms == 0, 1, norms), _DECIMALS)
    if len(set(labels)) < 2 or len(np.unique(cosines)) < 2:
        return None
    return float(spearmanr(cosines, labels).statistic)


class Nearest:
    """The nearest documents of each query by cosine, over documents that come in blocks. Equals: the earlier first.

    ``queries``: (queries, dimensions). ``rows`` and ``scores`` are (queries, documents kept), best first; a row is
    the number of a document over all blocks.
    """

    def __init__(self, queries: "np.ndarray[Any, Any]", keep: int) -> None:
        import numpy as np

        self._queries = _unit(queries)
        self._keep = keep
        self._seen = 0
        self.rows = np.zeros((len(queries), 0), np.int64)
        self.scores = np.zeros((len(queries), 0), np.float32)

    def add(self, documents: "np.ndarray[Any, Any]") -> None:
        """Compare with the next block, (documents, dimensions)."""
        import numpy as np

        rows = np.arange(self._seen, self._seen + len(documents))
        unit = _unit(documents).T
        found = [
            self._merged(slice(first, first + _QUERIES), rows, unit) for first in range(0, len(self._queries), _QUERIES)
        ]
        self._seen += len(documents)
        if found:
            self.rows, self.scores = (np.concatenate(each) for each in zip(*found, strict=True))

    def _merged(self, part: slice, rows: "np.ndarray[Any, Any]", documents: "np.ndarray[Any, Any]") -> Any:
        """Rows and scores of some queries with a block added."""
        import numpy as np

        scores = np.concatenate([self.scores[part], self._queries[part] @ documents], axis=1)
        numbers = np.concatenate([self.rows[part], np.broadcast_to(rows, (len(scores), len(rows)))], axis=1)
        keep = min(self._keep, scores.shape[1])
        if keep < scores.shape[1]:
            # Not argpartition: which of equals it keeps is chance. Columns are in the order of documents among equals.
            least = np.partition(scores, -keep, axis=1)[:, -keep, None]
            above, equal = scores > least, scores == least
            chosen = above | (equal & (equal.cumsum(axis=1) <= keep - above.sum(axis=1, keepdims=True)))
            scores, numbers = scores[chosen].reshape(-1, keep), numbers[chosen].reshape(-1, keep)
        order = np.argsort(-scores, axis=1, kind="stable")
        return np.take_along_axis(numbers, order, axis=1), np.take_along_axis(scores, order, axis=1)


def retrieval(
    found: Mapping[str, Sequence[int]], relevant: Mapping[str, Mapping[int, int]], recall_at: Sequence[int]
) -> dict[str, float]:
    """nDCG@10 and recall@k, means over the queries of ``relevant``; one that found nothing counts as 0.

    ``found``: by query the rows of documents, best first. ``relevant``: by query the grades (1 and more) of rows.
    nDCG is Järvelin and Kekäläinen's with the grade as gain, as trec_eval computes it.
    """
    import pytrec_eval

    judged = {query: {str(row): grade for row, grade in grades.items()} for query, grades in relevant.items()}
    runs = {query: {str(row): float(-rank) for rank, row in enumerate(rows)} for query, rows in found.items() if rows}
    names = {f"ndcg@{NDCG_AT}": f"ndcg_cut_{NDCG_AT}"} | {f"recall@{k}": f"recall_{k}" for k in recall_at}
    wanted = {f"ndcg_cut.{NDCG_AT}", "recall." + ",".join(str(k) for k in recall_at)}
    measured = pytrec_eval.RelevanceEvaluator(judged, wanted).evaluate(runs)
    return {
        name: sum(measured[query][measure] for query in judged if query in measured) / len(judged)
        for name, measure in names.items()
    }


def as_written(vectors: "np.ndarray[Any, Any]", dimensions: int, encoding: str) -> "np.ndarray[Any, Any]":
    """Full unit vectors as a worker writes them for these settings: cut, renormalised where anything was cut, rounded.

    (texts, full length) float32 in, (texts, dimensions) in the encoding out.
    """
    return (_unit(vectors[:, :dimensions]) if dimensions < vectors.shape[1] else vectors).astype(encoding)


def _unit(vectors: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Float32 rows of norm 1; a row of zeros stays one."""
    import numpy as np

    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)  # float32 squares underflow
    unit: np.ndarray[Any, Any] = (vectors / np.where(norms == 0, 1, norms)).astype(np.float32)
    return unit
