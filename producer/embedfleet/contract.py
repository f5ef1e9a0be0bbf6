"""What travels between producers and workers: settings, messages, job.json. Not how it is stored or sent.

Every document carries ``version``; an unknown version or field is refused by name, because a worker
that ignores a field it does not know computes the wrong vectors.
"""

import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embedfleet.destinations import NAME, Destination, Webhook
from embedfleet.errors import ContractError

SCHEMA_VERSION = 1

JOB_ID = r"^[a-z0-9-]{1,64}$"

TASK_EMBED = "embedfleet.embed"
"""Celery task name of a :class:`Batch` message."""
TASK_ANSWER = "embedfleet.answer"
"""Celery task name of a :class:`Request` message."""
TASK_DELIVER = "embedfleet.deliver"
"""Celery task name of a :class:`Delivery` message."""
TASK_COMPLETE = "embedfleet.complete"
"""Celery task name of a :class:`Completion` message."""

InputType = Literal["document", "query"]
Encoding = Literal["float32", "float16"]
Overflow = Literal["error", "truncate", "chunk"]
CacheUse = Literal["on", "off", "read", "write"]

ErrorCode = Literal[
    "empty",  # "" or blank
    "not_a_string",
    "lone_surrogate",  # half of a UTF-16 pair: no UTF-8 form exists
    "too_long",  # over the token limit with on_overflow="error", or not to be had in chunks either
    "not_finite",  # the engine gave NaN or infinity
    "wrong_length",  # the engine gave a vector of another length
    "not_unit_norm",
    "engine_error",  # the engine refused this text
    "internal_error",  # a defect of embedfleet, met by this text's batch
    "dead_letter",  # no worker can do this text's batch; the message says why
    "cancelled",
    "expired",  # no worker had begun this text's batch when its job expired
]


class Chunking(BaseModel):
    """How a text over the limit is cut, with ``on_overflow="chunk"``. What it means in full is in docs/overflow.md."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_tokens: int | None = Field(
        default=None, ge=1, description="Of a chunk, with its prompt and special tokens; default: the model's limit."
    )
    overlap: int = Field(default=0, ge=0, description="Tokens that a chunk repeats of the one before, at most.")
    output: Literal["chunks", "mean"] = Field(
        default="chunks", description="A vector a chunk, or one a text: the mean of its chunks, weighted by tokens."
    )


class EmbedSettings(BaseModel):
    """How texts become vectors. What is ``None`` is taken from the model's profile.

    >>> EmbedSettings(dimensions=1024, input_type="query").dimensions
    1024
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(default=None, description="Hub id or folder of the model; default: EMBEDFLEET_MODEL.")
    dimensions: int | None = Field(
        default=None, ge=1, description="Length of the vectors; default: the model's full length."
    )
    instruction: str | None = Field(default=None, description="What a query is for, for models that take instructions.")
    prompt_name: str | None = Field(default=None, description="An instruction of the model's profile, by name.")
    input_type: InputType = Field(default="document", description="What the texts are: documents, or queries.")
    encoding: Encoding = Field(default="float32", description="Number format of the vectors that are written.")
    on_overflow: Overflow = Field(
        default="error", description="A text over the token limit: its error, truncated, or cut into chunks."
    )
    # What is not used is not written: a worker that does not know it goes on with the jobs that don't need it.
    chunking: Chunking | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="How texts are cut into chunks: max_tokens=256,overlap=32,output=chunks or mean.",
    )
    cache: CacheUse = Field(
        default="on",
        exclude_if=lambda value: value == "on",
        description="Of the vector cache: on, off, only read, or only write.",
    )


class Document(BaseModel):
    """Base of what is serialised: strict about versions and fields, in both directions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1

    @classmethod
    def parse(cls, data: object, where: str) -> Self:
        """Validate ``data``, a dict. ``where`` names it in the ContractError."""
        if not isinstance(data, dict):
            raise ContractError(f"{where}: a JSON object was expected, not {type(data).__name__}.")
        version = data.get("version")
        if version != SCHEMA_VERSION:
            shown = version if isinstance(version, int | None) else type(version).__name__
            raise ContractError(
                f"{where}: version {shown!r} is not one this embedfleet reads "
                f"({SCHEMA_VERSION}). Upgrade the older of producer and worker."
            )
        try:
            return cls.model_validate(data)
        except ValidationError as exc:
            raise ContractError(f"{where}: {describe(exc)}") from None

    @classmethod
    def loads(cls, text: bytes | str, where: str) -> Self:
        """Validate JSON text. ``where`` names it in the ContractError."""
        try:
            return cls.parse(json.loads(text), where)
        except (ValueError, RecursionError) as exc:
            raise ContractError(f"{where}: not JSON ({exc}).") from None

    def dumps(self) -> str:
        """Canonical JSON: fields in the order of the class, no spaces."""
        return self.model_dump_json()


class Batch(Document):
    """A message: one batch of a job, by reference. The texts are in the job folder."""

    to: str = Field(description="URI of the store that holds the job folder.")
    job: str = Field(pattern=JOB_ID)
    batch: int = Field(ge=0, le=99_999_999)
    tokens: int = Field(ge=0, description="Estimated tokens, for the worker's credit.")


class Request(Document):
    """A message: a few texts whose vectors go straight back to the caller (``Fleet.embed``)."""

    reply_to: str = Field(pattern=r"^[a-z0-9-]{1,18}-reply-[0-9a-f]{32}$", description="Redis key of the answer.")
    settings: EmbedSettings
    texts: list[str]
    expires_at: float = Field(description="Unix time in s on the broker's clock after which nobody waits.")


class Delivery(Document):
    """A message: one part for one destination, both by reference."""

    to: str = Field(description="URI of the store that holds the job folder.")
    job: str = Field(pattern=JOB_ID)
    batch: int = Field(ge=0, le=99_999_999)
    destination: str = Field(pattern=NAME, description="Name; what it is, the job folder says.")


class Completion(Document):
    """A message: a job is finished, and its callback is to be told. Which that is, ``job.json`` says."""

    to: str = Field(description="URI of the store that holds the job folder.")
    job: str = Field(pattern=JOB_ID)


class Batching(BaseModel):
    """Budgets of one batch. A single text over a budget travels alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_texts: int = Field(default=512, ge=1, le=100_000)
    max_tokens: int = Field(default=65_536, ge=1, description="Estimated.")
    max_bytes: int = Field(default=4 * 1024 * 1024, ge=1, description="UTF-8 bytes of ids, texts and columns.")


class Inline(BaseModel):
    """The input of a job of one batch that is small enough for ``job.json`` (``Fleet.enqueue``)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ids: list[str]
    texts: list[str | None]
    sha256: str = Field(description="As an input file's: over ids and texts.")
    tokens: int = Field(ge=0, description="Estimated.")
    rejected: dict[int, tuple[ErrorCode, str]] = Field(description="By row: texts that can't be stored, and why.")


class JobSpec(Document):
    """``job.json``: written first, once, and never changed."""

    job: str = Field(pattern=JOB_ID)
    parent: str | None = Field(
        default=None, description="Id of the job (in the same store) whose failed texts these are."
    )
    created_at: str = Field(description="UTC, ISO 8601.")
    settings: EmbedSettings
    revision: str | None = Field(default=None, description="Of the model; a worker of another one refuses the job.")
    synthetic: bool = Field(default=False, description="Whether the synthetic engine is wanted; no other will do.")
    batching: Batching
    # What is not used is not written: a worker that does not know it goes on with the jobs that don't need it.
    deliver_to: tuple[Destination, ...] = Field(default=(), exclude_if=lambda value: not value)
    callback: Webhook | None = Field(
        default=None, exclude_if=lambda value: value is None, description="Is told when the job is finished."
    )
    inline: Inline | None = Field(
        default=None, exclude_if=lambda value: value is None, description="The texts, where there are no input files."
    )
    expires_at: float | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Unix time in s on the broker's clock after which no batch is begun.",
    )


class Sealed(Document):
    """``sealed.json``: the producer has written everything."""

    batches: int = Field(ge=0)
    texts: int = Field(ge=0)
    fingerprint: str = Field(description="SHA-256 over the batches' hashes, in order.")
    at: float | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Unix time in s on the broker's clock; every message of this producer was sent before.",
    )


class AddedDestination(Document):
    """``destinations/<name>.json``: a destination that was given to a job after it was submitted."""

    destination: Destination


class Receipt(Document):
    """``deliveries/<destination>/00000000.json``: how the delivery of a part ended. May be written again.

    ``deliveries/callback/00000000.json`` says it of the callback. ``waiting``: it has not ended; since ``at`` it is
    tried, or was sent on again.
    """

    job: str
    batch: int
    destination: str
    state: Literal["confirmed", "dead", "waiting"]
    detail: str = Field(description="What was done, or why it can't be.")
    at: str = Field(description="UTC, ISO 8601.")


class Totals(BaseModel):
    """Counts over parts."""

    model_config = ConfigDict(extra="forbid")

    texts: int = 0
    errors: int = 0
    cached: int = 0
    truncated: int = 0
    tokens: int = 0

    def add(self, other: "Totals") -> None:
        """Add another part's counts to these."""
        for name in Totals.model_fields:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Manifest(Document):
    """``manifest.json``: totals and provenance, written once when every part is there."""

    job: str
    batches: int
    totals: Totals
    provenance: list[dict[str, Any]] = Field(description="Each distinct provenance among the parts.")
    finished_at: str


def _name(part: int | str) -> str:
    """A field's name; of a stranger's message it may be anything, also a text, and the error may be logged."""
    text = str(part)
    return text if len(text) <= 60 and text.replace("-", "_").replace(" ", "_").isidentifier() else "…"


def describe(exc: ValidationError) -> str:
    """One line for people: each field with what is wrong, unknown fields named as such."""
    said = []
    for error in exc.errors(include_url=False, include_input=False):
        field = ".".join(_name(part) for part in error["loc"]) or "document"
        unknown = error["type"] == "extra_forbidden"
        said.append(f"unknown field {field!r}" if unknown else f"{field}: {error['msg']}")
    return "; ".join(said)
