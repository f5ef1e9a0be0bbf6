"""Chunks on real vLLM: each has the vector that its text has alone."""

import sysconfig
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from embedfleet import Chunking, EmbedSettings, Fleet
from examples.stdlib_search.collect import collect


@pytest.mark.parametrize("input_type", ["document", "query"])
def test_a_chunk_has_the_vector_of_its_text_alone(input_type: str, qwen_fleet: Fleet) -> None:
    found = islice(collect(Path(sysconfig.get_path("stdlib"))), 0, 900, 15)
    texts = {str(number): docstring["text"] for number, docstring in enumerate(found)}
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
