"""Seconds until ``import embedfleet`` is done in a fresh process, the interpreter's own start included."""

import statistics
import subprocess
import sys
import time

from loadtest.bench.figures import Figure


def measure(*, quick: bool) -> list[Figure]:
    """The median, with that of a process that imports nothing beside it. The two take turns."""
    processes = 2 if quick else 7
    _seconds("import embedfleet")  # byte code and the disk's cache
    times = [(_seconds("import embedfleet"), _seconds("pass")) for _ in range(processes)]
    imports, bare = zip(*times, strict=True)
    details: dict[str, object] = {
        "spread": [round(min(imports), 3), round(max(imports), 3)],
        "bare_python_s": round(statistics.median(bare), 3),
        "processes": processes,
    }
    return [Figure("import embedfleet", round(statistics.median(imports), 3), "s", details=details)]


def _seconds(code: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begun
