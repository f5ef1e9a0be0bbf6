"""A real HTTP receiver on 127.0.0.1, which answers as it is told and remembers what came."""

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeAlias


@dataclass(frozen=True)
class Received:
    """One request; names of headers in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes


class Receiver(ThreadingHTTPServer):
    """Serves POST at :attr:`url`. ``answer`` may be changed at any time."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: Answer = status(200)
        self.received: list[Received] = []
        self.connections = 0
        self.names: list[str | None] = []
        """What clients asked for in TLS (SNI)."""
        self.sent_bytes = 0
        self.stopped = threading.Event()
        self._context = context
        if context is not None:
            context.sni_callback = lambda _socket, name, _context: self.names.append(name)

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return self.server_address[1]

    @property
    def url(self) -> str:
        """With the address, not a name."""
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self.port}/hook"

    def get_request(self) -> tuple[socket.socket, object]:
        """Count connections, also those that never say a word."""
        connection, address = super().get_request()
        self.connections += 1
        return connection, address

    def finish_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        """TLS is a matter of each connection's thread: a client that hangs in it stops no other."""
        if self._context is not None:
            with self._context.wrap_socket(request, server_side=True) as encrypted:
                super().finish_request(encrypted, client_address)  # type: ignore[arg-type]
        else:
            super().finish_request(request, client_address)  # type: ignore[arg-type]

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.received.append(Received(self.path, headers, body))
        self.server.answer(self)

    def log_message(self, format: str, *args: object) -> None:
        pass


Answer: TypeAlias = Callable[[_Handler], None]


@contextmanager
def receiver(context: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver in this process, with TLS where a context is given."""
    server = Receiver(context)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()


def status(code: int, body: bytes = b"", **headers: str) -> Answer:
    """Answer with this status; ``_`` in names of headers stands for ``-``."""

    def answer(handler: _Handler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def raw(data: bytes) -> Answer:
    """Answer with these bytes and the end of the connection."""

    def answer(handler: _Handler) -> None:
        handler.wfile.write(data)
        handler.close_connection = True

    return answer


def hang(handler: _Handler) -> None:
    """Never answer."""
    handler.server.stopped.wait()


def drip(beginning: bytes) -> Answer:
    """Answer with this, then a byte every 50 ms, without end."""

    def answer(handler: _Handler) -> None:
        handler.wfile.write(beginning)
        while not handler.server.stopped.wait(0.05):
            handler.wfile.write(b"a")

    return answer


def reset(handler: _Handler) -> None:
    """Break the connection off."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.rfile.close()  # it holds the socket too
    handler.connection.close()
    handler.close_connection = True


def flood(handler: _Handler) -> None:
    """200 with a body of a gigabyte."""
    handler.send_response(200)
    handler.send_header("content-length", str(2**30))
    handler.end_headers()
    for _ in range(2**14):
        handler.wfile.write(bytes(2**16))
        handler.server.sent_bytes += 2**16
