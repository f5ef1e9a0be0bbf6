"""What a message of ours looks like on the wire, before Celery sees it. Not what it says (contract.py).

Celery and kombu trust what they read: an odd header ends their loop, a chain in the body is published, an expired
message is dropped. So everything but what our producers send is set aside before it gets there.
"""

import base64
import json
from typing import Any, Literal

from kombu.utils.json import loads
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from embedfleet.contract import describe
from embedfleet.envelope import is_signed

MAX_BYTES = 16 * 1024 * 1024
"""Of a message. `Fleet.embed` takes 1 MiB of texts, of which escapes, quotes and base64 can make twelve (control
characters, each a text); what is larger nobody of ours sent. SQS refuses more than 1 MiB itself.
"""


class _Headers(BaseModel):
    """Celery's, ours, and those of tracing. Others go no further: Celery acts on names that nobody would think of."""

    model_config = ConfigDict(strict=True)

    task: Literal["embedfleet.embed", "embedfleet.answer", "embedfleet.deliver", "embedfleet.complete"]
    id: str
    lang: str | None = None
    shadow: None = None
    eta: None = None
    expires: None = None
    group: None = None
    group_index: None = None
    retries: int = 0
    timelimit: list[None] | None = Field(default=None, min_length=2, max_length=2)
    root_id: str | None = None
    parent_id: str | None = None
    argsrepr: str = ""
    kwargsrepr: str = ""
    origin: str | None = None
    ignore_result: bool | None = None
    replaced_task_nesting: int = 0
    stamped_headers: None = None
    stamps: dict[str, None] = Field(default={}, max_length=0)
    compression: None = None
    """kombu would unpack it without a limit."""
    traceparent: str | None = None
    tracestate: str | None = None
    baggage: str | None = None
    embedfleet_at: float | None = Field(default=None, allow_inf_nan=False)
    embedfleet_signature: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class _DeliveryInfo(BaseModel):
    model_config = ConfigDict(strict=True)

    exchange: str
    routing_key: str


class _Properties(BaseModel):
    model_config = ConfigDict(strict=True)

    delivery_tag: str
    delivery_info: _DeliveryInfo
    body_encoding: Literal["base64"]
    correlation_id: str | None = None
    reply_to: str | None = None
    priority: int | None = None


class _Envelope(BaseModel):
    model_config = ConfigDict(strict=True)

    body: str
    content_type: Literal["application/json"] = Field(alias="content-type")
    content_encoding: Literal["utf-8"] = Field(alias="content-encoding")
    headers: _Headers
    properties: _Properties


def read(message: bytes, key: SecretStr | None) -> dict[str, Any]:
    """The message as kombu wants it; with a key, only one that is signed with it.

    Raises ValueError saying what is wrong, without what it holds.
    """
    if len(message) > MAX_BYTES:
        raise ValueError(f"it has {len(message)} bytes, and {MAX_BYTES} are the most")
    envelope = _parse(message)
    try:
        checked = _Envelope.model_validate(envelope)
        content = base64.b64decode(checked.body, validate=True)
    except ValidationError as exc:
        raise ValueError(describe(exc)) from None
    except ValueError:
        raise ValueError("its body is not base64") from None
    if key is not None:
        _check_signature(checked, key)
    try:
        body = loads(content)  # as Celery will: it has types of its own in JSON
    except Exception as exc:
        raise ValueError(f"its body is not JSON ({type(exc).__name__})") from None
    if not _is_body(body):
        raise ValueError("its body is not [arguments, keyword arguments, no callbacks]")
    return checked.model_dump(by_alias=True, exclude_none=True)


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"not JSON ({type(exc).__name__})") from None


def _check_signature(checked: _Envelope, key: SecretStr) -> None:
    """Before the body is read: what a stranger wrote is not even parsed."""
    headers = checked.headers
    if headers.embedfleet_signature is None:
        raise ValueError("it is not signed, and this fleet has an EMBEDFLEET_SIGNING_KEY")
    if not is_signed(headers.embedfleet_signature, headers.task, headers.embedfleet_at, checked.body, key):
        raise ValueError("its signature does not fit: another EMBEDFLEET_SIGNING_KEY?")


def _is_body(body: object) -> bool:
    if not isinstance(body, list) or len(body) != 3:
        return False
    args, kwargs, embedded = body
    shapes = isinstance(args, list) and isinstance(kwargs, dict) and isinstance(embedded, dict)
    return shapes and not any(embedded.values())
