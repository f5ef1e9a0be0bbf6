"""The whole of it: producer → queue → worker → store → webhook and pgvector → results read by DuckDB, twice.

Each part is a process of its own and real, but for AWS, of which moto stands in.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from standardwebhooks import Webhook as Verifier

from embedfleet import Fleet, Job
from tests import aws
from tests.integration.command import EMBEDFLEET, environment, run, start, summary, write_jsonl
from tests.postgres import Postgres, running_postgres
from tests.receiver import Receiver, receiver, status

SECRET = "whsec_" + "c2VjcmV0" * 4
TEXTS = 700  # two batches
DOCUMENTS = [
    {"id": f"d{n}", "text": f"text number {n}" if n % 100 else "", "title": f"title {n}"} for n in range(TEXTS)
]
WITH_VECTOR = [row["id"] for row in DOCUMENTS if row["text"]]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres("fsync=off") as server:
        yield server


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


class Way:
    """The settings of producer and worker, and what can be seen at the ends."""

    def __init__(self, folder: Path, postgres: Postgres, hook: Receiver, table: str, settings: dict[str, str]) -> None:
        self.folder, self.postgres, self.hook, self.table = folder, postgres, hook, table
        self.producer = {"engine": "vllm", **settings}
        self.worker = {
            **self.producer,
            "webhook_secret": SECRET,
            "webhook_origins": f"http://127.0.0.1:{hook.port}",
            "webhook_networks": "127.0.0.1",
            "pgvector_url": postgres.url().get_secret_value(),
        }

    def submit(self) -> str:
        """By the command, in its own process; the job folder's URI."""
        source = write_jsonl(self.folder / "documents.jsonl", DOCUMENTS)
        to = ["--deliver-to", self.hook.url, "--deliver-to", f"pgvector:{self.table}"]
        command = [EMBEDFLEET, "submit", str(source), "--json", *to]
        done = subprocess.run(command, env=environment(**self.producer), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["uri"])

    def rows(self) -> dict[str, tuple[np.ndarray[Any, Any], str, str]]:
        """Of the table: vector, metadata and the row's version, by id."""
        with self.postgres.connect() as connection:
            found = connection.execute(f"SELECT id, embedding::text, metadata->>'title', xmin::text FROM {self.table}")
            return {
                row_id: (np.array(json.loads(vector), np.float32), title, version)
                for row_id, vector, title, version in found
            }


@pytest.fixture
def on_aws(tmp_path: Path, postgres: Postgres, hook: Receiver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Way]:
    with aws.moto() as endpoint:
        for name, value in aws.environment(endpoint).items():
            monkeypatch.setenv(name, value)
        aws.put_bucket(endpoint)
        way = Way(
            tmp_path,
            postgres,
            hook,
            "on_aws",
            {"broker_url": "sqs://us-east-1", "store": f"s3://{aws.BUCKET}/jobs", "lease_s": "20"},
        )
        made = subprocess.run([EMBEDFLEET, "doctor", "--fix"], env=environment(**way.producer), capture_output=True)
        assert made.returncode == 0, made.stdout.decode()
        yield way


@pytest.fixture
def on_one_machine(tmp_path: Path, postgres: Postgres, hook: Receiver, redis_url: str) -> Way:
    settings = {"broker_url": redis_url, "store": str(tmp_path / "store")}
    return Way(tmp_path, postgres, hook, "on_one_machine", settings)


@pytest.mark.parametrize("place", ["on_aws", "on_one_machine"])
def test_the_whole_way_and_again(place: str, request: pytest.FixtureRequest) -> None:
    way: Way = request.getfixturevalue(place)
    uri = way.submit()
    with ExitStack() as stack:
        worker = start("worker", cwd=way.folder, **way.worker)
        stack.callback(worker.communicate, timeout=60)
        stack.callback(worker.terminate)
        fleet = stack.enter_context(Fleet(**way.producer))
        job = fleet.job(uri)
        check_the_job(job, way)
        check_the_webhook(job, way.hook)
        vectors = check_duckdb(job)
        check_the_table(way, vectors)
        check_again(way, job)
    assert worker.returncode == 0


def check_the_job(job: Job, way: Way) -> None:
    done = job.wait(timeout_s=120)
    assert (done.state, done.totals.texts, done.totals.errors, done.dead_deliveries) == ("done", TEXTS, 7, 0)
    assert {(each.destination, each.confirmed) for each in done.deliveries} == {
        (way.hook.url, 2),
        (f"pgvector:{way.table}", 2),
    }


def check_the_webhook(job: Job, hook: Receiver) -> None:
    events = [Verifier(SECRET).verify(each.body, each.headers) for each in hook.received]
    assert {event["data"]["batch"] for event in events} == {0, 1}
    assert sum(event["data"]["texts"] for event in events) == TEXTS
    for event in events:
        assert event["data"]["part"] == f"{job.folder.store.uri}/{job.folder.part_path(event['data']['batch'])}"


def check_duckdb(job: Job) -> dict[str, np.ndarray[Any, Any]]:
    """Every text once; unit norm. DuckDB reads the Dataset: for s3:// itself it would fetch an extension."""
    with duckdb.connect() as connection:
        connection.register("results", job.results())
        rows = connection.execute("SELECT id, embedding, error FROM results ORDER BY id").fetchall()
    assert sorted(row[0] for row in rows) == sorted(row["id"] for row in DOCUMENTS)
    assert {row[2] for row in rows} == {None, "empty"}
    vectors = {row[0]: np.array(row[1], np.float32) for row in rows if row[2] is None}
    assert sorted(vectors) == sorted(WITH_VECTOR)
    assert all(abs(float(np.linalg.norm(vector)) - 1) < 1e-3 for vector in vectors.values())
    return vectors


def check_the_table(way: Way, vectors: dict[str, np.ndarray[Any, Any]]) -> None:
    rows = way.rows()
    assert sorted(rows) == sorted(WITH_VECTOR)
    for row_id, (vector, title, _) in rows.items():
        np.testing.assert_allclose(vector, vectors[row_id], rtol=1e-6, atol=1e-7)
        assert title == f"title {row_id.removeprefix('d')}"


def check_again(way: Way, job: Job) -> None:
    """The same job submitted twice changes nothing: no object, no row, no call."""
    before = files(job), way.rows(), len(way.hook.received)
    assert way.submit() == job.uri
    small = Fleet(**way.producer).enqueue(["the last"])  # whatever the second submit had queued was done before this
    assert small.wait(timeout_s=60).state == "done"
    after = files(job), way.rows(), len(way.hook.received)
    assert after[0] == before[0]
    assert {row: version for row, (_, _, version) in after[1].items()} == {
        row: version for row, (_, _, version) in before[1].items()
    }
    assert after[2] == before[2]


def files(job: Job) -> dict[str, bytes]:
    """Everything in the job's folder."""
    store = job.folder.store
    return {path: store.get(path) for path in store.paths(job.id)}


def test_a_finished_job_is_sent_on_without_embedding(
    tmp_path: Path, postgres: Postgres, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`embedfleet deliver` with neither broker nor engine at hand: it starts what it needs."""
    source = write_jsonl(tmp_path / "documents.jsonl", DOCUMENTS)
    embedded = run("embed", source, "--to", "out", "--json", cwd=tmp_path)
    uri = summary(embedded)["uri"]
    settings = {
        "webhook_secret": SECRET,
        "webhook_origins": f"http://127.0.0.1:{hook.port}",
        "webhook_networks": "127.0.0.1",
        "pgvector_url": postgres.url().get_secret_value(),
        "engine": "vllm",  # which would take ten seconds to load
    }
    hook.answer = status(410)
    to = ["--deliver-to", hook.url, "--deliver-to", "pgvector:sent_on"]
    refused = run("deliver", uri, *to, "--json", cwd=tmp_path, **settings)
    assert refused.returncode == 1, refused.stderr
    states = {each["destination"]: (each["confirmed"], each["dead"]) for each in summary(refused)["deliveries"]}
    assert states == {hook.url: (0, 2), "pgvector:sent_on": (2, 0)}
    hook.answer = status(200)
    sent = run("deliver", uri, "--deliver-to", hook.url, cwd=tmp_path, **settings)
    assert sent.returncode == 0, sent.stderr
    assert f"{hook.url}: 2 batches confirmed, 0 dead" in sent.stdout
    again = run("deliver", uri, "--deliver-to", hook.url, cwd=tmp_path, **settings)
    assert again.returncode == 0
    assert len(hook.received) == 4, "two refused, two taken, none again"
