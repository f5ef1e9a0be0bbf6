"""Queues on a stand-in for SQS, for the tests: names of their own, made as `embedfleet doctor --fix` does."""

import base64
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from embedfleet.broker import connect
from embedfleet.contract import Batch
from embedfleet.settings import FleetSettings, load
from embedfleet.sqs import SqsBroker


def settings(**others: object) -> FleetSettings:
    """Settings of a fleet whose queues nobody else has."""
    return load(broker_url="sqs://us-east-1", queue_prefix=f"t-{uuid.uuid4().hex[:12]}", engine="synthetic", **others)


@contextmanager
def made(settings: FleetSettings) -> Iterator[SqsBroker]:
    """A broker at queues that are there."""
    broker = connect(settings)
    assert isinstance(broker, SqsBroker)
    for queue in broker.queues:
        broker.find_or_make(queue)
    yield broker
    broker.close()


def attributes(broker: SqsBroker, queue: str) -> dict[str, str]:
    """Of a queue, all."""
    found: dict[str, str] = broker.call("get_queue_attributes", queue, AttributeNames=["All"])["Attributes"]
    return found


def change(broker: SqsBroker, queue: str, **attributes: str) -> None:
    """Have a queue be what somebody else made it."""
    broker.call("set_queue_attributes", queue, Attributes=attributes)


def held(broker: SqsBroker, queue: str) -> int:
    """Messages that somebody holds."""
    return int(attributes(broker, queue)["ApproximateNumberOfMessagesNotVisible"])


def batch(job: str, to: str) -> Batch:
    """A message of ours."""
    return Batch(to=to, job=job, batch=0, tokens=1)


def body(message: str) -> dict[str, Any]:
    """What a message of ours says."""
    found: dict[str, Any] = json.loads(base64.b64decode(json.loads(message)["body"]))[0][0]
    return found
