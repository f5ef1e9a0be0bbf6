"""A master, its replica and a Sentinel, real servers on ports of this machine, gone when their block ends."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis

from embedfleet.local import redis_server
from tests.waiting import wait_until

MASTER = "main"
PASSWORD = "pass/word"
_DOWN_MS = 1000  # without an answer, until a server counts as down


@dataclass
class Node:
    """A server."""

    folder: Path
    port: int
    arguments: tuple[str, ...]
    password: str | None = PASSWORD
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [redis_server(), *self.arguments, "--port", str(self.port), "--bind", "127.0.0.1"]
        self.process = subprocess.Popen([*command, "--dir", str(self.folder)], stdout=subprocess.DEVNULL)
        wait_until(lambda: self._answers(), f"the server at {self.port}", timeout_s=10)

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=self.password)

    def kill(self) -> None:
        """As kill -9 does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "it ended"
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.exceptions.ConnectionError:
                return False


@dataclass
class Watched:
    """What runs. ``url``: as the settings take it; its first Sentinel is not there."""

    servers: list[Node]
    sentinel: Node
    url: str = field(init=False)

    def __post_init__(self) -> None:
        quoted = PASSWORD.replace("/", "%2F")
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{self.sentinel.port}"
        self.url = f"redis+sentinel://:{quoted}@{hosts}/{MASTER}/0"
        if self.sentinel.password is not None:
            self.url += f"?sentinel_password={self.sentinel.password}"

    @property
    def master(self) -> Node:
        """The server that the Sentinel calls so."""
        with self.sentinel.client() as client:
            _, port = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
        return next(node for node in self.servers if node.port == int(port))


@contextmanager
def watched(folder: Path, sentinel_password: str | None = None) -> Iterator[Watched]:
    """Start all three, and wait until the replica is known and has what the master has."""
    ports = [free_port() for _ in range(3)]
    passwords = ("--requirepass", PASSWORD, "--masterauth", PASSWORD, "--save", "", "--repl-diskless-sync-delay", "0")
    first = Node(folder, ports[0], passwords)
    second = Node(folder, ports[1], (*passwords, "--replicaof", "127.0.0.1", str(ports[0])))
    configuration = folder / "sentinel.conf"
    lines = [
        f"sentinel monitor {MASTER} 127.0.0.1 {ports[0]} 1",
        f"sentinel auth-pass {MASTER} {PASSWORD}",
        f"sentinel down-after-milliseconds {MASTER} {_DOWN_MS}",
        f"sentinel failover-timeout {MASTER} 3000",
        *([f"requirepass {sentinel_password}"] if sentinel_password else []),
    ]
    configuration.write_text("\n".join(lines) + "\n")
    sentinel = Node(folder, ports[2], (str(configuration), "--sentinel"), sentinel_password)
    with ExitStack() as running:
        for node in (first, second, sentinel):
            running.callback(node.kill)
            node.start()
        wait_until(lambda: _is_followed(first, sentinel), "the replica", timeout_s=20)
        yield Watched([first, second], sentinel)


def _is_followed(master: Node, sentinel: Node) -> bool:
    with master.client() as client, sentinel.client() as asked:
        replica = client.info("replication").get("slave0", {})
        return replica.get("state") == "online" and bool(asked.sentinel_slaves(MASTER))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
