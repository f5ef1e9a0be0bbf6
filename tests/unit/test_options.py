"""The command line's options: one for every setting, defined where the setting is."""

import re

import click
import pytest
from click.testing import CliRunner

from embedfleet.cli import cli
from embedfleet.contract import EmbedSettings
from embedfleet.settings import FleetSettings


def help_of(command: str) -> str:
    ran = CliRunner().invoke(cli, [command, "--help"], terminal_width=200)
    assert ran.exit_code == 0
    return " ".join(ran.output.split())


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


@pytest.mark.parametrize("name", FleetSettings.model_fields)
@pytest.mark.parametrize("command", ["worker", "embed", "submit", "up", "doctor"])
def test_every_setting_of_the_fleet_is_an_option_that_names_its_variable(command: str, name: str) -> None:
    shown = help_of(command)
    assert re.search(rf"{option(name)}\b", shown)
    assert f"[EMBEDFLEET_{name.upper()}]" in shown


@pytest.mark.parametrize("name", EmbedSettings.model_fields)
@pytest.mark.parametrize("command", ["embed", "submit"])
def test_every_setting_of_a_task_is_an_option(command: str, name: str) -> None:
    assert re.search(rf"{option(name)}\b", help_of(command))


@pytest.mark.parametrize("model", [FleetSettings, EmbedSettings])
def test_every_setting_says_what_it_is(model: type[FleetSettings] | type[EmbedSettings]) -> None:
    assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_every_command_has_help() -> None:
    def commands(group: click.Group, words: list[str]) -> list[list[str]]:
        found = []
        for name, command in group.commands.items():
            found.append([*words, name])
            if isinstance(command, click.Group):
                found += commands(command, [*words, name])
        return found

    for words in commands(cli, []):
        ran = CliRunner().invoke(cli, [*words, "--help"])
        assert ran.exit_code == 0, words
        assert len(ran.output.split("\n")[2].strip()) > 10, f"{words}: no help text"


def test_choices_and_numbers_are_checked_by_name() -> None:
    for arguments, said in (
        (["embed", "x", "--encoding", "int8"], "--encoding"),
        (["embed", "x", "--dimensions", "many"], "--dimensions"),
        (["worker", "--engine", "tensorflow"], "--engine"),
        (["worker", "--lease-s", "soon"], "--lease-s"),
    ):
        ran = CliRunner().invoke(cli, arguments)
        assert ran.exit_code == 2
        assert said in ran.output


def test_an_option_reaches_the_settings() -> None:
    ran = CliRunner().invoke(cli, ["config", "show", "--queue-prefix", "mine", "--allowed-stores", "/a,/b"])
    assert "EMBEDFLEET_QUEUE_PREFIX=mine" in ran.output.splitlines()
    assert "EMBEDFLEET_ALLOWED_STORES=/a,/b" in ran.output.splitlines()


def test_config_show_masks_every_secret() -> None:
    url = "redis://me:very-secret@host/0"
    arguments = ["config", "show", "--broker-url", url, "--cache-url", url, "--cache-salt", "very-secret"]
    for more in ([], ["--json"]):
        assert "very-secret" not in CliRunner().invoke(cli, [*arguments, *more]).output
