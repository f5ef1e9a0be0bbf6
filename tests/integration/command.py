"""Running the real command, as a user would."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

EMBEDFLEET = str(Path(sys.executable).parent / "embedfleet")


def environment(**settings: object) -> dict[str, str]:
    """The environment with these EMBEDFLEET_ settings and no others; tests run side by side, so without a port."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDFLEET_")}
    return {
        **inherited,
        **{f"EMBEDFLEET_{name.upper()}": str(value) for name, value in {"health_port": 0, **settings}.items()},
    }


def run(
    *arguments: object, cwd: Path, stdin: bytes | None = None, **settings: object
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end with the synthetic engine, unless settings say otherwise."""
    done = subprocess.run(
        [EMBEDFLEET, *map(str, arguments)],
        cwd=cwd,
        env=environment(**{"engine": "synthetic", **settings}),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=120,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def start(*arguments: object, cwd: Path, **settings: object) -> "subprocess.Popen[bytes]":
    """Start the command and leave it running."""
    return subprocess.Popen(
        [EMBEDFLEET, *map(str, arguments)],
        cwd=cwd,
        env=environment(**{"engine": "synthetic", **settings}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    """A JSONL file of these records."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def numbered(count: int) -> list[dict[str, Any]]:
    """That many distinct records."""
    return [{"id": f"d{n}", "text": f"text number {n}", "n": n} for n in range(count)]


def summary(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """The --json summary."""
    found: dict[str, Any] = json.loads(done.stdout)
    return found
