"""For the tests of code that uses embedfleet: a fleet without broker, worker and model, in this process.

Vectors are synthetic: deterministic and unit norm, the same for the same text, but without meaning. Jobs are
embedded while they are submitted, and their folders are as a real fleet's.
"""

import tempfile
import time
from collections.abc import Collection, Sequence
from threading import Event
from typing import Any

import embedfleet
from embedfleet.batching import estimated_tokens
from embedfleet.broker import Broker
from embedfleet.client import Fleet
from embedfleet.contract import Completion, Delivery, EmbedSettings, Receipt, Request
from embedfleet.destinations import CALLBACK
from embedfleet.envelope import Message
from embedfleet.jobfolder import JobFolder, now
from embedfleet.letters import MAX_LETTERS, Letter, Listing
from embedfleet.models import ModelProfile
from embedfleet.queueview import QueueView
from embedfleet.records import check_text
from embedfleet.settings import FleetSettings
from embedfleet.store import open_store
from embedfleet.synthetic import synthetic_vectors
from embedfleet.tables import Outcome, Outcomes, write_part


class InMemoryFleet(Fleet):
    """A drop-in for :class:`~embedfleet.Fleet`. Without a store, job folders go to a temporary folder.

    >>> fleet = InMemoryFleet()
    >>> fleet.embed(["what is a lease?"]).shape
    (1, 384)
    >>> job = fleet.submit([("a", "a text"), ("b", "")])
    >>> status = job.wait()
    >>> status.state, status.totals.texts, status.totals.errors
    ('done', 2, 1)
    >>> fleet.close()
    """

    def __init__(self, **settings: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="embedfleet-")
        # Never the environment's store, where real jobs are.
        super().__init__(**{"store": self._folder.name, **settings, "engine": "synthetic"})

    def close(self) -> None:
        """Remove the temporary folder."""
        self._folder.cleanup()

    def _connect(self) -> Broker:
        return _InMemoryBroker(self.settings)


class _InMemoryBroker(Broker):
    """Does a message's work instead of sending it."""

    def __init__(self, settings: FleetSettings) -> None:
        super().__init__(settings, "in-memory")
        self._replies: dict[str, bytes] = {}

    def check(self, *queues: str) -> None:
        """Always there."""

    def clock(self) -> float:
        """This process's clock."""
        return time.time()

    def depth(self, queue: str) -> int:  # noqa: ARG002
        """Nothing ever waits."""
        return 0

    def look(self, queue: str) -> QueueView:  # noqa: ARG002
        """Nothing ever waits."""
        return QueueView(self.clock(), None, frozenset())

    def workers(self, queue: str) -> list[str]:  # noqa: ARG002
        """This process."""
        return ["in-memory"]

    def publish_all(self, messages: Sequence[Message], queue: str) -> None:  # noqa: ARG002
        """Embed at once."""
        for message in messages:
            self._do(message)

    def _do(self, message: Message) -> None:
        if isinstance(message, Delivery):
            _confirm(JobFolder(open_store(message.to), message.job), message.batch, message.destination)
            return
        if isinstance(message, Completion):
            _confirm(JobFolder(open_store(message.to), message.job), 0, CALLBACK)
            return
        if isinstance(message, Request):
            ids = [str(row) for row in range(len(message.texts))]
            outcomes = self._outcomes(ids, list(message.texts), message.settings)
            self.reply(message.reply_to, write_part(outcomes, message.settings.encoding, "embed", 0))
            return
        folder = JobFolder(open_store(message.to), message.job)
        spec = folder.spec()
        settings = spec.settings
        given = folder.input(message.batch)
        outcomes = self._outcomes(given.ids, given.texts, settings)
        for row, reason in given.info.rejected.items():
            outcomes.rows[row].error = reason
        if spec.expires_at is not None and self.clock() > spec.expires_at:
            expired = "the job expired before this text was embedded"
            outcomes.rows = [Outcome(record_id, error=("expired", expired)) for record_id in given.ids]
        folder.write_part(message.batch, write_part(outcomes, settings.encoding, folder.job, message.batch))
        for destination in spec.deliver_to:
            _confirm(folder, message.batch, destination.name)

    def _outcomes(self, ids: list[str], texts: list[str | None], settings: EmbedSettings) -> Outcomes:
        profile = self.settings.profile(settings.model)
        pairs = zip(ids, texts, strict=True)
        rows = [_outcome(record_id, text, settings, profile.max_tokens) for record_id, text in pairs]
        template = profile.template(settings.input_type, settings.prompt_name)
        prompts = [template.format(text=text or "", instruction=settings.instruction) for text in texts]
        vectors = synthetic_vectors(prompts, settings.dimensions or profile.dimensions)
        return Outcomes(rows, vectors, provenance=_provenance(settings, profile))

    def announce(self, queue: str, worker: str, ttl_s: float) -> None:
        """Nobody else is there to be told."""

    def withdraw(self, queue: str, worker: str) -> None:
        """Nobody else is there to be told."""

    def dead_letter(self, letter: Letter) -> None:
        """Nothing is refused here."""
        raise AssertionError(letter.reason)

    def letters(self, limit: int = MAX_LETTERS) -> Listing:  # noqa: ARG002
        """None."""
        return Listing([], complete=True)

    def remove_letters(self, ids: Collection[str]) -> int:  # noqa: ARG002
        """There are none."""
        return 0

    def reply(self, key: str, payload: bytes) -> None:
        """Keep it for the caller."""
        self._replies[key] = payload

    def await_reply(self, key: str, timeout_s: float, abandoned: Event | None = None) -> bytes:  # noqa: ARG002
        """It is there already."""
        return self._replies.pop(key)

    def close(self) -> None:
        """Nothing is open."""


def _confirm(folder: JobFolder, batch: int, destination: str) -> None:
    detail = "nothing was sent: this fleet is in memory"
    folder.write_receipt(
        Receipt(job=folder.job, batch=batch, destination=destination, state="confirmed", detail=detail, at=now())
    )


def _provenance(settings: EmbedSettings, profile: ModelProfile) -> dict[str, Any]:
    """What a worker with the synthetic engine says."""
    return {
        "engine": "synthetic",
        "engine_version": embedfleet.__version__,
        "model": profile.name,
        "revision": None,
        "weights": "synthetic",
        "dtype": "float32",
        "quantization": None,
        "pooling": "none",
        "template": profile.template(settings.input_type, settings.prompt_name),
        "max_tokens": profile.max_tokens,
        **settings.model_dump(include={"input_type", "instruction", "dimensions", "encoding", "on_overflow"}),
    }


def _outcome(record_id: str, text: str | None, settings: EmbedSettings, max_tokens: int) -> Outcome:
    """As a worker would decide, with estimated tokens."""
    problem = check_text(text)
    tokens = estimated_tokens(text)
    if problem is None and tokens > max_tokens and settings.on_overflow == "error":
        problem = "too_long", f"about {tokens} tokens and the limit is {max_tokens}"
    if problem is not None:
        return Outcome(record_id, error=problem)
    return Outcome(record_id, n_tokens=min(tokens, max_tokens), truncated=tokens > max_tokens)
