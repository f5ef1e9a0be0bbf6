"""The commands for models: `embedfleet models [show NAME]`. What is known of each is in profiles.py."""

import json
from dataclasses import asdict
from typing import Any

import click

from embedfleet.models import ModelProfile
from embedfleet.options import json_option
from embedfleet.profiles import PROFILES
from embedfleet.settings import load

_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """The models that are known by name, and those that embedfleet.toml or EMBEDFLEET_MODELS declares."""
    if context.invoked_subcommand is not None:
        return
    declared = {name: model.profile(name) for name, model in load().models.items()}
    found = [*PROFILES.values(), *declared.values()]
    if as_json:
        click.echo(json.dumps([_fields(profile) for profile in found], ensure_ascii=False))
        return
    rows = [("model", "dimensions", "tokens", "instructions", "dtypes")]
    for profile in found:
        takes = "yes" if profile.takes_instruction else "no"
        rows.append((profile.name, profile.lengths, f"{profile.max_tokens:,}", takes, ", ".join(profile.dtypes)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, row[-1]]))


@models.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """All that is known of the model NAME: a hub id, or a folder."""
    profile = load(model=name).profile()
    if as_json:
        click.echo(json.dumps(_fields(profile), ensure_ascii=False))
        return
    lines = _lines(profile)
    width = max(len(label) for label, _ in lines) + 2
    for label, value in lines:
        click.echo(f"{label + ':':<{width}}{value}")


def _fields(profile: ModelProfile) -> dict[str, Any]:
    """For machines: the profile's fields, and what follows from them."""
    return {
        **asdict(profile),
        "takes_instruction": profile.takes_instruction,
        "weights_bytes": {dtype: profile.parameters * _BYTES[dtype] for dtype in profile.dtypes},
    }


def _lines(profile: ModelProfile) -> list[tuple[str, str]]:
    shown = [
        ("model", profile.name),
        ("query", _quoted(profile.query_template)),
        ("document", _quoted(profile.document_template)),
        *((f"prompt {name}", _quoted(said)) for name, said in {**profile.instructions, **profile.prompts}.items()),
        ("instruction", "any, for queries" if profile.takes_instruction else "none"),
        (
            "dimensions",
            f"{profile.lengths} (a vector is cut and renormalised)" if _is_cut(profile) else profile.lengths,
        ),
        ("tokens", f"{profile.max_tokens:,} at most, prompt and special tokens included"),
        ("pooling", profile.pooling),
        ("dtypes", f"{', '.join(profile.dtypes)}{_unsound(profile)}"),
    ]
    if profile.parameters:
        sizes = [f"{profile.parameters * _BYTES[dtype] / 1024**3:.1f} GiB in {dtype}" for dtype in profile.dtypes]
        shown.append(("weights", f"{profile.parameters:,}: {', '.join(sizes)}"))
    return shown


def _is_cut(profile: ModelProfile) -> bool:
    return bool(profile.shorter) or profile.min_dimensions is not None


def _unsound(profile: ModelProfile) -> str:
    others = [dtype for dtype in _BYTES if dtype not in profile.dtypes]
    return f"; refused: {', '.join(others)}" if others else ""


def _quoted(text: str) -> str:
    """With its ends and line breaks in sight."""
    return json.dumps(text, ensure_ascii=False)
