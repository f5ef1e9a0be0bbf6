"""Going down, by itself: whatever hangs, the process ends. Real processes are in tests/integration/test_drain.py."""

import threading
import time
from typing import Any

import pytest

from embedfleet_worker.lifecycle import drain as module
from embedfleet_worker.lifecycle.drain import Drain
from tests.waiting import wait_until


class Holding:
    """Stands in for what is held: says what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def stop_taking(self) -> None:
        self.told.append("stop taking")

    def wait_until_empty(self, timeout_s: float) -> bool:
        return True

    def close(self, timeout_s: float, *, blamed: bool) -> int:
        self.told.append("blamed" if blamed else "given back")
        return 0


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit codes, instead of exits."""
    codes: list[int] = []
    monkeypatch.setattr(module.os, "_exit", codes.append)
    monkeypatch.setattr(module, "_TELLING_S", 0.2)
    return codes


def test_a_broker_that_hangs_holds_up_no_exit_and_no_stop(exits: list[int]) -> None:
    go_on = threading.Event()
    holding: Any = Holding()
    begun = time.monotonic()
    Drain(holding, 1, before=lambda: go_on.wait(30), after=lambda: go_on.wait(30)).begin("a test")
    wait_until(lambda: exits == [0], "the exit", timeout_s=5)
    assert time.monotonic() - begun < 5
    assert holding.told == ["stop taking", "given back"]
    go_on.set()


def test_what_a_broken_engine_held_is_blamed_and_nothing_is_forgiven(exits: list[int]) -> None:
    holding: Any = Holding()
    forgiven: list[int] = []
    Drain(holding, 1, after=lambda: forgiven.append(1)).begin("a test", code=70)
    wait_until(lambda: exits == [70], "the exit", timeout_s=5)
    assert (holding.told, forgiven) == (["stop taking", "blamed"], [])


def test_asked_again_it_goes_on_as_it_does(exits: list[int]) -> None:
    holding: Any = Holding()
    drain = Drain(holding, 1)
    assert [drain.begin("a test"), drain.begin("again", code=70)] == [True, False]
    wait_until(lambda: bool(exits), "the exit", timeout_s=5)
    assert exits == [0]


def test_nothing_is_given_back_before_it_is_forgiven(exits: list[int]) -> None:
    """Whoever takes it next must not find it charged: it would run alone there."""
    holding: Any = Holding()
    Drain(holding, 1, after=lambda: holding.told.append("forgiven")).begin("a test")
    wait_until(lambda: exits == [0], "the exit", timeout_s=5)
    assert holding.told == ["stop taking", "forgiven", "given back"]
