"""What SQS moved to the dead letters by itself: its jobs are told, and it becomes a letter. Not who calls this, and when.

A message is moved when it was given out too often, so no worker ever said how its batch ended: the job would wait.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from embedfleet.broker import Broker
from embedfleet.contract import Batch, Delivery
from embedfleet.errors import Permanent, Retryable
from embedfleet.letters import MAX_LETTERS
from embedfleet_worker.transport import envelope

log = logging.getLogger(__name__)

_AGAIN_S = 3600.0  # the depth is approximate, and stays the same when one letter comes and another goes


@dataclass
class Seen:
    """What is remembered between two looks: a look receives every letter, so none is taken when nothing changed."""

    depth: int | None = None
    """Letters that were there when all was settled; None: something was not."""
    at_s: float = 0.0
    """When, by this machine's monotonic clock."""


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

    assert isinstance(broker, SqsBroker)  # noqa: S101 - the URL says so
    depth = broker.depth(broker.dead_queue)
    if depth in (0, seen.depth) and time.monotonic() - seen.at_s < _AGAIN_S:
        return 0
    seen.depth, seen.at_s = None, time.monotonic()
    settled, left = 0, 0
    with look(broker, MAX_LETTERS) as queue:
        for held in [each for each in queue.found.values() if each.moved and _is_ours(each.body)]:
            reason, work = held.letter.reason, held.letter.work
            try:
                if isinstance(work, Batch):
                    write_dead_part(work, reason)
                elif work is not None:
                    write_dead_receipt(work, reason)
                told = work is not None
            except Retryable as exc:
                log.warning("a message that SQS moved to the dead letters is left for later: %s", exc)
                left += 1
                continue
            except Permanent as exc:
                told, reason = False, f"{reason}; its job can't be told: {exc}"
            # The same id: whoever listed it still finds it, and one that was sent twice is one letter.
            broker.dead_letter(held.letter.model_copy(update={"reason": reason, "part": told}))
            queue.delete([held.letter.id])
            settled += 1
            log.error("dead letter: %s", reason)
        if not left and queue.complete:
            seen.depth = depth
    return settled


def _is_ours(body: str) -> bool:
    """What is not stays as it came: it may not touch a job folder."""
    try:
        envelope.read(body.encode(errors="replace"))
    except ValueError:
        return False
    return True
