"""The applications of examples/, run as their README says, against a real fleet and without one."""

import argparse
import json
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from embedfleet.local import LocalFleet
from tests.integration.command import environment
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
README = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (.*)$", README, re.MULTILINE)
SERVERS = {name: line for line in COMMANDS for name in ("fastapi", "flask", "django") if f"examples/{name}_app" in line}
DOCUMENTS = [{"id": "a", "text": "what is a lease?"}, {"id": "b", "text": "what is a lane?"}, {"id": "c", "text": " "}]


@contextmanager
def serving(command: str, log: Path, **settings: object) -> Iterator[httpx2.Client]:
    """The server that a line of the README starts, on a port of its own; what is yielded asks it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program, *arguments = shlex.split(command.replace("8000", str(port)))
    module = [] if program == "python" else ["-m", program]
    with log.open("ab") as stream:
        server = subprocess.Popen(
            [sys.executable, *module, *arguments], cwd=ROOT, env=environment(**settings), stdout=stream, stderr=stream
        )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_until(lambda: server.poll() is not None or answers(client), f"{command}: {log.read_text()}")
            yield client
    finally:
        server.terminate()
        server.wait(30)


def answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/").status_code == 404
    except httpx2.TransportError:
        return False


def asked(client: httpx2.Client, line: str) -> httpx2.Response:
    """What a curl line of the README asks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("curl")
    parser.add_argument("-d")
    parser.add_argument("-H", action="append", default=[])
    parser.add_argument("url")
    given = parser.parse_args(shlex.split(line))
    headers = dict(header.split(": ") for header in given.H)
    path = given.url.removeprefix("localhost:8000")
    return client.request("POST" if given.d else "GET", path, headers=headers, content=given.d)


@pytest.fixture(scope="module")
def fleet(start_fleet: Callable[..., LocalFleet], tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The settings of a fleet that runs."""
    local = start_fleet(tmp_path_factory.mktemp("store"), engine="synthetic", health_port=0)
    return {name.removeprefix("EMBEDFLEET_").lower(): value for name, value in local.settings.environment().items()}


@pytest.fixture(params=SERVERS)
def client(request: pytest.FixtureRequest, fleet: dict[str, object], tmp_path: Path) -> Iterator[httpx2.Client]:
    """One application after the other, each with a store of its own within the fleet's."""
    store = f"{fleet['store']}/{request.param}"
    Path(store).mkdir(exist_ok=True)
    with serving(SERVERS[request.param], tmp_path / "log", **{**fleet, "store": store}) as connected:
        yield connected


def posted(client: httpx2.Client, documents: object = DOCUMENTS, key: str | None = None) -> httpx2.Response:
    return client.post("/documents", json=documents, headers={"Idempotency-Key": key} if key else None)


def finished(client: httpx2.Client, job: str) -> dict[str, Any]:
    def state() -> dict[str, Any] | None:
        found: dict[str, Any] = client.get(f"/documents/{job}").json()
        return found if found["state"] == "done" else None

    return wait_until(state, f"job {job}") or {}


def test_documents_go_in_and_are_found(client: httpx2.Client) -> None:
    answer = posted(client)
    assert answer.status_code == 202
    job = answer.json()["job"]
    assert finished(client, job) == {"state": "done", "embedded": 2, "errors": 1}

    for document in DOCUMENTS[:2]:  # a stand-in vector is nearest to that of the same text
        found = client.get(f"/documents/{job}/search", params={"q": document["text"]})
        assert found.status_code == 200
        assert found.json()["nearest"][0] == document["id"]
        assert sorted(found.json()["nearest"]) == ["a", "b"]

    assert posted(client).json()["job"] != job, "without a key it is another job"


def test_the_readme_shows_what_is_answered(client: httpx2.Client) -> None:
    shown = re.findall(r"^\$ (curl .*)\n(.*)$", README, re.MULTILINE)
    assert len(shown) == 3
    for line, answer in shown:
        wait_until(lambda line=line, answer=answer: asked(client, line).json() == json.loads(answer), line, 10)  # type: ignore[misc]


def test_what_the_caller_does_wrong_is_said(client: httpx2.Client) -> None:
    first = posted(client, key="k")
    assert first.status_code == 202
    assert posted(client, key="k").json() == first.json(), "the same job again"
    assert posted(client, DOCUMENTS[:1], key="k").status_code == 409
    assert posted(client, []).status_code == 422
    assert posted(client, [{"id": "a"}]).status_code == 422
    assert posted(client, {"id": "a", "text": "not a list"}).status_code == 422
    assert client.post("/documents", content=b"{", headers={"Content-Type": "application/json"}).status_code == 422
    twice = posted(client, [DOCUMENTS[0], DOCUMENTS[0]])
    assert (twice.status_code, "'a' was there before" in twice.text) == (422, True)
    assert posted(client, [{"id": str(n), "text": "x" * 60_000} for n in range(4)]).status_code == 422

    job = first.json()["job"]
    assert client.get(f"/documents/{job}/search", params={"q": " "}).status_code == 422
    assert client.get(f"/documents/{job}/search").status_code in (400, 422)
    for nowhere in ("j-0", "..", "%2Fetc%2Fj-0", "s3:%2F%2Fbucket%2Fj-0", "%00"):
        assert client.get(f"/documents/{nowhere}").status_code == 404, nowhere
        assert client.get(f"/documents/{nowhere}/search", params={"q": "x"}).status_code == 404, nowhere


@pytest.mark.parametrize("name", SERVERS)
def test_without_a_broker_it_is_503_in_bounded_time(name: str, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens, and nobody else can begin to
        url = f"redis://me:hunter2@127.0.0.1:{closed.getsockname()[1]}/0"
        with serving(SERVERS[name], tmp_path / "log", broker_url=url, store=tmp_path / "store") as client:
            begun = time.monotonic()
            answer = posted(client)
            took_s = time.monotonic() - begun
    assert answer.status_code == 503
    assert answer.json() == {"detail": "Embedding is unavailable; try again."}
    assert answer.headers["Retry-After"] == "5"
    assert took_s < 5
    log = (tmp_path / "log").read_text()
    assert "redis://me:***@127.0.0.1" in log
    assert "hunter2" not in log
    assert "Traceback" not in log


@pytest.mark.parametrize("name", SERVERS)
def test_without_a_worker_a_search_is_503(
    name: str, fleet: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for ever else."""
    (tmp_path / "store").mkdir()
    # A queue nobody takes from; the deadline of a search is a constant of the application.
    source = (ROOT / "examples" / f"{name}_app" / "app.py").read_text(encoding="utf-8")
    assert "SEARCH_TIMEOUT_S = 10.0" in source
    (tmp_path / "app.py").write_text(source.replace("SEARCH_TIMEOUT_S = 10.0", "SEARCH_TIMEOUT_S = 0.3"))
    command = SERVERS[name].replace(f"examples/{name}_app", str(tmp_path))
    settings = {**fleet, "store": tmp_path / "store", "queue_prefix": "nobody"}
    with serving(command, tmp_path / "log", **settings) as client:
        job = posted(client).json()["job"]
        assert client.get(f"/documents/{job}").json()["state"] == "running"
        assert client.get(f"/documents/{job}/search", params={"q": "x"}).status_code == 503
