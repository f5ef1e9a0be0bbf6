"""Embed every docstring of the standard library on this machine, then ask it three questions. See README.md."""

import json
import shutil
import sys
import sysconfig
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from collect import collect
from search import QUESTIONS, nearest

from embedfleet import EmbedSettings
from embedfleet.errors import EmbedfleetError
from embedfleet.progress import bar, say
from embedfleet.running import running
from embedfleet.settings import load
from embedfleet.store import open_store

FOLDER = Path("build/demo")


def main() -> None:
    """Collect, embed, ask."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    records = list(collect(Path(sysconfig.get_path("stdlib"))))
    FOLDER.mkdir(parents=True)
    file = FOLDER / "docstrings.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    print(f"{len(records):,} docstrings; starting a fleet: an embedded Redis and a worker with vLLM …", flush=True)
    store = open_store(str(FOLDER), make=True)
    settings = load().model_copy(update={"broker_url": None})  # a fleet of its own, whatever is configured
    with running(settings, store) as run, bar(len(records), quiet=False) as shown:
        begun = time.monotonic()
        job = run.fleet.submit(records, settings=EmbedSettings(on_overflow="truncate"), to=store.uri)
        summary = run.follow(job, begun, 0, shown)
        questions = run.fleet.embed(QUESTIONS)
    for question, found in zip(QUESTIONS, nearest(str(FOLDER / job.id), questions), strict=True):
        print(f"\n{question}?")
        for name, score in found:
            print(f"  {score:.3f}  {name}")
    print()
    say(summary, job, as_json=False)
    print(f"\nnext: .venv/bin/embedfleet embed {file} --to build/vectors --on-overflow truncate")


if __name__ == "__main__":
    try:
        main()
    except EmbedfleetError as exc:
        sys.exit(f"demo: {exc}")
    except KeyboardInterrupt:
        sys.exit("demo: stopped")
