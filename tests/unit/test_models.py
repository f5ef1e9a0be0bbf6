"""Model profiles and resolved settings: facts about each model, and refusals that name what would be allowed."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedfleet.client import Fleet
from embedfleet.contract import EmbedSettings
from embedfleet.errors import ConfigurationError, SettingsError
from embedfleet.models import DEFAULT_MODEL, profile_of, resolve
from embedfleet.profiles import PROFILES
from embedfleet.settings import load

QWEN = "Qwen/Qwen3-Embedding-0.6B"
WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"


def refusal(default_model: str = QWEN, **settings: object) -> str:
    with pytest.raises(SettingsError) as refused:
        resolve(EmbedSettings(**settings), default_model)
    return str(refused.value)


# What is known of each model


FACTS = {
    "sentence-transformers/all-MiniLM-L6-v2": (384, 256, "mean", 22_713_216),
    "Qwen/Qwen3-Embedding-0.6B": (1024, 32_768, "last", 595_776_512),
    "Qwen/Qwen3-Embedding-4B": (2560, 32_768, "last", 4_021_774_336),
    "Qwen/Qwen3-Embedding-8B": (4096, 32_768, "last", 7_567_295_488),
    "BAAI/bge-small-en-v1.5": (384, 512, "cls", 33_360_000),
    "BAAI/bge-base-en-v1.5": (768, 512, "cls", 109_482_240),
    "BAAI/bge-large-en-v1.5": (1024, 512, "cls", 335_141_888),
    "BAAI/bge-m3": (1024, 8192, "cls", 567_754_752),
    "intfloat/multilingual-e5-small": (384, 512, "mean", 117_653_760),
    "intfloat/multilingual-e5-base": (768, 512, "mean", 278_043_648),
    "intfloat/multilingual-e5-large": (1024, 512, "mean", 559_890_432),
    "intfloat/multilingual-e5-large-instruct": (1024, 512, "mean", 559_890_432),
}
QWENS = {name for name in FACTS if name.startswith("Qwen/")}


def test_the_facts_of_each_model() -> None:
    known = {
        name: (found.dimensions, found.max_tokens, found.pooling, found.parameters) for name, found in PROFILES.items()
    }
    assert known == FACTS
    assert all(profile_of(name).name == name for name in FACTS)


def test_qwen_gives_every_length_from_32_on_and_the_others_one() -> None:
    for name, profile in PROFILES.items():
        shorter = [length for length in range(1, profile.dimensions) if profile.allows(length)]
        assert shorter == (list(range(32, profile.dimensions)) if name in QWENS else [])
        assert profile.allows(profile.dimensions)


def test_qwen_is_never_run_in_float16() -> None:
    for name, profile in PROFILES.items():
        assert profile.dtypes[:2] == ("bfloat16", "float32")
        assert ("float16" in profile.dtypes) == (name not in QWENS)


@pytest.mark.parametrize("name", [name for name in FACTS if not name.startswith("Qwen/")])
def test_the_numbers_of_weights_are_those_of_the_shapes(name: str) -> None:
    """All others are BERT's layers: token, position and type embeddings, layers, a pooler that is loaded and unused."""
    width, limit, _, parameters = FACTS[name]
    multilingual = "/multilingual" in name or name.endswith("m3")
    bert = not multilingual or name.endswith("e5-small")
    words = (250_037 if name.endswith("e5-small") else 250_002) if multilingual else 30_522
    positions, types = (512, 2) if bert else (limit + 2, 1)
    layers = {384: 6 if name.startswith("sentence") else 12, 768: 12, 1024: 24}[width]
    layer = 4 * (width * width + width) + 2 * (4 * width * width) + 5 * width + 4 * width
    assert (words + positions + types + 2) * width + layers * layer + width * width + width == parameters


def test_minilm_has_the_numbers_of_its_own_files(minilm: Path) -> None:
    known, own = profile_of(DEFAULT_MODEL), profile_of(str(minilm))
    for name in ("dimensions", "max_tokens", "pooling", "min_dimensions", "query_template", "parameters"):
        if name != "parameters":
            assert getattr(known, name) == getattr(own, name), name
    assert abs(known.parameters - own.parameters) < 0.01 * known.parameters


# Settings made explicit


def test_what_is_not_said_is_the_models() -> None:
    resolved = resolve(EmbedSettings(), QWEN)
    assert (resolved.model, resolved.dimensions, resolved.instruction) == (QWEN, 1024, None)
    assert resolve(EmbedSettings(input_type="query"), QWEN).instruction == WEB_SEARCH
    assert resolve(EmbedSettings(input_type="query"), DEFAULT_MODEL).instruction is None
    assert resolve(EmbedSettings(model=DEFAULT_MODEL), QWEN).dimensions == 384


def test_what_is_said_stays() -> None:
    settings = EmbedSettings(
        model=QWEN, dimensions=64, instruction="Find it", input_type="query", encoding="float16", on_overflow="truncate"
    )
    assert resolve(settings, DEFAULT_MODEL) == settings


@given(
    st.builds(
        EmbedSettings,
        model=st.sampled_from([None, *PROFILES]),
        dimensions=st.none() | st.integers(1, 5000),
        instruction=st.none() | st.sampled_from(["", " ", "Find it", WEB_SEARCH]),
        prompt_name=st.none() | st.sampled_from(["query", "other"]),
        input_type=st.sampled_from(["document", "query"]),
    ),
    st.sampled_from(list(PROFILES)),
)
def test_resolving_again_changes_nothing_and_asks_for_no_default(settings: EmbedSettings, default: str) -> None:
    try:
        resolved = resolve(settings, default)
    except SettingsError:
        return
    assert resolve(resolved, default) == resolved
    assert resolve(resolved, "a model nobody knows") == resolved
    assert resolved.model is not None
    assert profile_of(resolved.model).allows(resolved.dimensions or 0)


# Refusals


@pytest.mark.parametrize("dimensions", [1, 31, 1025, 4096])
def test_dimensions_name_the_lengths_there_are(dimensions: int) -> None:
    assert refusal(dimensions=dimensions) == f"dimensions={dimensions}: {QWEN} gives 32 to 1024."


@pytest.mark.parametrize("dimensions", [1, 383, 385])
def test_a_model_of_one_length_names_it(dimensions: int) -> None:
    assert refusal(DEFAULT_MODEL, dimensions=dimensions) == f"dimensions={dimensions}: {DEFAULT_MODEL} gives only 384."


@pytest.mark.parametrize("settings", [{"instruction": "Find it"}, {"prompt_name": "query"}])
def test_an_instruction_belongs_to_queries(settings: dict[str, str]) -> None:
    assert 'Set input_type="query"' in refusal(**settings)


def test_an_instruction_for_a_model_that_takes_none() -> None:
    said = refusal(DEFAULT_MODEL, input_type="query", instruction="Find it")
    assert said == f"instruction: {DEFAULT_MODEL} takes none. Leave instruction and prompt_name out."


def test_a_prompt_name_that_is_none_names_those_there_are() -> None:
    names = "query, retrieval, code, legal, bitext, classification, clustering"
    assert refusal(input_type="query", prompt_name="poetry") == f"prompt_name='poetry': {QWEN} has {names}."


def test_instruction_and_prompt_name_exclude_each_other() -> None:
    assert "give one of them" in refusal(input_type="query", prompt_name="query", instruction="Find it")


def test_a_blank_instruction_is_refused() -> None:
    assert "it is blank" in refusal(input_type="query", instruction=" \n")


def test_every_prompt_name_is_an_instruction() -> None:
    for name, instruction in profile_of(QWEN).instructions.items():
        assert resolve(EmbedSettings(input_type="query", prompt_name=name), QWEN).instruction == instruction
        assert 'Set input_type="query"' in refusal(prompt_name=name)


@pytest.mark.parametrize("model", ["BAAI/bge-m3", "BAAI/bge-small-en-v1.5", "intfloat/multilingual-e5-base"])
def test_models_with_a_prompt_of_their_own_take_no_instruction(model: str) -> None:
    assert refusal(model, input_type="query", instruction="Find it").startswith(f"instruction: {model} takes none")
    assert refusal(model, input_type="query", prompt_name="query").startswith(f"instruction: {model} takes none")


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float32"])
def test_a_sound_dtype_is_taken(dtype: str) -> None:
    assert load(model=QWEN, dtype=dtype).resolve(EmbedSettings()).dimensions == 1024


def test_float16_is_refused_where_it_overflows_before_anything_is_queued(tmp_path: Path) -> None:
    said = f"dtype float16: {QWEN} is not sound in it, or nobody has said that it is. Take bfloat16 or float32."
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        load(dtype="float16").resolve(EmbedSettings(model=QWEN))
    fleet = Fleet(model=QWEN, dtype="float16", broker_url="redis://127.0.0.1:1/0", store=str(tmp_path / "store"))
    for verb in (fleet.submit, fleet.enqueue, fleet.embed):
        with pytest.raises(ConfigurationError, match=re.escape(said)):
            verb(["a text"])
    assert not (tmp_path / "store").exists()
    assert load(dtype="float16").resolve(EmbedSettings()).model == DEFAULT_MODEL
    assert load(dtype="float16", model=QWEN, engine="synthetic").resolve(EmbedSettings()).model == QWEN
