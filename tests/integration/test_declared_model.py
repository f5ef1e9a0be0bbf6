"""A model that has nothing but weights and a tokenizer, declared: real vLLM gives the vectors that the card means."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from embedfleet import EmbedSettings, Fleet
from embedfleet.local import LocalFleet

TEXTS = ["what is a lease?", "A lease is a contract for the use of something.", "租赁期为三十年。", "x" * 300]


def test_the_pooling_and_prompts_are_the_declared_ones(
    minilm: Path, tmp_path: Path, start_fleet: Callable[..., LocalFleet]
) -> None:
    """MiniLM without what sentence-transformers saved: left alone, vLLM would take [CLS] for BERT."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).symlink_to(minilm / name)
    card = {"dimensions": 384, "max_tokens": 256, "pooling": "mean", "query_template": "query: {text}"}
    local = start_fleet(tmp_path / "store", model=str(folder), models={str(folder): card}, dtype="float32")
    with Fleet(**dict(local.settings)) as fleet:
        documents = fleet.embed(TEXTS)
        queries = fleet.embed(TEXTS, settings=EmbedSettings(input_type="query"))
    local.stop()

    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm), device="cpu")
    for found, prompt in ((documents, ""), (queries, "query: ")):
        expected = model.encode(TEXTS, prompt=prompt, normalize_embeddings=True).astype(np.float64)
        assert (found.astype(np.float64) * expected).sum(axis=1).min() >= 0.99999
