"""A message on the wire: what Celery's own producers would send, and nothing that it acts on before the task runs.

Written by hand because it is little: a producer needs no Celery, its connections are the driver's, and many messages
go in one request. How it is read is the worker's (transport/envelope.py); what a signature is, both sides find here.
"""

import base64
import hashlib
import hmac
import json
import uuid
from collections.abc import Mapping

from pydantic import SecretStr

from embedfleet.contract import (
    TASK_ANSWER,
    TASK_COMPLETE,
    TASK_DELIVER,
    TASK_EMBED,
    Batch,
    Completion,
    Delivery,
    Request,
)

Message = Batch | Request | Delivery | Completion

TASKS: Mapping[type[Message], str] = {
    Batch: TASK_EMBED,
    Request: TASK_ANSWER,
    Delivery: TASK_DELIVER,
    Completion: TASK_COMPLETE,
}
"""Celery's name of the task that does each kind of message."""

AT = "embedfleet_at"
"""Header: when the message was published, Unix time in s on the broker's clock."""
SIGNATURE = "embedfleet_signature"
"""Header: what :func:`sign` makes of the message, where the fleet has a signing key."""


def wrap(message: Message, queue: str, *, at: float, key: SecretStr | None) -> str:
    """JSON text for a queue, signed if there is a key. ``at``: Unix time in s on the broker's clock.

    Every one has a new task id: Celery drops what comes with an id that it knows.
    """
    task_id, task, at = str(uuid.uuid4()), TASKS[type(message)], round(float(at), 3)
    content = json.dumps([[message.model_dump(mode="json")], {}, {}], separators=(",", ":"))
    body = base64.b64encode(content.encode()).decode()
    headers = {
        "lang": "py",
        "task": task,
        "id": task_id,
        "root_id": task_id,
        "eta": None,
        "expires": None,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": "",  # Celery would fill it with the texts, and headers end in logs
        "kwargsrepr": "",
        AT: at,
    }
    if key is not None:
        headers[SIGNATURE] = sign(task, at, body, key)
    envelope = {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": {
            "correlation_id": task_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    return json.dumps(envelope, separators=(",", ":"))


def sign(task: str, at: float | None, body: str, key: SecretStr) -> str:
    """HMAC-SHA256 in hex over what a worker acts on: the task's name, when it was published, the body as it travels.

    Not over ids and queues, which change when a message is sent again. JSON keeps the borders between the fields.
    """
    signed = json.dumps([task, at if at is None else float(at), body]).encode()
    return hmac.new(key.get_secret_value().encode(), signed, hashlib.sha256).hexdigest()


def is_signed(signature: str, task: str, at: float | None, body: str, key: SecretStr) -> bool:
    """Whether a signature is that of the message, told in a time that says nothing of the right one."""
    return hmac.compare_digest(signature.encode(), sign(task, at, body, key).encode())
