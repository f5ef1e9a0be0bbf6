"""`embedfleet embed`: what a user runs first, with what can go wrong. Real processes, real Redis."""

import contextlib
import json
import os
import pty
import re
import shlex
import signal
import subprocess
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.command import EMBEDFLEET, environment, numbered, run, start, summary, write_jsonl
from tests.receiver import receiver, status
from tests.waiting import wait_until

SYNTHETIC = "worker: synthetic engine: vectors are hashes of the texts and mean nothing"


def parts(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*/parts/*.parquet")}


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "txt", "folder", "-"])
def test_every_form_of_input(form: str, tmp_path: Path) -> None:
    records = numbered(5)
    stdin = None
    source = tmp_path / f"in.{form}"
    if form == "jsonl":
        write_jsonl(source, records)
    elif form == "csv":
        source.write_text("id,text,n\n" + "".join(f"{r['id']},{r['text']},{r['n']}\n" for r in records))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(records), source)
    elif form == "txt":
        source.write_text("".join(r["text"] + "\n" for r in records))
    elif form == "folder":
        source.mkdir()
        write_jsonl(source / "a.jsonl", records[:2])
        write_jsonl(source / "b.jsonl", records[2:])
    else:
        source, stdin = Path("-"), "".join(json.dumps(r) + "\n" for r in records).encode()

    done = run("embed", source, "--to", "out", "--json", cwd=tmp_path, stdin=stdin)

    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() in ([], [SYNTHETIC]), "stderr is no terminal: no bar"
    found = summary(done)
    assert found.keys() >= {"job", "texts", "errors", "cached", "tokens", "seconds", "texts_per_s"}
    assert (found["texts"], found["errors"]) == (5, 0)
    rows = [json.loads(line) for line in run("results", found["uri"], cwd=tmp_path).stdout.splitlines()]
    assert [row["id"] for row in rows] == (["1", "2", "3", "4", "5"] if form == "txt" else [r["id"] for r in records])
    assert all(len(row["embedding"]) == 384 for row in rows)
    if form != "txt":
        assert [row["n"] for row in rows] == ["0", "1", "2", "3", "4"]


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", numbered(6000))
    arguments = ["embed", "in.jsonl", "--to", "out", "--json"]
    running = start(*arguments, cwd=tmp_path, synthetic_texts_per_s=2000)
    wait_until(lambda: len(parts(tmp_path / "out")) >= 2, "two parts")
    children = psutil.Process(running.pid).children(recursive=True)

    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)

    assert running.returncode == 3, stderr
    assert not any(child.is_running() for child in children)
    hint = re.search(r"Go on with: (.*)", stderr.decode())
    assert hint is not None
    before = parts(tmp_path / "out")
    assert 2 <= len(before) < 12
    again = run(*shlex.split(hint[1])[1:], cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert summary(again)["texts"] == 6000
    after = parts(tmp_path / "out")
    assert len(after) == 12
    assert {name: after[name] for name in before} == before, "nothing is embedded twice"


def test_a_killed_command_leaves_no_process_and_its_job_resumes(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", numbered(6000))
    running = start("embed", "in.jsonl", "--to", "out", cwd=tmp_path, synthetic_texts_per_s=2000)
    wait_until(lambda: parts(tmp_path / "out"), "a part")
    children = psutil.Process(running.pid).children(recursive=True)
    assert len(children) >= 2, "Redis and a worker"

    running.kill()
    running.communicate()

    wait_until(lambda: not any(_lives(child) for child in children), "the children to end", timeout_s=10)
    before = parts(tmp_path / "out")
    again = run("embed", "in.jsonl", "--to", "out", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert summary(again)["texts"] == 6000
    after = parts(tmp_path / "out")
    assert {name: after[name] for name in before} == before


def test_the_hint_names_no_secret(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", numbered(20_000))
    secrets = ["--cache-salt", "pepper", "--cache-url=redis://:hunter2@localhost:1/0"]
    running = start("embed", "in.jsonl", "--to", "out", *secrets, cwd=tmp_path, synthetic_texts_per_s=2000)
    wait_until(lambda: list(tmp_path.glob("out/*/parts/*.parquet")), "the first part")
    for _ in range(3):  # impatiently
        running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 3
    assert b"Go on with: embedfleet embed in.jsonl --to out --cache-salt" in stderr
    assert b"pepper" not in stderr
    assert b"hunter2" not in stderr


def test_the_same_command_with_another_engine_is_another_job(tmp_path: Path) -> None:
    """Vectors of a try with the synthetic engine, or another token limit, are never taken for the others."""
    (tmp_path / "in.txt").write_text("a text of some more tokens than eight, to be sure\n")
    first = summary(run("embed", "in.txt", "--to", "out", "--json", cwd=tmp_path))
    short = summary(run("embed", "in.txt", "--to", "out", "--json", "--max-tokens", "8", cwd=tmp_path))
    assert (first["errors"], short["errors"]) == (0, 1)
    assert first["job"] != short["job"]


def test_a_store_below_the_input_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a text\n")
    first, again = (run("embed", "in", "--to", "in/out", "--json", cwd=tmp_path) for _ in range(2))
    assert (first.returncode, again.returncode) == (0, 0), again.stderr
    assert summary(first)["job"] == summary(again)["job"]
    itself = run("embed", "in", "--to", "in", cwd=tmp_path)
    assert itself.returncode == 2
    assert "it is the store" in itself.stderr


def test_a_retry_runs_the_models_worker_and_goes_on_when_stopped(tmp_path: Path, tiny_qwen3: Path) -> None:
    long = [{"id": f"d{n}", "text": "word " * 600} for n in range(2000)]
    write_jsonl(tmp_path / "in.jsonl", [*long, {"id": "e", "text": ""}])
    done = run("embed", "in.jsonl", "--to", "out", "--model", tiny_qwen3, "--json", cwd=tmp_path)
    assert done.returncode == 1
    job = summary(done)["uri"]
    before = len(list(tmp_path.glob("out/*/parts/*.parquet")))
    arguments = ("retry", job, "--on-overflow", "truncate", "--json")
    retrying = start(*arguments, cwd=tmp_path, synthetic_texts_per_s=500)
    wait_until(lambda: len(list(tmp_path.glob("out/*/parts/*.parquet"))) > before, "a part of the retry")
    retrying.send_signal(signal.SIGINT)
    _, stderr = retrying.communicate(timeout=60)
    assert retrying.returncode == 3
    assert f"Go on with: embedfleet retry {job} --on-overflow truncate" in stderr.decode()

    again = run(*arguments, cwd=tmp_path)

    assert again.returncode == 1, "the empty text still has its error"
    assert (summary(again)["texts"], summary(again)["errors"], summary(again)["truncated"]) == (2000, 0, 2000)


def test_a_cancelled_run_leaves_an_outcome_for_every_text(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", numbered(20_000))
    running = start("embed", "in.jsonl", "--to", "out", "--json", cwd=tmp_path, synthetic_texts_per_s=3000)
    wait_until(lambda: list(tmp_path.glob("out/*/parts/*.parquet")), "the first part")
    [job] = tmp_path.glob("out/j-*")
    assert run("cancel", job, cwd=tmp_path).stdout.startswith("cancelled")
    stdout, _ = running.communicate(timeout=60)
    assert running.returncode == 3
    found = json.loads(stdout)
    assert found["texts"] == 20_000
    assert 0 < found["errors"] < 20_000
    assert summary(run("retry", job, "--json", cwd=tmp_path))["texts"] == found["errors"]


@pytest.mark.parametrize("closed", ["2>&-", "| true", "| head -c 1"])
def test_a_closed_stream_is_no_reason_to_fail(closed: str, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a text\n" * 3)
    script = f"set -o pipefail; {EMBEDFLEET} embed in.txt --to out {closed}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment(engine="synthetic"), capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    assert len(list(tmp_path.glob("out/*/parts/*.parquet"))) == 1


def test_an_output_that_is_full_is_named(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a text\n")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [EMBEDFLEET, "embed", "in.txt", "--to", "out"],
            cwd=tmp_path,
            env=environment(engine="synthetic"),
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert done.returncode == 3
    assert b"the output can't be written (No space left on device)" in done.stderr


@pytest.mark.parametrize("name", ["l" * 100, "sp ace#%?ü"])
def test_any_tmpdir_will_do(name: str, tmp_path: Path) -> None:
    """A socket's path is short, and part of a URL."""
    (tmp_path / name).mkdir()
    (tmp_path / "in.txt").write_text("a text\n")
    done = subprocess.run(
        [EMBEDFLEET, "embed", "in.txt", "--to", "out"],
        cwd=tmp_path,
        env={**environment(engine="synthetic"), "TMPDIR": str(tmp_path / name)},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert list((tmp_path / name).iterdir()) == []


def test_what_the_worker_complains_of_is_said(tmp_path: Path) -> None:
    """Such as a full disk, for which it would wait in silence."""
    write_jsonl(tmp_path / "in.jsonl", numbered(5000))
    running = start("embed", "in.jsonl", "--to", "out", cwd=tmp_path, synthetic_texts_per_s=1000)
    parts = wait_until(lambda: list(tmp_path.glob("out/*/parts")), "the parts")[0]
    parts.rename(parts.with_name("aside"))
    parts.write_text("in the way")
    assert running.stderr is not None
    lines = iter(running.stderr.readline, b"")
    assert any(b"worker: " in line and b"given back: store file://" in line for line in lines)
    parts.unlink()
    parts.with_name("aside").rename(parts)
    running.communicate(timeout=60)
    assert running.returncode == 0


def test_running_it_again_does_nothing(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", numbered(600))
    run("embed", "in.jsonl", "--to", "out", cwd=tmp_path)
    before = parts(tmp_path / "out")
    again = run("embed", "in.jsonl", "--to", "out", cwd=tmp_path)
    assert again.returncode == 0
    assert parts(tmp_path / "out") == before
    other = run("embed", "in.jsonl", "--to", "out", "--encoding", "float16", cwd=tmp_path)
    assert other.returncode == 0
    assert len(list(tmp_path.glob("out/j-*"))) == 2, "other settings are another job"


def test_a_pipe_stops_at_a_bad_line_and_goes_on_when_it_is_mended(tmp_path: Path) -> None:
    good = [json.dumps(record) for record in numbered(1500)]
    broken = "\n".join([*good[:1200], "{not json", *good[1200:]]).encode()

    stopped = run("embed", "-", "--to", "out", cwd=tmp_path, stdin=broken)

    assert stopped.returncode == 3
    assert "line 1201" in stopped.stderr or ":1201" in stopped.stderr
    hint = re.search(r"\| (embedfleet .*--key \S+)", stopped.stderr)
    assert hint is not None, stopped.stderr
    again = run(*shlex.split(hint[1])[1:], "--json", cwd=tmp_path, stdin="\n".join(good).encode())
    assert again.returncode == 0, again.stderr
    assert summary(again)["texts"] == 1500
    assert len(list(tmp_path.glob("out/j-*"))) == 1


def test_bad_texts_end_with_exit_code_1_and_cost_nothing_else(tmp_path: Path) -> None:
    bad = [{"id": "blank", "text": " "}, {"id": "list", "text": []}, {"id": "long", "text": "word " * 3000}]
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in [*numbered(3), *bad]) + '{"id": "half", "text": "\\ud800"}\n'
    )
    done = run("embed", "in.jsonl", "--to", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert "4 errors" in done.stdout
    for code in ("empty 1", "not_a_string 1", "too_long 1", "lone_surrogate 1"):
        assert code in done.stderr
    again = run("embed", "in.jsonl", "--to", "out", "--json", cwd=tmp_path)
    assert again.returncode == 1
    retried = run("retry", summary(again)["uri"], "--on-overflow", "truncate", "--json", cwd=tmp_path)
    assert retried.returncode == 1, "three can do no better"
    assert (summary(retried)["texts"], summary(retried)["truncated"]) == (1, 1)
    rows = [json.loads(line) for line in run("results", summary(again)["uri"], cwd=tmp_path).stdout.splitlines()]
    assert {row["id"]: row["error"] for row in rows if row["error"]} == {
        "blank": "empty",
        "list": "not_a_string",
        "half": "lone_surrogate",
    }


REFUSED = {
    "missing file": (["missing.jsonl"], ["missing.jsonl"]),
    "empty file": (["empty.jsonl"], ["empty.jsonl"]),
    "not UTF-8": (["latin1.txt"], ["latin1.txt", "UTF-8"]),
    "malformed JSON": (["broken.jsonl"], ["broken.jsonl", "2"]),
    "no such field": (["good.jsonl", "--text-field", "body"], ["good.jsonl", "body"]),
    "no id": (["good.jsonl", "--id-field", "key"], ["good.jsonl", "key"]),
    "repeated id": (["twice.jsonl"], ["twice.jsonl", "'a'"]),
    "dimensions": (["good.jsonl", "--dimensions", "100"], ["dimensions=100", "384"]),
    "instruction": (["good.jsonl", "--instruction", "find"], ["instruction", "document"]),
    "unknown model": (["good.jsonl", "--model", "no/such"], ["no/such", "no profile is known"]),
    "unknown option": (["good.jsonl", "--dimension", "3"], ["--dimension"]),
    "choice": (["good.jsonl", "--encoding", "int8"], ["--encoding", "int8", "float16"]),
    "store": (["good.jsonl", "--to", "/dev/null/x"], ["/dev/null/x"]),
    "store scheme": (["good.jsonl", "--to", "ftp://host/x"], ["ftp://host/x"]),
    "broker": (["good.jsonl", "--broker-url", "redis://me:secret@127.0.0.1:1/0"], ["redis://me:***@127.0.0.1:1/0"]),
    "broker scheme": (["good.jsonl", "--broker-url", "amqp://me:secret@host"], ["amqp://me:***@host"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_queued(case: str, tmp_path: Path) -> None:
    arguments, culprits = REFUSED[case]
    write_jsonl(tmp_path / "good.jsonl", numbered(3))
    write_jsonl(tmp_path / "twice.jsonl", [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}])
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "broken.jsonl").write_text('{"id": "a", "text": "x"}\n{"id": \n')

    done = run("embed", *arguments, *([] if "--to" in arguments else ["--to", "out"]), cwd=tmp_path)

    assert done.returncode == 2
    for culprit in culprits:
        assert culprit in done.stderr
    assert "secret" not in done.stderr
    assert not list(tmp_path.glob("out/j-*")), "no job was made"


def test_an_unknown_setting_is_named(tmp_path: Path) -> None:
    done = run("config", "show", cwd=tmp_path, modle="x")
    assert done.returncode == 2
    assert "EMBEDFLEET_MODLE" in done.stderr
    assert "Did you mean EMBEDFLEET_MODEL?" in done.stderr


def test_the_bar_is_drawn_on_a_terminal(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", numbered(2000))
    terminal, stderr = pty.openpty()
    running = subprocess.Popen(
        [EMBEDFLEET, "embed", "in.jsonl", "--to", "out"],
        cwd=tmp_path,
        env={**environment(engine="synthetic", synthetic_texts_per_s=2000), "TERM": "xterm", "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
    )
    os.close(stderr)
    drawn = b""
    with contextlib.suppress(OSError):  # how the end of a terminal reads
        while more := os.read(terminal, 4096):
            drawn += more
    assert running.wait(timeout=60) == 0
    assert b"texts/s" in drawn
    assert b"2000/2000" in drawn


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_callback_is_told_before_the_command_ends_and_else_by_the_next_one(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", numbered(5))
    store = tmp_path / "out"
    with receiver() as hook:
        settings = {
            "store": store,
            "webhook_secret": "whsec_" + "c2VjcmV0" * 4,
            "webhook_origins": f"http://127.0.0.1:{hook.port}",
            "webhook_networks": "127.0.0.1",
        }
        hook.answer = status(500)
        failed = run("embed", "in.jsonl", "--callback", hook.url, "--json", cwd=tmp_path, **settings)
        assert (failed.returncode, "the callback was not told" in failed.stderr) == (0, True)
        assert {json.loads(request.body)["data"]["texts"] for request in hook.received} == {5}
        hook.answer = status(200)
        done = run("embed", "in.jsonl", "--callback", hook.url, "--json", cwd=tmp_path, **settings)
        assert "callback" not in done.stderr
        assert len({request.headers["webhook-id"] for request in hook.received}) == 1
    receipt = store / summary(done)["job"] / "deliveries" / "callback" / "00000000.json"
    assert json.loads(receipt.read_text())["state"] == "confirmed"
    assert not (store / "janitor").exists(), "other jobs of the store are none of this worker's business"
