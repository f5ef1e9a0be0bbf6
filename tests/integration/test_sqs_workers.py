"""Whole workers on SQS (moto): nothing is lost and nothing counts twice, whatever SQS answers and whoever is killed."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from embedfleet import Fleet, Job
from embedfleet.settings import FleetSettings
from embedfleet.sqs import SqsBroker
from tests import aws
from tests.integration.command import EMBEDFLEET, run
from tests.unit import sqs_queues
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with aws.moto() as endpoint:
        yield endpoint


@pytest.fixture
def proxy(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[aws.Proxy]:
    """What the workers see; the test itself asks moto."""
    for name, value in aws.environment(moto).items():
        monkeypatch.setenv(name, value)
    with aws.proxy(moto) as running:
        yield running


class Workers:
    """A fleet's queues, its store in a folder, and workers that are started one by one."""

    def __init__(self, broker: SqsBroker, proxy: aws.Proxy, folder: Path) -> None:
        self.broker = broker
        self.settings: FleetSettings = broker.settings
        self.fleet = Fleet(**dict(broker.settings))
        self.bulk = broker.lane("bulk")
        self._folder = folder
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("EMBEDFLEET_")},
            **broker.settings.environment(),
            "AWS_ENDPOINT_URL": proxy.endpoint,
        }
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, **others: object) -> "subprocess.Popen[bytes]":
        """A worker that consumes when this returns."""
        number = len(self.running)
        environment = {f"EMBEDFLEET_{name.upper()}": str(value) for name, value in others.items()}
        with (self._folder / f"worker-{number}.log").open("wb") as log:
            worker = subprocess.Popen([EMBEDFLEET, "worker"], env={**self._environment, **environment}, stderr=log)
        self.running.append(worker)
        wait_until(lambda: "consuming" in self.log(number), "the worker to consume")
        return worker

    def log(self, number: int) -> str:
        return (self._folder / f"worker-{number}.log").read_text(encoding="utf-8")

    def logs(self) -> str:
        return "".join(self.log(number) for number in range(len(self.running)))

    def begun(self) -> Counter[str]:
        """How often each batch was embedded, by all workers together."""
        lines = [json.loads(line) for line in self.logs().splitlines()]
        return Counter(f"{line['job']}/{line['batch']}" for line in lines if line["message"].startswith("batch done"))

    def held(self) -> int:
        return sqs_queues.held(self.broker, self.bulk)

    def has_dead(self, count: int) -> bool:
        return self.broker.depth(self.broker.dead_queue) == count

    def emptied(self) -> bool:
        return self.broker.depth(self.bulk) == self.held() == 0

    def stop(self) -> None:
        self.fleet.close()
        for worker in self.running:
            worker.terminate()
        for worker in self.running:
            try:
                worker.wait(10)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


@contextmanager
def workers_of(proxy: aws.Proxy, folder: Path, **settings: object) -> Iterator[Workers]:
    given = {"lease_s": 3, "store": str(folder / "store"), "health_port": 0, **settings}
    with sqs_queues.made(sqs_queues.settings(**given)) as broker:
        made = Workers(broker, proxy, folder)
        try:
            yield made
        finally:
            made.stop()
    assert "uncaught exception" not in made.logs(), made.logs()


@pytest.fixture
def workers(proxy: aws.Proxy, tmp_path: Path) -> Iterator[Workers]:
    with workers_of(proxy, tmp_path) as made:
        yield made


def texts(count: int) -> list[str]:
    return [f"a secret text {number}" for number in range(count)]


def check(job: Job, count: int) -> None:
    """Each text has one outcome, its vector."""
    status = job.wait(timeout_s=60)
    assert (status.state, status.totals.errors) == ("done", 0)
    outcomes = Counter(ds.dataset(f"{job.uri}/parts").to_table(columns=["id"])["id"].to_pylist())
    assert (len(outcomes), set(outcomes.values())) == (count, {1})


def test_a_job_is_done_and_the_worker_stops_as_soon_as_its_polls_have_ended(workers: Workers) -> None:
    worker = workers.start()
    check(workers.fleet.submit(texts(6000)), 6000)
    check(workers.fleet.enqueue(["one", "two"]), 2)
    wait_until(workers.emptied, "the last deletions")
    assert set(workers.begun().values()) == {1}
    begun = time.monotonic()
    worker.terminate()
    assert worker.wait(20) == 0
    assert time.monotonic() - begun < 8, "a poll lasts 5 s"
    assert "secret" not in workers.logs()


def test_a_batch_longer_than_the_lease_is_begun_once(proxy: aws.Proxy, tmp_path: Path) -> None:
    with workers_of(proxy, tmp_path, lease_s=2, synthetic_texts_per_s=150) as workers:
        workers.start()
        workers.start()
        check(workers.fleet.submit(texts(768)), 768)  # 3.4 s, and half as long
        workers.stop()  # they finish what they have begun, which a second time would be said then
        assert set(workers.begun().values()) == {1}


def test_what_a_killed_worker_held_another_finishes(proxy: aws.Proxy, tmp_path: Path) -> None:
    with workers_of(proxy, tmp_path, synthetic_texts_per_s=2000) as workers:
        first = workers.start()
        job = workers.fleet.submit(texts(5120))
        wait_until(lambda: workers.held() > 3, "batches to be held")
        first.kill()
        first.wait()
        workers.start(synthetic_texts_per_s=0)
        check(job, 5120)
        wait_until(workers.emptied, "the last deletions")


def test_a_worker_that_is_told_to_stop_finishes_what_it_began_and_leaves_the_rest(
    proxy: aws.Proxy, tmp_path: Path
) -> None:
    with workers_of(proxy, tmp_path, lease_s=30, synthetic_texts_per_s=2500) as workers:
        worker = workers.start()
        job = workers.fleet.submit(texts(10_240))
        wait_until(lambda: job.status().batches_done and workers.held() > 3, "batches to be done, and others held")
        worker.terminate()
        assert worker.wait(20) == 0
        done = job.status().batches_done
        assert 0 < done < 20
        # Long before their lease ends; a batch that was done as the worker went may come again, and finds its part.
        wait_until(lambda: workers.held() == 0, "what was held to be given back", timeout_s=5)
        assert workers.broker.depth(workers.bulk) >= 20 - done
        workers.start(synthetic_texts_per_s=0)
        check(job, 10_240)
        assert set(workers.begun().values()) == {1}


def test_a_worker_that_slept_over_its_leases_changes_nothing(workers: Workers) -> None:
    first = workers.start(synthetic_texts_per_s=500)
    job = workers.fleet.submit(texts(1024))
    wait_until(lambda: job.status().batches_done, "the first batch: the next ones are begun")
    first.send_signal(signal.SIGSTOP)
    workers.start()
    check(job, 1024)
    parts = {path: path.stat().st_mtime_ns for path in Path(job.uri.removeprefix("file://")).glob("parts/0*")}
    first.send_signal(signal.SIGCONT)
    wait_until(lambda: "another worker was first" in workers.log(0), "it to meet the parts", timeout_s=15)
    first.terminate()
    assert first.wait(20) == 0
    assert {path: path.stat().st_mtime_ns for path in parts} == parts


def test_no_answer_of_sqs_ends_a_worker_or_loses_a_message(workers: Workers, proxy: aws.Proxy) -> None:
    worker = workers.start()
    proxy.faults["ReceiveMessage"] += ["500", "page", "number", "reset"]
    proxy.faults["DeleteMessageBatch"] += ["500", "page", "hang", "some"]
    proxy.faults["ChangeMessageVisibilityBatch"] += ["500", "page"]
    jobs = [workers.fleet.submit(texts(512)) for _ in range(6)]
    for job in jobs:
        check(job, 512)
    wait_until(lambda: workers.emptied() and not proxy.faults["DeleteMessageBatch"], "the last deletions", 40)
    assert worker.poll() is None


def test_credentials_that_expire_and_come_back(workers: Workers, proxy: aws.Proxy) -> None:
    worker = workers.start()
    for operation in ("ReceiveMessage", "DeleteMessageBatch", "ChangeMessageVisibilityBatch", "GetQueueUrl"):
        proxy.faults[operation] += ["expired"] * 100
    job = workers.fleet.submit(texts(1024))
    wait_until(lambda: "it is expired" in workers.log(0), "the worker to notice")
    proxy.faults.clear()
    check(job, 1024)
    assert worker.poll() is None
    assert aws.SECRET not in workers.logs()


def test_poison_ends_no_worker(workers: Workers) -> None:
    worker = workers.start()
    for body in ("a secret text", "[" * 100_000, json.dumps({"body": "secret", "headers": {}}), "\\ud800"):
        workers.broker.call("send_message", workers.bulk, MessageBody=body)
    foreign = sqs_queues.batch("j-none", "file:///elsewhere")
    workers.broker.publish_all([foreign] * 3, workers.bulk)
    check(workers.fleet.submit(texts(512)), 512)
    wait_until(lambda: workers.has_dead(7), "the dead letters")
    wait_until(workers.emptied, "their deletion")
    assert worker.poll() is None
    assert "secret" not in workers.logs()


def test_lanes_are_in_nobodys_way(proxy: aws.Proxy, tmp_path: Path) -> None:
    """The bulk lane holds all that it may, slowly; a message of another lane is taken at once all the same."""
    with workers_of(proxy, tmp_path, lease_s=30, synthetic_texts_per_s=150) as workers:
        workers.start()
        workers.fleet.submit(texts(8192))
        wait_until(lambda: workers.held() == 6, "the lane to be full")
        for count in (2, 4):  # the first ones may come with a poll that began before the lane was full
            for lane in ("interactive", "deliver"):
                queue = workers.broker.lane(lane)
                workers.broker.publish(sqs_queues.batch("j-none", "file:///elsewhere"), queue)
            wait_until(partial(workers.has_dead, count), "both to be dead", timeout_s=5)
        assert workers.held() == 6
        workers.running[0].kill()


def test_a_queue_that_is_not_there_is_said(proxy: aws.Proxy, tmp_path: Path) -> None:
    done = run("worker", cwd=tmp_path, broker_url="sqs://us-east-1", store=tmp_path, queue_prefix="nobodys")
    assert done.returncode == 2
    assert "is not there. Make it with `embedfleet doctor --fix`" in done.stderr


def test_doctor_makes_the_queues_and_finds_them(proxy: aws.Proxy, tmp_path: Path) -> None:
    def doctor(*arguments: str) -> "subprocess.CompletedProcess[str]":
        names = {"store": tmp_path, "queue_prefix": "by-doctor"}
        return run("doctor", *arguments, cwd=tmp_path, stdin=None, broker_url="sqs://us-east-1", **names)

    before = doctor()
    assert before.returncode != 0
    assert "embedfleet doctor --fix" in before.stdout
    fixed = doctor("--fix")
    assert fixed.returncode == 0, fixed.stdout
    assert "made or mended: by-doctor-dead, " in fixed.stdout.replace("\n", " ")
    after = doctor()
    assert after.returncode == 0
    assert "4 are there, with dead letters" in after.stdout
