"""Brokers that may die: a Redis that keeps its data in an append-only file, and queues of a stand-in for SQS (moto)."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from embedfleet.local import redis_server
from tests.sentinel import free_port
from tests.waiting import wait_until

_AOF = ("--appendonly", "yes", "--appendfsync", "everysec")


class Redis:
    """A server process on 127.0.0.1."""

    def __init__(self, folder: Path, *options: str, program: str | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = [program or redis_server(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self._command += [*(options or _AOF), "--dir", str(folder)]
        self.client: redis.Redis = redis.Redis(port=self.port, socket_timeout=5)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin, with what the file has."""
        with (self.folder / "redis.out").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, cwd=self.folder)
        wait_until(self._answers, "Redis to answer")

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def saved(self) -> bytes:
        """The append-only file, as it is at the moment."""
        return (self.folder / "appendonly.aof").read_bytes()

    def lose_since(self, saved: bytes) -> None:
        """Die, and come back with what was written before: as a machine does whose disk had not been told."""
        self.kill()
        (self.folder / "appendonly.aof").write_bytes(saved)
        self.start()

    def close(self) -> None:
        """End it."""
        self.client.close()
        self.kill()

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False


@contextmanager
def running(folder: Path, *options: str) -> Iterator[Redis]:
    """A Redis for one test."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Redis(folder, *options)
    try:
        server.start()
        yield server
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)
