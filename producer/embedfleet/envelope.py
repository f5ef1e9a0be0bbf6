"""A message on the wire: what Celery's own producers would send, and nothing that it acts on before the task runs.

Written by hand because it is little: a producer needs no Celery, its connections are the driver's, and many messages
go in one request. How it is read is the worker's (transport/envelope.py).
"""

import base64
import json
import uuid
from collections.abc import Mapping

from embedfleet.contract import TASK_ANSWER, TASK_COMPLETE, TASK_DELIVER, TASK_EMBED, Batch, Completion, Delivery, Request

Message = Batch | Request | Delivery | Completion

TASKS: Mapping[type[Message], str] = {
    Batch: TASK_EMBED,
    Request: TASK_ANSWER,
    Delivery: TASK_DELIVER,
    Completion: TASK_COMPLETE,
}
"""Celery's name of the task that does each kind of message."""


def wrap(message: Message, queue: str) -> str:
    """JSON text for a queue. Every one has a new task id: Celery drops what comes with an id that it knows."""
    task_id = str(uuid.uuid4())
    body = json.dumps([[message.model_dump(mode="json")], {}, {}], separators=(",", ":"))
    headers = {
        "lang": "py",
        "task": TASKS[type(message)],
        "id": task_id,
        "root_id": task_id,
        "eta": None,
        "expires": None,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": "",  # Celery would fill it with the texts, and headers end in logs
        "kwargsrepr": "",
    }
    envelope = {
        "body": base64.b64encode(body.encode()).decode(),
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
