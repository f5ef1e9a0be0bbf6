"""Run the task with the vectors of a fleet: the configured one, or one on this machine. See README.md."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs a hub

import mteb
from task import StdlibDocstrings

from embedfleet.errors import EmbedfleetError
from embedfleet.evaluating import Following
from embedfleet.mteb import FleetEncoder
from embedfleet.running import running
from embedfleet.settings import load
from embedfleet.store import open_store

FOLDER = "build/mteb"


def main() -> None:
    """Evaluate, and print the scores."""
    store = open_store(FOLDER, make=True)
    with running(load(), store) as run:
        encoder = FleetEncoder(run.fleet, to=store.uri, embed=Following(run, store, quiet=True))
        result = mteb.evaluate(encoder, StdlibDocstrings(), cache=None, co2_tracker=False, show_progress_bar=False)
    [task] = result.task_results
    [scores] = task.scores["test"]
    for name in ("ndcg_at_10", "recall_at_1", "recall_at_10"):
        print(f"{name}: {scores[name]:.4f}")


if __name__ == "__main__":
    try:
        main()
    except EmbedfleetError as exc:
        sys.exit(f"mteb_custom_task: {exc}")
