"""The vectors of the whole path are the reference implementations', in whatever company a text travels."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedfleet import EmbedSettings
from embedfleet.errors import SettingsError
from tests import tiny_qwen3 as tiny
from tests.vectors.corpus import COUNT, WHOLE
from tests.vectors.references import Reference, cosines, qwen_reference
from tests.vectors.served import ARRANGEMENTS, Served, Vectors, vectors

LEAST = {"float32": (0.99999, 0.999999), "bfloat16": (0.999, 0.9999)}
"""The smallest cosine allowed, and the median, by the engine's number format; the references are float32."""
SERVED = [(model, dtype) for model in ("MiniLM", "Qwen3") for dtype in LEAST]
SHORT = {"MiniLM": ("alone",), "Qwen3": tuple(ARRANGEMENTS)}
"""What a run of fewer texts does: MiniLM takes half a minute of two cores for 2,000 of them."""
COMPANY = [
    (model, dtype, arrangement)
    for model, dtype in SERVED
    for arrangement in (ARRANGEMENTS if COUNT == WHOLE else SHORT[model])
]
Fleets = dict[tuple[str, str], Served]
Say = Callable[[str], None]


def check(what: str, dtype: str, found: Vectors, reference: Vectors, say: Say) -> None:
    """Compare and note the figures."""
    cosine = cosines(found, reference)
    least, median = float(cosine.min()), float(np.median(cosine))
    say(f"{what}, {dtype}: minimum 1 - {1 - least:.1e}, median 1 - {1 - median:.1e}, {len(cosine)} texts")
    assert (least >= LEAST[dtype][0], median >= LEAST[dtype][1]) == (True, True), (least, median, cosine.argmin())


@pytest.mark.parametrize(("model", "dtype", "arrangement"), COMPANY)
def test_every_text_has_the_references_vector_in_any_company(
    model: str,
    dtype: str,
    arrangement: str,
    fleets: Fleets,
    references: dict[str, Reference],
    texts: list[str],
    say: Say,
) -> None:
    served = fleets[model, dtype]
    served.forget()
    begun = time.monotonic()
    found = ARRANGEMENTS[arrangement](served, texts)
    what = f"{model} {arrangement} ({time.monotonic() - begun:.0f} s)"
    check(what, dtype, found, references[model].vectors, say)


@pytest.mark.parametrize(("model", "dtype"), SERVED)
def test_tokens_are_the_references_and_what_was_cut_is_reported(
    model: str, dtype: str, fleets: Fleets, references: dict[str, Reference], texts: list[str], say: Say
) -> None:
    table = fleets[model, dtype].job(texts)
    check(f"{model}, a job in the order of the corpus", dtype, vectors(table), references[model].vectors, say)
    assert table["n_tokens"].to_pylist() == references[model].tokens
    assert table["truncated"].to_pylist() == references[model].truncated
    assert sum(references[model].truncated) > 10, "some are over the limit"


@pytest.mark.parametrize("dtype", LEAST)
def test_a_cut_prompt_ends_with_the_end_token(
    dtype: str, qwen: Path, fleets: Fleets, references: dict[str, Reference], texts: list[str], say: Say
) -> None:
    """Its vector is that of a reference that puts the token there, and not that of one that cuts it off."""
    cut = [place for place, truncated in enumerate(references["Qwen3"].truncated) if truncated][:20]
    chosen = [texts[place] for place in cut]
    found = fleets["Qwen3", dtype].pieces(chosen, 8)
    check("Qwen3, texts over the limit", dtype, found, references["Qwen3"].vectors[cut], say)
    without = qwen_reference(qwen, chosen, limit=tiny.MAX_TOKENS, end=False)
    assert cosines(found, without.vectors).max() < LEAST[dtype][0]


# Prompts and dimensions

OWN = "Find the page of the manual that explains this"


@pytest.mark.parametrize("instruction", [None, OWN])
@pytest.mark.parametrize("dtype", LEAST)
def test_a_query_is_embedded_with_its_instruction(
    dtype: str, instruction: str | None, qwen: Path, fleets: Fleets, texts: list[str], say: Say
) -> None:
    prompt = tiny.QUERY_PROMPT if instruction is None else f"Instruct: {instruction}\nQuery:"
    chosen = texts[:100]
    settings = EmbedSettings(input_type="query", instruction=instruction, on_overflow="truncate")
    reference = qwen_reference(qwen, [prompt + text for text in chosen], limit=tiny.MAX_TOKENS)
    found = fleets["Qwen3", dtype].pieces(chosen, 64, settings)
    check(f"Qwen3 queries, {'own' if instruction else 'usual'} instruction", dtype, found, reference.vectors, say)


SOME_DIMENSIONS = (32, 33, 64, 77, 100, 127, 128)


@pytest.mark.parametrize("dimensions", SOME_DIMENSIONS)
@pytest.mark.parametrize("dtype", LEAST)
def test_fewer_dimensions_are_the_references_first_ones_renormalised(
    dtype: str, dimensions: int, fleets: Fleets, references: dict[str, Reference], texts: list[str], say: Say
) -> None:
    settings = EmbedSettings(dimensions=dimensions, on_overflow="truncate")
    found = vectors(fleets["Qwen3", dtype].job(texts, settings))
    np.testing.assert_allclose(np.linalg.norm(found.astype(np.float64), axis=1), 1, atol=1e-6)
    check(f"Qwen3, {dimensions} dimensions", dtype, found, references["Qwen3"].cut(dimensions), say)


def test_every_allowed_number_of_dimensions(fleets: Fleets, references: dict[str, Reference], texts: list[str]) -> None:
    served = fleets["Qwen3", "float32"]
    for dimensions in range(32, tiny.HIDDEN + 1):
        found = served.fleet.embed(texts[:8], settings=EmbedSettings(dimensions=dimensions, on_overflow="truncate"))
        assert cosines(found, references["Qwen3"].cut(dimensions)[:8]).min() >= LEAST["float32"][0]


@pytest.mark.parametrize(
    ("model", "dimensions"), [("MiniLM", 32), ("MiniLM", 383), ("MiniLM", 385), ("Qwen3", 31), ("Qwen3", 129)]
)
def test_other_dimensions_are_refused_before_anything_is_queued(model: str, dimensions: int, fleets: Fleets) -> None:
    fleet = fleets[model, "float32"].fleet
    with pytest.raises(SettingsError, match=f"dimensions={dimensions}: .* gives (only 384|32 to 128)"):
        fleet.submit(["a text"], settings=EmbedSettings(dimensions=dimensions))
    assert fleet.broker.depth(fleet.broker.queue(fleet.settings.model, "bulk")) == 0
