"""What every broker can do, and the names of queues. Not what a message says (contract.py) or looks like (envelope.py).

Redis is in redis.py, SQS in sqs.py.
"""

import hashlib
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from threading import Event
from typing import ClassVar

from embedfleet.contract import JobSpec
from embedfleet.envelope import Message
from embedfleet.errors import ConfigurationError
from embedfleet.letters import MAX_LETTERS, Letter, Listing
from embedfleet.masking import mask_url
from embedfleet.queueview import QueueView
from embedfleet.settings import LANES, FleetSettings, Lane

CONNECT_TIMEOUT_S = 5.0
_CLOCK_S = 60.0  # between two looks at the broker's clock; a quartz drifts by a few ms meanwhile


def queue_name(prefix: str, model: str, revision: str | None, lane: str) -> str:
    """Queue of a model's lane: readable, at most 80 characters of ``[a-z0-9-]``, as SQS allows.

    >>> queue_name("embedfleet", "sentence-transformers/all-MiniLM-L6-v2", None, "bulk")
    'embedfleet-sentence-transformers-all-minilm-l6-v2-b01c9bbb-bulk'
    """
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:40].strip("-")
    digest = hashlib.sha256(f"{model}\0{revision or ''}".encode()).hexdigest()[:8]
    return f"{prefix}-{slug}-{digest}-{lane}"


def connect(settings: FleetSettings) -> "Broker":
    """The broker of the settings; nothing is sent yet. Raises ConfigurationError for a URL that can't be one."""
    if settings.broker_url is None:
        raise ConfigurationError(
            "no broker: set EMBEDFLEET_BROKER_URL (or --broker-url) to redis://host:6379/0 or sqs://region, "
            "or start a fleet on this machine with `embedfleet up`."
        )
    url = settings.broker_url.get_secret_value()
    if url.startswith("sqs:"):
        try:
            from embedfleet.sqs import SqsBroker
        except ImportError as exc:
            raise ConfigurationError(f'broker sqs: it needs {exc.name}: pip install "embedfleet[sqs]".') from None

        return SqsBroker(settings, url)
    from embedfleet.redis import RedisBroker

    return RedisBroker(settings, url)


class Broker(ABC):
    """Where messages go and, if it can, replies come from. Thread-safe.

    Raises BrokerUnavailable, naming the URL without its password, when it does not answer in time.
    """

    looks: ClassVar[int] = 1
    """How many looks at a queue, a minute apart, it takes to be sure that it is empty."""

    def __init__(self, settings: FleetSettings, url: str) -> None:
        self.settings = settings
        self.url = url
        self._clock_seen: tuple[float, float] | None = None
        """The broker's clock and this process' monotonic one, when the former was last looked at."""

    @abstractmethod
    def check(self, *queues: str) -> None:
        """Whether the broker answers and has the queues. Raises ConfigurationError for one that must be made first."""

    @abstractmethod
    def publish_all(self, messages: Sequence[Message], queue: str) -> None:
        """Send messages, in bounded tries. Every one has a new task id, also when it is sent again."""

    def publish(self, message: Message, queue: str) -> None:
        """Send one message."""
        self.publish_all([message], queue)

    def hand_over(self, message: Message, queue: str) -> None:
        """Send what follows from a message that this worker holds: never refused because the broker is full."""
        self.publish(message, queue)

    @abstractmethod
    def depth(self, queue: str) -> int:
        """Messages waiting in a queue."""

    @abstractmethod
    def look(self, queue: str) -> QueueView:
        """A queue and its leases at this moment: what says which messages were lost."""

    @abstractmethod
    def dead_letter(self, letter: Letter) -> None:
        """Keep what nobody can do in ``{prefix}-dead``."""

    @abstractmethod
    def letters(self, limit: int = MAX_LETTERS) -> Listing:
        """The dead letters, newest first. They stay."""

    @abstractmethod
    def remove_letters(self, ids: Collection[str]) -> int:
        """Forget dead letters; how many were there."""

    @abstractmethod
    def announce(self, queue: str, worker: str, ttl_s: float) -> None:
        """Say that a worker consumes a queue, for the next ``ttl_s`` seconds."""

    @abstractmethod
    def withdraw(self, queue: str, worker: str) -> None:
        """Take back what :meth:`announce` said."""

    @abstractmethod
    def workers(self, queue: str) -> list[str] | None:
        """Names of the workers that lately said they consume a queue; None where that can't be known."""

    @abstractmethod
    def clock(self) -> float:
        """The broker's Unix time in s, the one clock that all agree on; on SQS, full seconds."""

    def now(self) -> float:
        """The broker's :meth:`clock`, without a request each time: it is looked at once a minute."""
        seen = self._clock_seen  # threads may look at the same time, and each is right
        if seen is None or time.monotonic() - seen[1] > _CLOCK_S:
            self._clock_seen = seen = (self.clock(), time.monotonic())
        return seen[0] + time.monotonic() - seen[1]

    def reply_key(self) -> str:
        """A new name for an answer. Raises ConfigurationError on a broker that can't reply."""
        return f"{self.settings.queue_prefix}-reply-{uuid.uuid4().hex}"

    @abstractmethod
    def reply(self, key: str, payload: bytes) -> None:
        """Put an answer where its caller waits for it. Raises ConfigurationError on a broker that can't reply."""

    @abstractmethod
    def await_reply(self, key: str, timeout_s: float, abandoned: Event | None = None) -> bytes:
        """The answer put under ``key``. Raises WaitTimeout, and ConfigurationError as :meth:`reply`.

        WaitTimeout too, within 2 s, when whoever wanted it has set ``abandoned``.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""

    def queue(self, model: str, lane: str) -> str:
        """Queue of a model's lane in this fleet."""
        return self._lane_of(model, self.settings.revision, self.settings.engine == "synthetic", lane)

    def queue_of(self, spec: JobSpec) -> str:
        """Queue of a job's batches, whatever this fleet's model, revision and engine are."""
        return self._lane_of(spec.settings.model or self.settings.model, spec.revision, spec.synthetic, "bulk")

    @property
    def queues(self) -> list[str]:
        """Every queue of this fleet and its model; the dead-letter queue, which the others refer to, first."""
        return [self.dead_queue, *map(self.lane, LANES)]

    def lane(self, lane: Lane) -> str:
        """Queue of a lane of this fleet's model."""
        return self.deliver_queue if lane == "deliver" else self.queue(self.settings.model, lane)

    def _lane_of(self, model: str, revision: str | None, synthetic: bool, lane: str) -> str:
        """The synthetic engine has its own: real work never goes there."""
        named = f"synthetic/{model}" if synthetic else model
        return queue_name(self.settings.queue_prefix, named, revision, lane)

    @property
    def deliver_queue(self) -> str:
        """Queue of the deliveries, which are the same for every model."""
        return f"{self.settings.queue_prefix}-deliver"

    @property
    def dead_queue(self) -> str:
        """Where dead letters are kept."""
        return f"{self.settings.queue_prefix}-dead"


def masked_reason(exc: BaseException) -> str:
    """A driver's error in one line, without what is secret."""
    return mask_url(str(exc).splitlines()[0]) if str(exc) else type(exc).__name__
