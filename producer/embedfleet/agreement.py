"""When two vectors of a text are the same vector: cosines, and how near they have to be. Not which are compared.

numpy is imported where it is used: ``import embedfleet`` stays light.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# Between implementations, devices and batches float32 differs by the order of its sums: 2e-7 was seen. A wrong end
# token or pooling, or a cut text, is off by 1e-3 and more.
_FLOAT32 = 0.99999
# bfloat16 keeps 8 bits, float16 11: rounded in every layer, real texts came to 0.9999 of float32. What an engine says
# nothing of is taken for one of these.
_HALF = 0.999
# Quantised weights are other weights: a small model in int8 (compressed-tensors) came to 0.9995 of its float32, in
# fp8 to 0.992, and 4 bits lose more. Other weights or another pooling come nowhere near.
_QUANTISED = 0.95
_NORM_TOLERANCE = 2e-3  # 1e-3 is what a worker lets pass, and float16 adds as much at most


def least_cosine(*dtypes: str) -> float:
    """The cosine that vectors of one text have at least, computed in these number formats with the same weights.

    The encoding of what was written does not matter: rounding to float16 once costs 1e-7.
    """
    return _FLOAT32 if all(dtype == "float32" for dtype in dtypes) else _HALF


def least_golden_cosine(dtype: str, quantization: str | None) -> float:
    """The cosine to a vector of the model's unquantised weights in float32."""
    return least_cosine(dtype) if quantization is None else _QUANTISED


def cosines(left: "np.ndarray[Any, Any]", right: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Row by row, in float64; 0 where a row is all zeros or not finite, which agrees with nothing."""
    import numpy as np

    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        a, b = left.astype(np.float64), right.astype(np.float64)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        found: np.ndarray[Any, Any] = (a * b).sum(axis=1) / norms
    found[~np.isfinite(found)] = 0.0
    return found


def is_unit(vectors: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Which rows have norm 1, as far as their number format can say."""
    import numpy as np

    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    unit: np.ndarray[Any, Any] = np.abs(norms - 1) <= _NORM_TOLERANCE
    return unit
