"""Our Redis transport against stock Celery's: messages that a processor carries in a second, and what waiting costs.

The same messages of 8 KB, the thread pool, tasks that do nothing, late acknowledgement; the two take turns. Both lose
nothing here, where nobody is killed: what stock loses then is the chaos suite's.
"""

import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from redis.exceptions import RedisError

from embedfleet.broker import connect
from embedfleet.contract import EmbedSettings, Request
from embedfleet.local import LocalFleet, redis_server
from embedfleet.redis import RedisBroker
from embedfleet.settings import load
from embedfleet_worker.transport.holding import Holding
from embedfleet_worker.transport.redis import RedisLeases
from loadtest.bench.cpu import Meter
from loadtest.bench.figures import Figure, at_least, at_most

_HELD = 256
_LANES = 3


class NotAllDone(Exception):
    """The consumer ended without its last message."""


def measure(*, quick: bool) -> list[Figure]:
    """Ratio per processor, the heartbeat's share, an idle worker's share and requests."""
    count, rounds, seconds = (50, 1, 1) if quick else (6000, 7, 20)
    with _redis() as broker:
        pairs = [_pair(broker, count, number) for number in range(rounds)]
        heartbeat = _heartbeat(broker, seconds)
    ratios = [stock[0] / ours[0] for ours, stock in pairs]
    details: dict[str, object] = {
        "spread": [round(min(ratios), 2), round(max(ratios), 2)],
        "ours_messages_per_cpu_s": round(count / statistics.median(ours[0] for ours, _ in pairs)),
        "stock_messages_per_cpu_s": round(count / statistics.median(stock[0] for _, stock in pairs)),
        "ours_messages_per_s": round(count / statistics.median(ours[1] for ours, _ in pairs)),
        "stock_messages_per_s": round(count / statistics.median(stock[1] for _, stock in pairs)),
    }
    ratio = round(statistics.median(ratios), 2)
    share, requests = _idle(seconds)
    return [
        at_least(1, "messages per processor, our transport ÷ stock Celery's", ratio, None, **details),
        at_most(1, f"heartbeat of {_HELD} leases", round(100 * heartbeat, 2), "% of a core"),
        at_most(2, "idle worker", round(100 * share, 2), "% of a core"),
        at_most(1, "idle worker, requests of a lane", round(requests, 2), "a second"),
    ]


def _pair(broker: RedisBroker, count: int, number: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Seconds of processor and of the clock, by ours and by stock."""
    if number % 2:
        stock = _run("stock", broker, count)
        return _run("ours", broker, count), stock
    return _run("ours", broker, count), _run("stock", broker, count)


def _run(which: str, broker: RedisBroker, count: int) -> tuple[float, float]:
    queue = f"bench-{uuid.uuid4().hex}"
    reply_to = f"bench-reply-{uuid.uuid4().hex}"
    request = Request(reply_to=reply_to, settings=EmbedSettings(), texts=["a text " * 750], expires_at=0)
    broker.publish_all([request] * count, queue)
    command = [sys.executable, "-m", "loadtest.bench.consumer", which, broker.url, queue, str(count)]
    done = subprocess.run(command, capture_output=True, timeout=300)
    if not done.stdout:
        raise NotAllDone(done.stderr.decode()[-2000:])
    processor, clock = map(float, done.stdout.split())
    return processor, clock


def _heartbeat(broker: RedisBroker, seconds: float) -> float:
    """Share of a core that renewing so many leases takes, at the default lease."""
    queue = f"bench-{uuid.uuid4().hex}"
    leases = RedisLeases(broker, [queue])
    broker.redis.lpush(queue, *(f"message {number}" for number in range(_HELD)))
    holding = Holding(leases, {queue: _HELD}, lease_s=1e9, longest_s=1e9)  # its own thread renews once
    for number, taken in enumerate(leases.take(queue, _HELD)):
        holding.add(str(number), taken)
    begun, cpu, count = time.monotonic(), time.process_time(), 0
    while time.monotonic() - begun < min(seconds, 5):
        holding.renew()
        count += 1
    each_s = (time.process_time() - cpu) / count
    holding.close(5)
    return each_s / (load(broker_url=broker.url).lease_s / 3)


def _idle(seconds: float) -> tuple[float, float]:
    """An idle worker's share of a core, and its requests a second and lane."""
    with tempfile.TemporaryDirectory() as store, LocalFleet(load(store=store, engine="synthetic")) as local:
        local.wait_ready()
        with closing(connect(local.settings)) as broker:
            assert isinstance(broker, RedisBroker)
            time.sleep(2)
            meter = Meter([local.worker_pid])
            time.sleep(seconds)
            share = meter.stop().idle
            requests = _requests(broker, seconds)
    return share, requests / seconds / _LANES


def _requests(broker: RedisBroker, seconds: float) -> int:
    """What clients ask in this time, without what scripts do on the server. Watching costs: not while time is taken."""
    with broker.redis.monitor() as monitor:
        seen: list[object] = []

        def watch() -> None:
            with suppress(RedisError, OSError, ValueError):
                seen.extend(entry for entry in monitor.listen() if entry["client_type"] != "lua")

        threading.Thread(target=watch, daemon=True).start()
        time.sleep(seconds)
        return len(seen)


@contextmanager
def _redis() -> Iterator[RedisBroker]:
    """A server that runs as long as the block."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder) / "r.sock"
        command = [redis_server(), "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not path.exists():
            time.sleep(0.01)
        try:
            with closing(connect(load(broker_url=f"redis+socket://{path}", engine="synthetic"))) as broker:
                assert isinstance(broker, RedisBroker)
                yield broker
        finally:
            server.kill()
            server.wait()
