"""The commands of those who run a fleet: worker, up, reconcile, doctor and so on. Those for jobs are in cli.py."""

import contextlib
import json
import os
import shlex
import sys
import time

import click

from embedfleet import doctor as checks
from embedfleet import models as profiles
from embedfleet.client import Fleet
from embedfleet.errors import ConfigurationError, EmbedfleetError
from embedfleet.local import LocalFleet, worker_environment
from embedfleet.options import fleet_options, json_option, store_of
from embedfleet.reconcile import open_jobs, reconcile_open
from embedfleet.reconcile import reconcile as look_after
from embedfleet.settings import FleetSettings


@click.command()
@fleet_options
def worker(fleet: FleetSettings) -> None:
    """Run a worker at the broker, in this process, until SIGTERM."""
    command = [sys.executable, "-m", "embedfleet_worker"]
    os.execve(sys.executable, command, worker_environment(fleet))


@click.command()
@fleet_options
def up(fleet: FleetSettings) -> None:
    """Run a fleet on this machine, an embedded Redis and a worker, until Ctrl-C. Its queue ends with it.

    Prints the variables with which other commands find it.
    """
    store = store_of(fleet, None)
    with LocalFleet(fleet.model_copy(update={"store": store.uri}), log_to_file=False) as local:
        local.wait_ready()
        with contextlib.suppress(KeyboardInterrupt):
            for name, value in local.settings.shared().items():
                click.echo(f"export {name}={shlex.quote(value)}")
            sys.stdout.flush()
            while True:
                local.check()
                time.sleep(0.5)


@click.command()
@click.argument("jobs", metavar="JOB...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every job that the store names as open.")
@fleet_options
def reconcile(jobs: tuple[str, ...], every: bool, fleet: FleetSettings) -> int:
    """Close jobs that are finished; publish again, where a queue is idle, what a broker lost. For cron, or by hand."""
    if bool(jobs) == every:
        raise ConfigurationError("reconcile: give the jobs, or --all.")
    failed = 0
    with Fleet(**dict(fleet)) as client:
        for job in open_jobs(client) if every else jobs:
            try:
                found = reconcile_open(client, job) if every else look_after(client, client.job(job))
            except EmbedfleetError as exc:  # the others are seen to all the same
                click.echo(f"{job}: {exc}", err=True)
                failed += 1
            else:
                click.echo(f"{job}: {found}")
    return 1 if failed else 0


@click.group(invoke_without_command=True)
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


@click.group()
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


@click.command()
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
