"""Whether a job's vectors would be the same today: a sample of its texts, and how the new vectors compare.

Not how they are embedded again: that is a job like any other (proving.py).
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from embedfleet.agreement import cosines, is_unit, least_cosine
from embedfleet.contract import EmbedSettings
from embedfleet.errors import NotFinished, NotFound
from embedfleet.job import Job
from embedfleet.jobfolder import JobFolder
from embedfleet.records import Record
from embedfleet.tables import read_part, vectors_of

if TYPE_CHECKING:
    import numpy as np

_SHOWN = 20  # texts that are named
_NOT_VECTORS = frozenset({"cache"})  # a field of provenances that says nothing of what made the vectors


class _Row(NamedTuple):
    """One vector as it was written."""

    vector: "np.ndarray[Any, Any]"
    place: tuple[Any, ...]
    """Where in its text it begins and ends, if that was cut into chunks."""


Rows = dict[int, _Row]
"""By chunk; a text that was not cut is chunk 0."""


@dataclass(frozen=True)
class Sampled:
    """A text that is embedded again, with what is there."""

    record: Record
    rows: Rows
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """Texts of one job folder, which share their settings."""

    folder: JobFolder
    texts: list[Sampled]

    @property
    def settings(self) -> EmbedSettings:
        """The job's own, past the cache: what is in there may be what is to be verified."""
        return self.folder.spec().settings.model_copy(update={"cache": "off"})


@dataclass
class Verification:
    """What came of a sample. Cosines are None where nothing could be compared."""

    job: str
    texts: int = 0
    vectors: int = 0
    below: int = 0
    """Vectors that do not agree, and texts that have an error now."""
    cosine_min: float | None = None
    cosine_median: float | None = None
    least: float = 1.0
    """The cosine from which on two vectors agree."""
    differing: list[dict[str, Any]] = field(default_factory=list)
    """The first texts that do not: id, chunk, cosine, reason."""
    differences: list[dict[str, Any]] = field(default_factory=list)
    """Of the provenance: field, before, now, and for how many of the texts."""
    verified_by: list[str] = field(default_factory=list)
    """URIs of the jobs in which the sample was embedded again."""


def sample(job: Job, size: int) -> list[Sample]:
    """Up to ``size`` of a job's texts that have a vector, its retries' too; the same ones each time.

    Raises NotFinished while batches have no outcome, NotFound for a job without a vector.
    """
    chain = job.chain()
    for each in chain:
        status = each.status()
        if not status.embedded:
            raise NotFinished(
                f"job {each.id}: {status.batches_done} of {status.batches or '?'} batches have an outcome. Verify it "
                "when all have."
            )
    picked = _pick([each.folder for each in chain], size, random.Random(chain[0].id))
    if not picked:
        raise NotFound(f"job {job.id}: no text of it has a vector, so there is nothing to verify.")
    found: dict[str, Sample] = {}
    for (folder, number), places in picked.items():
        of_folder = found.setdefault(folder.job, Sample(folder, []))
        of_folder.texts.extend(_read(folder, number, places))
    return list(found.values())


def _pick(folders: Sequence[JobFolder], size: int, chance: random.Random) -> dict[tuple[JobFolder, int], list[int]]:
    """Places of texts among the successful ones of their part, by part. Of a large job not every part is looked at."""
    parts = [(folder, number) for folder in folders for number in folder.parts()]
    chance.shuffle(parts)
    places: list[tuple[tuple[JobFolder, int], int]] = []
    fruitful = 0
    for folder, number in parts:
        totals = folder.part_info(number).totals
        places += [((folder, number), place) for place in range(totals.texts - totals.errors)]
        fruitful += totals.texts > totals.errors
        if fruitful == size:
            break
    picked: dict[tuple[JobFolder, int], list[int]] = {}
    for part, place in chance.sample(places, min(size, len(places))):
        picked.setdefault(part, []).append(place)
    return picked


def _read(folder: JobFolder, number: int, places: list[int]) -> Iterator[Sampled]:
    import pyarrow as pa
    import pyarrow.compute as pc

    path = folder.part_path(number)
    table, info = read_part(folder.store.get(path), path)
    sound = table.filter(pc.is_null(table["error"]))
    ids = list(dict.fromkeys(sound["id"].to_pylist()))
    wanted = {ids[place] for place in places if place < len(ids)}
    rows = _rows_of(sound.filter(pc.is_in(sound["id"], pa.array(sorted(wanted), pa.string()))))
    for record in folder.records(number):
        if record.id in wanted:
            yield Sampled(Record(record.id, record.text), rows[record.id], info.provenance)


def _rows_of(sound: Any) -> dict[str, Rows]:
    """The vectors of these rows of a part, by text."""
    if not sound.num_rows:
        return {}
    names = [name for name in ("chunk_start", "chunk_end") if name in sound.column_names]
    places = zip(*(sound[name].to_pylist() for name in names), strict=True) if names else [()] * sound.num_rows
    found: dict[str, Rows] = {}
    columns = (sound["id"].to_pylist(), sound["chunk"].to_pylist(), vectors_of(sound), places)
    for record_id, chunk, vector, place in zip(*columns, strict=True):
        found.setdefault(record_id, {})[chunk] = _Row(vector, tuple(place))
    return found


class Comparison:
    """Takes the outcomes of the samples, and says what came of them."""

    def __init__(self, job: Job) -> None:
        self._found = Verification(job=job.id)
        self._cosines: list[float] = []
        self._differing: list[dict[str, Any]] = []
        self._differences: Counter[tuple[str, str, str]] = Counter()
        self._shown: dict[tuple[str, str, str], dict[str, Any]] = {}

    def add(self, sample: Sample, again: JobFolder) -> None:
        """Compare a sample with the job in which it was embedded again."""
        import pyarrow.compute as pc

        self._found.verified_by.append(again.uri)
        for number in again.parts():
            path = again.part_path(number)
            table, info = read_part(again.store.get(path), path)
            outcomes = {row["id"]: row for row in table.select(["id", "error", "error_message"]).to_pylist()}
            now = _rows_of(table.filter(pc.is_null(table["error"])))
            for text in sample.texts:
                if text.record.id in outcomes:
                    self._compare_text(text, now.get(text.record.id, {}), outcomes[text.record.id], info.provenance)

    def result(self) -> Verification:
        """What came of all."""
        found = self._found
        found.below = len(self._differing)
        found.differing = sorted(self._differing, key=lambda each: each["cosine"] or 0.0)[:_SHOWN]
        found.differences = [{**self._shown[key], "texts": count} for key, count in self._differences.items()]
        if self._cosines:
            ranked = sorted(self._cosines)
            middle = len(ranked) // 2
            found.cosine_min = ranked[0]
            found.cosine_median = ranked[middle] if len(ranked) % 2 else (ranked[middle - 1] + ranked[middle]) / 2
        return found

    def _compare_text(self, text: Sampled, now: Rows, outcome: dict[str, Any], provenance: Mapping[str, Any]) -> None:
        self._found.texts += 1
        self._note_differences(text.provenance, provenance)
        least = least_cosine(str(text.provenance.get("dtype")), str(provenance.get("dtype")))
        self._found.least = min(self._found.least, least)
        if outcome["error"] is not None:
            self._differs(text, None, None, f"now it has an error: {outcome['error']}: {outcome['error_message']}")
            return
        if {chunk: row.place for chunk, row in text.rows.items()} != {chunk: row.place for chunk, row in now.items()}:
            self._differs(text, None, None, f"it is cut otherwise: {len(text.rows)} chunks before, {len(now)} now")
            return
        for chunk, row in text.rows.items():
            self._compare(text, chunk, row.vector, now[chunk].vector, least)

    def _compare(
        self,
        text: Sampled,
        chunk: int,
        before: "np.ndarray[Any, Any]",
        now: "np.ndarray[Any, Any]",
        least: float,
    ) -> None:
        self._found.vectors += 1
        if before.shape != now.shape:
            self._differs(text, chunk, None, f"its length was {before.shape[0]} and is {now.shape[0]}")
            return
        cosine = float(cosines(before[None], now[None])[0])
        self._cosines.append(cosine)
        if cosine < least:
            self._differs(text, chunk, cosine, f"cosine {cosine:.6f}")
        elif not is_unit(before[None])[0]:
            self._differs(text, chunk, cosine, "the vector that was written has not norm 1")

    def _differs(self, text: Sampled, chunk: int | None, cosine: float | None, reason: str) -> None:
        self._differing.append({"id": text.record.id, "chunk": chunk, "cosine": cosine, "reason": reason})

    def _note_differences(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        for name in {**before, **now}:
            was, is_now = before.get(name), now.get(name)
            if was != is_now and name not in _NOT_VECTORS:
                key = (name, repr(was), repr(is_now))
                self._differences[key] += 1
                self._shown[key] = {"field": name, "before": was, "now": is_now}
