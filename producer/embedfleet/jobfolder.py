"""Names in a job folder and its create-once writes. Not what the files hold (contract.py, tables.py)."""

import hashlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from embedfleet.contract import AddedDestination, Delivery, Inline, JobSpec, Manifest, Receipt, Sealed, Totals
from embedfleet.destinations import Target
from embedfleet.errors import AlreadyExists, NotFound
from embedfleet.records import Record
from embedfleet.store import Store
from embedfleet.tables import Input, InputInfo, PartInfo, read_input, read_input_info, read_part_info, read_records


def job_id_of(key: str) -> str:
    """The job id of an idempotency key; any string will do, and the id is fit for paths.

    >>> job_id_of("docs-2026-11")
    'j-eee670a86fc3eb1ffcd2'
    """
    return "j-" + hashlib.sha256(f"embedfleet job\0{key}".encode("utf-8", "surrogatepass")).hexdigest()[:20]


_ENDED = "-ended"


class JobFolder:
    """``<store>/<job>/``. A part, once there, is the outcome of its batch for good."""

    def __init__(self, store: Store, job: str) -> None:
        self.store = store
        self.job = job
        self.uri = f"{store.uri}/{job}"
        self._spec: JobSpec | None = None

    def path(self, name: str) -> str:
        """Path of a file of this folder in its store."""
        return f"{self.job}/{name}"

    def input_path(self, batch: int) -> str:
        """Path of a batch's input."""
        return self.path(input_name(batch))

    def part_path(self, batch: int) -> str:
        """Path of a batch's part."""
        return self.path(f"parts/{batch:08d}.parquet")

    def spec(self) -> JobSpec:
        """``job.json``, which never changes and is read once. Raises NotFound or ContractError."""
        if self._spec is None:
            path = self.path("job.json")
            try:
                self._spec = JobSpec.loads(self.store.get(path), f"{self.store.uri}/{path}")
            except NotFound:
                raise NotFound(f"job {self.job}: there is none in {self.store.uri}.") from None
        return self._spec

    def exists(self) -> bool:
        """Whether the folder holds a job."""
        return self.store.exists(self.path("job.json"))

    def sealed(self) -> Sealed | None:
        """``sealed.json``, or None while the producer is not done. A job with its texts in job.json is born sealed."""
        inline = self._inline()
        if inline is not None:
            return Sealed(batches=1, texts=len(inline.ids), fingerprint=inline.sha256)
        path = self.path("sealed.json")
        try:
            return Sealed.loads(self.store.get(path), f"{self.store.uri}/{path}")
        except NotFound:
            return None

    def manifest(self) -> Manifest | None:
        """``manifest.json``, or None while parts are missing."""
        path = self.path("manifest.json")
        try:
            return Manifest.loads(self.store.get(path), f"{self.store.uri}/{path}")
        except NotFound:
            return None

    def write_once(self, name: str, data: str | bytes) -> bool:
        """Create a file of this folder. False if it is there already."""
        return self._create(self.path(name), data.encode() if isinstance(data, str) else data)

    def write_part(self, batch: int, data: bytes) -> bool:
        """Commit a batch. False if it was committed before: whoever meets that drops its own result."""
        return self._create(self.part_path(batch), data)

    def has_part(self, batch: int) -> bool:
        """Whether a batch is committed."""
        return self.store.exists(self.part_path(batch))

    def starts(self, batch: int) -> int:
        """How often a batch was begun alone of which no end is known."""
        names = self.store.paths(self.path(f"starts/{batch:08d}"))
        return len(names) - 2 * sum(name.endswith(_ENDED) for name in names)

    def begin_start(self, batch: int) -> str:
        """Note that a batch is begun alone; what to end it by."""
        number = len(self.store.paths(self.path(f"starts/{batch:08d}")))
        while not self.write_once(name := f"starts/{batch:08d}/{number:04d}", ""):
            number += 1
        return name

    def end_start(self, name: str) -> None:
        """Note that what was begun did not end its worker."""
        self.write_once(f"{name}{_ENDED}", "")

    def inputs(self) -> list[int]:
        """Numbers of the batches whose input is there."""
        return list(self._numbers("input", -1)) or ([0] if self._inline() else [])

    def input(self, batch: int) -> Input:
        """What a worker reads of a batch. Raises NotFound or ContractError."""
        inline = self._inline(batch)
        if inline is not None:
            info = InputInfo(sha256=inline.sha256, tokens=inline.tokens, rejected=inline.rejected)
            return Input(inline.ids, inline.texts, info)
        path = self.input_path(batch)
        return read_input(self.store.get(path), path)

    def input_info(self, batch: int) -> tuple[InputInfo, int]:
        """An input's metadata and its number of texts, without reading the texts of a file."""
        if self._inline(batch) is not None:
            given = self.input(batch)
            return given.info, len(given.ids)
        path = self.input_path(batch)
        return read_input_info(lambda size: self.store.tail(path, size), f"{self.store.uri}/{path}")

    def records(self, batch: int) -> list[Record]:
        """A batch's input as the records it was made of."""
        inline = self._inline(batch)
        if inline is not None:
            return [Record(record_id, text) for record_id, text in zip(inline.ids, inline.texts, strict=True)]
        path = self.input_path(batch)
        return read_records(self.store.get(path), path)

    def parts(self, after: int = -1) -> Iterator[int]:
        """Numbers of the committed batches behind ``after``, in order."""
        return self._numbers("parts", after)

    def part_info(self, batch: int) -> PartInfo:
        """A part's metadata, without reading its vectors."""
        path = self.part_path(batch)
        return read_part_info(lambda size: self.store.tail(path, size), f"{self.store.uri}/{path}")

    def destinations(self) -> list[Target]:
        """Where the parts go: what job.json says, and what was added later. Each once."""
        added = self.store.paths(self.path("destinations"))
        found = [*self.spec().deliver_to, *(self._added(path) for path in added)]
        return list({destination.name: destination for destination in found}.values())

    def destination(self, name: str) -> Target:
        """The destination of this name. Raises NotFound: a message alone sends nothing anywhere."""
        for destination in self.spec().deliver_to:
            if destination.name == name:
                return destination
        return self._added(self.path(f"destinations/{name}.json"))

    def add_destination(self, destination: Target) -> None:
        """Have the parts go there too. Harmless if they do already."""
        if destination not in self.spec().deliver_to:
            document = AddedDestination(destination=destination)
            self.write_once(f"destinations/{destination.name}.json", document.dumps())

    def receipts(self, destination: str, after: int = -1) -> Iterator[int]:
        """Numbers of the batches behind ``after`` whose delivery has ended, in order."""
        return self._numbers(f"deliveries/{destination}", after, ".json")

    def receipt(self, destination: str, batch: int) -> Receipt | None:
        """How a delivery ended, or None while it has not."""
        path = self.path(f"deliveries/{destination}/{batch:08d}.json")
        try:
            return Receipt.loads(self.store.get(path), f"{self.store.uri}/{path}")
        except NotFound:
            return None

    def undelivered(self, destination: str) -> Iterator[tuple[int, Receipt | None]]:
        """Numbers of the parts that this destination has not confirmed, each with its receipt if it has one."""
        written = set(self.receipts(destination))
        for number in self.parts():
            receipt = self.receipt(destination, number) if number in written else None
            if receipt is None or receipt.state != "confirmed":
                yield number, receipt

    def write_receipt(self, receipt: Receipt) -> None:
        """Say how a delivery ended, whatever was said before."""
        path = self.path(f"deliveries/{receipt.destination}/{receipt.batch:08d}.json")
        self.store.replace(path, receipt.dumps().encode())

    def cancel(self) -> None:
        """Mark the job as cancelled; workers give its remaining batches the outcome ``cancelled``."""
        self.write_once("cancelled.json", f'{{"version":1,"cancelled_at":"{now()}"}}')

    def is_cancelled(self) -> bool:
        """Whether the job was cancelled."""
        return self.store.exists(self.path("cancelled.json"))

    def write_manifest(self, batches: int, totals: Totals, provenance: list[dict[str, object]]) -> None:
        """Record that every part is there. Whoever sees it first writes it."""
        manifest = Manifest(job=self.job, batches=batches, totals=totals, provenance=provenance, finished_at=now())
        self.write_once("manifest.json", manifest.dumps())

    def _inline(self, batch: int = 0) -> Inline | None:
        """The texts in job.json, if there are any. Raises NotFound for another batch of such a job than 0."""
        try:
            inline = self.spec().inline
        except NotFound:
            return None
        if inline is not None and batch != 0:
            raise NotFound(f"job {self.job}: it has one batch, and no batch {batch}.")
        return inline

    def _added(self, path: str) -> Target:
        return AddedDestination.loads(self.store.get(path), f"{self.store.uri}/{path}").destination

    def _numbers(self, kind: str, after: int, suffix: str = ".parquet") -> Iterator[int]:
        offset = self.path(f"{kind}/{after:08d}{suffix}") if after >= 0 else None
        for path in self.store.paths(self.path(kind), offset):
            name = path.rsplit("/", 1)[-1]
            if name.endswith(suffix) and name.removesuffix(suffix).isdigit():
                yield int(name.removesuffix(suffix))

    def _create(self, path: str, data: bytes) -> bool:
        try:
            self.store.create(path, data)
        except AlreadyExists:
            return False
        return True


def input_name(batch: int) -> str:
    """A batch's input in its job folder. Eight digits, so that listing order is batch order."""
    return f"input/{batch:08d}.parquet"


def delivery(folder: JobFolder, batch: int, destination: str) -> Delivery:
    """The message that has a part delivered."""
    return Delivery(to=folder.store.uri, job=folder.job, batch=batch, destination=destination)


def waiting(job: str, batch: int, destination: str, detail: str, at: float) -> Receipt:
    """The receipt of a delivery that has not ended. ``at``: since when it is tried, on the broker's clock."""
    return Receipt(job=job, batch=batch, destination=destination, state="waiting", detail=detail, at=_iso(at))


def now() -> str:
    """This machine's time, UTC, ISO 8601, to the second: for people."""
    return _iso(time.time())


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
