"""Tasks of different settings in the engine at the same time: each gets its own vectors."""

import os
import signal
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedfleet import EmbedSettings
from embedfleet.job import Job
from tests import tiny_qwen3 as tiny
from tests.vectors.references import cosines, qwen_reference
from tests.vectors.served import Served, table_of, vectors

Fleets = dict[tuple[str, str], Served]
LEAST = {"float32": 0.99999, "bfloat16": 0.999}

PROMPTS: dict[str, tuple[dict[str, Any], str]] = {
    "document": ({}, ""),
    "query": ({"input_type": "query"}, tiny.QUERY_PROMPT),
    "instruction": ({"input_type": "query", "instruction": "Find the page"}, "Instruct: Find the page\nQuery:"),
}
KINDS = list(product(PROMPTS, (128, 100, 32), ("float32", "float16")))
EACH = 8
"""Texts of a task: the engine takes those of several in one step of 64."""


@pytest.mark.parametrize("dtype", LEAST)
def test_tasks_of_different_settings_in_the_engine_at_once_each_get_their_own(
    dtype: str, qwen: Path, fleets: Fleets, texts: list[str]
) -> None:
    """They wait for the worker, and then behind a job that keeps its engine busy, and go in together."""
    served = fleets["Qwen3", dtype]
    served.forget()
    short = [text for text in texts if len(text.encode()) < 300]
    chosen = [short[start : start + EACH] for start in range(0, EACH * len(KINDS), EACH)]
    os.kill(served.local.worker_pid, signal.SIGSTOP)
    try:
        busy = served.fleet.submit([f"{number} of many {'words ' * 60}" for number in range(500)])
        jobs = [enqueue(served, own, *kind) for own, kind in zip(chosen, KINDS, strict=True)]
    finally:
        os.kill(served.local.worker_pid, signal.SIGCONT)
    begun = time.monotonic()
    for job in (busy, *jobs):
        job.wait(timeout_s=120)
    took_s = time.monotonic() - begun
    assert sum(job.folder.part_info(0).stages_s["engine"] for job in (busy, *jobs)) > 2 * took_s, "not by turns"

    for own, (prompt, dimensions, encoding), job in zip(chosen, KINDS, jobs, strict=True):
        reference = qwen_reference(qwen, [PROMPTS[prompt][1] + text for text in own], limit=tiny.MAX_TOKENS)
        found = vectors(table_of(job))
        assert (found.shape, found.dtype) == ((EACH, dimensions), np.dtype(encoding))
        assert cosines(found, reference.cut(dimensions)).min() >= LEAST[dtype], (prompt, dimensions, encoding)


def enqueue(served: Served, texts: list[str], prompt: str, dimensions: int, encoding: Any) -> Job:
    return served.fleet.enqueue(
        texts, settings=EmbedSettings(dimensions=dimensions, encoding=encoding, **PROMPTS[prompt][0])
    )
