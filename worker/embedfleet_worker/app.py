"""Celery configured for at-least-once: the worker's queues, its two tasks, its boot steps. Not what the tasks do."""

from typing import Any

from celery import Celery
from celery.exceptions import Reject

from embedfleet.broker import Broker
from embedfleet.contract import TASK_ANSWER, TASK_EMBED
from embedfleet_worker.lifecycle.heartbeat import Heartbeat
from embedfleet_worker.tasks import GiveBack, Tasks
from embedfleet_worker.transport import redis as transport

# Six batches in flight let the engine pack texts across them while others are read, checked and written.
_THREADS = 6 + transport.RESERVED


def build(broker: Broker, tasks: Tasks, queues: list[str], lease_s: float) -> Celery:
    """The Celery app of a worker: threads beside the engine's, late acknowledgement, leases renewed."""
    transport.install()
    app = broker.app
    app.conf.update(
        worker_pool="threads",
        worker_concurrency=_THREADS,
        worker_prefetch_multiplier=1,
        # After a reconnect Celery would hold fewer, down to the reserved slots alone.
        worker_enable_prefetch_count_reduction=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
    )
    app.conf.broker_transport_options = {
        **app.conf.broker_transport_options,
        "queue_order_strategy": "priority",  # queues in the order they are consumed: interactive first
        # Batches of a dead worker are given out again a second after their lease ended.
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 5,
    }
    Heartbeat.broker, Heartbeat.queues, Heartbeat.lease_s = broker, queues, lease_s
    app.steps["consumer"].add(Heartbeat)
    _register(app, TASK_EMBED, tasks.embed)
    _register(app, TASK_ANSWER, tasks.answer)
    return app


def _register(app: Celery, name: str, work: Any) -> None:
    def run(*args: object, **kwargs: object) -> None:
        # Anything else than one argument is not ours; a TypeError here would lose the message.
        message = args[0] if len(args) == 1 and not kwargs else {"args": list(args), "kwargs": kwargs}
        try:
            work(message)
        except GiveBack as exc:
            raise Reject(str(exc), requeue=True) from None  # Celery's way to put a message back; not a failure

    app.task(run, name=name, shared=False, acks_late=True, ignore_result=True)
