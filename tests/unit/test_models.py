"""Model profiles and resolved settings: facts about each model, and refusals that name what would be allowed."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedfleet.contract import EmbedSettings
from embedfleet.errors import SettingsError, UnknownModel
from embedfleet.models import DEFAULT_MODEL, profile_of, resolve
from embedfleet.profiles import PROFILES
from embedfleet.settings import load

QWEN = "Qwen/Qwen3-Embedding-0.6B"
WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"


def refusal(default_model: str = QWEN, **settings: object) -> str:
    with pytest.raises(SettingsError) as refused:
        resolve(EmbedSettings(**settings), default_model)
    return str(refused.value)


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def edit(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text())
    for name, value in changes.items():
        content.pop(name, None)
        if value is not None:
            content[name] = value
    file.write_text(json.dumps(content))


# What is known of each model


@pytest.mark.parametrize(
    ("name", "dimensions", "max_tokens", "pooling", "smallest"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", 384, 256, "mean", None),
        ("Qwen/Qwen3-Embedding-0.6B", 1024, 32_768, "last", 32),
        ("Qwen/Qwen3-Embedding-4B", 2560, 32_768, "last", 32),
        ("Qwen/Qwen3-Embedding-8B", 4096, 32_768, "last", 32),
    ],
)
def test_the_facts_of_each_model(
    name: str, dimensions: int, max_tokens: int, pooling: str, smallest: int | None
) -> None:
    profile = profile_of(name)
    assert (profile.name, profile.dimensions, profile.max_tokens) == (name, dimensions, max_tokens)
    assert (profile.pooling, profile.min_dimensions) == (pooling, smallest)


def test_no_model_is_left_out_above() -> None:
    assert len(PROFILES) == 4
    assert DEFAULT_MODEL == "sentence-transformers/all-MiniLM-L6-v2"


def test_qwen_is_never_run_in_float16() -> None:
    for name, profile in PROFILES.items():
        assert ("float16" in profile.dtypes) == (not name.startswith("Qwen/"))


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
    assert refusal(input_type="query", prompt_name="clustering") == f"prompt_name='clustering': {QWEN} has query."


def test_instruction_and_prompt_name_exclude_each_other() -> None:
    assert "give one of them" in refusal(input_type="query", prompt_name="query", instruction="Find it")


def test_a_blank_instruction_is_refused() -> None:
    assert "it is blank" in refusal(input_type="query", instruction=" \n")


def test_an_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(UnknownModel) as refused:
        resolve(EmbedSettings(model="nobody/knows"), DEFAULT_MODEL)
    assert "model 'nobody/knows'" in str(refused.value)
    assert all(name in str(refused.value) for name in PROFILES)


# Folders


def test_the_profile_of_a_folder_comes_from_its_files(tiny_qwen3: Path) -> None:
    profile = profile_of(str(tiny_qwen3))
    assert profile.name == str(tiny_qwen3)
    assert (profile.dimensions, profile.max_tokens, profile.pooling, profile.min_dimensions) == (128, 512, "last", 32)
    assert profile.query_template == "Instruct: {instruction}\nQuery:{text}"
    assert profile.instructions == {"query": WEB_SEARCH}
    assert "float16" not in profile.dtypes


def test_a_folder_without_modules_json_has_unknown_pooling(tiny_qwen3: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_qwen3, tmp_path / "model")
    (folder / "modules.json").unlink()
    with pytest.raises(UnknownModel, match=r"no modules.json, so its pooling is unknown"):
        profile_of(str(folder))


@pytest.mark.parametrize("name", ["config.json", "1_Pooling/config.json"])
@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_a_file_that_is_no_json_object_is_named(tiny_qwen3: Path, tmp_path: Path, name: str, content: str) -> None:
    folder = copy_of(tiny_qwen3, tmp_path / "model")
    (folder / name).write_text(content)
    with pytest.raises(UnknownModel, match=name):
        profile_of(str(folder))


def test_pooling_must_be_one_we_know(tiny_qwen3: Path, tmp_path: Path) -> None:
    for number, changes in enumerate(
        ({"pooling_mode_lasttoken": False}, {"pooling_mode_mean_tokens": True}, {"pooling_mode_lasttoken": None})
    ):
        folder = copy_of(tiny_qwen3, tmp_path / f"model-{number}")
        edit(folder / "1_Pooling" / "config.json", **changes)
        with pytest.raises(UnknownModel, match="must name mean, cls or lasttoken"):
            profile_of(str(folder))


def prompts(folder: Path, **content: object) -> None:
    edit(folder / "config_sentence_transformers.json", **content)


@pytest.mark.parametrize(
    ("content", "document", "query"),
    [
        ({"prompts": {"query": "q: ", "document": "d: "}}, "d: {text}", "q: {text}"),
        ({"prompts": {"query": "q: ", "passage": "p: "}}, "p: {text}", "q: {text}"),
        ({"prompts": {"a": "all {x}: "}, "default_prompt_name": "a"}, "all {{x}}: {text}", "all {{x}}: {text}"),
        ({"prompts": {"query": "q: "}}, "{text}", "q: {text}"),
        ({"prompts": None}, "{text}", "{text}"),
    ],
)
def test_the_prompts_of_a_folder_are_those_sentence_transformers_takes(
    tiny_qwen3: Path, tmp_path: Path, content: dict[str, object], document: str, query: str
) -> None:
    folder = copy_of(tiny_qwen3, tmp_path / "model")
    prompts(folder, **content)
    profile = profile_of(str(folder))
    assert (profile.document_template, profile.query_template) == (document, query)


def test_modules_that_would_change_the_vectors_are_refused(tiny_qwen3: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_qwen3, tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, {"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(UnknownModel, match="its module Dense is not supported"):
        profile_of(str(folder))


@pytest.mark.parametrize(
    ("bert", "tokenizer", "config", "limit"),
    [
        ({"max_seq_length": 100}, {"model_max_length": 200}, {}, 100),
        ({}, {"model_max_length": 200}, {}, 200),
        ({}, {"model_max_length": 10**30}, {}, 512),
        ({"max_seq_length": 900}, {"model_max_length": None}, {}, 512),
        ({}, {"model_max_length": None}, {"model_type": "xlm-roberta", "max_position_embeddings": 514}, 512),
    ],
)
def test_the_token_limit_is_the_smallest_that_a_file_names(
    tiny_qwen3: Path,
    tmp_path: Path,
    bert: dict[str, object],
    tokenizer: dict[str, object],
    config: dict[str, object],
    limit: int,
) -> None:
    folder = copy_of(tiny_qwen3, tmp_path / "model")
    (folder / "sentence_bert_config.json").write_text(json.dumps(bert))
    edit(folder / "tokenizer_config.json", **tokenizer)
    edit(folder / "config.json", **config)
    assert profile_of(str(folder)).max_tokens == limit


@pytest.mark.parametrize("content", ["{}", "[]", "[7]", "null"])
def test_modules_must_be_a_list(tiny_qwen3: Path, tmp_path: Path, content: str) -> None:
    folder = copy_of(tiny_qwen3, tmp_path / "model")
    (folder / "modules.json").write_text(content)
    with pytest.raises(UnknownModel, match="a list of modules was expected"):
        profile_of(str(folder))


def test_pooling_without_the_prompt_is_refused(tiny_qwen3: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_qwen3, tmp_path / "model")
    edit(folder / "1_Pooling" / "config.json", include_prompt=False)
    with pytest.raises(UnknownModel, match="leaves the prompt out"):
        profile_of(str(folder))


def test_a_folder_has_one_name_wherever_one_is(tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is part of the queue's name."""
    monkeypatch.chdir(tiny_qwen3.parent)
    assert (
        resolve(EmbedSettings(), tiny_qwen3.name).model == load(model=f"./{tiny_qwen3.name}/").model == str(tiny_qwen3)
    )


def test_pooling_may_be_given_as_a_name(tiny_qwen3: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_qwen3, tmp_path / "model")
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    assert profile_of(str(folder)).pooling == "cls"


@pytest.mark.parametrize("name", ["hidden_size", "max_position_embeddings"])
def test_a_folder_that_lacks_a_number_is_refused_by_its_name(tiny_qwen3: Path, tmp_path: Path, name: str) -> None:
    folder = copy_of(tiny_qwen3, tmp_path / "model")
    (folder / "sentence_bert_config.json").unlink()
    edit(folder / "config.json", **{name: None})
    with pytest.raises(UnknownModel, match=name):
        profile_of(str(folder))


def test_a_folder_without_matryoshka_has_one_length(tiny_qwen3: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_qwen3, tmp_path / "model")
    edit(folder / "config.json", is_matryoshka=None)
    assert profile_of(str(folder)).min_dimensions is None
    assert not profile_of(str(folder)).allows(64)


def test_a_query_prompt_that_is_a_plain_prefix_stays_one(tiny_qwen3: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_qwen3, tmp_path / "model")
    edit(folder / "config_sentence_transformers.json", prompts={"query": "query {x}: "})
    profile = profile_of(str(folder))
    assert profile.query_template.format(text="a", instruction=None) == "query {x}: a"
    assert not profile.takes_instruction
