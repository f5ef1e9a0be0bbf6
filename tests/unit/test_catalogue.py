"""`embedfleet models`: the table, and all that is known of one model."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from embedfleet.cli import cli
from embedfleet.errors import UnknownModel
from embedfleet.profiles import PROFILES

OURS = {"dimensions": 768, "max_tokens": 512, "pooling": "cls"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def models(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["models", *arguments])


def test_the_table_has_a_row_for_each_model() -> None:
    head, *rows = models().output.splitlines()
    assert head.split() == ["model", "dimensions", "tokens", "instructions", "dtypes"]
    assert [row.split()[0] for row in rows] == list(PROFILES)
    table = {row.split()[0]: " ".join(row.split()[1:]) for row in rows}
    assert table["Qwen/Qwen3-Embedding-8B"] == "32 to 4096 32,768 yes bfloat16, float32"
    assert table["BAAI/bge-m3"] == "only 1024 8,192 no bfloat16, float32, float16"


def test_the_table_for_machines_has_what_show_has() -> None:
    rows = json.loads(models("--json").output)
    assert [row["name"] for row in rows] == list(PROFILES)
    for row in rows:
        assert json.loads(models("show", row["name"], "--json").output) == row


def test_declared_models_are_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDFLEET_MODELS", json.dumps({"org/ours": OURS}))
    assert models().output.splitlines()[-1].split()[:3] == ["org/ours", "only", "768"]
    assert "only 768" in models("show", "org/ours").output


def test_all_that_is_known_of_a_model() -> None:
    lines = models("show", "Qwen/Qwen3-Embedding-0.6B").output.splitlines()
    assert len({len(line) - len(line.partition(":")[2].lstrip()) for line in lines}) == 1, "the values are in a column"
    assert dict(re.split(r": +", line, maxsplit=1) for line in lines) == {
        "model": "Qwen/Qwen3-Embedding-0.6B",
        "query": r'"Instruct: {instruction}\nQuery:{text}"',
        "document": '"{text}"',
        "prompt query": '"Given a web search query, retrieve relevant passages that answer the query"',
        "prompt retrieval": '"Given a web search query, retrieve relevant passages that answer the query"',
        "prompt code": '"Given a question about coding, retrieval code or passage that can solve user\'s question"',
        "prompt legal": '"Identifying the most relevant statutes for a given situation"',
        "prompt bitext": '"Retrieve parallel sentences"',
        "prompt classification": '"Given a text, classify its topic"',
        "prompt clustering": '"Identify the category of documents"',
        "instruction": "any, for queries",
        "dimensions": "32 to 1024 (a vector is cut and renormalised)",
        "tokens": "32,768 at most, prompt and special tokens included",
        "pooling": "last",
        "dtypes": "bfloat16, float32; refused: float16",
        "weights": "595,776,512: 1.1 GiB in bfloat16, 2.2 GiB in float32",
    }


def test_a_folder_is_shown_too(tiny_qwen3: Path) -> None:
    shown = models("show", str(tiny_qwen3)).output
    assert "32 to 128 (a vector is cut and renormalised)" in shown


def test_a_model_nobody_knows_is_an_error() -> None:
    ran = models("show", "nobody/knows")
    assert isinstance(ran.exception, UnknownModel)  # which the command ends with, in entry.py: a message and code 2
    assert '[models."nobody/knows"]' in str(ran.exception)
