"""The documents name every setting, error code and exit code, and none that does not exist."""

import re
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel, SecretStr

from embedfleet import entry
from embedfleet.contract import EmbedSettings, ErrorCode
from embedfleet.settings import FleetSettings
from embedfleet_worker import __main__ as worker
from embedfleet_worker import serving

DOCS = Path(__file__).parents[2] / "docs"
OPERATIONS = (DOCS / "operations.md").read_text(encoding="utf-8")
ARCHITECTURE = (DOCS / "architecture.md").read_text(encoding="utf-8")


def row(name: str, document: str) -> list[str]:
    """The cells of the one table row that begins with a name in backticks."""
    rows = re.findall(rf"^\| `{re.escape(name)}` \|(.*)\|$", document, re.MULTILINE)
    assert len(rows) == 1, f"{name}: {len(rows)} rows"
    return [cell.strip() for cell in rows[0].split("|")]


def shown_default(model: type[BaseModel], name: str) -> str:
    default = model.model_fields[name].default
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    if isinstance(default, tuple):
        default = ",".join(default)
    return "–" if default in (None, "") else f"`{default}`"


@pytest.mark.parametrize("name", FleetSettings.model_fields)
def test_each_setting_of_the_fleet_has_a_row(name: str) -> None:
    option, default, meaning = row(f"EMBEDFLEET_{name.upper()}", OPERATIONS)
    assert option == f"`--{name.replace('_', '-')}`"
    assert default == shown_default(FleetSettings, name)
    assert meaning


@pytest.mark.parametrize("name", EmbedSettings.model_fields)
def test_each_setting_of_a_task_has_a_row(name: str) -> None:
    option, default, meaning = row(name, OPERATIONS)
    assert option == f"`--{name.replace('_', '-')}`"
    assert default == shown_default(EmbedSettings, name)
    assert meaning


def test_no_document_names_a_variable_that_does_not_exist() -> None:
    known = {f"EMBEDFLEET_{name.upper()}" for name in FleetSettings.model_fields}
    for document in sorted(DOCS.rglob("*.md")):
        named = set(re.findall(r"EMBEDFLEET_[A-Z_]+", document.read_text(encoding="utf-8")))
        assert named <= known, document.name


def test_each_error_code_has_a_row_and_there_is_no_other() -> None:
    section = ARCHITECTURE.partition("## Error codes")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(typing.get_args(ErrorCode))


def test_each_exit_code_has_a_row_and_there_is_no_other() -> None:
    section = ARCHITECTURE.partition("## Exit codes")[2].partition("\n## ")[0]
    of_commands = {0, 1, entry._EXIT_USAGE, entry._EXIT_UNFINISHED}
    of_workers = {0, worker._EXIT_CONFIGURATION, serving.EXIT_ENGINE, worker._EXIT_TRY_AGAIN}
    assert {int(code) for code in re.findall(r"^\| `(\d+)` \|", section, re.MULTILINE)} == of_commands | of_workers
