"""A worker's HTTP server: is it alive, is it ready, what did it count. Not what is counted (telemetry.py)."""

import logging
import os
import socket
import socketserver
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from errno import EACCES, EADDRINUSE
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from embedfleet.errors import ConfigurationError
from embedfleet_worker.telemetry import Metrics

log = logging.getLogger(__name__)

_IDLE_S = 5.0  # for each piece of a request
_CONNECTIONS = 32  # then the oldest is closed: who sends nothing keeps nobody out
_PLAIN = "text/plain; charset=utf-8"


class Health:
    """What a worker says of itself. Set by those who know, read by the server; each a single assignment."""

    def __init__(self) -> None:
        self.doing = "starting"
        """What keeps it from consuming, for people."""
        self.engine_dead = threading.Event()
        """The engine's own, once it is loaded."""
        self.consuming = False
        self.failing: Callable[[], bool] = lambda: False
        """Whether the broker gives no messages."""
        self.stopping = False

    def not_live(self) -> str | None:
        """Why the process is of no use any more; None while it works, also while it loads."""
        return "the engine is dead; the process ends" if self.engine_dead.is_set() else None

    def not_ready(self) -> str | None:
        """Why it takes no messages; None when it does."""
        if self.stopping:
            return "stopping: what is begun is finished"
        if not self.consuming:
            return self.not_live() or self.doing
        return self.not_live() or ("the broker was lost; trying again" if self.failing() else None)


class Server(ThreadingHTTPServer):
    """Serves ``/livez``, ``/readyz`` and ``/metrics`` on all interfaces, from threads that nobody waits for."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int, health: Health, metrics: Metrics) -> None:
        super().__init__(("", port), _Handler, bind_and_activate=False)
        self.health = health
        self.metrics = metrics
        self._open: deque[Any] = deque()
        self.socket.close()  # of IPv4 alone
        try:
            self.socket = _listen(port)
        except OSError as exc:
            raise ConfigurationError(
                f"port {port}: it can't be listened on ({os.strerror(exc.errno or 0)}). Set EMBEDFLEET_HEALTH_PORT "
                "to a free one, or to 0 for none."
            ) from None
        threading.Thread(target=self.serve_forever, name="health", daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; of too many connections the oldest makes room."""
        self._open.append(request)
        if len(self._open) > _CONNECTIONS:
            with suppress(OSError, IndexError):  # closed meanwhile
                self._open.popleft().shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close the connection."""
        with suppress(ValueError):  # it was the oldest
            self._open.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's interface
        """A client that went away is not worth a line."""
        kind = sys.exc_info()[0]
        if kind is not None and not issubclass(kind, OSError):
            log.error("health: a request failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = _IDLE_S
    server: socketserver.BaseServer
    server_version = "embedfleet"
    sys_version = ""

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)  # noqa: S101 - for the type
        path = self.path.partition("?")[0]
        if path == "/livez":
            self._say(self.server.health.not_live())
        elif path == "/readyz":
            self._say(self.server.health.not_ready())
        elif path == "/metrics":
            self._answer(HTTPStatus.OK, self.server.metrics.page(), CONTENT_TYPE_PLAIN_0_0_4)
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"there is /livez, /readyz and /metrics\n", _PLAIN)

    def log_message(self, *_: object) -> None:
        """No line a request."""

    def _say(self, reason: str | None) -> None:
        status = HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK
        self._answer(status, f"{reason or 'ok'}\n".encode(), _PLAIN)

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _listen(port: int) -> socket.socket:
    """IPv6 and IPv4 by one socket, or IPv4 where a machine has that alone."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as exc:
            if exc.errno in (EADDRINUSE, EACCES):
                raise
    return socket.create_server(("", port))
