"""Options that commands share, most made from the fields of FleetSettings and EmbedSettings: defined once, there."""

import types
import typing
from collections.abc import Callable
from typing import Any, Literal

import click
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from embedfleet.contract import Chunking, EmbedSettings, describe
from embedfleet.destinations import parse_callback, parse_destination
from embedfleet.errors import ConfigurationError, SettingsError
from embedfleet.settings import FleetSettings, load
from embedfleet.store import Store, canonical_uri, open_store
from embedfleet.submission import check_expiry

Command = Callable[..., Any]

to_option = click.option("--to", default=None, help="Folder or URI for the job folder; default: the store.")
key_option = click.option("--key", default=None, help="Idempotency key; default: from the inputs and settings.")
deliver_option = click.option(
    "--deliver-to",
    "deliver_to",
    multiple=True,
    metavar="DESTINATION",
    callback=lambda _context, _option, typed: tuple(parse_destination(text) for text in typed),
    help="Where the vectors go after the store: https://host/path (a webhook) or pgvector:TABLE. May be repeated.",
)
callback_option = click.option(
    "--callback",
    default=None,
    metavar="URL",
    callback=lambda _context, _option, typed: parse_callback(typed).url if typed is not None else None,
    help="Told by a webhook once the job is finished.",
)
quiet_option = click.option("--quiet", is_flag=True, help="No progress bar.")
expires_option = click.option(
    "--expires-in-s",
    type=float,
    default=None,
    callback=lambda _context, _option, typed: check_expiry(typed),
    help="Texts that no worker has begun after so many seconds get the error `expired`; default: never.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="For machines: JSON on stdout.")


def fleet_options(command: Command) -> Command:
    """Give a command every setting of the fleet as an option; it gets ``fleet`` (FleetSettings)."""

    def run(**arguments: Any) -> Any:
        chosen = {name: arguments.pop(name) for name in FleetSettings.model_fields if name in arguments}
        return command(fleet=load(**chosen), **arguments)

    return _with_options(_named(run, command), FleetSettings, env_prefix="EMBEDFLEET_")


def embed_options(command: Command) -> Command:
    """Give a command every field of EmbedSettings as an option; it gets ``settings``. Use inside fleet_options."""

    def run(**arguments: Any) -> Any:
        chosen = {name: arguments.pop(name) for name in EmbedSettings.model_fields if name in arguments}
        try:
            settings = EmbedSettings(**{name: value for name, value in chosen.items() if value is not None})
        except ValidationError as exc:
            raise SettingsError(describe(exc)) from None
        return command(settings=settings, **arguments)

    without_model = [name for name in EmbedSettings.model_fields if name != "model"]  # --model is the fleet's
    return _with_options(_named(run, command), EmbedSettings, names=without_model)


def _with_options(
    command: Command, model: type[BaseModel], names: list[str] | None = None, env_prefix: str | None = None
) -> Command:
    for name in reversed(names or list(model.model_fields)):
        field = model.model_fields[name]
        variable = f" [{env_prefix}{name.upper()}]" if env_prefix else ""
        option = click.option(
            f"--{name.replace('_', '-')}",
            name,
            type=_type(field),
            default=None,
            help=(field.description or "") + variable,
        )
        command = option(command)
    return command


def _type(field: FieldInfo) -> Any:
    """Choices become a choice, numbers a number; what remains is checked by pydantic."""
    annotation: Any = field.annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
    if annotation is Chunking:
        return _ChunkingType()
    if typing.get_origin(annotation) is Literal:
        return click.Choice(typing.get_args(annotation))
    return {int: int, float: float}.get(annotation, str)


class _ChunkingType(click.ParamType[Chunking]):
    """``max_tokens=256,overlap=32,output=mean``: any of the fields, in any order."""

    name = "settings"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Chunking:
        """The fields. A usage error names what is wrong."""
        if isinstance(value, Chunking):
            return value
        pairs = [field.strip().partition("=") for field in str(value).split(",")]
        names = [name.strip() for name, _, _ in pairs]
        if len(set(names)) < len(names) or not all(equals for _, equals, _ in pairs):
            self.fail(f"{value!r}: give each field once, as max_tokens=256,overlap=32,output=mean.", param, ctx)
        try:
            return Chunking.model_validate_strings({name.strip(): given.strip() for name, _, given in pairs})
        except ValidationError as exc:
            known = ", ".join(Chunking.model_fields)
            self.fail(f"{value!r}: {describe(exc)}. Fields: {known}.", param, ctx)


def _named(run: Command, command: Command) -> Command:
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    return run


def store_uri(fleet: FleetSettings, to: str | None) -> str:
    """Canonical URI of the store that --to names, or else the fleet's. Raises ConfigurationError for none."""
    uri = to or fleet.store
    if uri is None:
        raise ConfigurationError("no store: give --to FOLDER or set EMBEDFLEET_STORE.")
    return canonical_uri(uri)


def store_of(fleet: FleetSettings, to: str | None) -> Store:
    """The store to write to, tried before anything is queued."""
    store = open_store(store_uri(fleet, to), make=True)
    store.check_writable()
    return store
