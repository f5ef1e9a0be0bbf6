"""The profile of a model by its own files: what sentence-transformers would do with them, or a refusal."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from embedfleet.contract import EmbedSettings
from embedfleet.errors import SettingsError, UnknownModel
from embedfleet.models import profile_of, resolve
from embedfleet.settings import load
from embedfleet_worker.prompts import render

WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"


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


# Prompts by name


@pytest.fixture
def folder(tiny_qwen3: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return copy_of(tiny_qwen3, tmp_path / "model")


def rendered(folder: Path, text: str = "a text", **settings: object) -> str:
    resolved = resolve(EmbedSettings(**settings), str(folder))
    assert resolve(resolved, "a model nobody knows") == resolved
    return render(text, resolved, profile_of(str(folder)))


def test_prompts_of_other_names_are_whole_prompts_for_either_kind_of_text(folder: Path) -> None:
    prompts(folder, prompts={"search_query": "q {x}: ", "search_document": "d: ", "clustering": "c: "})
    for input_type in ("query", "document"):
        assert rendered(folder, input_type=input_type) == "a text"
        assert rendered(folder, input_type=input_type, prompt_name="search_query") == "q {x}: a text"
        assert rendered(folder, input_type=input_type, prompt_name="clustering") == "c: a text"
    with pytest.raises(SettingsError, match=r"prompt_name='query': .* has search_query, search_document, clustering"):
        rendered(folder, input_type="query", prompt_name="query")
    with pytest.raises(SettingsError, match="takes none; it has prompt_name search_query, search_document, clustering"):
        rendered(folder, input_type="query", instruction="Find it")


def test_prompts_in_the_form_of_the_querys_are_instructions(folder: Path) -> None:
    prompts(
        folder, prompts={"query": "Instruct: A\nQuery: ", "sts": "Instruct: B\nQuery: ", "other": "Instruct: C\nQuery:"}
    )
    profile = profile_of(str(folder))
    assert profile.query_template == "Instruct: {instruction}\nQuery: {text}"
    assert (profile.instructions, profile.prompts) == (
        {"query": "A", "sts": "B"},
        {"other": "Instruct: C\nQuery:{text}"},
    )
    assert rendered(folder, input_type="query") == "Instruct: A\nQuery: a text"
    assert rendered(folder, input_type="query", prompt_name="sts") == "Instruct: B\nQuery: a text"
    assert rendered(folder, input_type="query", instruction="D") == "Instruct: D\nQuery: a text"
    assert rendered(folder, prompt_name="other") == "Instruct: C\nQuery:a text"
    with pytest.raises(SettingsError, match="it belongs to queries"):
        rendered(folder, prompt_name="sts")


def test_an_empty_document_prompt_hides_no_passage(folder: Path) -> None:
    """sentence-transformers 5 adds it to what it saves again."""
    prompts(folder, prompts={"query": "q: ", "document": "", "passage": "p: "})
    assert rendered(folder) == "p: a text"


# Layouts


def test_what_sentence_transformers_saves_now_is_read(folder: Path, minilm: Path) -> None:
    """Class paths, pooling and prompts as version 6 writes them; the token limit is the tokenizer's."""
    modules = "sentence_transformers.base.modules"
    kinds = (
        ("", f"{modules}.transformer.Transformer"),
        ("1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
        ("2_Normalize", f"{modules}.normalize.Normalize"),
    )
    saved = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(saved))
    pooling = {"embedding_dimension": 128, "pooling_mode": "lasttoken", "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    transformer = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings",
    }
    (folder / "sentence_bert_config.json").write_text(json.dumps(transformer))
    prompts(folder, model_type="SentenceTransformer", prompts={"query": "q: ", "document": ""})
    profile = profile_of(str(folder))
    assert (profile.pooling, profile.max_tokens, profile.query_template) == ("last", 512, "q: {text}")


def test_the_pooling_is_where_modules_json_says(folder: Path) -> None:
    (folder / "1_Pooling").rename(folder / "pool")
    text = (folder / "modules.json").read_text()
    (folder / "modules.json").write_text(text.replace('"1_Pooling"', '"pool"'))
    assert profile_of(str(folder)).pooling == "last"


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (["Transformer"], "not Transformer"),
        (["Pooling", "Transformer"], "not Pooling, Transformer"),
        (["Transformer", "Pooling", "Pooling"], "not Transformer, Pooling, Pooling"),
        (["Transformer", "Pooling", "Dense", "Normalize"], "module Dense is not supported"),
        (["Router", "Pooling"], "module Router is not supported"),
        (["Transformer", "Pooling", "LayerNorm"], "module LayerNorm is not supported"),
    ],
)
def test_other_modules_or_another_order_are_refused(folder: Path, kinds: list[str], said: str) -> None:
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": ""} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnknownModel, match=said):
        profile_of(str(folder))


def test_code_of_the_models_own_is_refused(folder: Path) -> None:
    text = (folder / "modules.json").read_text()
    (folder / "modules.json").write_text(
        text.replace("sentence_transformers.models.Transformer", "custom_st.Transformer")
    )
    with pytest.raises(UnknownModel, match=r"its module custom_st\.Transformer is not supported"):
        profile_of(str(folder))


def test_a_transformer_in_a_folder_of_its_own_is_refused(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnknownModel, match="a Transformer in the folder itself"):
        profile_of(str(folder))


@pytest.mark.parametrize("kind", ["SparseEncoder", "CrossEncoder", "MultiVectorEncoder"])
def test_what_gives_no_single_vectors_is_refused(folder: Path, kind: str) -> None:
    prompts(folder, model_type=kind)
    with pytest.raises(UnknownModel, match=f"it is a {kind}"):
        profile_of(str(folder))


def test_another_task_is_refused(folder: Path) -> None:
    edit(folder / "sentence_bert_config.json", transformer_task="fill-mask")
    with pytest.raises(UnknownModel, match="its transformer_task is fill-mask"):
        profile_of(str(folder))


@pytest.mark.parametrize("mode", [["cls", "mean"], "max", "weightedmean", None, 7])
def test_poolings_that_are_not_done_are_refused(folder: Path, mode: object) -> None:
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode}))
    with pytest.raises(UnknownModel, match="must name mean, cls or lasttoken"):
        profile_of(str(folder))


def test_the_token_limit_in_a_file_of_an_old_name_counts(folder: Path) -> None:
    (folder / "sentence_bert_config.json").unlink()
    (folder / "sentence_roberta_config.json").write_text('{"max_seq_length": 75}')
    assert profile_of(str(folder)).max_tokens == 75


def test_the_lengths_a_model_was_trained_for_are_the_only_ones(folder: Path) -> None:
    edit(folder / "config.json", matryoshka_dimensions=[128, 32, 64])
    profile = profile_of(str(folder))
    assert [length for length in range(200) if profile.allows(length)] == [32, 64, 128]
    with pytest.raises(SettingsError, match=r"dimensions=100: .* gives 32, 64 or 128"):
        resolve(EmbedSettings(dimensions=100), str(folder))


# The hub's cache


@pytest.fixture
def cached(tiny_qwen3: Path, tmp_path: Path) -> dict[str, str]:
    """An environment in whose cache the tiny model is, as huggingface_hub would have fetched it."""
    repository = tmp_path / "hub" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "refs" / "v2").write_text("b" * 40)
    copy_of(tiny_qwen3, repository / "snapshots" / ("a" * 40))
    prompts(copy_of(tiny_qwen3, repository / "snapshots" / ("b" * 40)), prompts={"query": "second: "})
    return {"HF_HUB_CACHE": str(tmp_path / "hub")}


def shown(environment: dict[str, str], name: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """`embedfleet models show`, in a process of its own: huggingface_hub reads its settings when it is imported."""
    command = [sys.executable, "-c", "from embedfleet.entry import main; main()", "models", "show", name, "--json"]
    named = {f"EMBEDFLEET_{setting.upper()}": value for setting, value in settings.items()}
    return subprocess.run(command, env={**os.environ, **environment, **named}, capture_output=True, text=True)


def test_a_hub_id_is_known_by_the_files_in_the_cache(cached: dict[str, str]) -> None:
    found = json.loads(shown(cached, "org/tiny").stdout)
    assert (found["name"], found["dimensions"], found["instructions"]) == ("org/tiny", 128, {"query": WEB_SEARCH})
    second = json.loads(shown(cached, "org/tiny", revision="v2").stdout)
    assert second["query_template"] == "second: {text}"


def test_what_is_not_in_the_cache_is_refused_without_asking_the_hub(cached: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hub:
        online = {**cached, "HF_HUB_OFFLINE": "", "HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}"}
        for name, settings in (("org/other", {}), ("org/tiny", {"revision": "v3"}), ("no hub id/x/y", {})):
            done = shown(online, name, **settings)
            assert done.returncode == 2
            assert "no profile is known" in done.stderr
            assert "Traceback" not in done.stderr
        hub.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody came
            hub.accept()


def test_without_huggingface_hub_nothing_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedfleet.modelfolder.find_spec", lambda _: None)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", None)
    with pytest.raises(UnknownModel, match="no profile is known"):
        profile_of("org/tiny")
