"""AsyncFleet and AsyncJob: that they have everything a Fleet and a Job have. What they do: test_sharing_a_fleet.py."""

import asyncio
import inspect
from typing import Any

import pytest

from embedfleet import AsyncFleet, AsyncJob, Fleet, Job
from embedfleet.testing import InMemoryFleet

# For Job, the commands and whoever looks after a local fleet; no verbs of application code.
NO_VERBS = {"republish", "resubmit", "answer", "send_on", "unfinished", "pauses_s"}


def methods(kind: type) -> dict[str, Any]:
    found = inspect.getmembers(kind, inspect.isfunction)
    return {name: method for name, method in found if not name.startswith("_") and name not in NO_VERBS}


@pytest.mark.parametrize(("plain", "awaited"), [(Fleet, AsyncFleet), (Job, AsyncJob)])
def test_every_verb_has_its_twin_with_the_same_arguments(plain: type, awaited: type) -> None:
    twins = methods(awaited)
    for name, method in methods(plain).items():
        assert name in twins, f"{awaited.__name__} lacks {name}"
        parameters = inspect.signature(method).parameters
        assert list(inspect.signature(twins[name]).parameters.values()) == list(parameters.values()), name
        assert inspect.iscoroutinefunction(twins[name]) or inspect.isasyncgenfunction(twins[name]), name
    properties = {name for name, _ in inspect.getmembers(plain, lambda member: isinstance(member, property))}
    assert properties - {"broker"} <= set(dir(awaited))


def test_the_errors_of_a_job_are_counted() -> None:
    async def main() -> None:
        async with AsyncFleet(InMemoryFleet()) as fleet:
            job = await fleet.submit(["a text", "", "word " * 2000])
            assert await job.error_counts() == {"empty": 1, "too_long": 1}
            child = await job.retry(on_overflow="truncate")
            assert child is not None
            assert await job.errors_left() == {"empty": 1}

    asyncio.run(main())
