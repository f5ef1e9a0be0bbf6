"""The surface of embedfleet and its tree of errors."""

import inspect
import subprocess
import sys

import embedfleet
from embedfleet import errors

HEAVY = [
    "torch",
    "vllm",
    "numpy",
    "pyarrow",
    "rich",
    "celery",
    "boto3",
    "transformers",
    "tokenizers",
    "embedfleet_worker",
]


def classes() -> dict[str, type[BaseException]]:
    found = inspect.getmembers(errors, lambda thing: inspect.isclass(thing) and thing.__module__ == errors.__name__)
    return dict(found)


def drawn() -> dict[str, str]:
    """The tree of the docstring: each error with the one it hangs from."""
    parents: dict[str, str] = {}
    path: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        name = line.lstrip(" │├└─").split(" ")[0]
        if not name or not line.startswith("    "):
            continue
        depth = len(line) - len(line.lstrip(" │├└─"))
        path = {at: above for at, above in path.items() if at < depth} | {depth: name}
        parents[name] = path[max((at for at in path if at < depth), default=depth)]
    return parents


def test_the_tree_that_is_drawn_is_the_tree_there_is() -> None:
    actual = {name: found.__bases__[0].__name__ for name, found in classes().items()}
    actual["EmbedfleetError"] = "EmbedfleetError"
    assert drawn() == actual


def test_every_error_is_retryable_or_permanent_but_for_waiting() -> None:
    for name, found in classes().items():
        kinds = [issubclass(found, errors.Retryable), issubclass(found, errors.Permanent)]
        assert sum(kinds) == (0 if name in ("EmbedfleetError", "WaitTimeout") else 1), name


def test_every_error_says_in_a_line_what_it_means() -> None:
    assert [name for name, found in classes().items() if not (found.__doc__ or "").strip().endswith(("``.", "."))] == []


def test_the_surface_is_what_all_says() -> None:
    types = "AsyncFleet AsyncJob Chunking EmbedSettings EmbedfleetError Fleet Job JobStatus Pgvector Webhook"
    assert embedfleet.__all__ == [*types.split(), "errors"]
    public = {
        name
        for name, thing in vars(embedfleet).items()
        if not name.startswith("_") and not (inspect.ismodule(thing) and name != "errors")
    }
    assert public == set(embedfleet.__all__)


def test_importing_embedfleet_loads_nothing_heavy() -> None:
    code = f"import sys, embedfleet; print(*[name for name in {HEAVY} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []
