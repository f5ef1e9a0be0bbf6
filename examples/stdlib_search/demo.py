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

from embedfleet import EmbedSettings, Fleet, Job
from embedfleet.errors import EmbedfleetError
from embedfleet.local import LocalFleet
from embedfleet.progress import bar, say, summary_of
from embedfleet.settings import load

FOLDER = Path("build/demo")


def main() -> None:
    """Collect, embed, ask."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    records = list(collect(Path(sysconfig.get_path("stdlib"))))
    FOLDER.mkdir(parents=True)
    file = FOLDER / "docstrings.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    print(f"{len(records):,} docstrings; starting a fleet: an embedded Redis and a worker with vLLM …", flush=True)
    with LocalFleet(load(), stores=(str(FOLDER),)) as local:
        local.wait_ready()
        with Fleet(**dict(local.settings)) as fleet:
            begun = time.monotonic()
            job = fleet.submit(records, settings=EmbedSettings(on_overflow="truncate"), to=str(FOLDER))
            follow(job, local, len(records))
            summary = summary_of(job, job.status(), time.monotonic() - begun)
            questions = fleet.embed(QUESTIONS)
    for question, found in zip(QUESTIONS, nearest(str(FOLDER / job.id), questions), strict=True):
        print(f"\n{question}?")
        for name, score in found:
            print(f"  {score:.3f}  {name}")
    print()
    say(summary, job, as_json=False)
    print(f"\nnext: .venv/bin/embedfleet embed {file} --to build/vectors --on-overflow truncate")


def follow(job: Job, local: LocalFleet, total: int) -> None:
    """Show the job until it is done; the worker is looked after meanwhile."""
    with bar(total, quiet=False) as show:
        for status in job.watch():
            show(status)
            local.check()


if __name__ == "__main__":
    try:
        main()
    except EmbedfleetError as exc:
        sys.exit(f"demo: {exc}")
    except KeyboardInterrupt:
        sys.exit("demo: stopped")
