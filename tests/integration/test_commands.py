"""The other commands, against a fleet that `embedfleet up` started."""

import json
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.command import numbered, run, start, summary, write_jsonl
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The settings that `embedfleet up` prints, as keyword arguments of ``run``."""
    folder = tmp_path_factory.mktemp("up")
    running = start("up", "--store", folder / "store", cwd=folder, synthetic_texts_per_s=5000)
    try:
        assert running.stdout is not None
        exports = [shlex.split(running.stdout.readline().decode())[1] for _ in range(6)]
        pairs = [line.removeprefix("EMBEDFLEET_").split("=", 1) for line in exports]
        yield {name.lower(): value for name, value in pairs}
    finally:
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
        assert running.returncode == 0


def test_submit_status_watch_results(up: dict[str, str], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", numbered(3000))
    submitted = run("submit", "in.jsonl", "--json", cwd=tmp_path, **up)
    assert submitted.returncode == 0, submitted.stderr
    job = summary(submitted)["job"]

    watched = run("watch", job, "--json", cwd=tmp_path, **up)
    assert watched.returncode == 0
    assert json.loads(watched.stdout)["state"] == "done"
    status = json.loads(run("status", job, "--json", cwd=tmp_path, **up).stdout)
    assert (status["state"], status["batches_done"], status["texts"]) == ("done", 6, 3000)
    assert "done: 6 of 6 batches, 3,000 texts, 0 errors" in run("status", job, cwd=tmp_path, **up).stdout
    results = run("results", job, cwd=tmp_path, **up).stdout.splitlines()
    assert [json.loads(line)["id"] for line in results] == [f"d{n}" for n in range(3000)]
    head = subprocess.run(
        f"{run.__globals__['EMBEDFLEET']} results {up['store']}/{job} | head -1", shell=True, capture_output=True
    )
    assert json.loads(head.stdout)["id"] == "d0"
    assert b"Traceback" not in head.stderr
    again = run("retry", job, cwd=tmp_path, **up)
    assert again.returncode == 0
    assert "nothing to retry" in again.stdout


def test_cancel(up: dict[str, str], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", numbered(30_000))
    job = summary(run("submit", "in.jsonl", "--json", cwd=tmp_path, **up))["job"]

    cancelled = run("cancel", job, cwd=tmp_path, **up)

    assert cancelled.returncode == 0
    assert run("watch", job, cwd=tmp_path, **up).returncode == 3
    wait_until(lambda: _status(job, up, tmp_path)["batches_done"] == 59, "an outcome for every batch")
    found = _status(job, up, tmp_path)
    assert found["state"] == "cancelled"
    assert 0 < found["errors"] <= 30_000
    again = run("retry", job, "--json", cwd=tmp_path, **up)
    assert again.returncode == 0, again.stderr
    assert summary(again)["texts"] == found["errors"]


def test_a_job_that_is_done_is_not_cancelled(up: dict[str, str], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", numbered(10))
    job = summary(run("embed", "in.jsonl", "--json", cwd=tmp_path, **up))["job"]
    cancelled = run("cancel", job, cwd=tmp_path, **up)
    assert cancelled.returncode == 0
    assert cancelled.stdout.startswith("done: ")
    assert run("embed", "in.jsonl", cwd=tmp_path, **up).returncode == 0


def test_a_worker_needs_a_store(redis_url: str, tmp_path: Path) -> None:
    """Without one it would turn every batch into a dead letter."""
    worker = run("worker", cwd=tmp_path, broker_url=redis_url)
    assert worker.returncode == 2
    assert "no store: set EMBEDFLEET_STORE" in worker.stderr


def test_a_worker_refuses_a_cache_it_can_not_use_before_it_loads_anything(redis_url: str, tmp_path: Path) -> None:
    worker = run("worker", cwd=tmp_path, broker_url=redis_url, store=tmp_path, cache_url="amqp://me:pass-word@h")
    assert worker.returncode == 2
    assert "it is no Redis URL" in worker.stderr
    assert "pass-word" not in worker.stderr


def test_a_worker_of_ones_own(redis_url: str, tmp_path: Path) -> None:
    """`worker` is what a container runs: settings from options and environment, stopped by SIGTERM."""
    settings = {"broker_url": redis_url, "store": tmp_path / "store"}
    write_jsonl(tmp_path / "in.jsonl", numbered(10))
    waiting = start("embed", "in.jsonl", "--json", cwd=tmp_path, **settings)
    assert waiting.stderr is not None
    stderr = waiting.stderr.readline()  # before there is a worker, which may be quicker than the note
    worker = start("worker", "--lease-s", "5", cwd=tmp_path, **settings)
    try:
        stdout, _ = waiting.communicate(timeout=60)
    finally:
        worker.terminate()
        _, log = worker.communicate(timeout=30)
    assert waiting.returncode == 0
    assert json.loads(stdout)["texts"] == 10
    assert b"no worker for" in stderr
    assert worker.returncode == 0
    assert b'"texts": 10' in log
    assert b"text number" not in log


def test_doctor(redis_url: str, tmp_path: Path) -> None:
    well = run("doctor", "--json", cwd=tmp_path, broker_url=redis_url, store=tmp_path / "store")
    assert well.returncode == 0
    assert [check["name"] for check in json.loads(well.stdout)] == ["broker", "queues", "store", "model", "accelerator"]

    ill = run("doctor", cwd=tmp_path, broker_url="redis://:pw@127.0.0.1:1/0", store="/dev/null/x", model="no/such")
    assert ill.returncode == 2
    assert ill.stdout.count("FAIL") == 3
    for culprit in ("redis://:***@127.0.0.1:1/0", "/dev/null/x", "no/such"):
        assert culprit in ill.stdout


def test_doctor_refuses_a_model_that_does_not_fit(tmp_path: Path, tiny_qwen3: Path) -> None:
    """A model with the tiny one's files and the longest context: the attention cache alone is over any memory."""
    folder = tmp_path / "huge"
    folder.mkdir()
    for file in tiny_qwen3.rglob("*"):
        target = folder / file.relative_to(tiny_qwen3)
        target.parent.mkdir(exist_ok=True)
        if file.is_file():
            target.write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config.update(num_hidden_layers=4000, max_position_embeddings=1_000_000)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 1000000}')
    (folder / "tokenizer_config.json").write_text("{}")

    for command in (["doctor"], ["embed", "in.txt", "--to", "out"]):
        (tmp_path / "in.txt").write_text("a text\n")
        done = run(*command, cwd=tmp_path, engine="vllm", model=folder)
        assert done.returncode == 2
        said = done.stdout + done.stderr
        assert "needs" in said
        assert "GiB are free" in said
        assert "What would fit: EMBEDFLEET_DTYPE=bfloat16 with EMBEDFLEET_MAX_TOKENS=" in said


def test_models_and_config(tmp_path: Path) -> None:
    assert "Qwen/Qwen3-Embedding-0.6B" in run("models", cwd=tmp_path).stdout
    shown = run("models", "show", "Qwen/Qwen3-Embedding-0.6B", cwd=tmp_path).stdout
    assert r"Instruct: {instruction}\nQuery:{text}" in shown
    config = run("config", "show", cwd=tmp_path, broker_url="redis://me:secret@host/0", cache_salt="pepper").stdout
    assert "EMBEDFLEET_BROKER_URL=redis://me:***@host/0" in config
    assert "secret" not in config
    assert "pepper" not in config


def test_an_unknown_job_is_named(tmp_path: Path) -> None:
    for command in ("status", "watch", "results", "retry", "cancel"):
        done = run(command, "j-nothere", cwd=tmp_path, store=tmp_path / "store")
        assert done.returncode == 2
        assert "j-nothere" in done.stderr


def _status(job: str, up: dict[str, str], cwd: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(run("status", job, "--json", cwd=cwd, **up).stdout)
    return found
