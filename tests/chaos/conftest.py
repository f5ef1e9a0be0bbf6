"""Fleets under test, and the table of figures at the end."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pytest

from embedfleet.settings import load
from tests import aws
from tests.chaos import brokers
from tests.chaos.fleet import ChaosFleet
from tests.chaos.report import Figures, table
from tests.unit import sqs_queues

KILLS = int(os.environ.get("CHAOS_KILLS", "0"))
"""In the long run: of all kills together, about. 0: the short one of CI."""
LEASE_S = 2.0 if KILLS else 1.0
BATCHES_PER_S = 15.0
"""Of one worker; a batch has ten texts, and six are under way."""

_figures: list[Figures] = []

StartFleet = Callable[..., ChaosFleet]


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """A stand-in for SQS and S3."""
    with aws.moto() as endpoint:
        yield endpoint


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[brokers.Redis]:
    """A Redis of the test's own, with an append-only file."""
    with brokers.running(tmp_path / "redis") as server:
        yield server


@pytest.fixture(params=["redis", "sqs"])
def kind(request: pytest.FixtureRequest) -> str:
    """Both brokers."""
    return str(request.param)


@pytest.fixture
def start_fleet(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., ChaosFleet]]:
    """Make fleets, without workers as yet: at this Redis, this URL, or (sqs) at queues of the stand-in for SQS."""
    running: list[ChaosFleet] = []
    with ExitStack() as stack:

        def start(
            broker: str | brokers.Redis, environment: dict[str, str] | None = None, **others: object
        ) -> ChaosFleet:
            folder = tmp_path / f"fleet-{len(running)}"
            folder.mkdir()
            given = {
                "store": str(tmp_path / "store"), "engine": "synthetic", "lease_s": LEASE_S, "health_port": 0,
                "synthetic_texts_per_s": 10 * BATCHES_PER_S, **others,
            }  # fmt: skip
            if broker == "sqs":
                settings = sqs_queues.settings(**{name: value for name, value in given.items() if name != "engine"})
                stack.enter_context(sqs_queues.made(settings))
            else:
                settings = load(broker_url=broker.url if isinstance(broker, brokers.Redis) else broker, **given)
            made = ChaosFleet(settings, folder, _named(request.node.name), **(environment or {}))
            running.append(made)
            return made

        try:
            yield start
        finally:
            for fleet in running:
                fleet.close()
                request.node.user_properties += [("figures", asdict(fleet.figures)), ("logs", fleet.logs())]


@pytest.fixture
def lease_s() -> float:
    """Of the fleet on each of the brokers; short, so that what is lost comes back soon."""
    return LEASE_S


@pytest.fixture
def fleet(
    kind: str, lease_s: float, start_fleet: StartFleet, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> ChaosFleet:
    """A fleet on each of the brokers."""
    if kind == "redis":
        return start_fleet(request.getfixturevalue("redis"), lease_s=lease_s)
    for name, value in aws.environment(request.getfixturevalue("moto")).items():
        monkeypatch.setenv(name, value)
    return start_fleet("sqs", lease_s=lease_s)


def _named(test: str) -> str:
    return test.removeprefix("test_").replace("_", " ")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect the figures, also those of other processes."""
    if report.when == "teardown":
        _figures.extend(Figures(**value) for name, value in report.user_properties if name == "figures")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table."""
    if _figures:
        terminalreporter.section("chaos")
        for line in table(_figures):
            terminalreporter.write_line(line)
