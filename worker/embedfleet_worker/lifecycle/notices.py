"""EC2's notices that this machine is about to go, from its instance metadata. Not what is done then (drain.py)."""

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from datetime import datetime
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

from embedfleet.errors import ConfigurationError

log = logging.getLogger(__name__)

_ENDPOINT = "http://169.254.169.254"  # the same on every instance
_ENDPOINT_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"  # AWS' own, as the next
_DISABLED_VARIABLE = "AWS_EC2_METADATA_DISABLED"

_PERIOD_S = 5.0  # as AWS advises: a spot notice comes two minutes ahead
_FIRST_TRIES_S = (0.0, 5.0, 10.0, 20.0, 20.0)
"""Pauses before each try to find the service at all; then this is no instance, or one that lets nobody ask."""
_TIMEOUT_S = 1.0  # for each step of a request; the service is one hop away
_TOKEN_S = 3600  # a new one after half of that
_MOST_BYTES = 4096  # notices have 60

_TOKEN = re.compile(rb"[A-Za-z0-9+/=_.-]{1,256}")
_PATH = "/latest/meta-data"
_ENDS = {"terminate": "terminated", "stop": "stopped", "hibernate": "hibernated"}


def watch(on_notice: Callable[[str], None]) -> None:
    """Call ``on_notice`` once, from a thread of its own, with a line for people when this EC2 instance is about to go.

    Off EC2 the thread ends by itself after a minute; with ``AWS_EC2_METADATA_DISABLED=true`` there is none. Raises
    ConfigurationError for an ``AWS_EC2_METADATA_SERVICE_ENDPOINT`` that is no URL.
    """
    if os.environ.get(_DISABLED_VARIABLE, "").lower() == "true":
        return
    metadata = _Metadata(os.environ.get(_ENDPOINT_VARIABLE) or _ENDPOINT)
    threading.Thread(target=_watch, args=(metadata, on_notice), name="notices", daemon=True).start()


def _watch(metadata: "_Metadata", on_notice: Callable[[str], None]) -> None:
    if not _is_there(metadata):
        log.debug("no instance metadata: nobody tells when this machine goes")
        return
    answering = True
    while True:
        notice, trouble = _look(metadata)
        if notice is not None:
            on_notice(notice)
            return
        if trouble is not None and answering:  # once for each outage, not every five seconds
            log.warning("instance metadata: %s; a notice that this machine goes may be missed meanwhile", trouble)
        answering = trouble is None
        time.sleep(_PERIOD_S)


def _is_there(metadata: "_Metadata") -> bool:
    for pause_s in _FIRST_TRIES_S:
        time.sleep(pause_s)
        try:
            metadata.renew()
        except _Busy:
            return True
        except (OSError, HTTPException, ValueError):
            continue
        return True
    return False


def _look(metadata: "_Metadata") -> tuple[str | None, str | None]:
    """The first notice, and what kept from looking. One that can't be read hides no other."""
    trouble = None
    for path, read in _NOTICES:
        try:
            body = metadata.get(path)
            notice = None if body is None else read(body)
        except Exception as exc:  # whatever is answered, this thread has to see the next notice
            trouble = f"{path}: {exc if isinstance(exc, _Busy) else type(exc).__name__}"
        else:
            if notice is not None:
                return notice, None
    return None, trouble


def _spot(body: bytes) -> str:
    found = json.loads(body)
    return f"spot: the instance is {_ENDS[found['action']]} at {_time(found['time'])}"


def _auto_scaling(body: bytes) -> str | None:
    return "auto scaling: the instance is being terminated" if body.strip() == b"Terminated" else None


def _rebalance(body: bytes) -> str:
    return f"rebalance recommendation of {_time(json.loads(body)['noticeTime'])}: the instance may soon be interrupted"


def _time(text: str) -> str:
    return datetime.fromisoformat(text).isoformat()


# In the order of haste. Each reader raises for what is no notice.
_NOTICES: tuple[tuple[str, Callable[[bytes], str | None]], ...] = (
    ("spot/instance-action", _spot),
    ("autoscaling/target-lifecycle-state", _auto_scaling),
    ("events/recommendations/rebalance", _rebalance),
)


class _Busy(Exception):
    """The service is there and does not answer the question."""


class _Metadata:
    """The instance metadata service, version 2 only: who has no token is told nothing."""

    def __init__(self, endpoint: str) -> None:
        try:
            url = urlsplit(endpoint)
            self._port = url.port or 80
        except ValueError:  # brackets that don't match, or a port that is no number
            url = urlsplit("")
        if url.scheme != "http" or not url.hostname:
            raise ConfigurationError(f"{_ENDPOINT_VARIABLE}: {endpoint!r} is not as http://HOST or http://HOST:PORT.")
        self._host = url.hostname
        self._token = ""
        self._renew_at = 0.0  # by time.monotonic()

    def get(self, path: str) -> bytes | None:
        """What is at this path; None for nothing yet. Raises OSError, HTTPException, ValueError or _Busy."""
        if time.monotonic() >= self._renew_at:
            self.renew()
        status, body = self._ask("GET", f"{_PATH}/{path}", {"X-aws-ec2-metadata-token": self._token})
        if status == HTTPStatus.NOT_FOUND:
            return None
        if status == HTTPStatus.UNAUTHORIZED:  # its clock is not ours, or it forgot
            self._renew_at = 0.0
        if status != HTTPStatus.OK:
            raise _Busy(f"answered {status}")
        return body

    def renew(self) -> None:
        """Take a new token. Raises _Busy if only the moment is wrong, else OSError, HTTPException or ValueError."""
        now = time.monotonic()
        header = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
        status, body = self._ask("PUT", "/latest/api/token", header)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
            raise _Busy(f"answered {status}")
        if status != HTTPStatus.OK or not _TOKEN.fullmatch(body):
            raise ValueError("no token")  # other clouds have something else at this address
        self._token = body.decode()
        self._renew_at = now + _TOKEN_S / 2

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        connection = HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)  # it knows of no proxy
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            body = response.read(_MOST_BYTES + 1)
        finally:
            connection.close()
        if len(body) > _MOST_BYTES:
            raise ValueError("too long")
        return response.status, body
