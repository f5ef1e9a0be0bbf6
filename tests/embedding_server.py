"""A stand-in for an OpenAI-compatible server on 127.0.0.1: vectors from hashes, and the faults that a test asks for."""

import base64
import hashlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tests.receiver import reset

Document: TypeAlias = dict[str, Any]
Fault: TypeAlias = "Callable[[_Handler, list[str]], bool]"
"""Answers a request for vectors, and says whether it did: else it is answered as ever."""


class EmbeddingServer(ThreadingHTTPServer):
    """Everything may be changed at any time. ``faults``: used up, one a request; ``fault``: in every request."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, dimensions: int, port: int = 0, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self._scheme = "https" if context else "http"
        if context:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.dimensions = dimensions
        self.models: Document | None = {"data": [{"id": "m", "owned_by": "stand-in"}]}
        self.version: str | None = "1.2"
        self.key: str | None = None
        self.knows_base64 = True
        self.norm = 1.0
        self.most_texts = 1000
        self.count: Callable[[str], int] | None = None
        """Tokens of a text, for ``usage``."""
        self.refused = ""
        """What no text may hold."""
        self.faults: list[Fault] = []
        self.fault: Fault | None = None
        self.asked: list[list[str]] = []
        """The texts of each request for vectors."""
        self.requests: list[Document] = []
        self.headers: list[dict[str, str]] = []
        self.open: list[socket.socket] = []
        self.stopped = threading.Event()

    @property
    def url(self) -> str:
        """Of the API."""
        return f"{self._scheme}://127.0.0.1:{self.server_address[1]}/v1"

    def vector(self, text: str) -> NDArray[np.float32]:
        """What this server gives for a text."""
        return unit_vector(text, self.dimensions) * np.float32(self.norm)

    def rows(self, texts: list[str], *, as_base64: bool = True) -> list[Document]:
        """The list of a sound answer."""
        return [
            {"object": "embedding", "index": index, "embedding": _encoded(self.vector(text), as_base64)}
            for index, text in enumerate(texts)
        ]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection."""
        self.open.append(request)
        super().process_request(request, client_address)

    def server_close(self) -> None:
        """Be gone, also for those who are connected."""
        super().server_close()
        for connection in self.open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits for the client's kernel, 40 ms
    server: EmbeddingServer

    def do_GET(self) -> None:
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        if not self._may():
            return
        if self.path == "/v1/models" and self.server.models is not None:
            self.answer(200, self.server.models)
        elif self.path == "/version" and self.server.version:
            self.answer(200, {"version": self.server.version})
        else:
            self.answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        texts = body["input"]
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        self.server.requests.append(body)
        self.server.asked.append(texts)
        fault = self.server.faults.pop(0) if self.server.faults else self.server.fault
        if self.path != "/v1/embeddings":
            self.answer(404, {"detail": "Not Found"})
        elif self._may() and not (fault and fault(self, texts)):
            self._embed(texts, body.get("encoding_format") == "base64")

    def _may(self) -> bool:
        if self.server.key is None or self.headers.get("authorization") == f"Bearer {self.server.key}":
            return True
        self.answer(401, {"error": f"no such key: {self.headers.get('authorization')}"})
        return False

    def _embed(self, texts: list[str], as_base64: bool) -> None:
        server = self.server
        if as_base64 and not server.knows_base64:
            self.answer(422, {"detail": [{"loc": ["body", "encoding_format"], "msg": "float is all there is"}]})
        elif len(texts) > server.most_texts:
            self.answer(413, {"error": f"batch size {len(texts)} > {server.most_texts}", "error_type": "Validation"})
        elif server.refused and any(server.refused in text for text in texts):
            self.answer(400, {"error": {"message": "this is not taken", "type": "BadRequestError", "code": 400}})
        else:
            answer: Document = {"object": "list", "data": server.rows(texts, as_base64=as_base64), "model": "m"}
            if server.count is not None:
                answer["usage"] = {"prompt_tokens": sum(map(server.count, texts))}
            self.answer(200, answer)

    def answer(self, code: int, document: object, **headers: str) -> None:
        """JSON with this status; ``_`` in names of headers stands for ``-``."""
        body = json.dumps(document).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def unit_vector(text: str, dimensions: int) -> NDArray[np.float32]:
    """From the text's hash."""
    random = np.random.default_rng(list(hashlib.sha256(text.encode()).digest()))
    vector = random.standard_normal(dimensions)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@contextmanager
def embedding_server(
    dimensions: int, port: int = 0, context: ssl.SSLContext | None = None
) -> Iterator[EmbeddingServer]:
    """A server in this process, with TLS where a context is given."""
    server = EmbeddingServer(dimensions, port, context)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()


def status(code: int, document: object = None, **headers: str) -> Fault:
    """Answer with this status."""

    def fault(handler: _Handler, _: list[str]) -> bool:
        handler.answer(code, document, **headers)
        return True

    return fault


def changed(change: Callable[[list[Document]], list[Document]]) -> Fault:
    """The sound answer with its list of vectors changed."""

    def fault(handler: _Handler, texts: list[str]) -> bool:
        handler.answer(200, {"data": change(handler.server.rows(texts))})
        return True

    return fault


def only_with(part: str, fault: Fault) -> Fault:
    """The fault where a text holds the part; else a sound answer."""
    return lambda handler, texts: any(part in text for text in texts) and fault(handler, texts)


def dropped(handler: _Handler, _: list[str]) -> bool:
    """Break the connection off."""
    reset(handler)  # type: ignore[arg-type]
    return True


def hang(handler: _Handler, _: list[str]) -> bool:
    """Never answer."""
    handler.server.stopped.wait()
    return True


def slow(seconds: float) -> Fault:
    """A sound answer, late."""

    def fault(_handler: _Handler, _: list[str]) -> bool:
        time.sleep(seconds)
        return False

    return fault


def flood(handler: _Handler, _: list[str]) -> bool:
    """200 with a body of a gigabyte."""
    handler.send_response(200)
    handler.send_header("content-length", str(2**30))
    handler.end_headers()
    for _piece in range(2**14):
        handler.wfile.write(b" " * 2**16)
    return True


def _encoded(vector: NDArray[np.float32], as_base64: bool) -> object:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_base64 else vector.astype(float).tolist()
