"""The vectors of the whole path are the reference implementation's, on real text and real weights."""

import sysconfig
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from embedfleet import Chunking, EmbedSettings, Fleet
from embedfleet.local import LocalFleet
from examples.stdlib_search.collect import collect

_TEXTS = 500


@pytest.fixture(scope="module")
def docstrings() -> list[str]:
    """Every fifteenth docstring of the standard library: short ones, long ones, tables, code."""
    found = (docstring["text"] for docstring in collect(Path(sysconfig.get_path("stdlib"))))
    return list(dict.fromkeys(islice(found, 0, None, 15)))[:_TEXTS]


@pytest.fixture(scope="module")
def reference(docstrings: list[str], minilm: Path) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm), device="cpu")
    return model.encode(docstrings, batch_size=32, normalize_embeddings=True).astype(np.float64)


@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.9999), ("bfloat16", 0.999)])
def test_the_whole_path_equals_sentence_transformers(
    dtype: str,
    least: float,
    docstrings: list[str],
    reference: np.ndarray,
    start_fleet: Callable[..., LocalFleet],
    tmp_path: Path,
) -> None:
    assert len(docstrings) == _TEXTS
    local = start_fleet(tmp_path, dtype=dtype)
    with Fleet(**dict(local.settings)) as fleet:
        job = fleet.submit(docstrings, settings=EmbedSettings(on_overflow="truncate"))
        assert job.wait(timeout_s=120).totals.errors == 0
    local.stop()

    table = job.results().to_table()
    order = np.argsort([int(record_id) for record_id in table["id"].to_pylist()])
    vectors = np.array(table["embedding"].to_pylist(), np.float64)[order]
    cosines = (vectors * reference).sum(axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(reference, axis=1)
    assert cosines.min() >= least
    assert sum(table["truncated"].to_pylist()) > 0, "some docstrings are over the limit"


@pytest.mark.parametrize("input_type", ["document", "query"])
def test_a_chunk_has_the_vector_of_its_text_alone(input_type: str, qwen_fleet: Fleet, docstrings: list[str]) -> None:
    texts = {str(number): text for number, text in enumerate(docstrings[:60])}
    chunking = Chunking(max_tokens=150, overlap=10)
    how = EmbedSettings(input_type=input_type, on_overflow="chunk", chunking=chunking, cache="off")
    job = qwen_fleet.submit(list(texts.items()), settings=how)
    assert job.wait(timeout_s=120).totals.errors == 0
    rows = list(job.rows())
    assert len(rows) > len(texts)
    assert max(row["n_tokens"] for row in rows) <= 150
    chunks = [texts[row["id"]][row["chunk_start"] : row["chunk_end"]] for row in rows]
    expected = qwen_fleet.embed(chunks, settings=EmbedSettings(input_type=input_type, cache="off")).astype(np.float64)
    vectors = np.array([row["embedding"] for row in rows], np.float64)
    assert (vectors * expected).sum(axis=1).min() >= 0.99999


@pytest.mark.parametrize("input_type", ["document", "query"])
@pytest.mark.parametrize("dimensions", [128, 32])
def test_the_tiny_qwen3_equals_transformers(
    input_type: str, dimensions: int, qwen_fleet: Fleet, tiny_qwen3: Path, docstrings: list[str]
) -> None:
    """Last token, instruction and Matryoshka: prompt, end token, cut and renormalised."""
    from sentence_transformers import SentenceTransformer

    texts = [text[:400] for text in docstrings[:40]]
    settings = EmbedSettings(input_type=input_type, dimensions=dimensions)
    vectors = qwen_fleet.embed(texts, settings=settings).astype(np.float64)

    model = SentenceTransformer(str(tiny_qwen3), device="cpu", truncate_dim=dimensions)
    expected = model.encode(texts, prompt_name=input_type, normalize_embeddings=True).astype(np.float64)
    assert (vectors * expected).sum(axis=1).min() >= 0.99999
