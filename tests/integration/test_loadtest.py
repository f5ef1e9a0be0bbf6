"""The load test as `make loadtest` runs it, for seconds instead of a minute."""

import csv
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from embedfleet import Fleet
from embedfleet.local import LocalFleet
from tests.integration.command import environment
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
PHASES = {
    "Submit": ("enqueue", "wait", "embedding", "total"),
    "Enqueue": ("enqueue", "wait", "embedding", "total"),
    "RoundTrip": ("wait", "embedding", "total"),
}


@contextmanager
def loadtest(folder: Path, *arguments: str, **settings: object) -> Iterator["subprocess.Popen[str]"]:
    """The load test, running; ended when the block is left before it is over."""
    path = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    with subprocess.Popen(
        [sys.executable, "-m", "loadtest.run", *arguments],
        cwd=folder,
        env={**environment(engine="synthetic", **settings), "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as running:
        try:
            yield running
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)


def ended(folder: Path, *arguments: str, **settings: object) -> tuple[int, str]:
    """Exit code and output of a load test."""
    with loadtest(folder, *arguments, **settings) as running:
        said, _ = running.communicate(timeout=100)
    return running.returncode, said


def rows(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (folder / "build" / "loadtest" / "loadtest_stats.csv").open(encoding="utf-8") as stream:
        return {(row["Type"], row["Name"]): row for row in csv.DictReader(stream)}


def test_every_user_is_answered_and_the_report_is_left(tmp_path: Path) -> None:
    code, said = ended(tmp_path, "--run-time", "5s")
    assert code == 0, said
    found = rows(tmp_path)
    assert set(found) == {(kind, phase) for kind, names in PHASES.items() for phase in names} | {("", "Aggregated")}
    for key, row in found.items():
        assert int(row["Request Count"]) > 0, key
        assert int(row["Failure Count"]) == 0, key
    for kind in PHASES:
        parts = sum(float(found[kind, name]["Average Response Time"]) for name in ("wait", "embedding"))
        assert 0 < parts <= float(found[kind, "total"]["Average Response Time"]) + 1
    assert "RoundTrip" in (tmp_path / "build" / "loadtest" / "report.html").read_text(encoding="utf-8")


def test_a_fleet_that_is_there_is_the_one_that_is_loaded(
    start_fleet: Callable[..., LocalFleet], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    local = start_fleet(store, engine="synthetic", health_port=0)
    broker = local.settings.environment()["EMBEDFLEET_BROKER_URL"]
    with loadtest(tmp_path, "Enqueue", "--users", "1", "--run-time", "20m", broker_url=broker, store=store) as running:
        wait_until(lambda: len(list(store.glob("*/parts/*.parquet"))) > 2 or running.poll() is not None, "three jobs")
        os.killpg(running.pid, signal.SIGINT)  # Ctrl-C
        said, _ = running.communicate(timeout=60)
    assert "starting a fleet" not in said
    assert {kind for kind, _ in rows(tmp_path)} == {"Enqueue", ""}
    with Fleet(**dict(local.settings)) as fleet:
        assert len(fleet.embed(["it still runs"])) == 1


def test_failures_are_no_success(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"redis://127.0.0.1:{closed.getsockname()[1]}/0"
        code, said = ended(tmp_path, "--run-time", "2s", broker_url=nobody, store=tmp_path / "store")
    assert code == 1, said
    found = rows(tmp_path)
    assert {phase for _, phase in found} == {"total", "Aggregated"}
    assert all(row["Failure Count"] == row["Request Count"] for row in found.values())


def test_a_fleet_without_workers_is_no_success(redis_url: str, tmp_path: Path) -> None:
    """What is queued is answered; what is waited for, never."""
    settings = {"broker_url": redis_url, "store": tmp_path / "store"}
    code, said = ended(tmp_path, "--run-time", "2s", "--stop-timeout", "1", **settings)
    assert code == 1, said
    assert "not one call of RoundTrip came to its end" in said


def test_what_is_not_configured_is_said(redis_url: str, tmp_path: Path) -> None:
    for settings, expected in [({"broker_url": redis_url}, "no store: set EMBEDFLEET_STORE"), ({"modl": "x"}, "MODL")]:
        code, said = ended(tmp_path, **settings)
        assert code == 2
        assert expected in said
        assert "Traceback" not in said
