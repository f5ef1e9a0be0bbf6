"""What `pip install embedfleet` brings, from the wheel, in an environment of its own."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "vllm", "transformers", "numpy", "pyarrow", "embedfleet_worker")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def bare_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A fresh environment with the wheel and what it requires, in the lock's versions."""
    folder = tmp_path_factory.mktemp("bare")
    python = str(folder / "bin" / "python")
    _call(sys.executable, "-m", "venv", str(folder))
    _call(python, "-m", "pip", "install", "-q", "--no-cache-dir", "-c", str(ROOT / "requirements.lock"), str(wheel))
    return python


def test_importing_it_is_light(bare_python: str) -> None:
    code = f"import sys, embedfleet, embedfleet.testing; print([m for m in {HEAVY} if m in sys.modules])"
    assert _call(bare_python, "-c", code).strip() == "[]"


def test_it_never_installs_torch(bare_python: str) -> None:
    installed = _call(bare_python, "-m", "pip", "list", "--format=freeze").lower()
    assert "redis==" in installed
    for heavy in ("torch==", "celery==", "boto3==", "vllm", "transformers==", "nvidia"):
        assert heavy not in installed


def test_the_producer_works_in_it(bare_python: str) -> None:
    """Without worker, broker and torch: the testing double, Parquet and all."""
    code = (
        "from embedfleet.testing import InMemoryFleet\n"
        "job = InMemoryFleet().submit(['a text', ''])\n"
        "print(job.wait().totals.errors, job.results().count_rows())"
    )
    assert _call(bare_python, "-c", code).strip() == "1 2"


def test_without_the_embedded_redis_it_says_what_to_install(bare_python: str, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a text\n")
    command = [str(Path(bare_python).parent / "embedfleet"), "embed", "in.txt", "--to", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert 'pip install "embedfleet[local]"' in done.stderr


def test_the_wheel_has_both_packages_and_the_scripts(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "embedfleet/__init__.py",
        "embedfleet/py.typed",
        "embedfleet_worker/__main__.py",
        *(f"embedfleet_worker/transport/lua/{name}.lua" for name in ("take", "renew", "settle", "sweep")),
    ):
        assert name in names


def test_the_lock_names_no_host_and_no_path() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert len(lines) > 100
    for line in lines:
        assert "==" in line
        assert "/" not in line
        assert "@" not in line


def _call(*command: str, cwd: Path | None = None) -> str:
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout
