"""Search a finished job: the texts whose vectors lie nearest to those of a question."""

from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
from numpy.typing import NDArray

QUESTIONS = (
    "parse a date from a string",
    "insert a number into a list that is already sorted",
    "median of a list of numbers",
)
"""What a Python programmer would ask of the standard library's docstrings."""


def nearest(job_folder: str, query_vectors: NDArray[np.float32], k: int = 5) -> list[list[tuple[str, float]]]:
    """For each row of ``query_vectors`` (q, d) the ``k`` nearest texts as (id, score), best first.

    The vectors have unit length, so the score, their dot product, is the cosine. A text in several chunks
    counts once, by its best chunk; of equal scores the earlier row comes first. Raises ValueError when the
    job has no vectors.
    """
    ids, vectors = load(Path(job_folder))
    return [_best(ids, scores, k) for scores in query_vectors @ vectors.T]


def load(job_folder: Path) -> tuple[list[str], NDArray[np.float32]]:
    """The ids and the vectors (n, d) of every row that has one, in the order of parts and rows."""
    parts = sorted(str(path) for path in (job_folder / "parts").glob("*.parquet"))
    if not parts:
        raise ValueError(f"{job_folder}: no Parquet file under parts/. Is it a job folder, and has a batch finished?")
    rows = ds.dataset(parts).to_table(columns=["id", "embedding"], filter=ds.field("embedding").is_valid())
    if not rows.num_rows:
        raise ValueError(f"{job_folder}: not one of the texts has a vector. See the column error_message.")
    column = rows["embedding"].combine_chunks()
    flat = column.flatten().to_numpy().astype(np.float32, copy=False)
    return rows["id"].to_pylist(), flat.reshape(-1, column.type.list_size)


def _best(ids: list[str], scores: NDArray[np.float32], k: int) -> list[tuple[str, float]]:
    best: dict[str, float] = {}
    for row in np.argsort(-scores, kind="stable"):
        if len(best) == k:
            break
        best.setdefault(ids[row], float(scores[row]))
    return list(best.items())
