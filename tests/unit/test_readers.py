"""The Parquet of a job folder as others read it, one line each, in both encodings."""

from pathlib import Path

import duckdb
import numpy as np
import pandas
import polars
import pytest

from embedfleet import EmbedSettings
from embedfleet.contract import Encoding
from embedfleet.testing import InMemoryFleet

TEXTS = [f"text {n}" for n in range(600)] + [""]


@pytest.mark.parametrize("encoding", ["float32", "float16"])
def test_duckdb_polars_and_pandas_read_the_same_vectors(encoding: Encoding, tmp_path: Path) -> None:
    fleet = InMemoryFleet(store=str(tmp_path))
    job = fleet.submit(TEXTS, settings=EmbedSettings(encoding=encoding))
    parts = tmp_path / job.id / "parts"

    by_duckdb = duckdb.sql(f"SELECT id, embedding FROM '{parts}/*.parquet' WHERE error IS NULL").fetchall()
    by_polars = polars.read_parquet(f"{parts}/*.parquet").filter(polars.col("error").is_null())
    by_pandas = pandas.read_parquet(parts).query("error.isnull()")

    expected = fleet.embed(TEXTS[:-1], settings=EmbedSettings(encoding=encoding))
    ids = [str(n) for n in range(600)]
    for found_ids, vectors in (
        ([row[0] for row in by_duckdb], [row[1] for row in by_duckdb]),
        (by_polars["id"].to_list(), by_polars["embedding"].to_list()),
        (by_pandas["id"].tolist(), by_pandas["embedding"].tolist()),
    ):
        assert found_ids == ids
        np.testing.assert_array_equal(np.array(vectors, np.float32), expected.astype(np.float32))
    fleet.close()


def test_a_test_of_an_application_touches_no_real_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDFLEET_STORE", str(tmp_path / "real"))
    fleet = InMemoryFleet()
    job = fleet.submit(["a"])
    assert not (tmp_path / "real").exists()
    assert job.spec.synthetic
    fleet.close()


def test_a_query_is_not_its_document_in_memory_either() -> None:
    fleet = InMemoryFleet(model="Qwen/Qwen3-Embedding-0.6B")
    document, query = (fleet.embed(["a"], settings=EmbedSettings(input_type=kind)) for kind in ("document", "query"))
    assert not np.allclose(document, query)
    document[0] = 0  # the caller's own
    fleet.close()
