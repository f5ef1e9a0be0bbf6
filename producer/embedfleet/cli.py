"""The commands. Each reads its options, calls the SDK and says what came of it; no work is done here.

What becomes of errors is in entry.py.
"""

import json
import time
from dataclasses import asdict
from typing import get_args

import click

import embedfleet
from embedfleet import catalogue, deadletters, evaluating, operate, proving
from embedfleet.client import Fleet
from embedfleet.contract import EmbedSettings, Overflow
from embedfleet.destinations import Target
from embedfleet.errors import ConfigurationError
from embedfleet.jobstatus import JobStatus
from embedfleet.options import (
    callback_option,
    deliver_option,
    embed_options,
    expires_option,
    fleet_options,
    json_option,
    key_option,
    quiet_option,
    store_of,
    store_uri,
    to_option,
)
from embedfleet.progress import bar, dead, say, say_deliveries
from embedfleet.running import Source, command_line, exit_code, resumable, running
from embedfleet.settings import FleetSettings, Lane

text_field_option = click.option("--text-field", default="text", show_default=True, help="Field of the text.")
id_field_option = click.option("--id-field", default=None, help="Field of the id; default: id, else the line's number.")


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
@deliver_option
@expires_option
@callback_option
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
    deliver_to: tuple[Target, ...],
    expires_in_s: float | None,
    callback: str | None,
    quiet: bool,
    as_json: bool,
    fleet: FleetSettings,
    settings: EmbedSettings,
) -> int:
    """Embed INPUT and wait: JSONL, CSV, Parquet, lines, folders of these, or - for stdin.

    Without a broker everything runs here, for as long as the command does. Stopped, the same command goes on.
    """
    resolved = fleet.resolve(settings)
    source = Source(inputs, text_field, id_field, key, resolved, fleet, store_uri(fleet, to))
    store = store_of(fleet, to)
    with running(fleet, store) as run, resumable(source.resume_hint()), bar(source.texts, quiet=quiet) as shown:
        before, begun = run.done_before(store, source.key), time.monotonic()
        records = run.supervised(source.records(), shown)
        job = run.fleet.submit(
            records,
            settings=settings,
            to=store.uri,
            key=source.key,
            deliver_to=deliver_to,
            expires_in_s=expires_in_s,
            callback=callback,
        )
        summary = run.follow(job, begun, before, shown)
    say(summary, job, as_json=as_json)
    return exit_code(summary["state"], summary["errors"] + dead(summary))


@cli.command()
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@to_option
@text_field_option
@id_field_option
@key_option
@deliver_option
@expires_option
@callback_option
@json_option
@fleet_options
@embed_options
def submit(
    inputs: tuple[str, ...],
    to: str | None,
    text_field: str,
    id_field: str | None,
    key: str | None,
    deliver_to: tuple[Target, ...],
    expires_in_s: float | None,
    callback: str | None,
    as_json: bool,
    fleet: FleetSettings,
    settings: EmbedSettings,
) -> None:
    """Queue INPUT for the workers at the broker and return."""
    with Fleet(**dict(fleet)) as client:
        client.broker.check()
        resolved = fleet.resolve(settings)
        source = Source(inputs, text_field, id_field, key, resolved, fleet, store_uri(fleet, to))
        store = store_of(fleet, to)
        with resumable(source.resume_hint()):
            job = client.submit(
                source.records(),
                settings=settings,
                to=store.uri,
                key=source.key,
                deliver_to=deliver_to,
                expires_in_s=expires_in_s,
                callback=callback,
            )
    click.echo(json.dumps({"job": job.id, "uri": job.uri}) if as_json else job.uri)


@cli.command()
@click.argument("job")
@json_option
@fleet_options
def status(job: str, as_json: bool, fleet: FleetSettings) -> None:
    """Where JOB (an id in the store, or a job folder) is."""
    _say_status(job, Fleet(**dict(fleet)).job(job).status(), as_json)


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
    _say_status(job, now, as_json)
    return exit_code(now.state, now.totals.errors + now.dead_deliveries)


@cli.command()
@click.argument("job")
@fleet_options
def results(job: str, fleet: FleetSettings) -> None:
    """Every outcome of JOB and its retries on stdout, a JSON line a text or chunk, with the columns carried along."""
    for row in Fleet(**dict(fleet)).job(job).rows():
        click.echo(json.dumps(row, ensure_ascii=False))


@cli.command()
@click.argument("job")
@click.option("--on-overflow", type=click.Choice(get_args(Overflow)), default=None, help="Another policy this time.")
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
            click.echo("nothing to retry: no text failed that could do better (too_long: another --on-overflow)")
            return 1 if failed.errors_left() else 0
        before, begun = child.status().totals.texts, time.monotonic()
        with bar(None, quiet=quiet) as shown:
            summary = run.follow(child, begun, before, shown)
    say(summary, child, as_json=as_json)
    return exit_code(summary["state"], (summary["errors"] or failed.errors_left().total()) + dead(summary))


@cli.command()
@click.argument("job")
@deliver_option
@quiet_option
@json_option
@fleet_options
def deliver(job: str, deliver_to: tuple[Target, ...], quiet: bool, as_json: bool, fleet: FleetSettings) -> int:
    """Send the vectors of JOB on, without embedding, and wait. What a destination has confirmed is not sent again.

    Without --deliver-to: to where the job was to go.
    """
    with Fleet(**dict(fleet)) as client:
        finished = client.job(job)
    destinations = deliver_to or finished.folder.destinations()
    if not destinations:
        raise ConfigurationError("no destination: give --deliver-to https://host/path or pgvector:TABLE.")
    lanes: tuple[Lane, ...] = ("deliver",)  # a worker started here needs no engine
    with running(fleet, finished.folder.store, lanes) as run, resumable(f"Go on with: {command_line()}"):
        handle, begun = run.fleet.job(finished.uri), time.monotonic()
        for destination in destinations:
            handle.deliver(destination)
        with bar(None, quiet=quiet) as shown:
            before = finished.status().totals.texts
            followed = [(each, run.follow(each, begun, before, shown)) for each in handle.chain()]
    for each, summary in followed:  # the job, and its retries
        say(summary, each, as_json=as_json)
    return 1 if any(dead(summary) for _, summary in followed) else 0


@cli.command()
@click.argument("job")
@fleet_options
def cancel(job: str, fleet: FleetSettings) -> None:
    """Stop JOB: batches that no worker has begun end with the error `cancelled`."""
    handle = Fleet(**dict(fleet)).job(job)
    click.echo(f"{handle.cancel().state}: {handle.uri}")


def _say_status(job: str, now: JobStatus, as_json: bool) -> None:
    totals = now.totals.model_dump()
    if as_json:
        fields = {name: value for name, value in asdict(now).items() if name != "totals"}
        click.echo(json.dumps({**fields, **totals, "total": now.texts}))
        return
    of = f" of {now.batches}" if now.batches is not None else ""
    click.echo(f"{now.state}: {now.batches_done}{of} batches, {totals['texts']:,} texts, {totals['errors']:,} errors")
    say_deliveries(job, [asdict(delivery) for delivery in now.deliveries])


for command in (
    operate.worker,
    operate.up,
    operate.reconcile,
    deadletters.dead,
    proving.verify,
    proving.reembed,
    evaluating.evaluate_command,
    catalogue.models,
    operate.config,
    operate.doctor,
):
    cli.add_command(command)
