"""`scripts/setup` stops at once, and says why, where it can't work."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the script needs, without a .venv, and a folder for commands that lie."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "scripts" / "setup", tmp_path / "scripts")
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    return tmp_path


def set_up(checkout: Path, **commands: str) -> "subprocess.CompletedProcess[str]":
    for name, script in commands.items():
        file = checkout / "bin" / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
    return subprocess.run(
        [checkout / "scripts" / "setup", "http://127.0.0.1:1/"],
        env={"PATH": f"{checkout / 'bin'}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )


def test_another_platform_is_named(checkout: Path) -> None:
    done = set_up(checkout, uname='[ "$1" = -s ] && echo Darwin || echo arm64')
    assert done.returncode == 2
    assert "this needs Linux on x86_64; here is Darwin on arm64" in done.stderr
    assert not (checkout / ".venv").exists()


def test_another_python_is_named(checkout: Path) -> None:
    old = "echo Python 3.9.2; exit 1"
    done = set_up(checkout, **dict.fromkeys(("python3.11", "python3.12", "python3", "python"), old))
    assert done.returncode == 2
    assert "no Python 3.11 or 3.12" in done.stderr
    assert "Python 3.9.2" in done.stderr
    assert not (checkout / ".venv").exists()
