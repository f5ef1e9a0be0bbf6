"""Consuming until something ends it: a signal, a notice, a broken engine. Not how it ends (drain.py)."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from celery.signals import setup_logging, worker_ready, worker_shutting_down

from embedfleet.broker import Broker
from embedfleet.settings import LANES
from embedfleet_worker import app
from embedfleet_worker.bisection import longest_s
from embedfleet_worker.lifecycle.drain import Drain
from embedfleet_worker.lifecycle.health import Health
from embedfleet_worker.lifecycle.presence import Presence
from embedfleet_worker.starts import Starts
from embedfleet_worker.telemetry import Metrics
from embedfleet_worker.transport import channel
from embedfleet_worker.transport.holding import Holding

log = logging.getLogger("embedfleet_worker")

EXIT_ENGINE = 70
_GIVING_BACK_S = 5.0  # for what was not with the engine to end by itself
_SLACK_S = 900.0  # that a message is held beside the time with the engine, where stores and brokers are slow


def serve(broker: Broker, work: Mapping[str, app.Work], starts: Starts, health: Health, metrics: Metrics) -> NoReturn:
    """Consume; the process ends in here."""
    settings = broker.settings
    # In the order of LANES, which is that of their importance.
    lanes = {lane: broker.lane(lane) for lane in LANES if lane in settings.queues}
    limits = {queue: app.HELD[lane] for lane, queue in lanes.items()}
    leases = app.leases_of(broker, list(limits))
    holding = Holding(leases, limits, settings.lease_s, longest_s(settings.deadline_s) + _SLACK_S)
    channel.install(broker, leases, holding)
    presence = Presence(broker, list(limits))

    def stopping() -> None:
        health.stopping = True
        presence.withdraw()

    def ready() -> None:
        health.consuming = True
        health.failing = channel.failing
        presence.start()

    drain = Drain(holding, settings.grace_s, before=stopping, after=starts.forgive)
    _when(health.engine_dead, lambda: drain.begin("the engine is dead", EXIT_ENGINE, _GIVING_BACK_S))
    _when(holding.hanging, lambda: drain.begin("work hangs", EXIT_ENGINE, _GIVING_BACK_S))
    metrics.watch(broker.depth, lanes)
    log.info("consuming %s", ", ".join(limits))
    code = _consume(app.build(work, holding, sum(limits.values())), list(limits), drain, ready)
    drain.begin("Celery's loop ended", code)
    while True:
        time.sleep(60)


def _consume(celery: Any, queues: list[str], drain: Drain, ready: Callable[[], None]) -> int:
    """Run Celery's loop; its exit code. Signals are for the drain, not for Celery's own shutdown."""

    def told(number: int, _frame: object = None) -> None:
        if number == signal.SIGINT and drain.begun:
            drain.hurry()  # a second Ctrl-C; a second SIGTERM may come from whoever stops what stops already
        drain.begin(f"told to by {signal.Signals(number).name}")

    def began(**_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, told)
        ready()

    setup_logging.connect(lambda **_: None, weak=False)  # Celery leaves logging to us
    logging.getLogger("celery").setLevel(logging.WARNING)  # a line a batch is enough, and that one is ours
    logging.getLogger("celery.app.trace").setLevel(logging.ERROR)  # it would print a traceback for each give-back
    worker_shutting_down.connect(lambda **_: drain.begin("told to while it began to consume"), weak=False)
    worker_ready.connect(began, weak=False)
    worker = celery.Worker(queues=queues, without_gossip=True, without_mingle=True, without_heartbeat=True, quiet=True)
    worker.start()
    return int(worker.exitcode or 0)


def _when(event: threading.Event, act: Callable[[], None]) -> None:
    def run() -> None:
        event.wait()
        act()

    threading.Thread(target=run, name="watch", daemon=True).start()
