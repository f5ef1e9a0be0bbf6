"""What every destination can do, and what it is handed. Not what a job says of one (embedfleet/destinations.py)."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, TypeVar

from embedfleet.jobfolder import JobFolder
from embedfleet.records import Record
from embedfleet.tables import PartInfo, read_part

if TYPE_CHECKING:
    import pyarrow as pa

Target = TypeVar("Target", contravariant=True)


@dataclass(frozen=True)
class Parcel:
    """One part on its way to one destination. What it holds is read from the store when it is asked for."""

    folder: JobFolder
    batch: int
    destination: str
    """Name of the destination: with job and batch the identity of this delivery, the same in every try."""

    @cached_property
    def info(self) -> PartInfo:
        """Counts and provenance of the part."""
        return self.folder.part_info(self.batch)

    @cached_property
    def table(self) -> "pa.Table":
        """The part: id, chunk, embedding, error and so on, a row a text, or several where a text is in chunks.

        Whose a row is, its id says, never its position.
        """
        path = self.folder.part_path(self.batch)
        return read_part(self.folder.store.get(path), path)[0]

    @property
    def records(self) -> list[Record]:
        """The texts with the columns carried along, one each."""
        return self.folder.records(self.batch)


class Destination(Protocol[Target]):
    """One kind of destination; one object a worker, which holds its connections. Thread-safe.

    Delivering is idempotent: a part may come again, also after its receipt was lost.
    """

    def deliver(self, target: Target, parcel: Parcel) -> str:
        """Bring one part there; what was done, for the receipt.

        Raises DestinationUnavailable when another try may succeed, and DestinationRefused when none will.
        """

    def close(self) -> None:
        """Close the connections."""
