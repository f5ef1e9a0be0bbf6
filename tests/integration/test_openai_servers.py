"""Real servers behind the engine that asks one: the same vectors as the reference implementation's."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embedfleet import EmbedSettings, Fleet
from embedfleet.local import LocalFleet
from embedfleet.models import profile_of
from embedfleet.settings import load
from embedfleet_worker.engine.base import Priority
from embedfleet_worker.engine.openai import OpenaiEngine
from tests.servers import infinity_server, vllm_server

TEXTS = [
    "The lease of a dead worker ends.",
    "Straße, naïve façade: ñandú",
    "東京タワーは高い。",
    "שלום עולם, مرحبا بالعالم",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 emoji",
    "def f(x):\n\treturn {x: [x]}  # <|endoftext|> [SEP]",
    "x",
    *(f"A document of some length, the {number}th of them. " * (1 + number % 7) for number in range(120)),
]
LONG = "the inn of the thin man, " * 200


@pytest.fixture(scope="module")
def vllm_url(tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm_server(tiny_qwen3, tmp_path_factory.mktemp("vllm"), "tiny") as url:
        yield url


@pytest.fixture(scope="module")
def vllm_fleet(
    vllm_url: str, tiny_qwen3: Path, start_fleet: Callable[..., LocalFleet], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """A fleet with a worker that has no engine of its own."""
    server = {"engine": "openai", "openai_url": vllm_url, "openai_model": "tiny"}
    local = start_fleet(tmp_path_factory.mktemp("store"), model=str(tiny_qwen3), **server)
    with Fleet(**dict(local.settings)) as fleet:
        yield fleet


def reference(model: Path, texts: list[str], **options: object) -> NDArray[np.float64]:
    """By sentence-transformers, in float32."""
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(str(model), device="cpu")
    vectors: NDArray[np.float64] = loaded.encode(texts, normalize_embeddings=True, **options).astype(np.float64)
    return vectors


def least_cosine(vectors: NDArray[np.float32], expected: NDArray[np.float64]) -> float:
    return float((vectors.astype(np.float64) * expected).sum(axis=1).min())


@pytest.mark.parametrize("input_type", ["document", "query"])
@pytest.mark.parametrize("dimensions", [128, 32])
def test_prompts_and_dimensions_mean_the_same_at_vllm_serve(
    vllm_fleet: Fleet, tiny_qwen3: Path, input_type: str, dimensions: int
) -> None:
    settings = EmbedSettings(input_type=input_type, dimensions=dimensions)
    vectors = vllm_fleet.embed(TEXTS, settings=settings)
    expected = reference(tiny_qwen3, TEXTS, prompt_name=input_type, truncate_dim=dimensions)
    assert least_cosine(vectors, expected) >= 0.99999


def test_truncation_means_the_same_at_vllm_serve(vllm_fleet: Fleet, tiny_qwen3: Path) -> None:
    job = vllm_fleet.submit([LONG, "short"], settings=EmbedSettings(on_overflow="truncate"))
    assert job.wait(timeout_s=60).totals.errors == 0
    table = job.results().to_table().sort_by("id")
    assert table["truncated"].to_pylist() == [True, False]
    assert table["n_tokens"].to_pylist() == [512, 6]
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    assert least_cosine(vectors, reference(tiny_qwen3, [LONG, "short"])) >= 0.99999


def test_provenance_says_which_server(vllm_fleet: Fleet) -> None:
    import vllm

    job = vllm_fleet.submit(["a text"])
    assert job.wait(timeout_s=60).state == "done"
    manifest = job.folder.manifest()
    assert manifest is not None
    (found,) = manifest.provenance
    assert (found["engine"], found["engine_version"]) == ("openai", f"vllm {vllm.__version__}")
    assert (found["weights"], found["dtype"]) == ("openai:tiny", "unknown")


def test_vllm_serve_takes_base64_and_counts_as_we_do(vllm_url: str, tiny_qwen3: Path) -> None:
    settings = load(engine="openai", openai_url=vllm_url, openai_model="tiny", model=str(tiny_qwen3))
    engine = OpenaiEngine(profile_of(str(tiny_qwen3)), settings)
    assert engine._served.format == "base64"
    assert engine._served.counts_alike
    engine.close()


@pytest.fixture(scope="module")
def infinity(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenaiEngine]:
    """An engine at Infinity, which runs MiniLM."""
    with infinity_server(minilm, tmp_path_factory.mktemp("infinity"), "minilm", "--batch-size", "16") as url:
        settings = load(engine="openai", openai_url=url, openai_model="minilm")
        engine = OpenaiEngine(profile_of(settings.model), settings)
        yield engine
        engine.close()


def test_vectors_of_infinity_are_the_references(infinity: OpenaiEngine, minilm: Path) -> None:
    tokens = infinity.tokenise([*TEXTS, LONG], truncate=True)
    assert tokens[-1].truncated
    embedded = infinity.embed(tokens, Priority.BULK).result(120)
    assert embedded.errors == {}
    assert least_cosine(embedded.vectors, reference(minilm, [*TEXTS, LONG])) >= 0.99999
