"""What is wrong with a vector that an engine gave. Not what becomes of its text (pipeline.py)."""

from typing import Any

import numpy as np

from embedfleet.contract import ErrorCode

_NORM_TOLERANCE = 1e-3  # float32 sums of bfloat16 products stay within 1e-6; what is off by more was not normalised


def wrong(vector: np.ndarray[Any, Any], dimensions: int) -> tuple[ErrorCode, str] | None:
    """Its length, a component, or its norm; None if it is a finite vector of this length and of norm 1."""
    if vector.shape != (dimensions,):
        return "wrong_length", f"the engine gave {vector.shape[0]} components and {dimensions} were expected"
    if not np.isfinite(vector).all():
        return "not_finite", "the engine gave NaN or infinity"
    norm = float(np.linalg.norm(vector))
    if abs(norm - 1) > _NORM_TOLERANCE:
        return "not_unit_norm", f"the engine gave a vector of norm {norm:.4g}"
    return None
