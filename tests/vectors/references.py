"""What the vectors must be: by sentence-transformers, and by transformers with pooling and prompt written here.

Nothing of embedfleet is used. float32 weights; the vectors are float64 of unit norm, one text at a time for the Qwen3,
so that no padding is involved.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

END = "<|endoftext|>"
"""The token that last-token pooling rests on; it has to be the last one, also of a text that was cut."""


@dataclass(frozen=True)
class Reference:
    """Of some texts, in order."""

    vectors: NDArray[np.float64]
    """(texts, dimensions), unit norm."""
    tokens: list[int]
    """Tokens given to the model."""
    truncated: list[bool]

    def cut(self, dimensions: int) -> NDArray[np.float64]:
        """The first dimensions, renormalised."""
        return _unit(self.vectors[:, :dimensions])


def minilm_reference(folder: Path, texts: Sequence[str]) -> Reference:
    """all-MiniLM-L6-v2 by sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    limit = model.max_seq_length
    whole = [len(ids) for ids in model.tokenizer(list(texts), truncation=False, padding=False)["input_ids"]]
    vectors = model.encode(list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False)
    return Reference(
        _unit(vectors.astype(np.float64)), [min(count, limit) for count in whole], [count > limit for count in whole]
    )


def qwen_reference(folder: Path, prompts: Sequence[str], *, limit: int, end: bool = True) -> Reference:
    """A model in the shape of Qwen3-Embedding by transformers. Without ``end``, a cut prompt loses its last token."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModel.from_pretrained(str(folder), dtype=torch.float32).eval()
    end_id = tokenizer.convert_tokens_to_ids(END)

    def vector(ids: list[int]) -> Any:
        return model(torch.tensor([ids])).last_hidden_state[0, -1].double().numpy()

    vectors, tokens, truncated = [], [], []
    with torch.inference_mode():
        for prompt in prompts:
            whole: list[int] = tokenizer(prompt)["input_ids"]
            assert whole[-1] == end_id
            assert end_id not in whole[-2:-1], "it is appended once"
            ids = [*whole[: limit - 1], end_id] if len(whole) > limit and end else whole[:limit]
            vectors.append(vector(ids))
            tokens.append(len(ids))
            truncated.append(len(whole) > limit)
    return Reference(_unit(np.stack(vectors)), tokens, truncated)


def cosines(vectors: NDArray[Any], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each vector with its reference, in float64."""
    found = vectors.astype(np.float64)
    assert found.shape == reference.shape
    cosine: NDArray[np.float64] = (_unit(found) * _unit(reference)).sum(axis=1)
    return cosine


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    norms: NDArray[np.float64] = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / norms
