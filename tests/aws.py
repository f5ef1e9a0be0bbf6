"""Stand-ins for AWS: moto, which accepts any signature, and rclone's S3, which checks them and ignores create-once."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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
