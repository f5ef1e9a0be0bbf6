"""Scenario 7: batches that crash their worker, hang it, exhaust its memory, break a step of the engine; and garbage."""

import base64
import json

import pytest

from embedfleet.redis import RedisBroker
from embedfleet.sqs import SqsBroker
from tests.chaos.conftest import KILLS
from tests.chaos.fleet import ChaosFleet
from tests.chaos.invariant import check
from tests.waiting import wait_until

TEXTS = {f"t{number}": f"text {number}" for number in range(400)}
BAD = "t205"
BATCH = [f"t{number}" for number in range(200, 210)]
DEADLINE_S = 3


ACTS = {
    "kill": BATCH,  # what kills the process is nobody's fault but the batch's
    "segfault": BATCH,
    "raise": [BAD],  # what it survives is halved down to the text
    "memory": [BAD],
    "hang": BATCH,
}
BOTH = tuple(ACTS) if KILLS else ("kill", "raise")


@pytest.mark.parametrize(("kind", "act"), [*(("redis", act) for act in ACTS), *(("sqs", act) for act in BOTH)])
def test_poison(fleet: ChaosFleet, act: str) -> None:
    fleet.environment["EMBEDFLEET_DEADLINE_S"] = str(DEADLINE_S)
    fleet.keep(2)
    more = {f"m{number}": "a good text" for number in range(1500)} if act == "hang" else {}
    texts = TEXTS | {BAD: f"chaos:{act}"} | more
    check(fleet, fleet.submit(texts.items()), texts, bad=ACTS[act], timeout_s=200)


GARBAGE = (
    b"\xff\xfe no text at all",
    b"{",
    b"[]",
    b"null",
    json.dumps({"body": "!", "headers": {}, "properties": {}}).encode(),
    json.dumps({"body": base64.b64encode(b"{}").decode(), "content-type": "application/x-python-serialize"}).encode(),
    b"[" * 100_000,
    b'{"a": 1' + b"0" * 10_000 + b"}",
)


def test_garbage(fleet: ChaosFleet) -> None:
    """It goes where a person looks, and no worker ends."""
    rubbish(fleet)
    job = fleet.submit(TEXTS.items())
    rubbish(fleet)
    fleet.keep(2)
    check(fleet, job, TEXTS)
    wait_until(lambda: fleet.is_idle(), "all of it to be set aside")
    assert fleet.exits == []


def rubbish(fleet: ChaosFleet) -> None:
    """Publish what nobody can read."""
    if isinstance(fleet.broker, RedisBroker):
        fleet.broker.redis.lpush(fleet.bulk, *GARBAGE)
        return
    assert isinstance(fleet.broker, SqsBroker)
    for body in GARBAGE[1:]:
        fleet.broker.call("send_message", fleet.bulk, MessageBody=body.decode())
