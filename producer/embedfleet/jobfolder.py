"""Names in a job folder and its create-once writes. Not what the files hold (contract.py, tables.py)."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime

from embedfleet.contract import JobSpec, Manifest, Sealed, Totals
from embedfleet.errors import AlreadyExists, NotFound
from embedfleet.store import Store
from embedfleet.tables import PartInfo, read_part_info


def job_id_of(key: str) -> str:
    """The job id of an idempotency key; any string will do, and the id is fit for paths.

    >>> job_id_of("docs-2026-11")
    'j-eee670a86fc3eb1ffcd2'
    """
    return "j-" + hashlib.sha256(f"embedfleet job\0{key}".encode("utf-8", "surrogatepass")).hexdigest()[:20]


class JobFolder:
    """``<store>/<job>/``. A part, once there, is the outcome of its batch for good."""

    def __init__(self, store: Store, job: str) -> None:
        self.store = store
        self.job = job
        self.uri = f"{store.uri}/{job}"

    def path(self, name: str) -> str:
        """Path of a file of this folder in its store."""
        return f"{self.job}/{name}"

    def input_path(self, batch: int) -> str:
        """Path of a batch's input. Eight digits, so that listing order is batch order."""
        return self.path(f"input/{batch:08d}.parquet")

    def part_path(self, batch: int) -> str:
        """Path of a batch's part."""
        return self.path(f"parts/{batch:08d}.parquet")

    def spec(self) -> JobSpec:
        """``job.json``. Raises NotFound or ContractError."""
        path = self.path("job.json")
        try:
            return JobSpec.loads(self.store.get(path), f"{self.store.uri}/{path}")
        except NotFound:
            raise NotFound(f"job {self.job}: there is none in {self.store.uri}.") from None

    def exists(self) -> bool:
        """Whether the folder holds a job."""
        return self.store.exists(self.path("job.json"))

    def sealed(self) -> Sealed | None:
        """``sealed.json``, or None while the producer is not done."""
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

    def inputs(self) -> list[int]:
        """Numbers of the batches whose input is there."""
        return list(self._numbers("input", -1))

    def parts(self, after: int = -1) -> Iterator[int]:
        """Numbers of the committed batches behind ``after``, in order."""
        return self._numbers("parts", after)

    def part_info(self, batch: int) -> PartInfo:
        """A part's metadata, without reading its vectors."""
        path = self.part_path(batch)
        return read_part_info(lambda size: self.store.tail(path, size), f"{self.store.uri}/{path}")

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

    def _numbers(self, kind: str, after: int) -> Iterator[int]:
        offset = self.path(f"{kind}/{after:08d}.parquet") if after >= 0 else None
        for path in self.store.paths(self.path(kind), offset):
            name = path.rsplit("/", 1)[-1]
            if name.endswith(".parquet") and name[:-8].isdigit():
                yield int(name[:-8])

    def _create(self, path: str, data: bytes) -> bool:
        try:
            self.store.create(path, data)
        except AlreadyExists:
            return False
        return True


def now() -> str:
    """The time, UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
