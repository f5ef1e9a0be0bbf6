"""The data of the task: first lines and bodies of docstrings of the standard library. Needs no mteb."""

import sys
import sysconfig
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "stdlib_search"))

from collect import collect

DOCUMENTS = 100
BODY_CHARACTERS = range(80, 800)


def docstrings() -> list[tuple[str, str, str]]:
    """Name, first line and body of DOCUMENTS docstrings from all over the library; no first line comes twice."""
    found: dict[str, tuple[str, str, str]] = {}
    for record in collect(Path(sysconfig.get_path("stdlib"))):
        head, _, body = record["text"].partition("\n\n")
        if "\n" not in head and len(body.strip()) in BODY_CHARACTERS:
            found.setdefault(head, (record["id"], head, body.strip()))
    every = max(1, len(found) // DOCUMENTS)
    return list(found.values())[::every][:DOCUMENTS]
