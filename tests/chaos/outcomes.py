"""What the parts of a job say, beside what the producer gave. Not what must be (invariant.py)."""

import io
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from embedfleet import Job


@dataclass(frozen=True)
class Found:
    """What is wrong with a job's outcomes; nothing, if all is well."""

    lost: frozenset[str]
    double: frozenset[str]
    wrongly_failed: frozenset[str]
    unheard_of: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.lost or self.double or self.wrongly_failed or self.unheard_of)


def outcomes(job: Job) -> list[tuple[str, str | None]]:
    """Id and error of every row of every part, as the files have them."""
    folder = job.folder
    found: list[tuple[str, str | None]] = []
    for number in folder.parts():
        table: pa.Table = pq.read_table(io.BytesIO(folder.store.get(folder.part_path(number))), columns=["id", "error"])
        found += zip(table["id"].to_pylist(), table["error"].to_pylist(), strict=True)
    return found


def wrong(job: Job, accepted: Collection[str], bad: Collection[str] = ()) -> Found:
    """Compare what the producer gave with what the parts say. ``bad``: ids that may, and must, have an error."""
    rows = outcomes(job)
    times = Counter(record_id for record_id, _ in rows)
    failed = {record_id for record_id, error in rows if error is not None}
    expected = set(accepted)
    return Found(
        lost=frozenset(expected - times.keys()),
        double=frozenset(record_id for record_id, count in times.items() if count > 1),
        wrongly_failed=frozenset(failed ^ (set(bad) & times.keys())),
        unheard_of=frozenset(times.keys() - expected),
    )
