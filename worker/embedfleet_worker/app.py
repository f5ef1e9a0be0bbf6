"""Celery configured for at-least-once: the worker's queues and its tasks. Not what the tasks do."""

from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery
from celery.exceptions import Reject

from embedfleet.broker import Broker
from embedfleet.redis import RedisBroker
from embedfleet_worker.settling import GiveBack
from embedfleet_worker.transport import Back, Leases, channel, given_back
from embedfleet_worker.transport.holding import Holding

Work = Callable[[object, int], None]
"""Does what a message asks for; how often the message was given out, where the broker counts that."""

HELD: Mapping[str, int] = {"interactive": 8, "bulk": 6, "deliver": 4}
"""Messages held at once, by lane: each has threads of its own, so that none waits for another's work.

Six batches in flight let the engine pack texts across them while others are read, checked and written.
"""


def leases_of(broker: Broker, queues: list[str]) -> Leases:
    """The leases of a broker."""
    if isinstance(broker, RedisBroker):
        from embedfleet_worker.transport.redis import RedisLeases

        return RedisLeases(broker, queues)
    from embedfleet.sqs import SqsBroker  # only where there is boto3
    from embedfleet_worker.transport.sqs import SqsLeases

    assert isinstance(broker, SqsBroker)  # noqa: S101 - there are two
    return SqsLeases(broker)


def build(tasks: Mapping[str, Work], holding: Holding, threads: int) -> Celery:
    """The Celery app of a worker: threads beside the engine's, late acknowledgement, our transport."""
    app = Celery("embedfleet", broker=channel.URL, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_acks_late=True,
        task_acks_on_failure_or_timeout=False,
        task_ignore_result=True,
        worker_pool="threads",
        worker_concurrency=threads,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
    )
    for name, work in tasks.items():
        _register(app, name, work, holding)
    return app


def _register(app: Celery, name: str, work: Work, holding: Holding) -> None:
    def run(self: Any, /, *args: object, **kwargs: object) -> None:  # a message may have a `self` too
        # Anything else than one argument is not ours; a TypeError here would lose the message.
        message = args[0] if len(args) == 1 and not kwargs else {"args": list(args), "kwargs": kwargs}
        tag = (self.request.properties or {}).get("delivery_tag", "")
        try:
            work(message, holding.times(tag))
        except GiveBack as exc:
            given_back[tag] = Back(exc.delay_s, exc.outage, exc.blamed)
            raise Reject(str(exc), requeue=True) from None  # Celery's way to put a message back; not a failure

    app.task(run, name=name, bind=True, shared=False, acks_late=True, ignore_result=True)
