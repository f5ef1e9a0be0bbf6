"""Waiting for a condition, never for a time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, timeout_s: float = 60.0) -> T:
    """What ``condition`` returns, as soon as that is true. Fails naming ``what`` was waited for."""
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.02)
    return found
