"""A process that consumes messages and does nothing with them: by our transport, or by stock Celery's for Redis.

    python -m loadtest.bench.consumer ours|stock REDIS_URL QUEUE COUNT

Prints the seconds of processor and of the clock from the first message to the last.
"""

import os
import sys
import threading
import time
from collections.abc import Callable

from celery import Celery

from embedfleet.broker import connect
from embedfleet.contract import TASK_ANSWER
from embedfleet.settings import load
from embedfleet_worker import app
from embedfleet_worker.transport import channel
from embedfleet_worker.transport.holding import Holding

_THREADS = app.HELD["interactive"]


class Count:
    """Counts messages, and prints the times with the last."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._lock = threading.Lock()
        self._begun = (0.0, 0.0)
        self._first = True

    def one(self, *_: object) -> None:
        """Another message was given to the task."""
        with self._lock:
            if self._first:
                self._begun = time.process_time(), time.perf_counter()
                self._first = False
            self._left -= 1
            if self._left == 0:
                seconds = time.process_time() - self._begun[0], time.perf_counter() - self._begun[1]
                print(*seconds, file=sys.__stdout__, flush=True)  # Celery takes stdout for its log
                threading.Timer(1, os._exit, [0]).start()  # the last acknowledgements are on their way


def _ours(url: str, queue: str, work: Callable[..., None]) -> Celery:
    broker = connect(load(broker_url=url, engine="synthetic"))
    leases = app.leases_of(broker, [queue])
    holding = Holding(leases, {queue: _THREADS}, broker.settings.lease_s, 600)
    channel.install(broker, leases, holding)
    return app.build({TASK_ANSWER: work}, holding, _THREADS)


def _stock(url: str, work: Callable[..., None]) -> Celery:
    """As the documentation has it for tasks that must not be lost."""
    celery = Celery("stock", broker=url, set_as_current=False)
    celery.conf.update(
        worker_pool="threads",
        worker_concurrency=_THREADS,
        task_acks_late=True,
        task_ignore_result=True,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
    )
    celery.task(work, name=TASK_ANSWER, acks_late=True, ignore_result=True)
    return celery


def main() -> None:
    """Consume."""
    which, url, queue, count = sys.argv[1:]
    counted = Count(int(count))

    def work(*_: object) -> None:
        counted.one()

    celery = _ours(url, queue, work) if which == "ours" else _stock(url, work)
    options = {"without_gossip": True, "without_mingle": True, "without_heartbeat": True, "quiet": True}
    celery.Worker(queues=[queue], loglevel="ERROR", **options).start()


if __name__ == "__main__":
    main()
