"""llama.cpp's server with MiniLM as a GGUF file: another implementation, another tokenizer, the same vectors."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from embedfleet.models import profile_of
from embedfleet.settings import load
from embedfleet_worker.engine.base import Priority
from embedfleet_worker.engine.openai import OpenaiEngine
from tests.servers import ROOT, free_port, serving

pytestmark = [pytest.mark.interop, pytest.mark.timeout(3600)]

TEXTS = [
    "The lease of a dead worker ends.",
    "x",
    "def f(x): return {x: [x]}",
    *(f"A document of some length, the {number}th of them. " * (1 + number % 7) for number in range(40)),
]
LONG = "the inn of the thin man, " * 200


@pytest.fixture(scope="module")
def environment() -> Path:
    place = ROOT / ".cache" / "interop"
    subprocess.run([ROOT / "scripts" / "interop", sys.executable, place], check=True)
    return place


@pytest.fixture(scope="module")
def engine(environment: Path, minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenaiEngine]:
    folder = tmp_path_factory.mktemp("llama-cpp")
    python, file, port = str(environment / "bin" / "python"), folder / "minilm.gguf", free_port()
    subprocess.run([python, ROOT / "scripts" / "write_gguf.py", minilm, file], check=True)
    command = [python, "-m", "llama_cpp.server", "--model", str(file), "--model_alias", "minilm", "--embedding", "true"]
    command += ["--n_ctx", "512", "--n_batch", "512", "--n_ubatch", "512", "--host", "127.0.0.1", "--port", str(port)]
    with serving(command, port, "/v1/models", folder):
        settings = load(engine="openai", openai_url=f"http://127.0.0.1:{port}/v1", openai_model="minilm")
        connected = OpenaiEngine(profile_of(settings.model), settings)
        yield connected
        connected.close()


def test_vectors_of_llama_cpp_are_the_references(engine: OpenaiEngine, minilm: Path) -> None:
    from sentence_transformers import SentenceTransformer

    texts = [*TEXTS, LONG]
    embedded = engine.embed(engine.tokenise(texts, truncate=True), Priority.BULK).result(600)
    assert embedded.errors == {}
    reference = SentenceTransformer(str(minilm), device="cpu").encode(texts, normalize_embeddings=True)
    cosines = (embedded.vectors.astype(np.float64) * reference.astype(np.float64)).sum(axis=1)
    assert cosines.min() >= 0.9999
