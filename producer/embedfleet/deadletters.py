"""The commands for dead letters: `embedfleet dead list | show | replay | purge`. What is done again is in replay.py."""

import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from embedfleet.broker import Broker
from embedfleet.client import Fleet
from embedfleet.errors import ConfigurationError, NotFound
from embedfleet.letters import Letter, Listing
from embedfleet.options import fleet_options, json_option
from embedfleet.replay import Replay, Replayed, still_waits, why_not
from embedfleet.running import command_line, resumable
from embedfleet.settings import FleetSettings

_MORE = "there are more letters than were looked at, or somebody else looks at them right now: run it again."


def _chosen(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which letters: by their ids, or all."""
    command = click.option("--all", "every", is_flag=True, help="Every letter.")(command)
    return click.argument("ids", metavar="ID...", nargs=-1)(command)


@click.group()
def dead() -> None:
    """Dead letters: what no worker could do, kept with its reason."""


@dead.command(name="list")
@json_option
@fleet_options
def dead_list(as_json: bool, fleet: FleetSettings) -> None:
    """Every dead letter, newest first: id, time, what it is about, reason."""
    with Fleet(**dict(fleet)) as client:
        found = client.broker.letters()
    if as_json:
        click.echo(json.dumps([_fields(letter) for letter in found.letters]))
    elif not found.letters:
        click.echo(f"no dead letters in {client.broker.dead_queue}")
    for letter in [] if as_json else found.letters:
        click.echo(f"{letter.id}  {_time(letter)}  {letter.what}: {letter.reason}")
    _say_if_cut(found)


@dead.command()
@click.argument("letter", metavar="ID")
@json_option
@fleet_options
def show(letter: str, as_json: bool, fleet: FleetSettings) -> None:
    """All that is kept of the letter ID. With --json also what is no message of ours, in base64: it may hold texts."""
    with Fleet(**dict(fleet)) as client:
        [found] = _find(client.broker, [letter])
    if as_json:
        click.echo(json.dumps({**_fields(found), "raw": found.raw}))
        return
    for name, value in {**_fields(found), "at": _time(found)}.items():
        click.echo(f"{name}: {value if isinstance(value, str) else json.dumps(value)}")
    todo = f"embedfleet dead replay {found.id}" if found.work is not None else f"it can't be replayed: {why_not(found)}"
    click.echo(f"to do: {todo}")


@dead.command()
@_chosen
@json_option
@fleet_options
def replay(ids: tuple[str, ...], every: bool, as_json: bool, fleet: FleetSettings) -> int:
    """Do what letters are about again. A letter is removed when that is under way, never before."""
    with Fleet(**dict(fleet)) as client:
        found = _choose(client.broker, "replay", ids, every=every)
        with resumable(f"Go on with: {command_line()}"):
            done = _replayed(client, found.letters)
    if as_json:
        click.echo(json.dumps([vars(each) for each in done]))
    for each in [] if as_json else done:
        click.echo(f"{each.letter}: {each.said if each.done else f'it stays. {each.said}'}", err=not each.done)
    if not found.letters and not as_json:
        click.echo("no dead letters to replay")
    _say_if_cut(found)
    if any(each.later for each in done) or not found.complete:
        return 3
    return 0 if all(each.done for each in done) else 1


@dead.command()
@_chosen
@json_option
@fleet_options
def purge(ids: tuple[str, ...], every: bool, as_json: bool, fleet: FleetSettings) -> int:
    """Forget letters. What a job still waits for is said."""
    with Fleet(**dict(fleet)) as client:
        found = _choose(client.broker, "purge", ids, every=every)
        waiting = [said for letter in found.letters if (said := still_waits(client, letter)) is not None]
        count = client.broker.remove_letters([letter.id for letter in found.letters]) if found.letters else 0
    if as_json:
        click.echo(json.dumps({"removed": count, "waiting": waiting}))
    else:
        click.echo(f"{count:,} {'letter' if count == 1 else 'letters'} removed")
        for said in waiting:
            click.echo(said, err=True)
    left = len(found.letters) - count
    if left:
        click.echo(f"{left:,} were not found any more, or are looked at by somebody else: run it again.", err=True)
    _say_if_cut(found)
    return 3 if left or not found.complete else 0


def _replayed(client: Fleet, letters: Sequence[Letter]) -> list[Replayed]:
    """What came of each letter; those that are done are removed."""
    again, done = Replay(client), list[Replayed]()
    try:
        for letter in letters:
            done.append(again(letter))
    finally:  # also when Ctrl-C or the broker ended it: what is under way is done with
        under_way = [each.letter for each in done if each.done]
        if under_way:
            client.broker.remove_letters(under_way)
    return done


def _choose(broker: Broker, verb: str, ids: Sequence[str], *, every: bool) -> Listing:
    """The letters that are meant. Raises ConfigurationError for none, and for both; NotFound."""
    if bool(ids) == every:
        raise ConfigurationError(f"dead {verb}: give the letters' ids, or --all.")
    return broker.letters() if every else Listing(_find(broker, ids), complete=True)


def _find(broker: Broker, ids: Sequence[str]) -> list[Letter]:
    """The letters with these ids. Raises NotFound before anything is done with one of them."""
    listing = broker.letters()
    there = {letter.id: letter for letter in listing.letters}
    missing = [letter for letter in dict.fromkeys(ids) if letter not in there]
    if missing:
        hint = "See `embedfleet dead list`." if listing.complete else f"But {_MORE}"
        raise NotFound(f"dead letters: there is none with the id {', '.join(missing)} in {broker.dead_queue}. {hint}")
    return [there[letter] for letter in dict.fromkeys(ids)]


def _say_if_cut(found: Listing) -> None:
    if not found.complete:
        click.echo(f"note: {_MORE}", err=True)


def _time(letter: Letter) -> str:
    return f"{datetime.fromtimestamp(letter.at, UTC):%Y-%m-%d %H:%M:%SZ}" if letter.at else "at an unknown time"


def _fields(letter: Letter) -> dict[str, Any]:
    """A letter without what may be texts: of that its size and hash."""
    fields: dict[str, Any] = {"id": letter.id, "at": letter.at, "what": letter.what, "reason": letter.reason}
    fields |= {"queue": letter.queue, "message": letter.message, "part": letter.part}
    if letter.raw_bytes is not None:
        fields |= {"raw_bytes": len(letter.raw_bytes), "raw_sha256": hashlib.sha256(letter.raw_bytes).hexdigest()}
    return fields
