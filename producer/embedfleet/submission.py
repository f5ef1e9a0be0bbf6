"""Writing a job: inputs, messages, the seal; and going on where an earlier producer stopped. Not batching itself."""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from embedfleet.batching import PlannedBatch, batches
from embedfleet.contract import Batch, Delivery, JobSpec, Sealed
from embedfleet.errors import ConfigurationError, InputError, JobMismatch
from embedfleet.jobfolder import JobFolder, delivery, waiting
from embedfleet.records import Record
from embedfleet.tables import fingerprint, inline_of, storable, write_input
from embedfleet.uniqueness import SeenIds

Publish = Callable[[Batch], object]

MAX_INLINE_BYTES = 200_000
"""Of a job.json with its texts: it is read for every look at the job."""
_UNIQUE = "Ids must be unique within a job."


def check_expiry(expires_in_s: float | None) -> float | None:
    """The argument itself: a time to come, or none. Raises ConfigurationError."""
    if expires_in_s is None or (isinstance(expires_in_s, int | float) and 0 < expires_in_s < math.inf):
        return expires_in_s
    raise ConfigurationError(f"expires_in_s: a number of seconds over 0 was expected, not {expires_in_s!r}.")


def enqueue(folder: JobFolder, spec: JobSpec, records: Sequence[Record], publish: Publish) -> None:
    """Write and publish a job of one batch whose texts are in job.json. Raises as :func:`submit` does."""
    position = SeenIds().add([record.id for record in records])
    if position is not None:
        raise InputError(f"record {position}: the id {records[position].id!r} was there before. {_UNIQUE}")
    inline = inline_of(records)
    spec = spec.model_copy(update={"inline": inline})
    document = spec.dumps()
    if len(document.encode()) > MAX_INLINE_BYTES:
        size = len(document.encode()) / 1000
        raise InputError(f"enqueue: {size:.0f} KB are over the limit of 200 KB. Use submit for as much.")
    if folder.write_once("job.json", document):
        publish(batch_message(folder, 0, inline.tokens))
        return
    there = _same_spec(spec, folder.spec())
    if there.inline is None or there.inline.sha256 != inline.sha256:
        raise JobMismatch(f"job {folder.job}: it was made from other texts. Use another key for them.")
    publish_missing(folder, publish)


def submit(
    folder: JobFolder,
    spec: JobSpec,
    records: Iterable[Record],
    publish: Publish,
    sent: Callable[[], float | None] = lambda: None,
) -> Sealed:
    """Write and publish a job, or finish one begun with the same key, and seal it.

    Each input is written before its message, so that a message never points at nothing. ``sent``: sees to it that no
    message is held back, and says when, on the broker's clock; None: not known. Raises JobMismatch at the first
    difference from what is there, InputError for an id that comes twice.
    """
    if not folder.write_once("job.json", spec.dumps()):
        spec = _same_spec(spec, folder.spec())
        if spec.inline is not None:
            raise JobMismatch(f"job {folder.job}: it was enqueued under this key. Use another key to submit.")
    submission = _Submission(folder, publish)
    stream = iter(records)
    submission.compare_existing(stream)
    for batch in batches(stream, spec.batching):
        submission.add(batch)
    return submission.seal(sent())


def _same_spec(wanted: JobSpec, there: JobSpec) -> JobSpec:
    if set(wanted.deliver_to) != set(there.deliver_to):
        raise JobMismatch(
            f"job {there.job}: it was submitted with other destinations ({_labels(there)}) than now "
            f"({_labels(wanted)}). Use another key, or send it on when it is done: embedfleet deliver."
        )
    if wanted.callback != there.callback:
        raise JobMismatch(f"job {there.job}: it was submitted with another callback, or none. Use another key.")
    before, now = _what_makes_vectors(there), _what_makes_vectors(wanted)
    for name, value in now.items():
        if value != before[name]:
            raise JobMismatch(
                f"job {there.job}: it was submitted with {name}={before[name]!r} and now has "
                f"{name}={value!r}. Use another key for other settings."
            )
    return there


def _labels(spec: JobSpec) -> str:
    return ", ".join(destination.label for destination in spec.deliver_to) or "none"


def _what_makes_vectors(spec: JobSpec) -> dict[str, object]:
    return {**dict(spec.settings), "revision": spec.revision, "synthetic": spec.synthetic}


def _settled(folder: JobFolder) -> set[int]:
    """The batches that need no message: they have a part, and each delivery of it has ended."""
    settled = set(folder.parts())
    for destination in folder.spec().deliver_to:
        found = folder.undelivered(destination.name)
        settled -= {number for number, receipt in found if receipt is None or receipt.state == "waiting"}
    return settled


def publish_missing(folder: JobFolder, publish: Publish) -> int:
    """Publish again every batch that is not settled, and say how many: after a broker or a worker lost messages."""
    done = _settled(folder)
    count = 0
    for number in folder.inputs():
        if number not in done:
            info, _ = folder.input_info(number)
            publish(batch_message(folder, number, info.tokens))
            count += 1
    return count


def publish_undelivered(folder: JobFolder, destination: str, publish: Callable[[Delivery], object], at: float) -> None:
    """Publish the deliveries that a destination has not confirmed; those that were given up begin anew.

    ``at``: now, on the broker's clock.
    """
    for number, receipt in folder.undelivered(destination):
        if receipt is not None and receipt.state == "dead":
            folder.write_receipt(waiting(folder.job, number, destination, "it is sent on again", at))
        publish(delivery(folder, number, destination))


class _Submission:
    """The running number, hash and counts of one pass over the stream."""

    def __init__(self, folder: JobFolder, publish: Publish) -> None:
        self._folder = folder
        self._publish = publish
        self._seen = SeenIds()
        self._hash = hashlib.sha256()
        self._number = 0
        self._texts = 0
        self._sealed = folder.sealed()

    def compare_existing(self, stream: Iterator[Record]) -> None:
        """Take the inputs that are there off the stream; publish again what has no part yet."""
        there = self._folder.inputs()
        if not there:
            return
        done = _settled(self._folder)
        for number in there:
            info, texts = self._folder.input_info(number)
            records = list(itertools.islice(stream, texts))
            if fingerprint(records) != info.sha256:
                raise self._difference(number, records)
            self._count(records, info.sha256)
            if number not in done:
                self._send(number, info.tokens)
            self._number += 1

    def add(self, batch: PlannedBatch) -> None:
        """Write one more input, then its message."""
        if self._sealed is not None:
            raise JobMismatch(
                f"job {self._folder.job}: it was sealed with {self._sealed.texts} texts and the stream has more, "
                f"from id {batch.records[0].id!r} on. Use another key for another input."
            )
        data = write_input(batch.records, batch.tokens)
        self._count(batch.records, fingerprint(batch.records))
        if not self._folder.write_once(f"input/{self._number:08d}.parquet", data):
            self._compare_with_other_producer(batch.records)
        self._send(self._number, batch.tokens)
        self._number += 1

    def _compare_with_other_producer(self, records: list[Record]) -> None:
        """It was quicker, or it is this one, of whose write the answer was lost. The same input is as good as ours."""
        info, _ = self._folder.input_info(self._number)
        if info.sha256 != fingerprint(records):
            raise JobMismatch(
                f"job {self._folder.job}: another producer is submitting another input under the same key right now, "
                f"from id {records[0].id!r} on. Use another key."
            )

    def seal(self, at: float | None) -> Sealed:
        """Say that this is all; compared when an earlier producer said so."""
        sealed = Sealed(batches=self._number, texts=self._texts, fingerprint=self._hash.hexdigest(), at=at)
        if self._folder.write_once("sealed.json", sealed.dumps()):
            return sealed
        there = self._folder.sealed()
        if there is None or there.model_copy(update={"at": at}) != sealed:
            raise JobMismatch(f"job {self._folder.job}: it was sealed with another input. Use another key.")
        return there

    def _count(self, records: list[Record], sha256: str) -> None:
        position = self._seen.add([record.id for record in records])
        if position is not None:
            raise InputError(
                f"record {self._texts + position}: the id {records[position].id!r} was there before. {_UNIQUE}"
            )
        self._texts += len(records)
        self._hash.update(sha256.encode())

    def _send(self, number: int, tokens: int) -> None:
        self._publish(batch_message(self._folder, number, tokens))

    def _difference(self, number: int, records: list[Record]) -> JobMismatch:
        """The first record that is not what was submitted before, by position and id."""
        before = self._folder.records(number)
        for offset, (old, new) in enumerate(itertools.zip_longest(before, records)):
            if new is None:
                said = f"ends before id {old.id!r}"
            elif _comparable(new) != _comparable(old):
                said = f"differs at id {new.id!r} (was {old.id!r})"
            else:
                continue
            return JobMismatch(
                f"job {self._folder.job}: the input {said}, record {self._texts + offset}. "
                "Use another key for another input."
            )
        return JobMismatch(f"job {self._folder.job}: the input differs in records {self._texts} and following.")


def _comparable(record: Record) -> tuple[str, object, dict[str, str]]:
    """What two readings of the same record share: reading back, absent columns are null and unusable texts too."""
    columns = {name: value for name, value in record.columns.items() if value is not None}
    return record.id, record.text if storable(record.text) else None, columns


def batch_message(folder: JobFolder, number: int, tokens: int) -> Batch:
    """The message that has a batch embedded."""
    return Batch(to=folder.store.uri, job=folder.job, batch=number, tokens=tokens)
