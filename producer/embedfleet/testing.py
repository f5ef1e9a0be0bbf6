"""For the tests of code that uses embedfleet: a fleet without broker, worker and model, in this process.

Vectors are synthetic: deterministic and unit norm, the same for the same text, but without meaning. Jobs are
embedded while they are submitted, and their folders are as a real fleet's.
"""

import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from threading import Event
from types import MappingProxyType
from typing import Any

import embedfleet
from embedfleet.batching import estimated_starts, estimated_tokens
from embedfleet.broker import Broker
from embedfleet.client import Fleet
from embedfleet.contract import Chunking, Completion, Delivery, EmbedSettings, ErrorCode, Receipt, Request
from embedfleet.destinations import CALLBACK
from embedfleet.envelope import Message
from embedfleet.jobfolder import JobFolder, now
from embedfleet.letters import MAX_LETTERS, Letter, Listing
from embedfleet.models import ModelProfile
from embedfleet.queueview import QueueView
from embedfleet.records import check_text
from embedfleet.settings import FleetSettings
from embedfleet.splitting import Splitter
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
            outcomes = _outcomes(
                ids, list(message.texts), message.settings, self.settings.profile(message.settings.model)
            )
            self.reply(message.reply_to, write_part(outcomes, message.settings.encoding, "embed", 0))
            return
        folder = JobFolder(open_store(message.to), message.job)
        spec = folder.spec()
        settings = spec.settings
        given = folder.input(message.batch)
        profile = self.settings.profile(settings.model)
        outcomes = _outcomes(given.ids, given.texts, settings, profile, given.info.rejected)
        if spec.expires_at is not None and self.clock() > spec.expires_at:
            expired = "the job expired before this text was embedded"
            outcomes = _outcomes(
                given.ids, given.texts, settings, profile, dict.fromkeys(range(len(given.ids)), ("expired", expired))
            )
        folder.write_part(message.batch, write_part(outcomes, settings.encoding, folder.job, message.batch))
        for destination in spec.deliver_to:
            _confirm(folder, message.batch, destination.name)

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
        **settings.model_dump(
            include={"input_type", "instruction", "dimensions", "encoding", "on_overflow", "chunking"}
        ),
    }


def _outcomes(
    ids: list[str],
    texts: list[str | None],
    settings: EmbedSettings,
    profile: ModelProfile,
    rejected: Mapping[int, tuple[ErrorCode, str]] = MappingProxyType({}),
) -> Outcomes:
    """As a worker would decide, with estimated tokens."""
    import numpy as np

    rows, vectors = [], []
    length = settings.dimensions or profile.dimensions
    for number, (record_id, text) in enumerate(zip(ids, texts, strict=True)):
        problem = rejected.get(number) or check_text(text)
        made = [Outcome(record_id, error=problem)] if problem else _rows(record_id, text or "", settings, profile)
        pieces = [(text or "")[row.chunk_start : row.chunk_end] for row in made]
        rows += made
        vectors.append(synthetic_vectors([_prompt(piece, settings, profile) for piece in pieces], length))
    together = np.concatenate([np.zeros((0, length), np.float32), *vectors])
    return Outcomes(rows, together, provenance=_provenance(settings, profile))


def _rows(record_id: str, text: str, settings: EmbedSettings, profile: ModelProfile) -> list[Outcome]:
    tokens = estimated_tokens(_prompt(text, settings, profile))
    chunking = settings.chunking or Chunking()
    limit = chunking.max_tokens or profile.max_tokens
    if settings.on_overflow == "chunk" and tokens > limit and chunking.output == "chunks":
        return _chunks(record_id, text, tokens, limit, settings, profile)
    whole = Outcome(record_id, n_tokens=tokens, tokens_in=tokens)
    if settings.on_overflow == "chunk":
        whole.chunk_start, whole.chunk_end = 0, len(text)
    elif tokens > limit and settings.on_overflow == "truncate":
        whole.n_tokens, whole.truncated = limit, True
    elif tokens > limit:
        whole.n_tokens, whole.error = None, ("too_long", f"about {tokens} tokens and the limit is {limit}")
    return [whole]


def _chunks(
    record_id: str, text: str, tokens_in: int, limit: int, settings: EmbedSettings, profile: ModelProfile
) -> list[Outcome]:
    def count(chunk: str) -> int:
        return estimated_tokens(_prompt(chunk, settings, profile))

    overlap = settings.chunking.overlap if settings.chunking else 0
    found = Splitter(
        text,
        estimated_starts(text),
        limit - count(""),
        overlap,
        lambda chunk: count(chunk) - limit,
        lambda chunk: len(estimated_starts(chunk)),
    )
    return [
        Outcome(record_id, count(text[a:b]), tokens_in=tokens_in, chunk=number, chunk_start=a, chunk_end=b)
        for number, (a, b) in enumerate(found)
    ]


def _prompt(text: str, settings: EmbedSettings, profile: ModelProfile) -> str:
    return profile.template(settings.input_type, settings.prompt_name).format(
        text=text, instruction=settings.instruction
    )
