"""The command `embedfleet eval`: its options, its table. What is measured, and how, is in evaluation.py."""

import dataclasses
import json
import re
import time
from collections.abc import Iterable
from typing import Any

import click
from pydantic import ValidationError

from embedfleet import labels, models
from embedfleet.contract import EmbedSettings, describe
from embedfleet.errors import ConfigurationError, SettingsError
from embedfleet.evaluation import Evaluation, check, default_settings, evaluate
from embedfleet.job import Job
from embedfleet.labels import Pairs, Retrieval
from embedfleet.options import embed_options, fleet_options, json_option, store_of, store_uri
from embedfleet.plotting import check_plot, plot
from embedfleet.progress import bar
from embedfleet.quality import need
from embedfleet.records import Record
from embedfleet.running import Run, command_line, resumable, running
from embedfleet.settings import FleetSettings
from embedfleet.store import Store


@click.command(name="eval")
@click.argument("data", metavar="[PAIRS]...", nargs=-1)
@click.option("--corpus", multiple=True, metavar="FILE", help="Documents: id and text. May be repeated.")
@click.option("--queries", multiple=True, metavar="FILE", help="Queries: id, text, and relevant ids. May be repeated.")
@click.option(
    "--try",
    "tries",
    multiple=True,
    metavar="NAME=VALUE,…",
    help="Settings to compare, such as dimensions=128,encoding=float16. May be repeated; default: the model's lengths.",
)
@click.option("--k", "recall_at", type=click.IntRange(1, 1000), multiple=True, help="Of recall@k; default: 10 and 100.")
@click.option("--plot", "plot_to", default=None, metavar="FILE", help="A plot over the dimensions: .png or .svg.")
@click.option("--to", default=None, help="Folder or URI for the job folders; default: the store.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@json_option
@fleet_options
@embed_options
def evaluate_command(
    data: tuple[str, ...],
    corpus: tuple[str, ...],
    queries: tuple[str, ...],
    tries: tuple[str, ...],
    recall_at: tuple[int, ...],
    plot_to: str | None,
    to: str | None,
    quiet: bool,
    as_json: bool,
    fleet: FleetSettings,
    settings: EmbedSettings,
) -> int:
    """Measure settings on labelled data: which dimensions are enough?

    PAIRS (text1, text2, score: JSONL, CSV, Parquet) give Spearman; --corpus and --queries give nDCG@10 and recall@k.
    """
    if plot_to is not None:
        check_plot(plot_to)
    labelled = _labelled(data, corpus, queries, store_uri(fleet, to))
    need("scipy" if isinstance(labelled, Pairs) else "pytrec_eval")
    compared = [parse_try(each, settings) for each in tries] or default_settings(fleet, settings)
    check(fleet, labelled, compared)
    _check_models(fleet, compared)
    store = store_of(fleet, to)
    with running(fleet, store) as run, resumable(f"Go on with: {command_line()}"):
        embed = Following(run, store, quiet=quiet)
        found = evaluate(run.fleet, labelled, compared, to=store.uri, recall_at=recall_at, embed=embed)
    if plot_to is not None:
        plot(found, plot_to)
    click.echo(json.dumps(_fields(found)) if as_json else table(found))
    return _say_errors(found)


def parse_try(text: str, base: EmbedSettings) -> EmbedSettings:
    """``name=value,name=value`` over the base's settings. A comma inside a value is one; only `,name=` ends it.

    Raises SettingsError.
    """
    pairs = [each.partition("=") for each in re.split(r",(?=\s*\w+\s*=)", text)]
    if any(not equals for _, equals, _ in pairs):
        raise SettingsError(f"--try {text}: NAME=VALUE was expected, such as dimensions=128,encoding=float16.")
    chosen = {name.strip(): value.strip() for name, _, value in pairs}
    try:
        return EmbedSettings(**{**base.model_dump(exclude_unset=True), **chosen})
    except ValidationError as exc:
        known = ", ".join(EmbedSettings.model_fields)
        raise SettingsError(f"--try {text}: {describe(exc)}. Settings are {known}.") from None


class Following:
    """Submits to the fleet of a command, watches the local one while it works, and shows how far it is."""

    def __init__(self, run: Run, store: Store, *, quiet: bool) -> None:
        self._run, self._store, self._quiet = run, store, quiet

    def __call__(self, records: Iterable[Record], settings: EmbedSettings, key: str) -> Job:
        """Submit and wait."""
        begun, before = time.monotonic(), self._run.done_before(self._store, key)
        with bar(None, quiet=self._quiet) as shown:
            supervised = self._run.supervised(records, shown)
            job = self._run.fleet.submit(supervised, settings=settings, to=self._store.uri, key=key)
            self._run.follow(job, begun, before, shown)
        return job


def _labelled(
    data: tuple[str, ...], corpus: tuple[str, ...], queries: tuple[str, ...], store: str
) -> Pairs | Retrieval:
    if data and not corpus and not queries:
        return labels.read_pairs(data, store)
    if corpus and queries and not data:
        return labels.read_retrieval(corpus, queries, store)
    raise ConfigurationError("eval: give a file of pairs, or --corpus FILE and --queries FILE.")


def _check_models(fleet: FleetSettings, compared: list[EmbedSettings]) -> None:
    """A worker started here runs one model; a job for another would wait for ever."""
    others = {models.named(each.model) for each in compared if each.model} - {models.named(fleet.model)}
    if others and fleet.broker_url is None:
        raise ConfigurationError(
            f"model={min(others)}: the worker started here runs {fleet.model}. Run eval once for each, with "
            "--model; or name a broker with a worker for each."
        )


def table(found: Evaluation) -> str:
    """The results as text: a row for each of the settings; of these, what differs."""
    from rich.console import Console
    from rich.table import Table

    chosen = list(dict.fromkeys(name for row in found.rows for name in row.settings))
    shown = [
        name for name in chosen if name == "dimensions" or len({str(row.settings.get(name)) for row in found.rows}) > 1
    ]
    grid = Table(box=None, pad_edge=False)
    first, *others = found.rows[0].metrics
    for name in [*shown, "bytes", first, "of first", *others, "errors"]:
        grid.add_column(name, justify="left" if name in shown and name != "dimensions" else "right")
    for row in found.rows:
        settings = [str(row.settings.get(name, "")) for name in shown]
        part = _share(row.metrics[first], found.rows[0].metrics[first])
        metrics = [_number(row.metrics[first]), part, *(_number(row.metrics[name]) for name in others)]
        grid.add_row(*settings, str(row.vector_bytes), *metrics, str(row.errors))
    console = Console(width=200, color_system=None)  # as wide as it is: whoever pipes it needs whole columns
    with console.capture() as captured:
        console.print(_title(found), markup=False)
        console.print(grid)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _title(found: Evaluation) -> str:
    counts = dict(found.counts)
    left_out = counts.pop("without_relevant", 0)
    said = ", ".join(f"{count:,} {what}" for what, count in counts.items())
    more = f" ({left_out:,} more queries have no relevant document)" if left_out else ""
    return f"{found.model}: {said}{more}"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _share(value: float | None, first: float | None) -> str:
    return f"{value / first:.1%}" if value is not None and first else ""


def _fields(found: Evaluation) -> dict[str, Any]:
    rows = [dataclasses.asdict(row) for row in found.rows]
    return {"model": found.model, **found.counts, "results": rows, "jobs": [job.uri for job in found.jobs]}


def _say_errors(found: Evaluation) -> int:
    """Which texts have no vector, and what to do; the exit code."""
    failed = False
    for job in found.jobs:
        counts = job.errors_left()
        if counts:
            failed = True
            said = ", ".join(f"{code} {count}" for code, count in counts.most_common())
            hint = "; --on-overflow truncate embeds those that are too long" if "too_long" in counts else ""
            click.echo(f"errors: {said}; see them with: embedfleet results {job.uri}{hint}", err=True)
    return 1 if failed else 0
