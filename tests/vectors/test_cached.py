"""A hit is a miss, bit for bit, and one entry answers every ``dimensions`` and encoding. Through the whole path."""

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from embedfleet import EmbedSettings
from tests.vectors.served import TRUNCATE, Served, vectors

Fleets = dict[tuple[str, str], Served]
SERVED = [(model, dtype) for model in ("MiniLM", "Qwen3") for dtype in ("float32", "bfloat16")]
HALF_ULP = 2.0**-11
"""Of a float16: what rounding changes in a component, and so in the norm, at most."""


def bits(table: pa.Table) -> list[bytes]:
    """The vectors as they are in the parts."""
    return [vector.tobytes() for vector in vectors(table)]


def settings(dimensions: int | None = None, encoding: str = "float32") -> EmbedSettings:
    return TRUNCATE.model_copy(update={"dimensions": dimensions, "encoding": encoding})


def sizes(model: str) -> list[int | None]:
    return [None] if model == "MiniLM" else [None, 32, 77, 127]


@pytest.fixture(scope="module")
def chosen(texts: list[str]) -> list[str]:
    return texts[: len(texts) // 5]


@pytest.mark.parametrize("encoding", ["float32", "float16"])
@pytest.mark.parametrize(("model", "dtype"), SERVED)
def test_a_hit_is_the_miss_bit_for_bit(
    model: str, dtype: str, encoding: str, fleets: Fleets, chosen: list[str]
) -> None:
    served = fleets[model, dtype]
    for dimensions in sizes(model):
        served.forget()
        miss = served.job(chosen, settings(dimensions, encoding))
        hit = served.job(chosen[::-1], settings(dimensions, encoding))
        assert set(miss["cached"].to_pylist()) == {False}
        assert set(hit["cached"].to_pylist()) == {True}
        assert bits(hit)[::-1] == bits(miss)
        for column in ("n_tokens", "truncated"):
            assert hit[column].to_pylist()[::-1] == miss[column].to_pylist()


@pytest.mark.parametrize(("model", "dtype"), SERVED)
def test_other_dimensions_and_encodings_of_a_cached_text_are_cut_from_its_vector(
    model: str, dtype: str, fleets: Fleets, chosen: list[str]
) -> None:
    served = fleets[model, dtype]
    served.forget()
    full = vectors(served.job(chosen))
    for dimensions in sizes(model):
        for encoding in ("float32", "float16"):
            hit = served.job(chosen, settings(dimensions, encoding))
            assert set(hit["cached"].to_pylist()) == {True}
            assert bits(hit) == [vector.tobytes() for vector in cut(full, dimensions).astype(encoding)]


def cut(full: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    if dimensions is None:
        return full
    first = full[:, :dimensions].astype(np.float64)
    return (first / np.linalg.norm(first, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("model", "dtype"), SERVED)
def test_float16_is_the_rounded_float32_vector(model: str, dtype: str, fleets: Fleets, chosen: list[str]) -> None:
    """Rounded last: also of a vector that was cut."""
    served = fleets[model, dtype]
    for dimensions in sizes(model):
        served.forget()
        half = vectors(served.job(chosen, settings(dimensions, "float16")))  # computed for this
        single = vectors(served.job(chosen, settings(dimensions, "float32")))
        assert (half.dtype, single.dtype) == (np.float16, np.float32)
        assert half.tobytes() == single.astype(np.float16).tobytes()
        norms = np.linalg.norm(half.astype(np.float64), axis=1)
        assert np.abs(norms - 1).max() <= HALF_ULP
