"""A real worker with real weights starts, and one whose files are not the model's refuses to serve."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from embedfleet import EmbedSettings, Fleet
from embedfleet.local import LocalFleet
from embedfleet.models import DEFAULT_MODEL, profile_of
from tests.integration.command import environment
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


def change_weights(folder: Path) -> None:
    """Two layers in each other's place: what loads, and gives vectors that look sound."""
    weights = load_file(folder / "model.safetensors")
    first, second = (f"encoder.layer.{n}.output.dense.weight" for n in (2, 3))
    weights[first], weights[second] = weights[second], weights[first]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_pooling(folder: Path) -> None:
    file = folder / "1_Pooling" / "config.json"
    config = json.loads(file.read_text())
    config.update(pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_weights, "Probe: golden text 0 (\"Dr. O'Neill paid"),
        (change_pooling, "say cls pooling, and the model's is mean"),
    ],
)
def test_a_worker_with_other_files_than_the_models_refuses_to_serve(
    change: Callable[[Path], None], said: str, minilm: Path, redis_url: str, tmp_path: Path
) -> None:
    """Under the model's own name and a revision: what a hub's cache on this machine holds."""
    snapshot = tmp_path / "hub" / f"models--{DEFAULT_MODEL.replace('/', '--')}" / "snapshots" / COMMIT
    shutil.copytree(minilm, snapshot, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    change(snapshot)
    settings = {"broker_url": redis_url, "store": tmp_path / "store", "revision": COMMIT, "dtype": "float32"}
    worker = subprocess.run(
        [sys.executable, "-m", "embedfleet_worker"],
        env={
            **environment(**settings),
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert worker.returncode == 2, worker.stderr
    last = json.loads(worker.stderr.splitlines()[-1])
    assert (last["level"], said in last["message"]) == ("ERROR", True), last
    assert "Traceback" not in worker.stderr


METHODS = """
import os, sys
from pathlib import Path
from embedfleet.errors import ConfigurationError
from embedfleet.models import profile_of
from embedfleet.settings import load
from embedfleet_worker.engine.vllm import VllmEngine
for method in ("fp9", "fp8"):
    try:
        VllmEngine(profile_of(sys.argv[1]), load(model=sys.argv[1], dtype="float32", quantization=method))
    except ConfigurationError as exc:
        print("refused:", exc)
sys.stdout.flush()
os._exit(0)
"""


def test_a_quantisation_that_can_not_be_is_refused(tiny_qwen3: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", METHODS, str(tiny_qwen3)], env=environment(), capture_output=True, text=True, timeout=120
    )
    unknown, impossible = (line for line in done.stdout.splitlines() if line.startswith("refused:"))
    assert unknown.startswith("refused: quantization 'fp9': vLLM ")
    assert "compressed-tensors" in unknown, "vLLM's own list"
    assert "vLLM can't load it with EMBEDFLEET_QUANTIZATION=fp8 on this cpu (" in impossible


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
        jobs = [fleet.submit(texts, key=key) for key in ("first", "second")]
        cached = [job.wait(timeout_s=60).totals.cached for job in jobs]
        parts = [job.folder.part_info(0).provenance for job in jobs]
        vectors = fleet.embed(texts).astype(np.float64)
    local.stop()
    assert cached == [0, 20]
    assert parts[0] == parts[1]
    assert (parts[0]["quantization"], parts[0]["dtype"]) == ("compressed-tensors", "float32")
    plain = qwen_fleet.embed(texts, settings=EmbedSettings()).astype(np.float64)
    cosines = (vectors * plain).sum(axis=1)
    assert 0.99 < cosines.min() < 0.99999, "other weights, of the same model"
