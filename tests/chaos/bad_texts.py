"""Texts that do something to the engine that meets them: ``chaos:kill`` and so on. Test code only."""

import ctypes
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from embedfleet_worker.engine import synthetic


def hook(before_death: Callable[[], object]) -> None:
    """Have the synthetic engine look for them. ``before_death``: called in a process that is about to kill itself."""
    vectors = synthetic.synthetic_vectors

    def die() -> None:
        """As the kernel has it when memory is short."""
        before_death()
        os.kill(os.getpid(), signal.SIGKILL)

    acts: dict[str, Callable[[], object]] = {
        "chaos:kill": die,
        "chaos:segfault": lambda: ctypes.string_at(0),
        "chaos:hang": lambda: time.sleep(3600),
        "chaos:raise": _raise,
        "chaos:memory": _exhaust,
    }

    def embedded(prompts: Sequence[str], dimensions: int) -> Any:
        for prompt in prompts:
            if prompt in acts:
                acts[prompt]()
        return vectors(prompts, dimensions)

    synthetic.synthetic_vectors = embedded


def _raise() -> None:
    raise RuntimeError("chaos")


def _exhaust() -> None:
    """Ask for more memory than the process may have."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, before[1]))
    try:
        bytearray(2**32)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
