"""A worker that keeps a journal and can be killed at any step: ``python -m tests.chaos.worker``. Test code only.

It is `embedfleet_worker` with hooks. A file ``kill at <point>`` in CHAOS_FOLDER makes the first
worker that comes to this point, and holds a lease, kill itself; bad_texts.py has texts that do.
"""

import base64
import functools
import json
import os
import runpy
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from kombu.message import Message
from kombu.transport import virtual
from redis.connection import AbstractConnection

from embedfleet.jobfolder import JobFolder
from embedfleet.lost import Lanes
from embedfleet.redis import RedisBroker
from embedfleet.sqs import SqsBroker
from embedfleet_worker import app
from embedfleet_worker.lifecycle import janitor
from embedfleet_worker.lifecycle.drain import Drain
from embedfleet_worker.transport import channel
from embedfleet_worker.transport.holding import Holding
from embedfleet_worker.transport.redis import RedisLeases
from embedfleet_worker.transport.sqs import SqsLeases
from tests.chaos import bad_texts
from tests.chaos.journal import DRAINING, GIVING_BACK, SWEEPING, Batch, Journal

_folder = Path(os.environ.get("CHAOS_FOLDER", os.devnull))
_name = os.environ.get("CHAOS_WORKER", "")
_journal: Journal
_SCRIPTS = {"poll": "lease", "leases": "settlement", "heartbeat": "sweep"}
"""By thread, what its scripts do on Redis."""
_OPERATIONS = {
    "receive_message": "lease",
    "delete_message_batch": "settlement",
    "change_message_visibility_batch": "sweep",  # renewing, which is all of a sweep that is left to a worker
}
_SLOT_S = 5.0
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


def around(
    owner: Any, name: str, before: str, after: str, about: Callable[..., Batch | None] = lambda *_: None
) -> None:
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
    deliver, send = virtual.Transport._deliver, AbstractConnection.send_packed_command

    def delivered(self: Any, message: dict[str, Any], queue: str) -> Any:
        about = _batch_of(message)
        _held[message["properties"]["delivery_tag"]] = about
        reach("leased", about)
        return deliver(self, message, queue)

    def sent(self: Any, command: Any, **kwargs: Any) -> Any:
        first = command if isinstance(command, bytes) else b"".join(command)
        step = next((step for name, step in _SCRIPTS.items() if threading.current_thread().name.startswith(name)), "")
        if not step or b"EVAL" not in first[:24]:
            return send(self, command, **kwargs)
        reach(f"before a {step}")
        result = send(self, command, **kwargs)
        reach(f"{step} asked")  # the server has done it, and nobody has read its answer
        return result

    virtual.Transport._deliver, AbstractConnection.send_packed_command = delivered, sent
    call = SqsBroker.call

    def called(self: Any, operation: str, *args: Any, **kwargs: Any) -> Any:
        step = _OPERATIONS.get(operation, operation)
        reach(f"before a {step}")
        result = call(self, operation, *args, **kwargs)
        reach(f"{step} asked")
        return result

    SqsBroker.call = called  # type: ignore[method-assign]
    for leases in (RedisLeases, SqsLeases):
        take = leases.take

        def taking(self: Any, queue: str, room: int, take: Any = take) -> Any:
            _journal.write(_name, f"asking {queue}")
            found = take(self, queue, room)
            _journal.write(_name, f"answered {queue}")
            return found

        leases.take = taking  # type: ignore[method-assign]


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
            publish(self, messages, queue)
            if threading.current_thread().name.startswith("janitor"):
                reach(SWEEPING)

        broker.publish_all = published  # type: ignore[method-assign]


def _use_stock_transport() -> None:
    """kombu's own, which pops first and leases later: the suite has to see that it loses messages."""
    channel.URL = os.environ["EMBEDFLEET_BROKER_URL"]
    build = app.build

    def stock(*args: Any, **kwargs: Any) -> Any:
        celery = build(*args, **kwargs)
        quick = {"unacked_restore_interval": 1, "unacked_restore_throttle": 1, "unacked_mutex_expire": 5}
        celery.conf.broker_transport_options = {"visibility_timeout": 2, **quick}
        return celery

    app.build = stock


def _hurry_janitor() -> None:
    """A sweep every few seconds instead of one a minute; the stand-in for SQS counts exactly."""
    janitor.SLOT_S, janitor._OTHERS_S, janitor._SPREAD_S = _SLOT_S, 0.5, 1.0
    Lanes.__init__.__defaults__ = (_SLOT_S,)


def _sleep_under_faketime() -> None:
    """libfaketime 0.9.10 has clock_nanosleep fail, which Python's sleep is made of."""

    def sleep(seconds: Any) -> None:
        threading.Event().wait(float(seconds))

    time.sleep = sleep


def _say_when_it_leaves() -> None:
    leave = os._exit

    def leaving(code: int) -> NoReturn:
        _journal.write(_name, "left")
        leave(code)

    os._exit = leaving


if __name__ == "__main__":
    _journal = Journal(_folder / "journal")
    if "FAKETIME" in os.environ:
        _sleep_under_faketime()
    _hook_leases()
    _hook_settling()
    _hook_work()
    bad_texts.hook(lambda: _journal.write(_name, "killed by a text"))
    _hurry_janitor()
    _say_when_it_leaves()
    if "CHAOS_STOCK" in os.environ:
        _use_stock_transport()
    for broker in (RedisBroker, SqsBroker):
        around(broker, "hand_over", "before hand over", "handed over")
    around(Drain, "begin", "", DRAINING)
    around(Holding, "close", GIVING_BACK, "")
    _journal.write(_name, "begun")
    runpy.run_module("embedfleet_worker", run_name="__main__", alter_sys=True)
