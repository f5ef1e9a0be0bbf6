"""The plot of `embedfleet eval --plot`: metrics over dimensions. matplotlib comes with the extra `eval`."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from embedfleet.errors import ConfigurationError
from embedfleet.evaluation import Evaluation
from embedfleet.quality import need

FORMATS = (".png", ".svg")


def check_plot(path: str) -> None:
    """Raise ConfigurationError for a file that :func:`plot` could not write, as far as that can be told beforehand."""
    if Path(path).suffix.lower() not in FORMATS:
        raise ConfigurationError(f"--plot {path}: the name must end in {' or '.join(FORMATS)}.")
    if not Path(path).resolve().parent.is_dir():
        raise ConfigurationError(f"--plot {path}: there is no such folder. Make it first.")
    need("matplotlib")


def plot(evaluation: Evaluation, path: str) -> None:
    """Write the plot: a line for each metric, and for each of the settings but dimensions."""
    from matplotlib.figure import Figure  # not pyplot: no display is asked for, and no state is kept
    from matplotlib.ticker import NullFormatter, NullLocator

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for label, points in _lines(evaluation).items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
    lengths = sorted({row.settings["dimensions"] for row in evaluation.rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("dimensions")
    axes.set_title(evaluation.model.rsplit("/", 1)[-1])
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path, dpi=150)


def _lines(evaluation: Evaluation) -> dict[str, list[tuple[int, float]]]:
    """Points by label; what is undefined has none."""
    others = [{name: value for name, value in row.settings.items() if name != "dimensions"} for row in evaluation.rows]
    alike = all(other == others[0] for other in others)
    lines: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row, other in zip(evaluation.rows, others, strict=True):
        said = "" if alike else " · " + ", ".join(_short(value) for value in other.values())
        for metric, value in row.metrics.items():
            if value is not None:
                lines[metric + said].append((row.settings["dimensions"], value))
    return dict(lines)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 30 else text[:29] + "…"
