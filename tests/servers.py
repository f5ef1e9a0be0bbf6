"""Real OpenAI-compatible servers, as processes on 127.0.0.1."""

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.waiting import wait_until

ROOT = Path(__file__).parents[1]
_START_S = 280.0


@contextmanager
def vllm_server(model: Path, folder: Path, name: str, *options: str) -> Iterator[str]:
    """``vllm serve``, in float32; the URL of its API. It takes 20 to 30 s on 2 cores."""
    # It starts a process for the engine; on a CPU that would keep a core for itself.
    environment = {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_LOGGING_LEVEL": "WARNING"}
    port = free_port()
    small = ["--kv-cache-memory-bytes", str(64 * 1024**2), "--max-num-seqs", "64", "--max-num-batched-tokens", "2048"]
    # The command `vllm` looks for a package of its own name, and the build for CPUs has another; this is what it runs.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", name, "--runner", "pooling", "--dtype", "float32", "--enforce-eager"]
    command += ["--host", "127.0.0.1", "--port", str(port), *small, *options]
    with serving(command, port, "/v1/models", folder, **environment):
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def infinity_server(model: Path, folder: Path, name: str, *options: str) -> Iterator[str]:
    """Infinity, in float32, from an environment of its own; the URL of its API."""
    place = ROOT / ".cache" / "infinity"
    subprocess.run([ROOT / "scripts" / "infinity", sys.executable, place], check=True, timeout=280)
    port = free_port()
    command = [str(place / "bin" / "infinity_emb"), "v2", "--model-id", str(model), "--served-model-name", name]
    command += ["--engine", "torch", "--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--bettertransformer", "false", "--model-warmup", "false", *options]
    with serving(command, port, "/models", folder, INFINITY_ANONYMOUS_USAGE_STATS="0"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def serving(command: list[str], port: int, path: str, folder: Path, **environment: str) -> Iterator[None]:
    """The command, from when it answers at this path until it is killed with all that it started."""
    log = folder / f"server-{port}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        wait_until(lambda: _answers(process, log, f"http://127.0.0.1:{port}{path}"), "the server", _START_S)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def _answers(process: "subprocess.Popen[bytes]", log: Path, url: str) -> bool:
    if process.poll() is not None:
        raise AssertionError(f"the server ended:\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}")
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
