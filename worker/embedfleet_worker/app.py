"""Celery configured for at-least-once: the worker's queues, its tasks, its boot steps. Not what the tasks do."""

import ssl
import threading
from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery
from celery.exceptions import Reject

from embedfleet.broker import CONNECT_TIMEOUT_S, Broker
from embedfleet.redis import RedisBroker
from embedfleet_worker.lifecycle.heartbeat import Heartbeat
from embedfleet_worker.settling import GiveBack
from embedfleet_worker.transport import TAKEN, give_back_in_s, running

Work = Callable[[object], None]

HELD: Mapping[str, int] = {"interactive": 8, "bulk": 6, "deliver": 4}
"""Messages held at once, by lane: each has threads of its own, so that none waits for another's work.

Six batches in flight let the engine pack texts across them while others are read, checked and written.
"""


def build(broker: Broker, tasks: Mapping[str, Work], queues: Mapping[str, int]) -> Celery:
    """The Celery app of a worker: threads beside the engine's, late acknowledgement, leases renewed.

    ``tasks`` by their names; ``queues`` in the order in which they are looked at, with the messages held at once.
    """
    app = Celery("embedfleet", broker=broker.url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_acks_late=True,
        task_acks_on_failure_or_timeout=False,
        task_ignore_result=True,
        worker_pool="threads",
        worker_concurrency=sum(queues.values()),
        worker_prefetch_multiplier=1,
        # After a reconnect Celery would hold fewer, down to none.
        worker_enable_prefetch_count_reduction=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=CONNECT_TIMEOUT_S,
        broker_transport_options=_install(broker, queues),
        # kombu would not look at the server's certificate unless told to; what the URL says goes first.
        broker_use_ssl={"ssl_cert_reqs": ssl.CERT_REQUIRED} if broker.url.startswith("rediss:") else None,
    )
    Heartbeat.broker, Heartbeat.queues, Heartbeat.lease_s = broker, list(queues), broker.settings.lease_s
    app.steps["consumer"].add(Heartbeat)
    for name, work in tasks.items():
        _register(app, name, work)
    return app


def _install(broker: Broker, queues: Mapping[str, int]) -> dict[str, Any]:
    """Celery's options for the transport of the broker."""
    if isinstance(broker, RedisBroker):
        from embedfleet_worker.transport import redis

        return redis.install(broker, queues)
    from embedfleet_worker.transport import sqs  # only where there is boto3

    return sqs.install(broker, queues)


def _register(app: Celery, name: str, work: Work) -> None:
    def run(self: Any, *args: object, **kwargs: object) -> None:
        # Anything else than one argument is not ours; a TypeError here would lose the message.
        message = args[0] if len(args) == 1 and not kwargs else {"args": list(args), "kwargs": kwargs}
        taken = (self.request.properties or {}).get(TAKEN)
        if taken is not None:
            running[threading.get_ident()] = taken
        try:
            work(message)
        except GiveBack as exc:
            if exc.delay_s is not None:
                give_back_in_s[self.request.properties["delivery_tag"]] = exc.delay_s
            raise Reject(str(exc), requeue=True) from None  # Celery's way to put a message back; not a failure
        finally:
            running.pop(threading.get_ident(), None)

    app.task(run, name=name, bind=True, shared=False, acks_late=True, ignore_result=True)
