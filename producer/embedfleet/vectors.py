"""Vectors of many texts through a fleet, for those who compute with them: evaluation.py, mteb.py. Not what is computed.

Each is a job under a key of its own, so that doing it again reuses what is there.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from embedfleet.client import Fleet
from embedfleet.contract import EmbedSettings
from embedfleet.errors import SettingsError
from embedfleet.job import Job
from embedfleet.records import Record
from embedfleet.tables import read_part, vectors_of

if TYPE_CHECKING:
    import numpy as np

Embed = Callable[[Iterable[Record], EmbedSettings, str], Job]
"""Records, settings and idempotency key to a finished job."""


class Embedding:
    """Jobs by what is embedded and how; each once.

    ``to``: as with ``Fleet.submit``. ``embed``: another way to submit and wait.
    """

    def __init__(self, fleet: Fleet, to: str | None = None, embed: Embed | None = None) -> None:
        self.jobs: dict[tuple[str, EmbedSettings], Job] = {}
        self._fleet, self._to = fleet, to
        self._embed = embed or self._submit

    def job(self, fingerprint: str, records: Callable[[], Iterable[Record]], settings: EmbedSettings) -> Job:
        """The finished job of these records. ``fingerprint`` stands for them, ``settings`` are resolved.

        Raises SettingsError for settings that give several vectors a text.
        """
        check_one_vector(settings)
        if (fingerprint, settings) not in self.jobs:
            worker = self._fleet.settings.what_makes_vectors(settings.model)
            key = json.dumps(["vectors", fingerprint, settings.model_dump(), worker], default=str)
            self.jobs[fingerprint, settings] = self._embed(records(), settings, key)
        return self.jobs[fingerprint, settings]

    def _submit(self, records: Iterable[Record], settings: EmbedSettings, key: str) -> Job:
        job = self._fleet.submit(records, settings=settings, to=self._to, key=key)
        job.wait()
        return job


def check_one_vector(settings: EmbedSettings) -> None:
    """Raise SettingsError for settings that give several vectors a text: what is compared here is one."""
    if settings.on_overflow == "chunk" and (settings.chunking is None or settings.chunking.output != "mean"):
        raise SettingsError("chunking: eval compares one vector a text. Set output=mean.")


def fingerprint_of(rows: Iterable[object]) -> str:
    """SHA-256 (hex) over what JSON can write, row by row."""
    content = hashlib.sha256()
    for row in rows:
        content.update(json.dumps(row, default=str).encode() + b"\n")
    return content.hexdigest()


def blocks(job: Job) -> Iterator[tuple[list[str], "np.ndarray[Any, Any]"]]:
    """Ids and vectors of the texts that have one, a part at a time; of retries too.

    Not by ``Job.results()``: Arrow's scanner reads up to 1 GiB ahead of whoever is slower. A text that was retried had
    no vector before, so none comes twice.
    """
    import pyarrow.compute as pc

    for each in job.chain():
        for number in each.folder.parts():
            path = each.folder.part_path(number)
            table, _ = read_part(each.folder.store.get(path), path)
            table = table.filter(pc.is_null(table["error"]))
            if table.num_rows:
                yield table["id"].to_pylist(), vectors_of(table)


def all_vectors(job: Job) -> tuple[dict[str, int], "np.ndarray[Any, Any]"]:
    """By id the row of its vector; and the vectors, (texts that have one, dimensions)."""
    import numpy as np

    found = list(blocks(job))
    ids = [each for some, _ in found for each in some]
    settings = job.spec.settings
    empty = np.zeros((0, settings.dimensions or 0), settings.encoding)
    return {each: row for row, each in enumerate(ids)}, np.concatenate([empty, *(vectors for _, vectors in found)])
