"""Redis goes away under a busy worker and comes back."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery import Celery

from embedfleet import Fleet
from embedfleet.local import redis_server
from tests.integration.command import start
from tests.waiting import wait_until

Server = tuple[str, Callable[[], None], Callable[[], None]]


@pytest.fixture
def mortal_redis(tmp_path: Path) -> Iterator[Server]:
    """A URL, a function that kills the server and one that starts it, empty."""
    socket = tmp_path / "r.sock"
    command = [redis_server(), "--port", "0", "--unixsocket", str(socket), "--save", ""]
    servers: list[subprocess.Popen[bytes]] = []

    def kill() -> None:
        servers[-1].kill()
        servers[-1].wait()
        socket.unlink(missing_ok=True)

    def begin() -> None:
        servers.append(subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL))
        wait_until(socket.exists, "the socket")

    begin()
    yield f"redis+socket://{socket}", kill, begin
    kill()


def test_a_busy_worker_goes_on_when_redis_is_back(mortal_redis: Server, tmp_path: Path) -> None:
    """Redis kept nothing here, so the producer submits again; what the worker had begun is not done twice."""
    url, kill, begin = mortal_redis
    settings = {"broker_url": url, "store": str(tmp_path / "store")}
    worker = start("worker", cwd=tmp_path, synthetic_texts_per_s=2000, **settings)
    texts = [f"text {n}" for n in range(10_000)]
    try:
        with Fleet(**settings, engine="synthetic") as fleet:
            job = fleet.submit(texts, key="k")
            wait_until(lambda: job.status().batches_done >= 3, "some parts")
            kill()
            held = job.status().batches_done + 5  # all that the worker had taken; it can acknowledge none of them
            wait_until(lambda: job.status().batches_done >= held, "the parts of what it held")
            begin()
            fleet.submit(texts, key="k")
            status = job.wait(timeout_s=60)
    finally:
        worker.terminate()
        _, log = worker.communicate(timeout=30)
    assert (status.totals.texts, status.totals.errors) == (10_000, 0), log.decode()[-2000:]


def test_a_worker_without_broker_says_so_and_can_be_tried_again(tmp_path: Path) -> None:
    worker = start("worker", cwd=tmp_path, broker_url="redis://:secret@127.0.0.1:1/0")
    _, log = worker.communicate(timeout=60)
    assert worker.returncode == 75
    assert b"redis://:***@127.0.0.1:1/0" in log
    assert b"Traceback" not in log


def test_a_message_that_is_none_of_ours_leaves_no_text_in_the_log(redis_url: str, tmp_path: Path) -> None:
    from embedfleet.broker import connect
    from embedfleet.settings import load

    broker = connect(load(broker_url=redis_url, engine="synthetic"))
    queue = broker.queue(load().model, "bulk")
    another = Celery("another", broker=redis_url, set_as_current=False)
    another.send_task("somebody.elses", args=["a secret text"], queue=queue, retry=False)
    worker = start("worker", cwd=tmp_path, broker_url=redis_url, store=tmp_path / "store")
    wait_until(lambda: broker.workers(queue) and broker.depth(queue) == 0, "the worker to take it")
    worker.terminate()
    _, log = worker.communicate(timeout=30)
    assert b"a secret text" not in log
    assert b"was set aside: not a message of ours: headers.task: " in log
    assert broker.redis.llen(broker.dead_queue) == 1
    broker.close()
