"""Job: states from the folder, waiting, the chain of retries. Parts are written by hand: no worker is needed."""

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from embedfleet import Fleet
from embedfleet.errors import JobMismatch, NotFinished, StoreUnavailable, WaitTimeout
from embedfleet.folder import Folder
from embedfleet.job import Job
from embedfleet.jobfolder import JobFolder, job_id_of
from embedfleet.synthetic import synthetic_vectors
from embedfleet.tables import Outcome, Outcomes, read_input, write_part
from tests.unit.redis_server import RedisServer

TEXTS = [f"text {n}" for n in range(1100)]  # batches of 512, 512 and 76


@pytest.fixture
def fleet(redis_server: RedisServer, tmp_path: Path) -> Any:
    with Fleet(broker_url=redis_server.url, store=str(tmp_path / "store")) as connected:
        yield connected


def commit(job: Job, *numbers: int, failing: Iterable[str] = (), code: Any = "too_long") -> None:
    """What a worker does for these batches; the texts of the ids in ``failing`` have an error."""
    failed = set(failing)
    for number in numbers:
        path = job.folder.input_path(number)
        ids = read_input(job.folder.store.get(path), path).ids
        rows = [Outcome(i, n_tokens=2, error=(code, "said so") if i in failed else None) for i in ids]
        outcomes = Outcomes(rows, synthetic_vectors(ids, 384), provenance={"engine": f"test {number % 2}"})
        assert job.folder.write_part(number, write_part(outcomes, "float32", job.id, number))


def errors(job: Job) -> dict[str, str | None]:
    return {row["id"]: row["error"] for row in job.results().to_table(columns=["id", "error"]).to_pylist()}


# States


def test_a_job_is_done_when_every_part_is_there(fleet: Fleet) -> None:
    job = fleet.submit(TEXTS)
    commit(job, 1, failing=["600"])
    commit(job, 0)
    assert (job.status().state, job.status().batches_done, job.status().totals.texts) == ("running", 2, 1024)
    assert job.folder.manifest() is None

    commit(job, 2)

    assert (job.status().state, job.status().totals.texts, job.status().totals.errors) == ("done", 1100, 1)
    manifest = job.folder.manifest()
    assert manifest is not None
    assert (manifest.batches, manifest.totals) == (3, job.status().totals)
    assert sorted(each["engine"] for each in manifest.provenance) == ["test 0", "test 1"]


def test_a_part_without_a_vector_has_nothing_to_say_of_what_made_it(fleet: Fleet) -> None:
    job = fleet.submit(TEXTS)
    commit(job, 0, 1)
    rows = [Outcome(i, error=("cancelled", "said so")) for i in job.folder.input(2).ids]
    nothing = Outcomes(rows, synthetic_vectors([row.id for row in rows], 384))
    job.folder.write_part(2, write_part(nothing, "float32", job.id, 2))
    assert job.status().state == "done"
    manifest = job.folder.manifest()
    assert manifest is not None
    assert sorted(each["engine"] for each in manifest.provenance) == ["test 0", "test 1"]


def test_whoever_looks_later_counts_the_same(fleet: Fleet) -> None:
    job = fleet.submit(TEXTS)
    commit(job, 2, 0)
    assert fleet.job(job.id).status() == job.status()
    commit(job, 1)
    assert fleet.job(job.id).status() == job.status()


def test_a_job_without_texts_is_done(fleet: Fleet) -> None:
    assert fleet.submit([]).wait().state == "done"


def test_a_job_that_is_not_sealed_is_open(fleet: Fleet) -> None:
    def broken() -> Iterable[str]:
        yield from TEXTS
        raise OSError("the producer's source broke")

    with pytest.raises(OSError, match="source broke"):
        fleet.submit(broken(), key="k")
    job = fleet.job(job_id_of("k"))
    commit(job, 0, 1)
    assert (job.status().state, job.status().batches, job.status().batches_done) == ("open", None, 2)


def test_a_cancelled_job_is_finished_when_every_text_has_its_outcome(fleet: Fleet) -> None:
    job = fleet.submit(TEXTS)
    commit(job, 0)
    assert (job.cancel().state, job.status().finished) == ("cancelled", False)
    commit(job, 1, 2, failing=map(str, range(512, 1100)), code="cancelled")
    status = job.wait(timeout_s=5)
    assert (status.state, status.finished, status.totals.errors) == ("cancelled", True, 588)
    child = job.retry()
    assert child is not None
    assert child.status().texts == 588


def test_a_cancelled_job_without_a_seal_is_finished_when_its_inputs_are(fleet: Fleet) -> None:
    job = fleet.submit(TEXTS)
    (job.folder.store.folder / job.id / "sealed.json").unlink()
    job = fleet.job(job.id)
    commit(job, 0, 1)
    assert not job.cancel().finished
    commit(job, 2, failing=["1099"], code="cancelled")
    assert job.wait(timeout_s=5).state == "cancelled"
    assert job.retry() is not None


def test_a_job_that_is_done_is_not_cancelled(fleet: Fleet) -> None:
    """Else the same command would end with 3 for ever."""
    job = fleet.submit(["a"])
    commit(job, 0)
    assert job.cancel().state == "done"
    assert fleet.job(job.id).status().state == "done"


def test_threads_that_look_at_once_count_a_part_once(fleet: Fleet) -> None:
    job = fleet.submit(f"text {n}" for n in range(5120))
    start = threading.Barrier(8)

    def look() -> int:
        start.wait()
        while not (status := job.status()).finished:
            pass
        return status.totals.texts

    with ThreadPoolExecutor(8) as pool:
        looking = [pool.submit(look) for _ in range(8)]
        commit(job, *range(10))
        assert {each.result() for each in looking} == {5120}
    manifest = job.folder.manifest()
    assert manifest is not None
    assert manifest.totals.texts == 5120


def test_who_only_reads_sees_a_finished_job(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    job = fleet.submit(TEXTS)
    commit(job, 0, 1, 2, failing=["3"])

    def refuse(*_: object) -> None:
        raise StoreUnavailable("read-only")

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "create", refuse)
        assert (job.status().state, job.status().totals.errors) == ("done", 1)
    assert fleet.job(job.id).status() == job.status()
    monkeypatch.setattr(Folder, "create", refuse)
    monkeypatch.setattr(JobFolder, "part_info", refuse)
    assert fleet.job(job.id).status() == job.status(), "from the manifest, without a look at the parts"


def test_waiting_ends_in_time_and_says_how_far_it_is(fleet: Fleet) -> None:
    job = fleet.submit(TEXTS)
    commit(job, 0)
    with pytest.raises(WaitTimeout, match=r"1 of 3 batches"):
        job.wait(timeout_s=0.05)


# Retries


def test_a_retry_takes_the_failed_texts_and_its_outcomes_replace_theirs(fleet: Fleet) -> None:
    job = fleet.submit(({"id": i, "text": i, "n": i} for i in TEXTS), key="k")
    commit(job, 0, 1, 2, failing=["text 3", "text 700"])

    child = job.retry(on_overflow="truncate")

    assert child is not None
    assert (child.spec.parent, child.spec.settings.on_overflow) == (job.id, "truncate")
    assert child.status().texts == 2
    assert errors(job)["text 3"] == "too_long", "as long as the retry has no outcome"
    commit(child, 0, failing=["text 700"], code="not_finite")
    for of in (job, child):
        found = errors(of)
        assert len(found) == 1100
        assert {i: code for i, code in found.items() if code} == {"text 700": "not_finite"}
        rows = {row["id"]: row for row in of.rows()}
        assert len(rows) == 1100
        assert (rows["text 3"]["error"], rows["text 3"]["n"]) == (None, "text 3")


def test_errors_are_counted_for_a_job_alone_and_after_its_retries(fleet: Fleet) -> None:
    job = fleet.submit(TEXTS)
    commit(job, 0, failing=["1", "2"])
    commit(job, 1, 2, failing=["600"], code="empty")
    child = job.retry(on_overflow="truncate")
    assert child is not None
    commit(child, 0, failing=["2"], code="not_finite")
    assert job.error_counts() == {"too_long": 2, "empty": 1}
    assert job.errors_left() == child.errors_left() == {"not_finite": 1, "empty": 1}


def test_retrying_again_retries_the_last_of_the_chain(fleet: Fleet) -> None:
    job = fleet.submit(TEXTS)
    commit(job, 0, 1, 2, failing=["3", "4"], code="engine_error")
    child = job.retry()
    assert child is not None
    commit(child, 0, failing=["4"], code="engine_error")

    grandchild = job.retry()

    assert grandchild is not None
    assert grandchild.spec.parent == child.id
    commit(grandchild, 0)
    assert all(code is None for code in errors(job).values())
    assert job.retry() is None


@pytest.mark.parametrize("code", ["empty", "not_a_string", "lone_surrogate", "too_long"])
def test_what_can_do_no_better_is_not_retried(fleet: Fleet, code: str) -> None:
    job = fleet.submit(TEXTS)
    commit(job, 0, 1, 2, failing=["3"], code=code)
    assert job.retry() is None


def test_a_running_job_is_not_retried(fleet: Fleet) -> None:
    job = fleet.submit(TEXTS)
    commit(job, 0, failing=["3"], code="engine_error")
    with pytest.raises(NotFinished, match="1 of 3 batches"):
        job.retry()


@pytest.mark.parametrize("left", ["sealed", "unsealed", "without inputs"])
def test_a_retry_that_was_stopped_is_gone_on_with(fleet: Fleet, redis_server: RedisServer, left: str) -> None:
    """An embedded broker forgets its queue: who asks for the retry again must not hear that one is running."""
    job = fleet.submit(TEXTS)
    commit(job, 0, 1, 2, failing=map(str, range(600)), code="engine_error")
    child = job.retry()
    assert child is not None
    commit(child, 1)
    folder = child.folder.store.folder / child.id
    if left != "sealed":
        (folder / "sealed.json").unlink()
    if left == "without inputs":
        for file in (*folder.glob("input/*"), *folder.glob("parts/*")):
            file.unlink()
    redis_server.client.flushall()

    again = job.retry()

    assert again is not None
    assert (again.id, again.status().texts) == (child.id, 600)
    missing = 2 if left == "without inputs" else 1
    assert fleet.broker.depth(fleet.broker.queue(fleet.settings.model, "bulk")) == missing
    with pytest.raises(JobMismatch, match="on_overflow"):
        job.retry(on_overflow="truncate")
