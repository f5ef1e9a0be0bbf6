"""A model of the operator's own: refused with the lines that declare it, and known once they are filled in."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from embedfleet.cli import cli
from embedfleet.contract import EmbedSettings
from embedfleet.errors import ConfigurationError, SettingsError, UnknownModel
from embedfleet.models import profile_of
from embedfleet.settings import load
from embedfleet.testing import InMemoryFleet
from embedfleet_worker.prompts import render

DOCS = Path(__file__).parents[2] / "docs"
OURS = "org/ours"
CARD = {"dimensions": 768, "max_tokens": 512, "pooling": "cls"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused_lines(model: str) -> str:
    """The TOML in the refusal of a model that nobody knows."""
    with pytest.raises(UnknownModel) as refused:
        load(model=model).resolve(EmbedSettings())
    said, begin, lines = str(refused.value).partition("[models.")
    assert f"model {model!r}: no profile is known" in said
    assert "embedfleet.toml" in said
    return begin + lines


@pytest.mark.parametrize("model", [OURS, 'a "quoted" \\ name', "日本/語"])
def test_the_lines_of_the_refusal_work_once_they_are_filled_in(folder: Path, model: str) -> None:
    lines = refused_lines(model)
    filled = lines.replace("dimensions = 0", "dimensions = 768").replace("max_tokens = 0", "max_tokens = 512")
    (folder / "embedfleet.toml").write_text(filled.replace('pooling = ""', 'pooling = "cls"'), encoding="utf-8")
    settings = load(model=model)
    assert settings.resolve(EmbedSettings()).dimensions == 768
    profile = settings.profile()
    assert (profile.name, profile.max_tokens, profile.pooling) == (model, 512, "cls")
    assert (profile.query_template, profile.document_template) == ("{text}", "{text}")


def test_the_lines_of_the_refusal_are_refused_as_they_are(folder: Path) -> None:
    (folder / "embedfleet.toml").write_text(refused_lines(OURS), encoding="utf-8")
    with pytest.raises(ConfigurationError) as refused:
        load()
    for field in (OURS, "dimensions", "max_tokens", "pooling: Input should be 'mean', 'cls' or 'last'"):
        assert field in str(refused.value)


def test_a_folder_without_modules_json_can_be_declared(folder: Path, tiny_qwen3: Path) -> None:
    (folder / "plain").mkdir()
    (folder / "plain" / "config.json").write_bytes((tiny_qwen3 / "config.json").read_bytes())
    path = str(folder / "plain")
    with pytest.raises(UnknownModel, match=re.escape(f"[models.{json.dumps(path)}]")):
        load(model="plain").profile()
    declared = {"plain": {**CARD, "dimensions": 128}}  # by whatever way to it
    assert load(model=path, models=declared).resolve(EmbedSettings()).dimensions == 128


def test_everything_that_can_be_declared(folder: Path) -> None:
    (folder / "embedfleet.toml").write_text(
        """
        [models."org/ours"]
        dimensions = 1024
        max_tokens = 8192
        pooling = "last"
        query_template = "Instruct: {instruction}\\nQuery: {text}"
        document_template = "{{d}} {text}"
        min_dimensions = 64
        dtypes = ["float32"]
        parameters = 500_000_000
        instructions.query = "Find it"
        instructions.code = "Find code"
        prompts.raw = "raw: {text}"
        """
    )
    settings = load(model=OURS)
    profile = settings.profile()
    for task, prompt in (
        (EmbedSettings(input_type="query"), "Instruct: Find it\nQuery: x"),
        (EmbedSettings(input_type="query", prompt_name="code"), "Instruct: Find code\nQuery: x"),
        (EmbedSettings(prompt_name="raw"), "raw: x"),
        (EmbedSettings(), "{d} x"),
    ):
        assert render("x", settings.resolve(task), profile) == prompt
    assert profile.parameters == 500_000_000
    with pytest.raises(SettingsError, match=re.escape("dimensions=63: org/ours gives 64 to 1024.")):
        settings.resolve(EmbedSettings(dimensions=63))
    with pytest.raises(ConfigurationError, match=re.escape("dtype bfloat16: org/ours is not sound in it")):
        load(model=OURS, dtype="bfloat16").resolve(EmbedSettings())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"dimensions": "many"}, "dimensions: "),
        ({"max_tokens": 7}, "max_tokens: "),
        ({"pooling": "max"}, "pooling: "),
        ({"dimension": 5}, "unknown field 'dimension'"),
        ({"query_template": "query: "}, "query_template: "),
        ({"query_template": "{text} {text}"}, "query_template: "),
        ({"query_template": "{text} {what}"}, "query_template: "),
        ({"query_template": "{text"}, "query_template: "),
        ({"query_template": "{text!r}"}, "query_template: "),
        ({"query_template": "{text:>99999999999}"}, "query_template: "),
        ({"query_template": "{text.__class__}"}, "query_template: "),
        ({"document_template": "{instruction} {text}"}, "document_template: "),
        ({"prompts": {"raw": "raw"}}, "prompts.raw: "),
        ({"query_template": "{instruction} {text}"}, "instructions: "),
        ({"instructions": {"query": "Find it"}}, "instructions: "),
        ({"min_dimensions": 768}, "min_dimensions"),
        ({"shorter": [64, 1000]}, "shorter"),
        ({"dtypes": ["int8"]}, "dtypes"),
        ({"dtypes": []}, "dtypes"),
        ({"parameters": -1}, "parameters: "),
    ],
)
def test_a_wrong_declaration_is_refused_naming_model_and_field(changed: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load(models={OURS: {**CARD, **changed}})
    assert f'models: Value error, "{OURS}": ' in str(refused.value)
    assert said in str(refused.value)


@pytest.mark.parametrize("value", ["{", "[]", "7", '{"org/ours": 5}', '{"org/ours": []}'])
def test_what_is_no_table_of_models_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDFLEET_MODELS", value)
    with pytest.raises(ConfigurationError, match="models: "):
        load()


def test_a_known_model_is_not_declared_anew() -> None:
    """Or an upgrade that brings its profile would change its vectors in silence."""
    with pytest.raises(ConfigurationError, match=r'"BAAI/bge-m3": its profile is known .* leave it out'):
        load(models={"BAAI/bge-m3": CARD})


def test_a_declaration_wins_over_the_files_of_a_folder(tiny_qwen3: Path) -> None:
    declared = {str(tiny_qwen3): {**CARD, "max_tokens": 99}}
    assert load(model=str(tiny_qwen3), models=declared).profile().max_tokens == 99
    assert load(model=str(tiny_qwen3)).profile().max_tokens == 512


def test_the_declaration_in_the_documents_works(folder: Path) -> None:
    text = (DOCS / "models.md").read_text(encoding="utf-8")
    (folder / "embedfleet.toml").write_text(text.partition("```toml\n")[2].partition("```")[0], encoding="utf-8")
    profile = load(model="org/name").profile()
    assert (profile.dimensions, profile.min_dimensions, list(profile.prompts)) == (1024, 64, ["clustering"])


# The way to the worker


def test_the_declarations_travel_to_workers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load(model=OURS, models={OURS: {**CARD, "prompts": {"ü": "ü: {text}"}}})
    for handed_on in (before.environment(), before.shared()):
        assert json.loads(handed_on["EMBEDFLEET_MODELS"])[OURS]["pooling"] == "cls"
        with monkeypatch.context() as worker:
            worker.setenv("EMBEDFLEET_MODELS", handed_on["EMBEDFLEET_MODELS"])
            assert load(model=OURS).models == before.models
    assert "EMBEDFLEET_MODELS" not in load().environment()


def test_arguments_are_over_the_environment_over_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "embedfleet.toml").write_text(refused_lines(OURS).replace("= 0", "= 16").replace('""', '"cls"'))
    assert load().models[OURS].dimensions == 16
    monkeypatch.setenv("EMBEDFLEET_MODELS", json.dumps({OURS: CARD}))
    assert load().models[OURS].dimensions == 768
    assert load(models={OURS: {**CARD, "dimensions": 32}}).models[OURS].dimensions == 32
    assert load(models=load().models) == load()


def test_config_show_shows_what_could_be_pasted(folder: Path) -> None:
    (folder / "embedfleet.toml").write_text(refused_lines(OURS).replace("= 0", "= 16").replace('""', '"cls"'))
    shown = CliRunner().invoke(cli, ["config", "show"]).output
    (line,) = [line for line in shown.splitlines() if line.startswith("EMBEDFLEET_MODELS=")]
    assert load(models=line.partition("=")[2]) == load()
    assert json.loads(CliRunner().invoke(cli, ["config", "show", "--json"]).output)["models"][OURS]["pooling"] == "cls"


def test_a_fleet_of_a_declared_model_embeds(folder: Path) -> None:
    with InMemoryFleet(model=OURS, models={OURS: {**CARD, "prompts": {"raw": "raw: {text}"}}}) as fleet:
        job = fleet.submit(["a text"])
        (row,) = job.wait() and list(job.rows())
        assert (row["error"], len(row["embedding"]), job.spec.settings.model) == (None, 768, OURS)
        plain, raw = fleet.embed(["a"]), fleet.embed(["a"], settings=EmbedSettings(prompt_name="raw"))
        assert plain.tolist() != raw.tolist() == fleet.embed(["raw: a"]).tolist()


def test_the_lines_are_toml_with_one_model(folder: Path) -> None:
    parsed = tomllib.loads(refused_lines(OURS))
    assert list(parsed["models"][OURS]) == [
        "dimensions",
        "max_tokens",
        "pooling",
        "query_template",
        "document_template",
    ]
    with pytest.raises(UnknownModel):
        profile_of(OURS)
