"""References computed once, fleets of two models in two number formats, and a table of figures at the end."""

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
    """By model, each computed when it is first asked for."""
    return References(texts, minilm, qwen)


class References(dict[str, Reference]):
    def __init__(self, texts: list[str], minilm: Path, qwen: Path) -> None:
        super().__init__()
        self._make = {
            "MiniLM": lambda: minilm_reference(minilm, texts),
            "Qwen3": lambda: qwen_reference(qwen, texts, limit=tiny.MAX_TOKENS),
        }

    def __missing__(self, model: str) -> Reference:
        self[model] = self._make[model]()
        return self[model]


class Fleets(dict[tuple[str, str], Served]):
    """By model and number format. A model's two start together when one is asked for, half a minute on two cores."""

    def __init__(self, folders: dict[str, Path | None], cache_url: str, store: Callable[[], Path]) -> None:
        super().__init__()
        self._folders = folders
        self._cache_url = cache_url
        self._store = store
        self._stack = ExitStack()

    def __missing__(self, key: tuple[str, str]) -> Served:
        model, _ = key
        started = {(model, dtype): self._start(self._folders[model], dtype) for dtype in ("float32", "bfloat16")}
        for served in started.values():
            served.local.wait_ready()
        self.update(started)
        return self[key]

    def _start(self, folder: Path | None, dtype: str) -> Served:
        store = str(self._store())
        named = {"model": str(folder)} if folder else {}
        settings = load(store=store, dtype=dtype, cache_url=self._cache_url, **named)
        local = self._stack.enter_context(LocalFleet(settings, stores=(store,)))
        fleet = self._stack.enter_context(Fleet(**dict(local.settings)))
        return Served(local, fleet, self._stack.enter_context(client_of(self._cache_url)))

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="package")
def fleets(
    qwen: Path, start_redis: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, str], Served]]:
    """Fleets with a cache, of two models in two number formats."""
    started = Fleets({"MiniLM": None, "Qwen3": qwen}, start_redis(), lambda: tmp_path_factory.mktemp("store"))
    yield started
    started.close()


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
