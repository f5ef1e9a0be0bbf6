"""What embedfleet is, in five short tests on real parts. Read these first."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np

from embedfleet import EmbedSettings, Fleet
from embedfleet.local import LocalFleet
from tests.waiting import wait_until


def test_texts_become_vectors(qwen_fleet: Fleet) -> None:
    job = qwen_fleet.submit([("a", "a short text"), ("b", "another one")], settings=EmbedSettings(dimensions=64))

    assert job.wait(timeout_s=60).state == "done"
    rows = {row["id"]: row for row in job.results().to_table().to_pylist()}
    assert rows.keys() == {"a", "b"}
    for row in rows.values():
        assert len(row["embedding"]) == 64
        assert abs(np.linalg.norm(row["embedding"]) - 1) < 1e-6
    parts = Path(job.uri.removeprefix("file://")) / "parts" / "*.parquet"
    assert duckdb.sql(f"SELECT count(embedding) FROM '{parts}'").fetchall() == [(2,)]


def test_a_bad_text_is_its_own_error_and_the_rest_arrive(qwen_fleet: Fleet) -> None:
    bad = {"blank": "  ", "number": 7, "half": "\ud800", "long": "word " * 2000}
    good = {f"good-{n}": f"text number {n}" for n in range(50)}

    job = qwen_fleet.submit({**good, **bad}.items())

    assert job.wait(timeout_s=60).totals.errors == len(bad)
    rows = {row["id"]: row for row in job.results().to_table().to_pylist()}
    assert {name: rows[name]["error"] for name in bad} == {
        "blank": "empty",
        "number": "not_a_string",
        "half": "lone_surrogate",
        "long": "too_long",
    }
    assert all(rows[name]["embedding"] is None for name in bad)
    alone = qwen_fleet.embed(["text number 7"])[0]
    np.testing.assert_allclose(rows["good-7"]["embedding"], alone, atol=1e-5)


def test_a_round_trip_gives_the_vectors_to_the_caller(qwen_fleet: Fleet) -> None:
    document = qwen_fleet.embed(["what is a lease?"])
    query = qwen_fleet.embed(["what is a lease?"], settings=EmbedSettings(input_type="query"))

    assert document.shape == query.shape == (1, 128)
    assert not np.allclose(document, query, atol=1e-2), "a query carries an instruction"


def test_submitting_again_does_nothing_twice(qwen_fleet: Fleet) -> None:
    texts = [f"text {n}" for n in range(1200)]
    job = qwen_fleet.submit(texts, key="again")
    job.wait(timeout_s=60)
    folder = Path(job.uri.removeprefix("file://"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    queue = qwen_fleet.broker.queue(qwen_fleet.settings.model, "bulk")
    published: list[object] = []
    publish, qwen_fleet.broker.publish = qwen_fleet.broker.publish, lambda *message: published.append(message)
    try:
        again = qwen_fleet.submit(texts, key="again")
    finally:
        qwen_fleet.broker.publish = publish

    assert again.id == job.id
    assert again.status().state == "done"
    assert published == []
    assert qwen_fleet.broker.depth(queue) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")} == before


def test_a_worker_is_killed_and_the_job_completes(start_fleet: Callable[..., LocalFleet], tmp_path: Path) -> None:
    """With all-MiniLM-L6-v2; the others run a tiny Qwen3."""
    local = start_fleet(tmp_path, lease_s=2)
    texts = [f"text number {n}, and some words behind it to make it longer" for n in range(5_000)]
    with Fleet(**dict(local.settings)) as fleet:
        job = fleet.submit(texts)
        wait_until(lambda: job.status().batches_done >= 2, "the first parts")

        os.kill(local.worker_pid, signal.SIGKILL)
        wait_until(local.check, "the worker to be started again")

        status = job.wait(timeout_s=120)
    assert status.batches_done == status.batches == 10
    assert status.totals.texts == 5_000
    assert status.totals.errors == 0
    ids = job.results().to_table(columns=["id"])["id"].to_pylist()
    assert sorted(ids, key=int) == [str(n) for n in range(5_000)]
