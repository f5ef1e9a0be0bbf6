"""EC2's instance metadata as a real HTTP server on 127.0.0.1: version 2 only, answers and outages as it is told."""

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeAlias

TOKEN = "/latest/api/token"
SPOT = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
AUTO_SCALING = "/latest/meta-data/autoscaling/target-lifecycle-state"

Answer: TypeAlias = tuple[int, bytes]


class MetadataServer(ThreadingHTTPServer):
    """What is at a path is 404 until :attr:`answers` has it, and 401 for who brings no token."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.answers: dict[str, Answer] = {}
        """By path, also of the token: what is answered instead, whoever asks."""
        self.seen: list[tuple[str, int]] = []
        """Path and status of each answer."""
        self.valid_until: dict[str, float] = {}
        """By token, which the service forgets when a test empties this."""
        self.cut_short = 0

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return self.server_address[1]

    def count(self, path: str, status: int) -> int:
        """How often this was answered."""
        return self.seen.count((path, status))

    def handle_error(self, request: object, client_address: object) -> None:
        """Count clients that went away before the whole answer was sent."""
        self.cut_short += 1


class _Handler(BaseHTTPRequestHandler):
    server: MetadataServer

    def do_PUT(self) -> None:
        ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if not ttl.isdigit() or not 1 <= int(ttl) <= 21600:
            self._answer(400, b"")
            return
        token = f"{secrets.token_urlsafe(40)}=="
        self.server.valid_until[token] = time.monotonic() + int(ttl)
        self._answer(*self.server.answers.get(self.path, (200, token.encode())))

    def do_GET(self) -> None:
        token = self.headers.get("X-aws-ec2-metadata-token", "")
        if self.server.valid_until.get(token, 0.0) < time.monotonic():
            self._answer(401, b"")
        else:
            self._answer(*self.server.answers.get(self.path, (404, b"<html>Not Found</html>")))

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: bytes) -> None:
        self.server.seen.append((self.path, status))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def metadata_server(port: int = 0) -> Iterator[MetadataServer]:
    """A service in this process, on a free port or on one that had another before."""
    server = MetadataServer(port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
