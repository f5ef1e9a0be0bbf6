"""The Terraform code: its form, its own tests, and that it names things as the Python code does."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from embedfleet.broker import queue_name
from embedfleet.settings import FleetSettings
from tests.infra.terraform import COMPLETE, SOURCE, Terraform

pytestmark = pytest.mark.terraform

MODELS = [
    ("sentence-transformers/all-MiniLM-L6-v2", None),
    ("sentence-transformers/all-MiniLM-L6-v2", "main"),
    ("Qwen/Qwen3-Embedding-0.6B", None),
    ("Qwen/Qwen3-Embedding-8B", "1d8ad4ca9b3dd8059ad90a75d4983776a23d44af"),
    ("intfloat/multilingual-e5-large-instruct", "refs/pr/7"),
    ("BAAI/bge-m3", ""),
    ("/models/My_Model.v2", None),
    ("a" * 39 + "-" + "b" * 20, None),  # cut where a hyphen is
    ("a" * 40 + "/" + "b" * 20, None),
    ("--UPPER__lower--", None),
]


def _source(pattern: str) -> list[Path]:
    return sorted(path for path in SOURCE.rglob(pattern) if ".terraform" not in path.parts)


def test_is_formatted(terraform: Terraform) -> None:
    terraform.run("fmt", "-check", "-diff", "-recursive")


def test_the_root_is_valid(terraform: Terraform) -> None:
    terraform.run("validate")


def test_the_example_is_valid(terraform: Terraform) -> None:
    terraform.init(COMPLETE)
    terraform.run("validate", where=COMPLETE)


@pytest.mark.parametrize("file", [path.name for path in _source("*.tftest.hcl")])
def test_behaves(terraform: Terraform, file: str) -> None:
    terraform.run("test", f"-filter={Path('tests') / file}")


@pytest.mark.parametrize(
    "file", _source("variables.tf") + _source("outputs.tf"), ids=lambda file: str(file.parent.name)
)
def test_everything_is_described(file: Path) -> None:
    blocks = re.findall(r'^(variable|output) "(\w+)" \{\n(.*?)^\}', file.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    for kind, name, body in blocks:
        assert re.search(r'^  description = "[A-Z].+[.)]"$', body, re.MULTILINE), f"{kind} {name} has no description"
        assert kind == "output" or re.search(r"^  type +=", body, re.MULTILINE), f"{kind} {name} has no type"


def test_the_roots_variables_are_validated() -> None:
    text = (SOURCE / "variables.tf").read_text("utf-8")
    blocks = re.findall(r'^variable "(\w+)" \{\n(.*?)^\}', text, re.MULTILINE | re.DOTALL)
    loose = {name for name, body in blocks if "validation {" not in body and "= bool" not in body}
    assert loose == {"tags"}


def test_queues_are_named_as_in_python(tmp_path: Path) -> None:
    copy = Terraform(tmp_path)
    models = [{"name": name, "revision": revision} for name, revision in MODELS]
    variables = tmp_path / "variables.json"
    variables.write_text(json.dumps({"prefix": "a-fleet", "models": models}), "utf-8")
    copy.init("modules/names")
    copy.run("apply", "-auto-approve", f"-var-file={variables}", where="modules/names")
    outputs = copy.outputs("modules/names")
    named = [outputs["lanes"][digest] for digest in outputs["digests"]]
    lanes = ("interactive", "bulk")
    assert named == [{lane: queue_name("a-fleet", *model, lane) for lane in lanes} for model in MODELS]


def test_outputs_are_settings(complete: dict[str, Any]) -> None:
    known = {f"EMBEDFLEET_{name.upper()}" for name in FleetSettings.model_fields}
    outputs = complete["outputs"]
    for environment in (outputs["producer_environment"], *outputs["worker_environments"].values()):
        assert set(environment) <= known
