"""What a person sees of a running job: a bar on stderr, a summary on stdout. Not the job."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from embedfleet.job import Job
from embedfleet.jobstatus import JobStatus

if TYPE_CHECKING:
    from rich.progress import Progress


class Bar:
    """What is drawn; without ``progress`` nothing is."""

    def __init__(self, progress: "Progress | None" = None, total: int | None = None) -> None:
        self._progress = progress
        self._total = total
        self._first: tuple[float, int] | None = None
        self._task = progress.add_task("", total=total, rate=0.0, cached=0, errors=0) if progress else None

    def queued(self, texts: int) -> None:
        """So many texts were handed to the queue; none is counted as done yet."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=f"{texts:,} queued ·")

    def show(self, status: JobStatus) -> None:
        """Where the job is. The rate is that since the first status."""
        if self._progress is None or self._task is None:
            return
        totals, now = status.totals, time.monotonic()
        self._first = self._first or (now, totals.texts)
        begun, before = self._first
        delivered = sum(delivery.confirmed + delivery.dead for delivery in status.deliveries)
        self._progress.update(
            self._task,
            description=f"{delivered:,} deliveries ·" if status.deliveries else "",
            total=status.texts or self._total,
            completed=totals.texts,
            rate=(totals.texts - before) / max(now - begun, 0.001),
            cached=totals.cached,
            errors=totals.errors,
        )


@contextmanager
def bar(total: int | None, *, quiet: bool) -> Iterator[Bar]:
    """A bar on stderr; an invisible one when that is no terminal, or with ``quiet``."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f} texts/s · {task.fields[cached]} cached · {task.fields[errors]} errors ·"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield Bar(progress, total)


def summary_of(job: Job, status: JobStatus, seconds: float, before: int = 0) -> dict[str, Any]:
    """The summary; ``before``: texts that had an outcome already when this run began."""
    totals = status.totals
    rate = (totals.texts - before) / seconds if seconds > 0 else 0.0
    tokens = totals.tokens * (totals.texts - before) / totals.texts if totals.texts else 0.0
    return {
        "job": job.id,
        "uri": job.uri,
        "state": status.state,
        "texts": totals.texts,
        "errors": totals.errors,
        "truncated": totals.truncated,
        "cached": totals.cached,
        "tokens": totals.tokens,
        "seconds": round(seconds, 3),
        "texts_per_s": round(rate, 1),
        "tokens_per_s": round(tokens / seconds if seconds > 0 else 0.0, 1),
        "deliveries": [asdict(delivery) for delivery in status.deliveries],
    }


def dead(summary: dict[str, Any]) -> int:
    """How many parts will not reach a destination."""
    return sum(delivery["dead"] for delivery in summary["deliveries"])


def say_deliveries(job: str, deliveries: list[dict[str, Any]]) -> None:
    """A line a destination, and why something will not reach it."""
    for delivery in deliveries:
        click.echo(f"{delivery['destination']}: {delivery['confirmed']:,} batches confirmed, {delivery['dead']:,} dead")
        if delivery["dead"]:
            click.echo(f"dead: {delivery['reason']} When that is mended: embedfleet deliver {job}", err=True)


def say(summary: dict[str, Any], job: Job, *, as_json: bool) -> None:
    """Print the summary; with errors also how many of which kind, and what to do."""
    if as_json:
        click.echo(json.dumps(summary))
        return
    click.echo(
        f"{summary['texts']:,} texts, {summary['tokens']:,} tokens in {summary['seconds']:.1f} s: "
        f"{summary['texts_per_s']:,.0f} texts/s, {summary['tokens_per_s']:,.0f} tokens/s "
        f"({summary['cached']:,} cached, {summary['truncated']:,} truncated, {summary['errors']:,} errors)"
    )
    click.echo(f"{summary['state']}: {job.uri}")
    say_deliveries(job.uri, summary["deliveries"])
    if summary["errors"]:
        said = ", ".join(f"{code} {count}" for code, count in job.error_counts().most_common())
        click.echo(f"errors: {said}; see them with: embedfleet results {job.uri}", err=True)
