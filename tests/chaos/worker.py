"""A worker that keeps a journal and can be killed at any step: ``python -m tests.chaos.worker``. Test code only.

It is `embedfleet_worker` with hooks at interfaces that stay. A file ``kill at <point>`` in CHAOS_FOLDER makes the first
worker that comes to this point, and holds a lease, kill itself; texts with ``chaos:`` do things to the engine.
"""

import base64
import ctypes
import functools
import json
import os
import resource
import runpy
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import redis.connection
from celery.signals import worker_shutting_down
from kombu.message import Message
from kombu.transport import virtual

from embedfleet.jobfolder import JobFolder
from embedfleet.redis import RedisBroker
from embedfleet.sqs import SqsBroker
from embedfleet_worker.engine import synthetic
from tests.chaos.journal import SWEEPING, Batch, Journal

_folder = Path(os.environ["CHAOS_FOLDER"])
_name = os.environ["CHAOS_WORKER"]
_journal = Journal(_folder / "journal")
_held: dict[object, Batch | None] = {}


def reach(point: str, about: Batch | None = None) -> None:
    """A step of the way; the last one, if this worker was told so."""
    if about is not None:
        _journal.write(_name, point, about)
    trigger = _folder / f"kill at {point}"
    if trigger.exists() and (_held or point == SWEEPING):
        try:
            trigger.rename(_folder / f"killed {_name}")  # one worker wins
        except FileNotFoundError:
            return
        _journal.write(_name, f"killed {point}")
        os.kill(os.getpid(), signal.SIGKILL)


def around(owner: Any, name: str, before: str, after: str, about: Callable[..., Batch | None] = lambda *_: None) -> None:
    """Reach these points whenever a function is called and has returned."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before:
            reach(before, about(*args))
        result = original(*args, **kwargs)
        if after:
            reach(after, about(*args))
        return result

    setattr(owner, name, wrapped)


def _hook_leases() -> None:
    deliver, send, call = virtual.Transport._deliver, redis.connection.AbstractConnection.send_packed_command, SqsBroker.call

    def delivered(self: Any, message: dict[str, Any], queue: str) -> Any:
        about = _batch_of(message)
        _held[message["properties"]["delivery_tag"]] = about
        reach("leased", about)
        return deliver(self, message, queue)

    def sent(self: Any, command: Any, **kwargs: Any) -> Any:
        first = command if isinstance(command, bytes) else b"".join(command)
        if b"EVAL" not in first[:24]:
            return send(self, command, **kwargs)
        reach("before a lease")
        result = send(self, command, **kwargs)
        reach("lease asked")
        return result

    def called(self: Any, operation: str, *args: Any, **kwargs: Any) -> Any:
        if operation != "receive_message":
            return call(self, operation, *args, **kwargs)
        reach("before a lease")
        _journal.write(_name, "asking")
        result = call(self, operation, *args, **kwargs)
        reach("lease asked")
        _journal.write(_name, "answered")
        return result

    virtual.Transport._deliver, SqsBroker.call = delivered, called
    redis.connection.AbstractConnection.send_packed_command = sent


def _batch_of(message: dict[str, Any]) -> Batch | None:
    args = json.loads(base64.b64decode(message["body"]))[0]
    found = args[0] if args and isinstance(args[0], dict) else {}
    return (found["job"], found["batch"]) if {"job", "batch"} <= found.keys() and "destination" not in found else None


def _hook_settling() -> None:
    for name in ("ack", "reject", "requeue"):
        original = getattr(Message, name)

        def settled(self: Any, *args: Any, original: Any = original, **kwargs: Any) -> Any:
            reach("before acknowledge")
            result = original(self, *args, **kwargs)
            about = _held.pop(self.delivery_tag, None)
            if about is not None:
                _journal.write(_name, "settled", about)
            reach("acknowledged")
            return result

        setattr(Message, name, settled)


def _hook_work() -> None:
    def of(folder: JobFolder, number: int, *_: object) -> Batch | None:
        # The janitor looks at folders too.
        return (folder.job, number) if threading.current_thread().name.startswith("ThreadPool") else None

    around(JobFolder, "has_part", "taken", "", of)
    around(JobFolder, "input", "started", "", of)
    around(JobFolder, "write_part", "before the part", "part written", of)
    for broker in (RedisBroker, SqsBroker):
        publish = broker.publish_all

        def published(self: Any, messages: Sequence[Any], queue: str, publish: Any = publish) -> None:
            delivers = queue == self.deliver_queue
            if delivers:
                reach("before hand over")
            publish(self, messages, queue)
            if delivers:
                reach("handed over")
            if threading.current_thread().name.startswith("janitor"):
                reach(SWEEPING)

        broker.publish_all = published  # type: ignore[method-assign]


def _hook_engine() -> None:
    vectors = synthetic.synthetic_vectors

    def embedded(prompts: Sequence[str], dimensions: int) -> Any:
        for prompt in prompts:
            for word, act in _ACTS.items():
                if word in prompt:
                    act()
        return vectors(prompts, dimensions)

    synthetic.synthetic_vectors = embedded


def _die() -> None:
    """As the kernel has it when memory is short."""
    _journal.write(_name, "killed by a text")
    os.kill(os.getpid(), signal.SIGKILL)


def _raise() -> None:
    raise RuntimeError("chaos")


def _exhaust() -> None:
    """All memory that the process may have."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, before[1]))
    try:
        bytearray(2**32)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


_ACTS: dict[str, Callable[[], object]] = {
    "chaos:kill": _die,
    "chaos:segfault": lambda: ctypes.string_at(0),
    "chaos:hang": lambda: time.sleep(3600),
    "chaos:raise": _raise,
    "chaos:memory": _exhaust,
}


def _use_stock_transport() -> None:
    """kombu's own, which pops first and leases later: the suite has to see that it loses messages."""
    from embedfleet_worker.transport import redis as ours

    quick = {"unacked_restore_interval": 1, "unacked_restore_throttle": 1, "unacked_mutex_expire": 5}
    ours.install = lambda broker, *_, **__: {"visibility_timeout": broker.settings.lease_s, **quick}


if __name__ == "__main__":
    _hook_leases()
    _hook_settling()
    _hook_work()
    _hook_engine()
    if "CHAOS_STOCK" in os.environ:
        _use_stock_transport()
    worker_shutting_down.connect(lambda **_: reach("draining"), weak=False)
    _journal.write(_name, "begun")
    runpy.run_module("embedfleet_worker", run_name="__main__", alter_sys=True)
