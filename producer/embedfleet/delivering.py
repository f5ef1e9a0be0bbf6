"""How far the deliveries of a job are, from its receipts. Not how they are made (the worker's deliveries.py)."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from embedfleet.contract import Receipt
from embedfleet.jobfolder import JobFolder


@dataclass(frozen=True)
class DeliveryStatus:
    """Deliveries to one destination at one moment."""

    destination: str
    """What job.json says of it, for people: a URL without its query, or a table."""
    confirmed: int
    dead: int
    """Batches that will not be delivered."""
    reason: str | None
    """Why the first of them is dead."""


@dataclass
class _Seen:
    """The receipts of one destination that were read. What is dead is read again: somebody may have sent it on."""

    confirmed: set[int] = field(default_factory=set)
    dead: dict[int, str] = field(default_factory=dict)
    low: int = -1
    """Every batch up to this number is confirmed: listings start behind it."""

    def add(self, receipt: Receipt) -> None:
        self.dead.pop(receipt.batch, None)
        if receipt.state == "dead":
            self.dead[receipt.batch] = receipt.detail
        if receipt.state != "confirmed":
            return
        self.confirmed.add(receipt.batch)
        while self.low + 1 in self.confirmed:
            self.low += 1


class Delivering:
    """Watches the receipts of a job; each that is confirmed is read once."""

    def __init__(self, folder: JobFolder) -> None:
        self._folder = folder
        self._seen: dict[str, _Seen] = {}

    def status(self) -> tuple[DeliveryStatus, ...]:
        """One a destination."""
        return tuple(
            DeliveryStatus(label, len(seen.confirmed), len(seen.dead), next(iter(seen.dead.values()), None))
            for label, seen in self._look()
        )

    def pending(self) -> Iterator[tuple[str, int]]:
        """Destination and batch of the deliveries of parts that have not ended, in order, as they are found."""
        for name in (destination.name for destination in self._folder.destinations()):
            seen = self._seen.setdefault(name, _Seen())
            written = set(self._folder.receipts(name, seen.low))
            for number in self._folder.parts(seen.low):
                if number in seen.confirmed:
                    continue
                receipt = self._folder.receipt(name, number) if number in written else None
                if receipt is not None:
                    seen.add(receipt)
                if receipt is None or receipt.state == "waiting":
                    yield name, number

    def _look(self) -> Iterator[tuple[str, _Seen]]:
        for destination in self._folder.destinations():
            seen = self._seen.setdefault(destination.name, _Seen())
            for number in self._folder.receipts(destination.name, seen.low):
                if number not in seen.confirmed:
                    receipt = self._folder.receipt(destination.name, number)
                    if receipt is not None:
                        seen.add(receipt)
            yield destination.label, seen
