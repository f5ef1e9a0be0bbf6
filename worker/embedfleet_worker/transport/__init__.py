"""How messages are taken from a broker without a moment in which nobody has them.

What a lease is on a broker: redis.py and sqs.py. What this process holds: holding.py. Celery's side: channel.py.
"""

from dataclasses import dataclass
from typing import Protocol

GIVEN_BACK_S = 2.0
"""Until what was given back may be taken again, if nothing else was said: a dependency that is down makes none spin."""


@dataclass(frozen=True)
class Back:
    """How a message is given back."""

    delay_s: float | None = None
    """Until it may be taken again; None: in a moment."""
    outage: bool = False
    """Something that the other messages of its lane need too is down."""
    blamed: bool = False
    """It may be its own fault."""


given_back: dict[str, Back] = {}
"""By delivery tag, of messages that are about to be given back: Celery hands on nothing of the kind."""


@dataclass(frozen=True)
class Taken:
    """A message with a lease."""

    queue: str
    lease: str
    """What the broker knows this lease by; new each time the message is given out, so nobody touches another's."""
    message: bytes
    times: int = 1
    """How often it has been given out, where the broker counts that."""


@dataclass(frozen=True)
class Order:
    """What the broker is to be told of a lease: to end it in so many seconds, or (None) that the message is done."""

    queue: str
    lease: str
    delay_s: float | None
    until: float
    """By the monotonic clock, when the lease is over and there is nothing left to tell."""
    message: bytes = b""
    """What is given back."""
    blamed: bool = False
    """It may be its own fault that it is."""
    last: bool = False
    """Behind all others, where the broker has an order: what it needs is down, and they may need something else."""


class Leases(Protocol):
    """A broker's leases. Thread-safe. Everything raises BrokerUnavailable when the broker does not answer."""

    def take(self, queue: str, room: int) -> list[Taken]:
        """At most ``room`` messages, each leased in the step that takes it. Waits some seconds when there are none."""

    def asking(self) -> bool:
        """Whether a request is out that may yet be given messages, which would be nobody's if its process ended."""

    def renew(self, queue: str, leases: list[str]) -> None:
        """Let leases last from now on. Those that are over stay so."""

    def settle(self, orders: list[Order]) -> list[Order]:
        """Tell what was ordered; those that were not taken, and may be yet."""

    def sweep(self) -> None:
        """Have leases that are over given out again, where the broker does not do it by itself."""
