"""A real Redis server for the tests that end it, or share one: on a socket in a folder, gone when its block ends."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from embedfleet.local import redis_server
from tests.waiting import wait_until


@dataclass(frozen=True)
class RedisServer:
    """A running server: its address as the settings take it, a client, and a way to end it early."""

    url: str
    client: redis.Redis
    process: "subprocess.Popen[bytes]"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def running_redis(folder: Path, *options: str) -> Iterator[RedisServer]:
    socket = folder / "r.sock"
    command = [redis_server(), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
    client = redis.Redis(unix_socket_path=str(socket))
    try:
        wait_until(lambda: _answers(client), "Redis to answer")
        yield RedisServer(f"redis+socket://{socket}", client, process)
    finally:
        client.close()
        process.kill()
        process.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.exceptions.ConnectionError:
        return False
