"""The commands. Each reads its options, calls the SDK and says what came of it; no work is done here.

What becomes of errors is in entry.py.
"""

import contextlib
import json
import os
import shlex
import sys
import time
from typing import Any

import click

import embedfleet
from embedfleet import doctor as checks
from embedfleet import models as profiles
from embedfleet.client import Fleet
from embedfleet.contract import EmbedSettings, Overflow
from embedfleet.errors import ConfigurationError
from embedfleet.local import LocalFleet, worker_environment
from embedfleet.options import embed_options, fleet_options
from embedfleet.progress import bar, say
from embedfleet.running import Source, command_line, exit_code, resumable, running
from embedfleet.settings import FleetSettings
from embedfleet.store import Store, canonical_uri, open_store

to_option = click.option("--to", default=None, help="Folder or URI for the job folder; default: the store.")
text_field_option = click.option("--text-field", default="text", show_default=True, help="Field of the text.")
id_field_option = click.option("--id-field", default=None, help="Field of the id; default: id, else the line's number.")
key_option = click.option("--key", default=None, help="Idempotency key; default: from the inputs and settings.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress bar.")
json_option = click.option("--json", "as_json", is_flag=True, help="For machines: JSON on stdout.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(embedfleet.__version__)
def cli() -> None:
    """Turn texts into vectors with a fleet of workers fed by a queue.

    Settings come from options, EMBEDFLEET_* variables, .env and embedfleet.toml, in this order. Exit codes:
    0 done, 1 finished with errors, 2 usage or configuration, 3 stopped or unfinished (can be resumed).
    """


@cli.command()
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@to_option
@text_field_option
@id_field_option
@key_option
@quiet_option
@json_option
@fleet_options
@embed_options
def embed(
    inputs: tuple[str, ...],
    to: str | None,
    text_field: str,
    id_field: str | None,
    key: str | None,
    quiet: bool,
    as_json: bool,
    fleet: FleetSettings,
    settings: EmbedSettings,
) -> int:
    """Embed INPUT and wait: JSONL, CSV, Parquet, lines, folders of these, or - for stdin.

    Without a broker everything runs here, for as long as the command does. Stopped, the same command goes on.
    """
    resolved = profiles.resolve(settings, fleet.model)
    source = Source(inputs, text_field, id_field, key, resolved, fleet, _store_uri(fleet, to))
    store = _store(fleet, to)
    with running(fleet, store) as run, resumable(source.resume_hint()), bar(source.texts, quiet=quiet) as shown:
        before, begun = run.done_before(store, source.key), time.monotonic()
        records = run.supervised(source.records(), shown)
        job = run.fleet.submit(records, settings=settings, to=store.uri, key=source.key)
        summary = run.follow(job, begun, before, shown)
    say(summary, job, as_json=as_json)
    return exit_code(summary["state"], summary["errors"])


@cli.command()
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@to_option
@text_field_option
@id_field_option
@key_option
@json_option
@fleet_options
@embed_options
def submit(
    inputs: tuple[str, ...],
    to: str | None,
    text_field: str,
    id_field: str | None,
    key: str | None,
    as_json: bool,
    fleet: FleetSettings,
    settings: EmbedSettings,
) -> None:
    """Queue INPUT for the workers at the broker and return."""
    with Fleet(**dict(fleet)) as client:
        client.broker.check()
        resolved = profiles.resolve(settings, fleet.model)
        source = Source(inputs, text_field, id_field, key, resolved, fleet, _store_uri(fleet, to))
        store = _store(fleet, to)
        with resumable(source.resume_hint()):
            job = client.submit(source.records(), settings=settings, to=store.uri, key=source.key)
    click.echo(json.dumps({"job": job.id, "uri": job.uri}) if as_json else job.uri)


@cli.command()
@click.argument("job")
@json_option
@fleet_options
def status(job: str, as_json: bool, fleet: FleetSettings) -> None:
    """Where JOB (an id in the store, or a job folder) is."""
    _say_status(Fleet(**dict(fleet)).job(job).status(), as_json)


@cli.command()
@click.argument("job")
@quiet_option
@json_option
@fleet_options
def watch(job: str, quiet: bool, as_json: bool, fleet: FleetSettings) -> int:
    """Follow JOB until it is finished."""
    with bar(None, quiet=quiet) as shown:
        for now in Fleet(**dict(fleet)).job(job).watch():
            shown.show(now)
    _say_status(now, as_json)
    return exit_code(now.state, now.totals.errors)


@cli.command()
@click.argument("job")
@fleet_options
def results(job: str, fleet: FleetSettings) -> None:
    """Every outcome of JOB and its retries on stdout, a JSON line a text, with the columns carried along."""
    for row in Fleet(**dict(fleet)).job(job).rows():
        click.echo(json.dumps(row, ensure_ascii=False))


@cli.command()
@click.argument("job")
@click.option("--on-overflow", type=click.Choice(["error", "truncate"]), default=None, help="Another policy this time.")
@quiet_option
@json_option
@fleet_options
def retry(job: str, on_overflow: Overflow | None, quiet: bool, as_json: bool, fleet: FleetSettings) -> int:
    """Embed the failed texts of JOB again, as a child job, and wait."""
    with Fleet(**dict(fleet)) as client:
        failed = client.job(job)
    # A worker started here has to run the job's model, whatever this fleet's is.
    fleet = fleet.model_copy(update={"model": failed.spec.settings.model, "revision": failed.spec.revision})
    with running(fleet, failed.folder.store) as run, resumable(f"Go on with: {command_line()}"):
        child = run.fleet.job(job).retry(on_overflow=on_overflow)
        if child is None:
            click.echo("nothing to retry: no text failed that could do better (too_long: --on-overflow truncate)")
            return 1 if failed.errors_left() else 0
        before, begun = child.status().totals.texts, time.monotonic()
        with bar(None, quiet=quiet) as shown:
            summary = run.follow(child, begun, before, shown)
    say(summary, child, as_json=as_json)
    return exit_code(summary["state"], summary["errors"] or failed.errors_left().total())


@cli.command()
@click.argument("job")
@fleet_options
def cancel(job: str, fleet: FleetSettings) -> None:
    """Stop JOB: batches that no worker has begun end with the error `cancelled`."""
    handle = Fleet(**dict(fleet)).job(job)
    click.echo(f"{handle.cancel().state}: {handle.uri}")


@cli.command()
@fleet_options
def worker(fleet: FleetSettings) -> None:
    """Run a worker at the broker, in this process, until SIGTERM."""
    command = [sys.executable, "-m", "embedfleet_worker"]
    os.execve(sys.executable, command, worker_environment(fleet))


@cli.command()
@fleet_options
def up(fleet: FleetSettings) -> None:
    """Run a fleet on this machine, an embedded Redis and a worker, until Ctrl-C. Its queue ends with it.

    Prints the variables with which other commands find it.
    """
    store = _store(fleet, None)
    with LocalFleet(fleet.model_copy(update={"store": store.uri}), log_to_file=False) as local:
        local.wait_ready()
        for name, value in local.settings.shared().items():
            click.echo(f"export {name}={shlex.quote(value)}")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                local.check()
                time.sleep(0.5)


@cli.group(invoke_without_command=True)
@click.pass_context
def models(context: click.Context) -> None:
    """The models whose profiles are known."""
    if context.invoked_subcommand is None:
        for profile in profiles.PROFILES.values():
            lengths = f"{profile.min_dimensions}-{profile.dimensions}" if profile.min_dimensions else profile.dimensions
            click.echo(f"{profile.name:45} dimensions {lengths!s:9} tokens {profile.max_tokens}")


@models.command()
@click.argument("name")
def show(name: str) -> None:
    """What is known of the model NAME, a hub id or a folder."""
    for field, value in vars(profiles.profile_of(name)).items():
        click.echo(f"{field}: {json.dumps(value, ensure_ascii=False)}")


@cli.group()
def config() -> None:
    """The settings of this fleet."""


@config.command(name="show")
@json_option
@fleet_options
def config_show(as_json: bool, fleet: FleetSettings) -> None:
    """Every setting with its value, passwords masked."""
    values = fleet.masked()
    if as_json:
        click.echo(json.dumps(values))
        return
    for name, value in values.items():
        shown = ",".join(value) if isinstance(value, tuple) else value
        click.echo(f"EMBEDFLEET_{name.upper()}={'' if shown is None else shown}")


@cli.command()
@json_option
@click.option("--fix", is_flag=True, help="Make the queues on SQS that are missing, with dead letters.")
@fleet_options
def doctor(as_json: bool, fix: bool, fleet: FleetSettings) -> int:
    """Check broker, queues, store, model and accelerator, each with what to do when it fails."""
    found = [check(fleet) for check in checks.CHECKS]
    if fix:
        found = [checks.queues(fleet, fix=True) if result.name == "queues" else result for result in found]
    if as_json:
        click.echo(json.dumps([vars(result) for result in found]))
    else:
        for result in found:
            click.echo(f"{'ok  ' if result.ok else 'FAIL'} {result.name}: {result.detail}")
            if not result.ok:
                click.echo(f"     {result.remedy}")
    return 0 if all(result.ok for result in found) else 2


def _store_uri(fleet: FleetSettings, to: str | None) -> str:
    uri = to or fleet.store
    if uri is None:
        raise ConfigurationError("no store: give --to FOLDER or set EMBEDFLEET_STORE.")
    return canonical_uri(uri)


def _store(fleet: FleetSettings, to: str | None) -> Store:
    """The store to write to, tried before anything is queued."""
    store = open_store(_store_uri(fleet, to), make=True)
    store.check_writable()
    return store


def _say_status(now: Any, as_json: bool) -> None:
    totals = now.totals.model_dump()
    if as_json:
        click.echo(json.dumps({**{k: v for k, v in vars(now).items() if k != "totals"}, **totals, "total": now.texts}))
        return
    of = f" of {now.batches}" if now.batches is not None else ""
    click.echo(f"{now.state}: {now.batches_done}{of} batches, {totals['texts']:,} texts, {totals['errors']:,} errors")
