"""`embedfleet eval` with real models: against the reference implementation, against MTEB, and every length of one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedfleet import EmbedSettings, Fleet
from embedfleet.evaluation import evaluate
from embedfleet.labels import read_pairs, read_retrieval
from embedfleet.local import LocalFleet
from embedfleet.quality import as_written
from embedfleet.vectors import all_vectors
from tests.integration.command import environment, run, write_jsonl

ROOT = Path(__file__).parents[2]
LABELLED = ROOT / "examples" / "labelled"
PAIRS, CORPUS, QUERIES = (str(LABELLED / name) for name in ("pairs.csv", "corpus.jsonl", "queries.jsonl"))


@pytest.fixture(scope="module")
def minilm_fleet(start_fleet: Callable[..., LocalFleet], tmp_path_factory: pytest.TempPathFactory) -> LocalFleet:
    """A worker with all-MiniLM-L6-v2 on real vLLM, for any store below its own."""
    return start_fleet(tmp_path_factory.mktemp("store"), dtype="float32")


def named(local: LocalFleet, folder: str) -> dict[str, object]:
    """Settings of a command that uses this fleet, with a store of its own."""
    assert local.settings.broker_url is not None
    return {
        "engine": "vllm",
        "dtype": "float32",
        "broker_url": local.settings.broker_url.get_secret_value(),
        "store": f"{local.settings.store}/{folder}",
    }


def test_spearman_is_that_of_the_reference_implementation(
    minilm_fleet: LocalFleet, minilm: Path, tmp_path: Path
) -> None:
    from scipy.stats import spearmanr
    from sentence_transformers import SentenceTransformer

    done = run("eval", PAIRS, "--json", cwd=tmp_path, **named(minilm_fleet, "pairs"))
    assert done.returncode == 0, done.stderr
    [result] = json.loads(done.stdout)["results"]
    pairs = read_pairs([PAIRS])
    vectors = SentenceTransformer(str(minilm), device="cpu").encode(list(pairs.texts), normalize_embeddings=True)
    left, right = (vectors[[pair[side] for pair in pairs.pairs]] for side in (0, 1))
    expected = spearmanr((left * right).sum(axis=1), pairs.scores).statistic
    assert result["metrics"]["spearman"] == pytest.approx(expected, abs=0.002)
    assert result["metrics"]["spearman"] > 0.5
    assert (result["settings"]["dimensions"], result["vector_bytes"], result["errors"]) == (384, 1536, 0)


def test_easy_queries_find_their_document_and_again_costs_nothing(minilm_fleet: LocalFleet, tmp_path: Path) -> None:
    command = ("eval", "--corpus", CORPUS, "--queries", QUERIES, "--k", 1, "--k", 10, "--try", "encoding=float16")
    settings = named(minilm_fleet, "retrieval")
    done = run(*command, cwd=tmp_path, **settings)
    assert done.returncode == 0, done.stderr
    title, header, row = done.stdout.splitlines()
    assert title.endswith("30 documents, 10 queries")
    values = dict(zip(header.replace("of first", "of-first").split(), row.split(), strict=True))
    assert float(values["ndcg@10"]) > 0.95
    assert float(values["recall@1"]) == pytest.approx(0.95), "of ten, one has a second relevant document"

    written = {path: path.stat().st_mtime_ns for path in Path(str(settings["store"])).glob("j-*/parts/*")}
    assert len(written) == 2
    assert run(*command, cwd=tmp_path, **settings).stdout == done.stdout
    assert {path: path.stat().st_mtime_ns for path in Path(str(settings["store"])).glob("j-*/parts/*")} == written


def test_a_text_that_is_too_long_is_counted_with_a_hint(minilm_fleet: LocalFleet, tmp_path: Path) -> None:
    documents = [{"id": "long", "text": "word " * 400}, {"id": "short", "text": "a short text"}]
    write_jsonl(tmp_path / "corpus.jsonl", documents)
    write_jsonl(tmp_path / "queries.jsonl", [{"id": "q", "text": "short", "relevant": ["short", "long"]}])
    command = ("eval", "--corpus", "corpus.jsonl", "--queries", "queries.jsonl", "--json")
    done = run(*command, cwd=tmp_path, **named(minilm_fleet, "long"))
    assert done.returncode == 1
    assert "errors: too_long 1; see them with: embedfleet results" in done.stderr
    assert "--on-overflow truncate" in done.stderr
    [result] = json.loads(done.stdout)["results"]
    assert (result["errors"], result["metrics"]["recall@10"]) == (1, 0.5)
    done = run(*command, "--on-overflow", "truncate", cwd=tmp_path, **named(minilm_fleet, "long"))
    assert (done.returncode, json.loads(done.stdout)["results"][0]["metrics"]["recall@10"]) == (0, 1)


def test_mteb_measures_the_same(minilm_fleet: LocalFleet, tmp_path: Path) -> None:
    """The example's task through MTEB, and the same data through eval."""
    settings = named(minilm_fleet, "mteb")
    example = ROOT / "examples" / "mteb_custom_task"
    code = "import json, sys; from data import docstrings; json.dump(docstrings(), sys.stdout)"
    made = subprocess.run([sys.executable, "-c", code], cwd=example, capture_output=True, check=True)
    found = json.loads(made.stdout)
    write_jsonl(tmp_path / "corpus.jsonl", [{"id": name, "text": body} for name, _, body in found])
    queries = [{"id": f"q-{name}", "text": head, "relevant": [name]} for name, head, _ in found]
    write_jsonl(tmp_path / "queries.jsonl", queries)
    with Fleet(**settings) as fleet:
        data = read_retrieval([str(tmp_path / "corpus.jsonl")], [str(tmp_path / "queries.jsonl")])
        [ours] = evaluate(fleet, data, [EmbedSettings(on_overflow="truncate")], recall_at=[1, 10]).rows

    path = os.pathsep.join([str(ROOT / "producer"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(example / "run.py")],
        cwd=minilm_fleet.settings.store,
        env={**environment(**settings), "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    theirs = {name: float(value) for name, value in (line.split(": ") for line in done.stdout.splitlines())}
    assert theirs["ndcg_at_10"] == pytest.approx(ours.metrics["ndcg@10"], abs=1e-3)
    assert theirs["recall_at_1"] == pytest.approx(ours.metrics["recall@1"], abs=6e-3)  # one query more or less
    assert theirs["recall_at_10"] == pytest.approx(ours.metrics["recall@10"], abs=6e-3)
    assert theirs["ndcg_at_10"] > 0.5


def test_every_length_is_what_a_worker_writes_and_is_embedded_once(qwen_fleet: Fleet) -> None:
    data = read_retrieval([CORPUS], [QUERIES])
    tries = [
        EmbedSettings(dimensions=length, encoding=form) for length in (128, 96, 32) for form in ("float32", "float16")
    ]
    found = evaluate(qwen_fleet, data, tries)
    assert [job.spec.settings.dimensions for job in found.jobs] == [128, 128]
    assert evaluate(qwen_fleet, data).rows[0] == found.rows[0]
    [corpus] = [job for job in found.jobs if job.spec.settings.input_type == "document"]
    at, full = all_vectors(corpus)
    for each in tries:
        job = qwen_fleet.submit(data.records(), settings=each)
        job.wait(timeout_s=60)
        ids, written = all_vectors(job)
        cut = as_written(full, each.dimensions or 0, each.encoding)[[at[name] for name in ids]]
        assert (cut.dtype, cut.shape) == (written.dtype, written.shape)
        steps = np.spacing(np.abs(written).astype(each.encoding)).max()
        assert np.abs(cut.astype(np.float64) - written.astype(np.float64)).max() <= max(steps, 1e-6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give a file of pairs, or --corpus FILE and --queries FILE"),
        (("--corpus", CORPUS), "give a file of pairs, or --corpus FILE and --queries FILE"),
        ((PAIRS, "--dimensions", "64"), "dimensions=64: sentence-transformers/all-MiniLM-L6-v2 gives only 384"),
        ((PAIRS, "--try", "dimensions"), "--try dimensions: NAME=VALUE was expected"),
        ((PAIRS, "--try", "model=Qwen/Qwen3-Embedding-0.6B"), "Run eval once for each"),
        ((PAIRS, "--plot", "plot.gif"), "must end in .png or .svg"),
        (("nothing.csv",), "nothing.csv: no such file"),
        ((CORPUS,), "Pairs have text1, text2 and score"),
        ((PAIRS, "--input-type", "query", "--instruction", "x"), "takes none"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = run("eval", *arguments, cwd=tmp_path, store=tmp_path / "store")
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.glob("store/j-*"))
