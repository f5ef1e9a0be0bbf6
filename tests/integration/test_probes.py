"""A real worker with real weights starts, and one whose files are not the model's refuses to serve."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from embedfleet import EmbedSettings, Fleet
from embedfleet.local import LocalFleet
from embedfleet.models import DEFAULT_MODEL, profile_of
from tests.embedding_server import embedding_server
from tests.integration.command import environment, run
from tests.tiny_qwen3 import quantise

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_the_golden_vectors_are_the_references(minilm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "scripts" / "golden.py"))["main"](str(minilm))
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    profile = profile_of(DEFAULT_MODEL)
    assert [(each["text"], each["input_type"]) for each in printed] == [
        (golden.text, golden.input_type) for golden in profile.golden
    ]
    for each, golden in zip(printed, profile.golden, strict=True):
        np.testing.assert_allclose(golden.head, each["head"], atol=1e-5)


def test_a_worker_whose_server_swaps_vectors_refuses_to_serve(tiny_qwen3: Path, redis_url: str, tmp_path: Path) -> None:
    """Each is a sound vector, and no index is wrong: only the texts alone tell."""

    def swapped(handler: Any, texts: list[str]) -> bool:
        if len(texts) > 1:
            handler.answer(200, {"object": "list", "data": handler.server.rows(texts[::-1]), "model": "m"})
        return len(texts) > 1

    with embedding_server(128) as server:
        server.fault = swapped
        settings = {"broker_url": redis_url, "store": tmp_path / "store", "model": tiny_qwen3, "engine": "openai"}
        worker = run("worker", cwd=tmp_path, **settings, openai_url=server.url, openai_model="m")
    assert worker.returncode == 2, worker.stderr
    assert "Probe: one word has another vector in a batch of 5 than alone: cosine" in worker.stderr


def change_weights(folder: Path) -> None:
    """Two layers in each other's place: what loads, and gives vectors that look sound."""
    weights = load_file(folder / "model.safetensors")
    first, second = (f"encoder.layer.{n}.output.dense.weight" for n in (2, 3))
    weights[first], weights[second] = weights[second], weights[first]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


WORKERS = """
import json, os, sys
from embedfleet_worker.__main__ import main
for settings in json.loads(sys.argv[1]):
    os.environ.update(settings)
    print("exit code", main(), flush=True)
    for name in settings:
        del os.environ[name]
os._exit(0)
"""


def test_a_worker_that_would_give_other_vectors_refuses_to_serve(
    minilm: Path, tiny_qwen3: Path, redis_url: str, tmp_path: Path
) -> None:
    """Three in one process, since vLLM takes seconds to import: methods that there are not, or not here, and weights
    that are not the model's, under its own name and a revision, as a hub's cache on this machine holds them."""
    snapshot = tmp_path / "hub" / f"models--{DEFAULT_MODEL.replace('/', '--')}" / "snapshots" / COMMIT
    shutil.copytree(minilm, snapshot, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    change_weights(snapshot)
    settings = [
        {"EMBEDFLEET_MODEL": str(tiny_qwen3), "EMBEDFLEET_QUANTIZATION": "fp9"},
        {"EMBEDFLEET_MODEL": str(tiny_qwen3), "EMBEDFLEET_QUANTIZATION": "fp8"},
        {"EMBEDFLEET_REVISION": COMMIT},
    ]
    done = subprocess.run(
        [sys.executable, "-c", WORKERS, json.dumps(settings)],
        env={
            **environment(broker_url=redis_url, store=tmp_path / "store", dtype="float32"),
            "HF_HOME": str(tmp_path),
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    codes = [
        line["message"] for line in lines if line["message"].startswith("exit code")
    ]  # a worker's stdout is its log
    assert codes == ["exit code 2"] * 3, done.stderr
    said = [line["message"] for line in lines if line["level"] == "ERROR" and "could not load" not in line["message"]]
    unknown, impossible, changed = said
    assert unknown.startswith("quantization 'fp9': vLLM ")
    assert "compressed-tensors" in unknown, "vLLM's own list"
    assert "vLLM can't load it with EMBEDFLEET_QUANTIZATION=fp8 on this cpu (" in impossible
    assert "Probe: golden text 0 (\"Dr. O'Neill paid" in changed
    assert "Traceback" not in done.stderr


def test_quantised_weights_are_in_the_provenance_and_have_cache_entries_of_their_own(
    start_fleet: Callable[..., LocalFleet],
    start_redis: Callable[[], str],
    qwen_fleet: Fleet,
    tiny_qwen3: Path,
    tmp_path: Path,
) -> None:
    cache_url = start_redis()
    folder = quantise(tiny_qwen3, tmp_path / "tiny-int8")
    texts = [f"text number {n}" for n in range(20)]
    local = start_fleet(
        tmp_path / "store",
        model=str(folder),
        dtype="float32",
        quantization="compressed-tensors",
        cache_url=cache_url,
    )
    with Fleet(**dict(local.settings)) as fleet:
        jobs, cached = [], []
        for key in ("first", "second"):  # one after the other: a worker does them in any order
            jobs.append(fleet.submit(texts, key=key))
            cached.append(jobs[-1].wait(timeout_s=60).totals.cached)
        parts = [job.folder.part_info(0).provenance for job in jobs]
        vectors = fleet.embed(texts).astype(np.float64)
    local.stop()
    assert cached == [0, 20]
    assert parts[0] == parts[1]
    assert (parts[0]["quantization"], parts[0]["dtype"]) == ("compressed-tensors", "float32")
    plain = qwen_fleet.embed(texts, settings=EmbedSettings()).astype(np.float64)
    cosines = (vectors * plain).sum(axis=1)
    assert 0.99 < cosines.min() < 0.99999, "other weights, of the same model"
