"""What a worker process does beside its work: keeping its leases, and leaving when its engine is broken."""

import json
import subprocess
import sys
import time
from pathlib import Path

from embedfleet import EmbedSettings, Fleet
from tests.integration.command import EMBEDFLEET, environment, start
from tests.waiting import wait_until

BROKEN = """
import runpy, vllm
step, steps = vllm.LLMEngine.step, []
def breaks(engine):
    steps.append(1)
    if len(steps) > 12:  # not while it is probed
        raise RuntimeError("a secret text")
    return step(engine)
vllm.LLMEngine.step = breaks
runpy.run_module("embedfleet_worker", run_name="__main__")
"""


def test_a_batch_longer_than_its_lease_is_started_once(redis_url: str, tmp_path: Path) -> None:
    """The heartbeat renews; else the second worker would take it again and again."""
    settings = {"broker_url": redis_url, "store": tmp_path / "store", "lease_s": 3, "synthetic_texts_per_s": 50}
    with Fleet(engine="synthetic", **{name: str(value) for name, value in settings.items()}) as fleet:
        job = fleet.submit(f"text {n}" for n in range(400))  # eight seconds
        workers = [start("worker", cwd=tmp_path, **settings) for _ in range(2)]
        try:
            assert job.wait(timeout_s=60).state == "done"
            wait_until(
                lambda: not fleet.broker.redis.exists(f"{fleet.broker.lane('bulk')}-leases"),
                "the message to be acknowledged",
            )
        finally:
            for worker in workers:
                worker.terminate()
        logs = b"".join(worker.communicate(timeout=30)[1] for worker in workers)
    assert logs.count(b'"message": "batch done"') == 1
    assert b"another worker was first" not in logs


def test_a_broken_engine_ends_its_process_and_another_does_the_work(
    redis_url: str, tmp_path: Path, tiny_qwen3: Path
) -> None:
    settings = {"broker_url": redis_url, "store": str(tmp_path / "store"), "model": str(tiny_qwen3)}
    variables = environment(engine="vllm", dtype="float32", lease_s=5, **settings)
    with Fleet(**settings) as fleet:
        job = fleet.submit((f"text {n}" for n in range(1500)), settings=EmbedSettings(dimensions=32))
        broken = subprocess.Popen([sys.executable, "-c", BROKEN], env=variables, stderr=subprocess.PIPE)
        _, log = broken.communicate(timeout=120)
        assert broken.returncode == 70, log.decode()
        assert b"engine: a step failed" in log
        assert b"secret" not in log
        held = fleet.broker.redis.zrangebyscore(f"{fleet.broker.lane('bulk')}-ends", time.time() + 2.5, "+inf")
        assert held == [], "what it held was given back: its lease ends in two seconds at most, not in five"
        worker = subprocess.Popen([EMBEDFLEET, "worker"], env=variables, stderr=subprocess.PIPE)
        try:
            status = job.wait(timeout_s=120)
        finally:
            worker.terminate()
            worker.communicate(timeout=30)
    assert (status.state, status.totals.texts, status.totals.errors) == ("done", 1500, 0)


def test_a_local_worker_that_dies_again_and_again_ends_the_command(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'embedfleet_worker' in sys.orig_argv:\n"
        "    from embedfleet_worker.engine.synthetic import SyntheticEngine\n"
        "    SyntheticEngine._embed = lambda *_: os._exit(70)\n"
    )
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(1000)))
    done = subprocess.run(
        [EMBEDFLEET, "embed", "in.jsonl", "--to", "out"],
        cwd=tmp_path,
        env={**environment(engine="synthetic"), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 3, done.stderr.decode()
    assert b"the worker died 8 times without finishing a batch" in done.stderr
    assert b"Go on with: embedfleet embed in.jsonl --to out" in done.stderr


def test_the_demo(tmp_path: Path) -> None:
    """With the stand-in engine, to see that its parts fit; `make demo` is the real thing."""
    demo = Path(__file__).parents[2] / "examples" / "stdlib_search" / "demo.py"
    done = subprocess.run(
        [sys.executable, demo], cwd=tmp_path, env=environment(engine="synthetic"), capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    said = done.stdout.decode()
    assert said.count("?\n") == 3
    assert "texts/s" in said
    assert "next: .venv/bin/embedfleet embed" in said
