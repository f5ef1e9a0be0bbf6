"""References computed once, four fleets (two models in two number formats) started together, and a table at the end."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from embedfleet import Fleet
from embedfleet.local import LocalFleet
from embedfleet.redisclient import client_of
from embedfleet.settings import load
from tests import tiny_qwen3 as tiny
from tests.vectors.corpus import COUNT, corpus
from tests.vectors.references import Reference, minilm_reference, qwen_reference
from tests.vectors.served import Served

figures = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [item.text for item in corpus(COUNT)]


@pytest.fixture(scope="session")
def qwen(tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Qwen3, but a text with the marker ``<|im_start|>`` in it gives NaN. The corpus has none."""
    folder = tmp_path_factory.mktemp("model") / "qwen"
    shutil.copytree(tiny_qwen3, folder)
    weights = load_file(folder / "model.safetensors")
    marker = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(tiny.START)
    weights["embed_tokens.weight"][marker] = np.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def references(texts: list[str], minilm: Path, qwen: Path) -> dict[str, Reference]:
    """By model."""
    return {
        "MiniLM": minilm_reference(minilm, texts),
        "Qwen3": qwen_reference(qwen, texts, limit=tiny.MAX_TOKENS),
    }


@pytest.fixture(scope="package")
def fleets(
    minilm: Path, qwen: Path, start_redis: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, str], Served]]:
    """By model and number format. They start together, which takes half as long on two cores."""
    cache_url = start_redis()
    cache, found = client_of(cache_url), {}
    with ExitStack() as stack:
        for model, folder in (("MiniLM", None), ("Qwen3", qwen)):
            for dtype in ("float32", "bfloat16"):
                store = str(tmp_path_factory.mktemp("store"))
                named = {"model": str(folder)} if folder else {}
                settings = load(store=store, dtype=dtype, cache_url=cache_url, **named)
                local = stack.enter_context(LocalFleet(settings, stores=(store,)))
                fleet = stack.enter_context(Fleet(**dict(local.settings)))
                found[model, dtype] = Served(local, fleet, cache)
        for served in found.values():
            served.local.wait_ready()
        yield found
    cache.close()


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a line, and again at the end, where nothing is captured."""

    def note(line: str) -> None:
        print(line)  # noqa: T201 - for those who watch, with -s
        request.config.stash.setdefault(figures, []).append(line)

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(figures, [])
    if lines:
        terminalreporter.section("vectors and their references")
        for line in lines:
            terminalreporter.write_line(line)
