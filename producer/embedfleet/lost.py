"""What the broker lost of a job: asked of its queues, and remembered for a while. Not what is done then (reconcile.py).

A message is lost that neither waits nor is held, while what it was to do is not done.
"""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from embedfleet.broker import Broker
from embedfleet.contract import Batch, Delivery
from embedfleet.delivering import Delivering
from embedfleet.errors import ContractError, NotFound
from embedfleet.jobfolder import JobFolder, delivery
from embedfleet.queueview import CLOCKS_S, QueueView, Work
from embedfleet.submission import batch_message

APART_S = 60.0
"""Between two looks at a queue whose counts are approximate: SQS says that they may be wrong for about a minute."""
_EARLY_S = 5.0  # a sweep a minute comes now and then a moment earlier
_STALE_S = 30.0  # a queue moves on; a sweep over thousands of jobs asks for it twice


@dataclass
class _Looks:
    """The last looks at a queue."""

    last: QueueView
    moment: float
    """Of the last one, on this process' clock."""
    idle: deque[float] = field(default_factory=deque)
    """When, on the broker's clock, it was seen empty again and again."""

    def is_stale(self) -> bool:
        """Whether the queue may look quite different by now."""
        return time.monotonic() - self.moment > _STALE_S


class Lanes:
    """The queues of a broker as this process saw them. Where one look is not enough, it remembers the earlier ones."""

    def __init__(self, broker: Broker, apart_s: float = APART_S) -> None:
        self.broker = broker
        self.apart_s = apart_s
        self._looks: dict[str, _Looks] = {}

    def view(self, queue: str, since: float = 0.0, *, fresh: bool = False) -> QueueView | None:
        """The queue as it was seen after ``since``, on the broker's clock; ``fresh``: now. None: it can't be told yet.

        What was published before ``since`` is what is asked about: a view from before would not show it. Where counts
        are approximate, a queue is empty when it seemed so in several looks, a minute apart, all after ``since``.
        """
        looks = self._looks.get(queue)
        if self.broker.looks == 1:
            if looks is None or fresh or looks.last.at <= since + CLOCKS_S or looks.is_stale():
                looks = self._look(queue)
            early = looks.last.at < since - CLOCKS_S  # who is publishing has noted when it will be done
            return replace(looks.last, oldest=0.0) if early else looks.last
        if looks is None or time.monotonic() - looks.moment >= self.apart_s - min(_EARLY_S, self.apart_s / 10):
            looks = self._look(queue)
        if not looks.last.empty:
            return looks.last
        enough = sum(at >= since - CLOCKS_S for at in looks.idle) >= self.broker.looks
        return looks.last if enough else None

    def _look(self, queue: str) -> _Looks:
        before = self._looks.get(queue)
        seen = self.broker.look(queue)
        idle = before.idle if before else deque[float](maxlen=self.broker.looks)
        idle.append(seen.at) if seen.empty else idle.clear()
        self._looks[queue] = looks = _Looks(seen, time.monotonic(), idle)
        return looks


def lost_batches(folder: JobFolder, numbers: range | list[int], view: QueueView) -> Iterator[Batch]:
    """Messages for those of the batches that have no part and that nobody holds.

    The parts are listed now, after the queue was seen: what was finished in between is there.
    """
    missing = set(numbers).difference(folder.parts())
    for number in sorted(missing):
        if (folder.job, number, "") not in view.leased:
            yield batch_message(folder, number, _tokens(folder, number))


def _tokens(folder: JobFolder, number: int) -> int:
    """Estimated. Of an input that can't be read, none: a worker writes the part that says so."""
    try:
        return folder.input_info(number)[0].tokens
    except (ContractError, NotFound):
        return 0


def lost_deliveries(folder: JobFolder, delivering: Delivering, held: frozenset[Work]) -> Iterator[Delivery]:
    """Messages for the deliveries that have not ended and that nobody holds, nor their batch: it hands them over."""
    for destination, number in delivering.pending():
        if (folder.job, number, "") not in held and (folder.job, number, destination) not in held:
            yield delivery(folder, number, destination)
