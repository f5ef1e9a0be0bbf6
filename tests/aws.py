"""Stand-ins for AWS: moto, which accepts any signature, and rclone's S3, which checks them and ignores create-once.

And what stands between: a proxy that breaks the operations it is told to.
"""

import json
import logging
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

from moto.server import ThreadedMotoServer

from tests.waiting import wait_until

KEY, SECRET = "an-access-key", "a-secret-key"
BUCKET = "vectors"


def environment(endpoint: str) -> dict[str, str]:
    """AWS' own variables for a server at this endpoint."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def moto() -> Iterator[str]:
    """A moto server; its endpoint."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host.replace('0.0.0.0', '127.0.0.1')}:{port}"
    server.stop()


@contextmanager
def rclone(folder: Path) -> Iterator[str]:
    """rclone serving the folder's sub-folders as buckets; its endpoint."""
    log = folder.parent / "rclone.log"
    (folder / BUCKET).mkdir(parents=True)
    command = [str(Path(sys.executable).parent / "rclone"), "serve", "s3", str(folder), "--addr", "127.0.0.1:0"]
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [*command, "--auth-key", f"{KEY},{SECRET}", "--config", str(folder.parent / "none")], stderr=stream
        )
    try:
        yield wait_until(lambda: _address(log), "rclone's address")
    finally:
        server.terminate()
        server.wait()


def _address(log: Path) -> str | None:
    words = log.read_text(encoding="utf-8").split()
    return next((word.strip("[]/").rstrip("/") for word in words if "http://" in word), None)


def put_bucket(endpoint: str) -> None:
    """Make the bucket, where signatures don't matter."""
    from urllib.request import Request

    urlopen(Request(f"{endpoint}/{BUCKET}", method="PUT")).close()


FAULTS = ("500", "throttled", "expired", "reset", "cut", "empty", "page", "number", "hang")
"""What :class:`Proxy` can answer instead of SQS.

Beside these: other statuses; ``some`` of a batch: every second entry is refused; ``twice``: SQS is asked once more.
"""
_BODIES: dict[str, tuple[int, bytes]] = {
    "500": (500, b'{"__type": "InternalFailure"}'),
    "throttled": (503, b'{"__type": "com.amazonaws.sqs#ThrottlingException", "message": "slow down"}'),
    "expired": (400, b'{"__type": "com.amazon.coral.service#ExpiredTokenException", "message": "it is expired"}'),
    "400": (400, b'{"__type": "InvalidAction", "message": "it is not known"}'),
    "403": (403, b'{"__type": "com.amazonaws.sqs#AccessDeniedException", "message": "you may not"}'),
    "503": (503, b""),
    "599": (599, b""),
    "empty": (200, b""),
    "page": (200, b"<html>Please log in.</html>"),
    "number": (200, b"7"),
}


class Proxy:
    """Between a client and moto's SQS. ``faults``: by operation, such as ReceiveMessage, what its next answers are."""

    def __init__(self, upstream: str) -> None:
        self.faults: defaultdict[str, deque[str]] = defaultdict(deque)
        self.seen: Counter[str] = Counter()
        self.entries: list[tuple[str, int]] = []
        """Operation and number of entries of each batch request that reached SQS."""
        self.date: str | None = None
        """What answers say of the time; None: what is right."""
        self.closing = threading.Event()
        self.upstream = urlsplit(upstream).netloc
        handler = type("Handler", (_Handler,), {"proxy": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads, self.server.block_on_close = True, False
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def forward(self, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        """Ask SQS."""
        connection = HTTPConnection(self.upstream, timeout=40)
        try:
            connection.request("POST", "/", body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def some(self, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        """Ask SQS for every second entry of a batch, and refuse the others."""
        request = json.loads(body)
        entries = request["Entries"]
        status, answered = self.forward(json.dumps({**request, "Entries": entries[::2]}).encode(), headers)
        answer = json.loads(answered)
        refused = [{"Id": entry["Id"], "SenderFault": False, "Code": "InternalError"} for entry in entries[1::2]]
        return status, json.dumps({**answer, "Failed": [*answer.get("Failed", []), *refused]}).encode()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        operation = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
        faults = self.proxy.faults[operation]
        self.proxy.seen[operation] += 1
        fault = faults.popleft() if faults else ""
        # moto speaks JSON, and names its queues by the host that it is asked at.
        headers = {name: value for name, value in self.headers.items() if name.lower() != "content-length"}
        if fault == "hang":
            self.proxy.closing.wait(60)
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif fault in _BODIES:
            self._answer(*_BODIES[fault])
        elif fault == "cut":
            self._answer(200, b'{"Messa', says_bytes=100)
        else:
            forward = self.proxy.some if fault == "some" else self.proxy.forward
            status, answer = forward(body, headers)
            if fault == "twice":
                status, answer = forward(body, headers)
            if operation.endswith("Batch"):
                self.proxy.entries.append((operation, len(json.loads(body)["Entries"])))
            self._answer(status, answer)
        self.close_connection = True

    def _answer(self, status: int, body: bytes, says_bytes: int | None = None) -> None:
        self.send_response_only(status)
        date = self.date_time_string() if self.proxy.date is None else self.proxy.date
        if date:
            self.send_header("Date", date)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(body) if says_bytes is None else says_bytes))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        with suppress(OSError):  # the client is gone, or was thrown out
            super().handle()

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    """A proxy in front of moto."""
    made = Proxy(upstream)
    thread = threading.Thread(target=made.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.closing.set()
        made.server.shutdown()
        thread.join()
        made.server.server_close()
