"""The commands that take a finished job's inputs again: `embedfleet verify` and `embedfleet reembed`.

What is compared is in verifying.py, what a new job is made of in reembedding.py.
"""

import json
import time
import uuid
from dataclasses import asdict
from typing import Any

import click

from embedfleet import reembedding, verifying
from embedfleet.client import Fleet
from embedfleet.contract import EmbedSettings, JobSpec
from embedfleet.destinations import Target
from embedfleet.options import (
    callback_option,
    deliver_option,
    embed_options,
    expires_option,
    fleet_options,
    json_option,
    key_option,
    quiet_option,
    to_option,
)
from embedfleet.progress import bar, dead, say
from embedfleet.running import command_line, exit_code, resumable, running
from embedfleet.settings import FleetSettings
from embedfleet.store import open_store
from embedfleet.verifying import Comparison, Verification

_MAX_SAMPLE = 10_000  # they are in memory, each twice


@click.command()
@click.argument("job")
@click.option(
    "--sample",
    type=click.IntRange(1, _MAX_SAMPLE),
    default=100,
    show_default=True,
    help="How many texts; chosen by chance, and for one job always the same.",
)
@quiet_option
@json_option
@fleet_options
def verify(job: str, sample: int, quiet: bool, as_json: bool, fleet: FleetSettings) -> int:
    """Embed a sample of JOB again, with its settings and without the cache, and compare the vectors.

    The sample is embedded as a job of its own in the same store, which stays there and is named.
    """
    with Fleet(**dict(fleet)) as client:
        verified = client.job(job)
        samples = verifying.sample(verified, sample)
        spec = verified.spec
    comparison = Comparison(verified)
    with running(_as_for(fleet, spec), verified.folder.store) as run, bar(sample, quiet=quiet) as shown:
        for each in samples:
            again = run.fleet.submit(
                [text.record for text in each.texts],
                settings=each.settings,
                to=verified.folder.store.uri,
                key=f"verify\0{verified.id}\0{uuid.uuid4().hex}",  # never one that was embedded before
            )
            run.follow(again, time.monotonic(), 0, shown)
            comparison.add(each, again.folder)
    found = comparison.result()
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        _say(found)
    return 1 if found.below else 0


@click.command()
@click.argument("job")
@to_option
@key_option
@deliver_option
@expires_option
@callback_option
@quiet_option
@json_option
@fleet_options
@embed_options
def reembed(
    job: str,
    to: str | None,
    key: str | None,
    deliver_to: tuple[Target, ...],
    expires_in_s: float | None,
    callback: str | None,
    quiet: bool,
    as_json: bool,
    fleet: FleetSettings,
    settings: EmbedSettings,
) -> int:
    """Embed the inputs of JOB again as a new job, with other settings or elsewhere, and wait.

    What is not given stays as it was; --to is JOB's store by default. Stopped, the same command goes on.
    """
    with Fleet(**dict(fleet)) as client:
        source = client.job(job)
        typed = click.get_current_context().params
        if typed["model"] is None:  # EMBEDFLEET_MODEL is the fleet's, and this is about the job's
            revision = typed["revision"] or source.spec.revision
            fleet = fleet.model_copy(update={"model": source.spec.settings.model, "revision": revision})
        else:
            settings = settings.model_copy(update={"model": fleet.model})
        new = reembedding.plan(source, settings, fleet, to=to, key=key)
    store = open_store(new.to, make=True)
    with running(fleet, store) as run, resumable(f"Go on with: {command_line()}"), bar(new.texts, quiet=quiet) as shown:
        before, begun = run.done_before(store, new.key), time.monotonic()
        done = run.fleet.submit(
            run.supervised(new.records(), shown),
            settings=new.settings,
            to=new.to,
            key=new.key,
            deliver_to=deliver_to,
            expires_in_s=expires_in_s,
            callback=callback,
        )
        summary = run.follow(done, begun, before, shown)
    say(summary, done, as_json=as_json)
    return exit_code(summary["state"], summary["errors"] + dead(summary))


def _as_for(fleet: FleetSettings, spec: JobSpec) -> FleetSettings:
    """The fleet's settings for the job's model and its kind of engine, whatever the fleet's are."""
    update: dict[str, Any] = {"model": spec.settings.model, "revision": spec.revision}
    if spec.synthetic != (fleet.engine == "synthetic"):
        update["engine"] = "synthetic" if spec.synthetic else "vllm"
    return fleet.model_copy(update=update)


def _say(found: Verification) -> None:
    if found.cosine_min is not None and found.cosine_median is not None:
        click.echo(
            f"{found.texts:,} texts, {found.vectors:,} vectors: cosine min {found.cosine_min:.8f}, median "
            f"{found.cosine_median:.8f}; {found.below:,} do not agree (least {found.least})"
        )
    else:
        click.echo(f"{found.texts:,} texts: none could be compared")
    for each in found.differing:
        chunk = f" chunk {each['chunk']}" if each["chunk"] else ""
        click.echo(f"differs: {each['id']}{chunk}: {each['reason']}")
    if found.below > len(found.differing):
        click.echo(f"differs: and {found.below - len(found.differing):,} more")
    for each in found.differences:
        before, now = json.dumps(each["before"], ensure_ascii=False), json.dumps(each["now"], ensure_ascii=False)
        click.echo(f"made otherwise: {each['field']} was {before} and is {now} ({each['texts']:,} texts)")
    if found.below and not found.differences:
        click.echo("made alike by every field of the provenance: the part was changed, or the engine is not the same")
    click.echo(f"verified by: {', '.join(found.verified_by)}")
