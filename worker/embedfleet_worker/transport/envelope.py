"""What a message of ours looks like on the wire, before Celery sees it. Not what it says (contract.py).

Celery and kombu trust what they read: an odd header ends their loop, a chain in the body is published, an expired
message is dropped. So everything but what our producers send is set aside before it gets there.
"""

import base64
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embedfleet.contract import describe


class _Headers(BaseModel):
    """Celery's, as far as it acts on them. Others, such as those of tracing, may ride along."""

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


def read(message: bytes) -> dict[str, Any]:
    """The message as kombu wants it. Raises ValueError saying what is wrong, without what it holds."""
    try:
        envelope = json.loads(message)
        checked = _Envelope.model_validate(envelope)
        body = json.loads(base64.b64decode(checked.body, validate=True))
    except ValidationError as exc:
        raise ValueError(describe(exc)) from None
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"not JSON ({type(exc).__name__})") from None
    if not _is_body(body):
        raise ValueError("its body is not [arguments, keyword arguments, no callbacks]")
    found: dict[str, Any] = envelope
    return found


def _is_body(body: object) -> bool:
    if not isinstance(body, list) or len(body) != 3:
        return False
    args, kwargs, embedded = body
    shapes = isinstance(args, list) and isinstance(kwargs, dict) and isinstance(embedded, dict)
    return shapes and not any(embedded.values())
