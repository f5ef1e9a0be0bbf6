"""Stand-in vectors: deterministic, unit norm, from a hash of the text. They mean nothing and say so by their name."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def synthetic_vectors(prompts: Sequence[str], dimensions: int) -> "np.ndarray[Any, Any]":
    """An array (prompts, dimensions) float32: the same text always gives the same row, other texts others."""
    import numpy as np

    digests = [hashlib.shake_128(prompt.encode("utf-8")).digest(2 * dimensions) for prompt in prompts]
    numbers = np.frombuffer(b"".join(digests), dtype="<i2").astype(np.float32).reshape(len(prompts), dimensions)
    numbers += 0.5  # no component is zero, so no row is
    numbers /= np.linalg.norm(numbers, axis=1, keepdims=True)
    return numbers
