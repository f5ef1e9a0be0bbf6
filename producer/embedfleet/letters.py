"""Dead letters: what can't be done, kept with its reason. Not where they are kept (the brokers), nor what becomes of
them (replay.py).

A letter holds no texts: of a message it has what names the work. Only what is no message of ours is kept as it came, in
``raw``, for whoever asks for exactly that.
"""

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field, SecretStr, field_validator

from embedfleet.contract import JOB_ID, Batch, Completion, Delivery, Document
from embedfleet.destinations import NAME
from embedfleet.envelope import AT, SIGNATURE, TASKS, is_signed
from embedfleet.errors import ContractError

MAX_RAW_BYTES = 64 * 1024
"""Of what is no message of ours; the rest is dropped, so that a letter fits into every broker's message."""
MAX_LETTERS = 1000
"""Looked at in one go."""

_MAX_REASON = 2000
_STRINGS: Mapping[str, str] = {
    "to": r".{1,2048}",
    "job": JOB_ID,
    "destination": NAME,
    "reply_to": r"^[a-z0-9-]{1,18}-reply-[0-9a-f]{32}$",
}
"""What is kept of a message, with what it has to look like: anything else might be a text."""
_NUMBERS = ("version", "batch", "tokens")


class Letter(Document):
    """One dead letter."""

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    at: float = Field(
        ge=0, le=1e11, allow_inf_nan=False, description="Unix time in s on the broker's clock; 0: not known."
    )
    queue: str = Field(description="Where the message was; empty: not known.")
    reason: str = Field(description="One line.")
    message: dict[str, Any] | None = Field(default=None, description="What is kept of a message of ours: no texts.")
    raw: str | None = Field(default=None, description="In base64, what is no message of ours.")
    part: bool = Field(default=False, description="Whether a part or a receipt tells of it: its job waits no more.")

    @field_validator("raw")
    @classmethod
    def _is_base64(cls, value: str | None) -> str | None:
        if value is not None:
            base64.b64decode(value, validate=True)  # raises ValueError
        return value

    @classmethod
    def of(cls, message: object, reason: str, queue: str, at: float, *, part: bool = False) -> Self:
        """The letter for a message of ours. What of it could be texts is left out."""
        return cls(
            id=secrets.token_hex(6), at=at, queue=queue, reason=_line(reason), message=_named(message), part=part
        )

    @classmethod
    def quarantined(cls, raw: bytes, reason: str, queue: str, at: float, letter: str | None = None) -> Self:
        """The letter for what is no message of ours; ``letter``: its id, if it has one already."""
        if len(raw) > MAX_RAW_BYTES:
            reason = f"{reason} (its first {MAX_RAW_BYTES} bytes of {len(raw)} are kept)"
        kept = base64.b64encode(raw[:MAX_RAW_BYTES]).decode()
        return cls(id=letter or secrets.token_hex(6), at=at, queue=queue, reason=_line(reason), raw=kept)

    @classmethod
    def moved(cls, body: str, letter: str, at: float, times: int, key: SecretStr | None) -> Self:
        """The letter for a message that SQS itself moved to the dead letters, as it was. ``key``: ours are signed."""
        reason = f"SQS gave it out {times} times and moved it to the dead letters"
        message, queue = _unwrapped(body, key)
        if message is None:
            return cls.quarantined(body.encode(errors="replace"), f"{reason}; it is no message of ours", "", at, letter)
        return cls(id=letter, at=at, queue=queue, reason=reason, message=message)

    @classmethod
    def read(cls, stored: bytes) -> Self:
        """A letter as a broker keeps it, also one of an earlier version; what is none becomes a quarantined one."""
        letter = digest(stored)
        try:
            found = json.loads(stored)
        except (ValueError, RecursionError):
            return cls.quarantined(stored, "no letter: it is not JSON", "", 0, letter)
        if is_old(found):
            return cls._old(found, letter)
        try:
            ours = cls.parse(found, "letter")
        except ContractError as exc:
            return cls.quarantined(stored, f"no letter that can be read ({exc})", "", 0, letter)
        # Whoever can write to the broker may have written it, and a person's terminal is to show it.
        cleaned = {"queue": _line(ours.queue), "reason": _line(ours.reason), "message": _named(ours.message)}
        return ours.model_copy(update=cleaned)

    @classmethod
    def _old(cls, found: dict[str, Any], letter: str) -> Self:
        """Before version 1: the message as it was, with its reason and the worker's time."""
        at = found["at"] if isinstance(found["at"], int | float) and 0 <= found["at"] < 1e11 else 0.0
        reason, message = str(found["reason"]), found["message"]
        if isinstance(message, str):
            return cls.quarantined(message.encode(errors="replace"), reason, "", at, letter)
        return cls(id=letter, at=at, queue="", reason=_line(reason), message=_named(message))

    @property
    def work(self) -> Batch | Delivery | None:
        """The message, if the letter has all of it."""
        for kind in (Batch, Delivery):
            with suppress(ContractError):
                return kind.parse(self.message, "letter")
        return None

    @property
    def what(self) -> str:
        """What it was about, in a few words."""
        if self.raw is not None:
            return "quarantined"
        message = self.message or {}
        if "reply_to" in message or self.queue.endswith("-interactive"):
            return "round trip"
        if "job" not in message:
            return "unreadable message"
        if message.keys() == Completion.model_fields.keys():
            return f"{message['job']} callback"
        batch = f"{message['job']} batch {message.get('batch', '?')}"
        return f"{batch} to {message['destination']}" if "destination" in message else batch

    @property
    def raw_bytes(self) -> bytes | None:
        """What ``raw`` holds."""
        return None if self.raw is None else base64.b64decode(self.raw)


@dataclass(frozen=True)
class Listing:
    """What one look at the dead letters found."""

    letters: list[Letter]
    """Newest first, each id once."""
    complete: bool
    """Whether these are all, as far as the broker can say."""


def listing(letters: list[Letter], limit: int, *, complete: bool) -> Listing:
    """The newest of these, each once: what a broker gave twice, or keeps twice, is one letter."""
    found = sorted({letter.id: letter for letter in letters}.values(), key=lambda letter: letter.at, reverse=True)
    return Listing(found[:limit], complete and len(found) <= limit)


def digest(stored: bytes | str) -> str:
    """The id of what has none of its own: the same bytes have the same, at every look."""
    return hashlib.sha256(stored.encode() if isinstance(stored, str) else stored).hexdigest()[:12]


def is_old(found: object) -> bool:
    """Whether it is a letter of before version 1."""
    return isinstance(found, dict) and found.keys() == {"message", "reason", "at"}


def is_letter(body: str) -> bool:
    """Whether a message in a dead-letter queue is a letter of ours, and not one that was moved there."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return is_old(found) or (isinstance(found, dict) and found.keys() == Letter.model_fields.keys())


def _named(message: object) -> dict[str, Any] | None:
    """What says which work it was."""
    if not isinstance(message, dict):
        return None
    return {name: value for name, value in message.items() if _may_be_kept(name, value)} or None


def _may_be_kept(name: object, value: object) -> bool:
    if isinstance(value, int):
        return name in _NUMBERS and abs(value) < 2**63
    looks = _STRINGS.get(name) if isinstance(name, str) else None
    # Not printable: half a surrogate, and what a terminal would act on.
    return looks is not None and isinstance(value, str) and value.isprintable() and bool(re.fullmatch(looks, value))


def _line(text: str) -> str:
    """Fit for a line of a terminal."""
    shown = "".join(
        char if char.isprintable() else " " if char.isspace() else "\N{REPLACEMENT CHARACTER}" for char in text
    )
    return shown if len(shown) <= _MAX_REASON else f"{shown[:_MAX_REASON]}…"


def _unwrapped(body: str, key: SecretStr | None) -> tuple[dict[str, Any] | None, str]:
    """What is kept of a message in its envelope, and its queue; None of what is not ours."""
    try:
        envelope = json.loads(body)
        arguments, _, _ = json.loads(base64.b64decode(envelope["body"], validate=True))
        headers = envelope["headers"]
        known = headers["task"] in TASKS.values()
        if key is not None:
            signature = str(headers.get(SIGNATURE))
            known = known and is_signed(signature, headers["task"], headers.get(AT), envelope["body"], key)
        queue = envelope["properties"]["delivery_info"]["routing_key"]
        message = _named(arguments[0])
    except (ValueError, LookupError, TypeError, RecursionError):
        return None, ""
    return (message, queue) if known and isinstance(queue, str) and queue.isprintable() else (None, "")
