"""`.ci/run` installs what marked tests need, once, or says why not; such a test is skipped by name, and in CI fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = [line for line in (ROOT / "ci" / "apt.txt").read_text().splitlines() if line[:1].isalnum()]
ROOT_USER = {"id": "echo 0"}
NONE_INSTALLED = {"dpkg-query": "exit 1"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the script needs, and a folder for commands that lie."""
    (tmp_path / "bin").mkdir()
    for name in (".ci/run", "ci/apt.txt"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def ci(checkout: Path, **commands: str) -> "subprocess.CompletedProcess[str]":
    commands = {"make": 'echo "make $* CI=$CI"', "apt-get": 'echo "apt-get $*" >&2', **commands}
    for name, script in commands.items():
        file = checkout / "bin" / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
    environment = {"PATH": f"{checkout / 'bin'}:/usr/bin:/bin"}
    return subprocess.run([checkout / ".ci" / "run"], env=environment, capture_output=True, text=True)


def test_what_is_missing_is_installed_and_then_everything_runs(checkout: Path) -> None:
    done = ci(checkout, **ROOT_USER, **NONE_INSTALLED)
    assert done.returncode == 0
    assert "update\n" in done.stderr
    assert f"install --yes --no-install-recommends {' '.join(PACKAGES)}\n" in done.stderr
    assert done.stdout == "make --no-print-directory lint test CI=1\n"


def test_nothing_is_installed_twice(checkout: Path) -> None:
    done = ci(checkout, **ROOT_USER, **{"dpkg-query": "echo installed"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "make" in done.stdout


def test_lists_that_can_not_be_updated_do_not_stop_it(checkout: Path) -> None:
    """Some other source may be down."""
    done = ci(checkout, **ROOT_USER, **NONE_INSTALLED, **{"apt-get": 'case "$*" in *update) exit 100; esac'})
    assert done.returncode == 0
    assert "going on with the package lists that are here" in done.stderr


def test_without_the_mirror_it_stops_and_names_the_packages(checkout: Path) -> None:
    done = ci(checkout, **ROOT_USER, **NONE_INSTALLED, **{"apt-get": "exit 100"})
    assert done.returncode == 2
    assert f"{' '.join(PACKAGES)}: apt-get can't install them" in done.stderr
    assert "make" not in done.stdout


def test_where_it_may_not_install_it_says_that_tests_will_fail(checkout: Path) -> None:
    done = ci(checkout, **NONE_INSTALLED, id="echo 1000")
    assert "tests that need them fail" in done.stderr
    assert "apt-get -qq" not in done.stderr
    assert done.stdout == "make --no-print-directory lint test CI=1\n"


@pytest.mark.parametrize(
    ("package", "command", "in_ci", "outcome"),
    [
        ("redis-server", "sh", "1", "1 passed"),
        ("redis-server", "no-such-command", "", "SKIPPED [1] tests/conftest.py"),
        ("redis-server", "no-such-command", "1", "1 error"),
        ("no-such-package", "sh", "", "no-such-package is not in ci/apt.txt"),
    ],
)
def test_a_marked_test(package: str, command: str, in_ci: str, outcome: str, tmp_path: Path) -> None:
    mark = f"pytest.mark.debian({package!r}, {command!r})"
    (tmp_path / "test_marked.py").write_text(f"import pytest\n\n@{mark}\ndef test_it():\n    pass\n")
    arguments = ["-c", str(ROOT / "pyproject.toml"), "-p", "tests.conftest", str(tmp_path / "test_marked.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=ROOT,
        env={**os.environ, "CI": in_ci},
        capture_output=True,
        text=True,
    )
    assert outcome in done.stdout
    if command.startswith("no"):
        assert f"needs {command}: apt-get install {package}" in done.stdout
