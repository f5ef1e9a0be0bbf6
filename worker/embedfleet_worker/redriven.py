"""What SQS moved to the dead letters by itself: its job is told, and it becomes a letter. Not who calls this, or when.

A message is moved when it was given out too often, so no worker ever said how its batch ended: the job would wait.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedfleet.broker import Broker
from embedfleet.contract import Batch, Delivery
from embedfleet.errors import Permanent, Retryable
from embedfleet.letters import MAX_LETTERS, Letter
from embedfleet_worker.transport import envelope

if TYPE_CHECKING:
    from embedfleet.sqsdead import DeadQueue, Held

log = logging.getLogger(__name__)

_AGAIN_S = 3600.0  # the depth is approximate, and stays the same when one letter comes and another goes


@dataclass
class Seen:
    """What is remembered between two looks: a look receives every letter, so none is taken when nothing changed."""

    depth: int | None = None
    """Letters that were there when all was settled; None: something was not."""
    at_s: float = 0.0
    """When, by this machine's monotonic clock."""


Told = Callable[[Batch | Delivery, str], None]


def settle_redriven(
    broker: Broker,
    write_dead_part: Callable[[Batch, str], None],
    write_dead_receipt: Callable[[Delivery, str], None],
    seen: Seen,
) -> int:
    """Settle what SQS moved; how many messages that were. On another broker nothing is moved.

    The callables say in a job folder how a batch or a delivery ended, with the reason, if nobody did yet. What they
    raise as Retryable leaves the message for the next look. Raises BrokerUnavailable.
    """
    if not broker.url.startswith("sqs:"):
        return 0
    from embedfleet.sqs import SqsBroker  # only where there is boto3
    from embedfleet.sqsdead import look

    def tell(work: Batch | Delivery, reason: str) -> None:
        if isinstance(work, Batch):
            write_dead_part(work, reason)
        else:
            write_dead_receipt(work, reason)

    assert isinstance(broker, SqsBroker)  # noqa: S101 - the URL says so
    depth = broker.depth(broker.dead_queue)
    if depth == 0 or (depth == seen.depth and time.monotonic() - seen.at_s < _AGAIN_S):
        return 0
    seen.depth, seen.at_s = None, time.monotonic()
    with look(broker, MAX_LETTERS) as queue:
        moved = [held for held in queue.found.values() if held.moved and _is_ours(broker, held.body)]
        settled = sum(_settle(broker, queue, held, tell) for held in moved)
        if settled == len(moved) and queue.complete:  # else there are others, which this look did not see
            seen.depth = depth
    return settled


def _settle(broker: Broker, queue: "DeadQueue", held: "Held", tell: Told) -> bool:
    """Have the job told, then make the message a letter. False: not now."""
    work, reason, told = held.letter.work, held.letter.reason, False
    try:
        if work is not None:
            tell(work, reason)
            told = True
    except Retryable as exc:
        log.warning("a message that SQS moved to the dead letters is left for later: %s", exc)
        return False
    except Permanent as exc:
        reason = f"{reason}; its job can't be told: {exc}"
    # The same id: whoever listed it still finds it, and one that was sent twice is one letter.
    letter = Letter.of(held.letter.message, reason, held.letter.queue, held.letter.at, part=told)
    broker.dead_letter(letter.model_copy(update={"id": held.letter.id}))
    queue.delete([held.letter.id])
    log.error("dead letter: %s", reason)
    return True


def _is_ours(broker: Broker, body: str) -> bool:
    """What is not stays as it came: it may not touch a job folder."""
    try:
        envelope.read(body.encode(errors="replace"), broker.settings.signing_key)
    except ValueError:
        return False
    return True
