"""The commands of those who run a fleet: worker, up, reconcile, doctor and so on. Those for jobs are in cli.py."""

import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable

import click

from embedfleet import doctor as checks
from embedfleet.client import Fleet
from embedfleet.errors import ConfigurationError, EmbedfleetError
from embedfleet.local import LocalFleet, worker_environment
from embedfleet.lost import APART_S as LOOKS_APART_S
from embedfleet.lost import Lanes
from embedfleet.openjobs import open_jobs
from embedfleet.options import fleet_options, json_option, store_of
from embedfleet.reconcile import UNDECIDED, Sweep
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
    """Close jobs that are finished; publish again what a broker lost. What the workers' janitor does, now.

    For cron where no worker may run, or by hand. On SQS it takes two minutes where a queue seems empty.
    """
    if bool(jobs) == every:
        raise ConfigurationError("reconcile: give the jobs, or --all.")
    with Fleet(**dict(fleet)) as client:
        sweep = Sweep(client, Lanes(client.broker, LOOKS_APART_S))
        names: Iterable[str] = open_jobs(sweep.store) if every else jobs
        failed = _see_to(sweep, names, sweep.open_job if every else lambda job: sweep.job(client.job(job)))
    return 1 if failed else 0


def _see_to(sweep: Sweep, names: Iterable[str], look_after: Callable[[str], str]) -> int:
    """Say of each what was done. How many failed. What can't be told yet is asked again, as often as it takes."""
    failed = 0
    for left in reversed(range(sweep.fleet.broker.looks)):
        undecided = []
        for job in names:
            try:
                found = look_after(job)
            except EmbedfleetError as exc:  # the others are seen to all the same
                click.echo(f"{job}: {exc}", err=True)
                failed += 1
                continue
            if found == UNDECIDED and left:
                undecided.append(job)
            else:
                click.echo(f"{job}: {found}")
        names = undecided
        if not undecided:
            break
        time.sleep(sweep.lanes.apart_s)
    return failed


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
        shown = ",".join(value) if isinstance(value, tuple) else json.dumps(value) if isinstance(value, dict) else value
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
