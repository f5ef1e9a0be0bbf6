"""Every command and every piece of Python in README and docs is run."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedfleet import Fleet
from embedfleet.contract import Batch
from embedfleet.letters import Letter
from tests.integration.command import environment, numbered, start, write_jsonl
from tests.postgres import running_postgres
from tests.receiver import receiver
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS += sorted((ROOT / "examples").rglob("*.md"))
SERVES = ("embedfleet worker", "embedfleet up")  # these run until they are told to stop


def blocks(language: str) -> list[tuple[str, str]]:
    """Each fenced block of a language with where it stands."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text[: match.start()].count("\n") + 1
            found.append((f"{document.relative_to(ROOT)}:{line}", match[1]))
    return found


def commands() -> list[Any]:
    """Each command line; exports belong to the lines behind them in their block."""
    found = []
    for where, block in blocks("sh"):
        exports = ""
        for line in block.replace("\\\n", " ").splitlines():
            command = line.split("  #")[0].strip()
            if command.startswith("export "):
                exports += command + "\n"
            elif command and not command.startswith("#"):
                found.append(pytest.param(exports, command, id=f"{where} {command[:60]}"))
    return found


@pytest.fixture(scope="module")
def settings(redis_url_for_docs: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A folder with what the documents mention, and a fleet with one synthetic worker."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "notes.txt").write_text("a note\nanother note\n")
    (folder / "more").mkdir()
    (folder / "more" / "quotes.csv").write_text("id,text\nq1,a quote\n")
    articles = [{"url": record["id"], "body": record["text"]} for record in numbered(50)]
    write_jsonl(folder / "articles.jsonl", articles)
    shutil.copytree(ROOT / "examples", folder / "examples")
    names = {"broker_url": redis_url_for_docs, "store": str(folder / "data")}
    with receiver() as hook, running_postgres("fsync=off") as postgres:
        deliveries = {
            "webhook_secret": "whsec_" + "c2VjcmV0" * 4,
            "webhook_origins": f"http://127.0.0.1:{hook.port}",
            "webhook_networks": "127.0.0.1",
            "pgvector_url": postgres.url().get_secret_value(),
        }
        stores = f"{folder}/data,{folder}/vectors"
        worker = start("worker", cwd=folder, **names, **deliveries, allowed_stores=stores)
        with Fleet(engine="synthetic", **names) as fleet:
            job = fleet.submit(["a text"])
            job.wait(timeout_s=60)
        yield {**names, "folder": str(folder), "hook": hook.url, "job": job.id}
        worker.terminate()
        worker.communicate(timeout=30)


@pytest.fixture(scope="module")
def redis_url_for_docs(start_redis: Any) -> str:
    url: str = start_redis()
    return url


@pytest.mark.parametrize(("exports", "command"), commands())
def test_command(exports: str, command: str, settings: dict[str, str]) -> None:
    if command.startswith("make "):
        subprocess.run(["make", "--dry-run", command.split()[1]], cwd=ROOT, check=True, capture_output=True)
        return
    script = f"set -e\n{exports}{command}".replace("redis://localhost:6379/0", settings["broker_url"])
    script = script.replace("/data/vectors", settings["store"])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = script.replace(".venv/bin/", "").replace("https://app.example/vectors", settings["hook"])
    script = re.sub(r"(deliver|reconcile|verify|reembed) JOB", rf"\1 {settings['job']}", script)
    if " dead " in command:
        script = script.replace("LETTER", dead_letter(settings))
    process = subprocess.Popen(
        ["bash", "-c", script.replace("\nembedfleet", "\nexec embedfleet") if command.startswith(SERVES) else script],
        cwd=settings["folder"],
        env={**environment(engine="synthetic"), "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if command.startswith("embedfleet up"):
        assert process.stdout is not None
        wait_until(process.stdout.readline, "the exports")
    if command.startswith("embedfleet worker"):
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), True)
        wait_until(lambda: b"consuming" in process.stderr.readline(), "the worker")  # type: ignore[union-attr]
    if command.startswith(SERVES):
        process.terminate()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr.decode()


def dead_letter(settings: dict[str, str]) -> str:
    """The id of a letter that is there."""
    with Fleet(broker_url=settings["broker_url"], store=settings["store"], engine="synthetic") as fleet:
        batch = Batch(to=fleet.job(settings["job"]).folder.store.uri, job=settings["job"], batch=0, tokens=1)
        letter = Letter.of(batch.model_dump(), "a reason", fleet.broker.lane("bulk"), fleet.broker.clock())
        fleet.broker.dead_letter(letter)
    return letter.id


def test_python(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a document belong together, top down."""
    monkeypatch.chdir(settings["folder"])
    monkeypatch.setenv("EMBEDFLEET_ENGINE", "synthetic")
    rows = [SimpleNamespace(id=f"r{n}", body=f"body {n}", lang="en") for n in range(20)]
    with Fleet(engine="synthetic", broker_url=settings["broker_url"], store="vectors") as fleet:
        namespaces: dict[str, dict[str, Any]] = {}
        found = blocks("python")
        assert found
        for where, block in found:
            code = block.replace("redis://localhost:6379/0", settings["broker_url"]).replace("/data/vectors", "vectors")
            namespace = namespaces.setdefault(where.split(":")[0], {"rows": rows, "fleet": fleet})
            exec(compile(code, where, "exec"), namespace)
            assert namespace["job"].status().totals.errors == 0
