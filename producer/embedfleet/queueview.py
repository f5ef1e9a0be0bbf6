"""What a queue holds at one moment, as far as it says what was lost. Not what follows from it (lost.py)."""

import base64
import json
import math
from dataclasses import dataclass
from typing import Any

from embedfleet.destinations import CALLBACK
from embedfleet.envelope import AT

Work = tuple[str, int, str]
"""Job, batch and destination of a message; no destination: the batch is to be embedded."""

CLOCKS_S = 1.0
"""How far two readings of the broker's clock may be apart: it is asked once a minute, and SQS gives full seconds."""


@dataclass(frozen=True)
class QueueView:
    """A queue with its leases, all seen at once."""

    at: float
    """When this was seen: Unix time in s on the broker's clock."""
    oldest: float | None
    """When the oldest message that waits was published, by the same clock; 0: not known; None: none waits."""
    leased: frozenset[Work]
    """What somebody holds. A message that nobody can read stands for nothing."""

    @property
    def empty(self) -> bool:
        """Whether nothing waits and nobody holds anything."""
        return self.oldest is None and not self.leased

    def may_hold(self, published_before: float) -> bool:
        """Whether a message that was published before this time may still wait here."""
        return self.oldest is not None and self.oldest <= published_before + CLOCKS_S


def published_at(message: bytes) -> float:
    """When a message was published; 0 where that is not known: other producers than ours don't say."""
    try:
        found = json.loads(message)["headers"][AT]
        at = float(found) if isinstance(found, int | float) else 0.0
    except (ValueError, LookupError, TypeError, RecursionError, OverflowError):
        return 0.0
    return at if math.isfinite(at) else 0.0


def work_of(message: bytes) -> Work | None:
    """What a message is about; None for what is no message of a job."""
    try:
        said: Any = json.loads(base64.b64decode(json.loads(message)["body"]))[0][0]
        return str(said["job"]), int(said.get("batch", 0)), str(said.get("destination") or _otherwise(said))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
        return None


def _otherwise(said: dict[str, Any]) -> str:
    """A message without batch and destination is that of the job's callback."""
    return "" if "batch" in said else CALLBACK
