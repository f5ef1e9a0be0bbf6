"""Publishing to SQS by tens against one by one: the same messages, on moto in a process of its own.

The two take turns, and who begins alternates. What arrived is counted each time. moto answers without a network's
delay, so that the figure is the least that tens are worth: on AWS each request waits for milliseconds more.
"""

import os
import socket
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress

from embedfleet.broker import connect
from embedfleet.contract import Batch
from embedfleet.errors import BrokerUnavailable
from embedfleet.settings import load
from embedfleet.sqs import SqsBroker
from loadtest.bench.figures import Figure

_START_S = 60.0


class NotAllArrived(Exception):
    """Messages are missing: the times say nothing."""


def measure(*, quick: bool) -> list[Figure]:
    """The median ratio of speeds over pairs of runs, with its spread. ``quick``: few messages."""
    count, rounds = (20, 2) if quick else (100, 15)  # moto gets slower with each message that waits
    messages = [Batch(to="s3://vectors/team", job="j-0123456789abcdef0123", batch=n, tokens=9000) for n in range(count)]
    with _moto() as broker:
        _pair(broker, messages[:100], 0)
        pairs = [_pair(broker, messages, number) for number in range(rounds)]
    ratios = [single / tens for tens, single in pairs]
    details: dict[str, object] = {
        "spread": [round(min(ratios), 2), round(max(ratios), 2)],
        "ratios": [round(ratio, 2) for ratio in ratios],
        "tens_messages_per_s": round(count / statistics.median(tens for tens, _ in pairs)),
        "single_messages_per_s": round(count / statistics.median(single for _, single in pairs)),
        "messages": count,
    }
    return [Figure("SQS publishing, by tens ÷ one by one", round(statistics.median(ratios), 2), details=details)]


def _pair(broker: SqsBroker, messages: Sequence[Batch], number: int) -> tuple[float, float]:
    """Seconds by tens and one by one."""

    def tens(queue: str) -> None:
        broker.publish_all(messages, queue)

    def single(queue: str) -> None:
        for message in messages:
            broker.publish(message, queue)

    if number % 2:
        seconds = _timed(broker, single, len(messages))
        return _timed(broker, tens, len(messages)), seconds
    return _timed(broker, tens, len(messages)), _timed(broker, single, len(messages))


def _timed(broker: SqsBroker, publish: Callable[[str], None], count: int) -> float:
    """Seconds until all are published to a new queue."""
    queue = f"bench-{uuid.uuid4().hex}"
    broker.find_or_make(queue)
    begun = time.perf_counter()
    publish(queue)
    seconds = time.perf_counter() - begun
    arrived = broker.depth(queue)
    broker.call("delete_queue", queue)
    if arrived != count:
        raise NotAllArrived(f"{arrived} of {count} messages are in the queue.")
    return seconds


@contextmanager
def _moto() -> Iterator[SqsBroker]:
    """A broker at a moto server that runs as long as the block, with the fleet's queues."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ours = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "a-key",
        "AWS_SECRET_ACCESS_KEY": "a-secret",
    }
    before = {name: os.environ.get(name) for name in ours}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ.update(ours)
    try:
        with closing(connect(load(broker_url="sqs://us-east-1", engine="synthetic"))) as broker:
            assert isinstance(broker, SqsBroker)
            _wait(broker, server)
            broker.find_or_make(broker.dead_queue)
            yield broker
    finally:
        server.terminate()
        server.wait()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _wait(broker: SqsBroker, server: "subprocess.Popen[bytes]") -> None:
    """Until moto answers."""
    end = time.monotonic() + _START_S
    while time.monotonic() < end and server.poll() is None:
        with suppress(BrokerUnavailable):
            return broker.check()
        time.sleep(0.1)
    raise BrokerUnavailable("moto did not start.")
