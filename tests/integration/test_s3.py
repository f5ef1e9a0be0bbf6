"""The store on S3: what a folder promises holds there too, on moto; signatures are checked by rclone's server."""

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedfleet import Fleet
from embedfleet.errors import AlreadyExists, ConfigurationError, NotFound, StoreUnavailable
from embedfleet.local import LocalFleet
from embedfleet.store import Store, open_store
from tests import aws
from tests.integration.command import run, start, summary, write_jsonl
from tests.waiting import wait_until

URI = f"s3://{aws.BUCKET}/team/a"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with aws.moto() as served:
        aws.put_bucket(served)
        yield served


@pytest.fixture(params=["moto", "rclone"])
def store(
    request: pytest.FixtureRequest, endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Store]:
    """A prefix of its own on each server."""
    if request.param == "moto":
        set_environment(endpoint, monkeypatch)
        yield open_store(f"{URI}/{tmp_path.name}")
        return
    with aws.rclone(tmp_path / "served") as served:
        set_environment(served, monkeypatch)
        yield open_store(URI)


@pytest.fixture
def moto_store(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    set_environment(endpoint, monkeypatch)
    return open_store(f"{URI}/{tmp_path.name}")


def set_environment(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in aws.environment(endpoint).items():
        monkeypatch.setenv(name, value)


# The store


def test_objects_are_read_back(store: Store) -> None:
    store.create("job/a", b"0123456789")
    assert store.get("job/a") == b"0123456789"
    assert store.exists("job/a")
    assert not store.exists("job/b")
    with pytest.raises(NotFound, match="job/b: there is no such object"):
        store.get("job/b")


def test_the_end_of_an_object(moto_store: Store) -> None:
    """rclone answers a range from the end with the whole object, which the driver refuses."""
    moto_store.create("a", b"0123456789")
    assert moto_store.tail("a", 3) == b"789"
    assert moto_store.tail("a", 1000) == b"0123456789"


def test_paths_come_in_string_order_behind_the_given_one(store: Store) -> None:
    numbers = [*range(20), 99_999_999]
    for number in reversed(numbers):
        store.create(f"job/parts/{number:08d}.parquet", b"1")
    store.create("job/sealed.json", b"{}")
    found = list(store.paths("job/parts"))
    assert found == [f"job/parts/{number:08d}.parquet" for number in numbers]
    assert list(store.paths("job/parts", after=found[3])) == found[4:]
    assert list(store.paths("job/parts", after=found[3], limit=2)) == found[4:6]
    assert list(store.paths("nothing")) == []


def test_more_objects_than_one_page_of_a_listing(moto_store: Store) -> None:
    names = [f"parts/{number:08d}" for number in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: moto_store.create(name, b"1"), names))
    assert list(moto_store.paths("parts")) == names
    assert list(moto_store.paths("parts", after=names[1050])) == names[1051:]
    assert list(moto_store.paths("parts", limit=1001)) == names[:1001]


def test_of_ten_that_create_the_same_object_one_wins_and_its_content_stays(moto_store: Store) -> None:
    start, contents = threading.Barrier(10), [b"%d " % n * 10_000 for n in range(10)]

    def create(content: bytes) -> bool:
        start.wait()
        try:
            moto_store.create("parts/0", content)
        except AlreadyExists:
            return False
        return True

    with ThreadPoolExecutor(10) as pool:
        won = list(pool.map(create, contents))
    assert won.count(True) == 1
    assert moto_store.get("parts/0") == contents[won.index(True)]


# What is refused at the start


def test_a_store_that_can_be_written_is_taken_again_and_again(moto_store: Store) -> None:
    moto_store.check_writable()
    moto_store.check_writable()


def test_a_server_that_takes_the_same_key_twice_is_refused(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with aws.rclone(tmp_path / "served") as served:
        set_environment(served, monkeypatch)
        with pytest.raises(ConfigurationError, match=r"s3://vectors/team/a: it wrote the same object twice"):
            open_store(URI).check_writable()
        worker = start("worker", "--store", URI, "--broker-url", redis_url, cwd=tmp_path)
        _, log = worker.communicate(timeout=60)
    assert worker.returncode == 2
    assert b"it wrote the same object twice" in log


def test_a_signature_that_is_wrong_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with aws.rclone(tmp_path / "served") as served:
        set_environment(served, monkeypatch)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
        with pytest.raises(StoreUnavailable, match="it can't be written") as refused:
            open_store(URI).check_writable()
        with pytest.raises(StoreUnavailable):
            open_store(URI).get("a")
    assert "another-secret" not in str(refused.value)


def test_a_bucket_that_is_not_there_is_no_missing_object(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(endpoint, monkeypatch)
    nowhere = open_store("s3://nowhere/a")
    with pytest.raises(StoreUnavailable):
        nowhere.get("job/job.json")
    with pytest.raises(StoreUnavailable):
        nowhere.create("job/job.json", b"{}")
    with pytest.raises(StoreUnavailable, match=r"store s3://nowhere/a: it can't be written"):
        nowhere.check_writable()


def test_a_server_that_does_not_answer_is_named_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment("http://127.0.0.1:1", monkeypatch)
    with pytest.raises(StoreUnavailable, match=r"store s3://vectors: it can't be written"):
        open_store("s3://vectors").check_writable()


def ended(child: int) -> str | None:
    """Its exit code, when it has one."""
    pid, status = os.waitpid(child, os.WNOHANG)
    return str(os.waitstatus_to_exitcode(status)) if pid else None


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12, of any fork where there are threads
def test_an_outage_is_no_missing_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an application would say that there is no such job, and not that it should be asked again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for name, value in aws.environment(f"http://127.0.0.1:{port}").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreUnavailable):
        Fleet(store=f"s3://{aws.BUCKET}/a").job("j-0123456789abcdef0123")


def test_a_forked_child_is_told_instead_of_hanging(moto_store: Store) -> None:
    moto_store.create("a", b"1")
    child = os.fork()
    if child == 0:
        try:
            moto_store.get("a")
        except ConfigurationError as exc:
            os._exit(7 if "this process was forked" in str(exc) else 1)
        os._exit(0)
    try:
        status = wait_until(lambda: ended(child), "the child, which must not hang", timeout_s=10)
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    assert status == "7"


# A job


def test_a_job_on_s3(moto_store: Store, endpoint: str, start_fleet: Callable[..., LocalFleet], tmp_path: Path) -> None:
    """Its worker has nothing but AWS' variables and the allowed store."""
    local = start_fleet(moto_store.uri, engine="synthetic")
    with Fleet(**dict(local.settings)) as fleet:
        job = fleet.submit(((f"t{n}", f"text {n}" if n else "") for n in range(1500)), key="k")
        status = job.wait(timeout_s=60)
        assert (status.state, status.totals.texts, status.totals.errors) == ("done", 1500, 1)
        assert job.results().count_rows() == 1500
        before = sorted(moto_store.paths(job.id))
        again = fleet.submit(((f"t{n}", f"text {n}" if n else "") for n in range(1500)), key="k")
        assert (again.id, again.status().state) == (job.id, "done")
        assert sorted(moto_store.paths(job.id)) == before
        outside = fleet.submit(["a text"], to=f"s3://{aws.BUCKET}/team/another")
        fleet.submit(["a text"]).wait(timeout_s=60)
        assert outside.status().batches_done == 0, "it is not an allowed store"
    table = job.results().to_table(columns=["id", "error"])  # noqa: F841 - DuckDB finds it by its name
    assert duckdb.sql("SELECT count(*) FROM \"table\" WHERE error = 'empty'").fetchall() == [(1,)]


def test_the_command_on_s3(moto_store: Store, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"id": n, "text": f"text {n}"} for n in range(10)])
    done = run("embed", "in.jsonl", "--to", moto_store.uri, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert summary(done)["uri"].startswith(moto_store.uri)
    results = run("results", summary(done)["uri"], cwd=tmp_path).stdout.splitlines()
    assert [json.loads(line)["id"] for line in results] == [str(n) for n in range(10)]


def test_results_are_read_where_the_store_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec keeps what it made: another endpoint, or new credentials, must not meet the old."""
    table = pa.table({"id": ["a"]})
    for name in ("first.parquet", "second.parquet"):  # the stand-ins of one process share what they hold
        with aws.moto() as endpoint:
            set_environment(endpoint, monkeypatch)
            aws.put_bucket(endpoint)
            store, sink = open_store(URI), pa.BufferOutputStream()
            pq.write_table(table, sink)
            store.create(name, sink.getvalue().to_pybytes())
            assert store.dataset([name]).count_rows() == 1
