"""The same inputs again with other settings, as a new job. Not how a job is submitted (submission.py)."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedfleet.contract import EmbedSettings
from embedfleet.errors import JobMismatch, NotFinished
from embedfleet.jobfolder import JobFolder
from embedfleet.records import Record, Unusable
from embedfleet.settings import FleetSettings
from embedfleet.store import canonical_uri

if TYPE_CHECKING:
    from embedfleet.job import Job


@dataclass(frozen=True)
class Reembedding:
    """A new job of an earlier one's inputs: what :meth:`Fleet.submit` needs for it."""

    source: JobFolder
    batches: int
    texts: int
    settings: EmbedSettings
    to: str
    key: str

    def records(self) -> Iterator[Record]:
        """Every text that was submitted, with its id and columns; one batch in memory at a time."""
        for number in range(self.batches):
            yield from _records(self.source, number)


def plan(
    job: "Job", given: EmbedSettings | None, fleet: FleetSettings, *, to: str | None, key: str | None
) -> Reembedding:
    """What ``given`` does not set stays as it was. Of a chain of retries, the first job has all the inputs.

    Raises NotFinished for a job that is not sealed, JobMismatch for what would be the same job again, SettingsError.
    """
    source = job.chain()[0].folder
    spec, sealed = source.spec(), source.sealed()
    if sealed is None:
        raise NotFinished(
            f"job {source.job}: its producer has not sealed it, so inputs may be missing. Submit the rest under the "
            "same key, then embed it again; whether its texts are embedded by then does not matter."
        )
    settings = fleet.resolve(_merged(spec.settings, given or EmbedSettings()))
    store = canonical_uri(to) if to is not None else source.store.uri
    same = (spec.settings, spec.revision, spec.synthetic, source.store.uri)
    if key is None and same == (settings, fleet.revision, fleet.engine == "synthetic", store):
        raise JobMismatch(
            f"job {source.job}: with these settings in this store it would be the same job again. Give other "
            "settings or another store (--to); or a key (--key), to embed it once more all the same."
        )
    # The worker's settings too: they are what an operator may want the same texts embedded again for.
    made = json.dumps([source.job, sealed.fingerprint, settings.model_dump(), fleet.what_makes_vectors(settings.model)])
    return Reembedding(
        source, sealed.batches, sealed.texts, settings, store, key if key is not None else f"reembed\0{made}"
    )


def _merged(before: EmbedSettings, given: EmbedSettings) -> EmbedSettings:
    """The job's settings with those that are given. What followed from one that changes is found anew."""
    update = {name: getattr(given, name) for name in given.model_fields_set}
    dropped: set[str] = set()
    if update.get("model", before.model) != before.model:
        dropped |= {"dimensions", "instruction", "prompt_name"}
    if not update.keys().isdisjoint({"input_type", "instruction", "prompt_name"}):
        dropped |= {"instruction", "prompt_name"}
    if update.get("on_overflow", "chunk") != "chunk":
        dropped |= {"chunking"}
    return before.model_copy(update={**dict.fromkeys(dropped), **update})


def _records(folder: JobFolder, number: int) -> Iterator[Record]:
    """A batch's records. A text that could not be stored takes the reason along: its outcome is to be the same."""
    rejected = folder.input_info(number)[0].rejected
    for row, record in enumerate(folder.records(number)):
        yield Record(record.id, Unusable(*rejected[row]), record.columns) if row in rejected else record
