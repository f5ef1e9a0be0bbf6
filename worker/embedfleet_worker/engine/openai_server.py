"""An OpenAI-compatible server over HTTP: what it is asked, and what its statuses mean. Not who asks when (openai.py).

httpcore2 follows no redirects, takes no proxies or passwords from the environment, keeps no cookies, unpacks no
bodies and logs no URLs, so nothing of it must be turned off.
"""

import json
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal, TypeAlias

import httpcore2
from pydantic import SecretStr

from embedfleet import __version__
from embedfleet.errors import ConfigurationError, EngineUnreachable
from embedfleet.store import first_line
from embedfleet_worker.engine.openai_answers import (
    Answer,
    Misfit,
    Models,
    read_message,
    read_models,
    read_vectors,
    read_version,
)
from embedfleet_worker.engine.patience import VENDOR_ERRORS, Backend, Patience

Format: TypeAlias = Literal["base64", "float"]

_KEEP_ALIVE_S = 4.0  # uvicorn closes after 5 s; who closes first does not meet a connection that just went away
_SHORT_S = 10.0  # for what no model is needed for
_SHORT_BYTES = 4 * 1024**2  # gateways list thousands of models
_BYTES_PER_COMPONENT = 32  # a float64 in JSON takes 25 at most
_BYTES_BESIDE = 65_536

_REFUSED = (400, 413, 422)  # of these texts: too many, too long, or worse
_UNFIT = (401, 402, 403, 404, 405, 410, 501)  # nobody's fault here but the configuration's
_VERSION_PATHS = ("version", "api/version", "info")  # vLLM and SGLang; Ollama; TEI


class Refused(Exception):
    """The server does not take these texts; its message is for the text's own outcome, and for no log."""


class Unfit(ConfigurationError):
    """Address, key or model are not what the server wants."""


class Busy(EngineUnreachable):
    """It wants fewer requests, or later ones: whatever the texts are."""


class Server:
    """Thread-safe; holds the connections. ``timeout_s``: for one request.

    Raises EngineUnreachable for what may do better the next time, Unfit for what won't. Neither holds the key.
    """

    def __init__(self, url: str, key: SecretStr | None, timeout_s: float) -> None:
        self.url = url
        self._key = key.get_secret_value() if key else ""
        self._timeout_s = timeout_s
        try:
            certificates = httpcore2.default_ssl_context()
        except OSError as exc:
            raise ConfigurationError(f"SSL_CERT_FILE or SSL_CERT_DIR: {first_line(exc)}.") from None
        self._pool = httpcore2.ConnectionPool(
            ssl_context=certificates,
            max_connections=None,  # as many as there are threads that ask
            max_keepalive_connections=32,
            keepalive_expiry=_KEEP_ALIVE_S,
            network_backend=Backend(),
        )

    def models(self) -> Models | None:
        """What it lists; None where it lists nothing."""
        status, body = self._ask("GET", f"{self.url}/models", _SHORT_BYTES, Patience(_SHORT_S, threading.Event()))
        if status in (404, 405, 501):
            return None
        self._check(status)
        try:
            return read_models(body)
        except Misfit as exc:
            raise Unfit(f"server {self.url}: its /models has {exc}. Does the URL lack a path such as /v1?") from None

    def version(self) -> str | None:
        """What it says of itself, at one of the places where servers do."""
        root = self.url.removesuffix("/v1")
        for path in _VERSION_PATHS:
            with suppress(EngineUnreachable, Misfit):
                status, body = self._ask("GET", f"{root}/{path}", 65_536, Patience(_SHORT_S, threading.Event()))
                if status == 200 and (version := read_version(body)):
                    return version
        return None

    def embed(
        self, texts: Sequence[str], model: str, dimensions: int, encoding: Format, abandoned: threading.Event
    ) -> Answer:
        """Full vectors. Raises Refused too. ``dimensions`` is what is expected, and never sent: cutting is ours."""
        content = {"model": model, "input": list(texts), "encoding_format": encoding}
        payload = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        limit = _BYTES_BESIDE + len(texts) * (dimensions * _BYTES_PER_COMPONENT + 256)
        patience = Patience(self._timeout_s, abandoned)
        status, body = self._ask("POST", f"{self.url}/embeddings", limit, patience, payload)
        if status in _REFUSED:
            said = read_message(body)
            said = said.replace(self._key, "***") if self._key else said
            raise Refused(f"status {status}" + (f": {said}" if said else ""))
        self._check(status)
        try:
            return read_vectors(body, len(texts), dimensions)
        except Misfit as exc:
            raise EngineUnreachable(f"server {self.url}: it answered with {exc}") from None

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _ask(
        self, method: str, url: str, limit: int, patience: Patience, payload: bytes | None = None
    ) -> tuple[int, bytes]:
        """Status and body. What takes too long, is too large or is no HTTP is EngineUnreachable."""
        extensions = {"timeout": dict.fromkeys(("connect", "read", "write"), patience)}  # no numbers, see Patience
        try:
            with self._pool.stream(
                method, url, headers=self._headers(payload), content=payload, extensions=extensions
            ) as response:
                self._check_busy(response)
                body = bytearray()
                for chunk in response.iter_stream():
                    body += chunk
                    if len(body) > limit:
                        raise EngineUnreachable(f"server {self.url}: its answer has over {limit} bytes")
                return response.status, bytes(body)
        except VENDOR_ERRORS as exc:
            late = isinstance(exc, httpcore2.TimeoutException) and not isinstance(exc, httpcore2.ConnectTimeout)
            raise EngineUnreachable(f"server {self.url}: {_reason(exc)}", late=late) from None

    def _headers(self, payload: bytes | None) -> list[tuple[str | bytes, str | bytes]]:
        host = re.sub(r"^\w+://([^/]+).*", r"\1", self.url)
        headers: list[tuple[str | bytes, str | bytes]] = [("host", host), ("user-agent", f"embedfleet/{__version__}")]
        if payload is not None:
            headers += [("content-type", "application/json"), ("content-length", str(len(payload)))]
        if self._key:
            headers.append(("authorization", f"Bearer {self._key}"))
        return headers

    def _check_busy(self, response: httpcore2.Response) -> None:
        """Too many requests, or a failure of its own: another try may do."""
        status = response.status
        if (status >= 500 and status not in _UNFIT) or status in (408, 409, 424, 425, 429):
            asked = [value for name, value in response.headers if name.lower() == b"retry-after"]
            retry_after_s = _retry_after_s(asked[0].decode("latin-1")) if asked and status in (429, 503) else None
            kind = Busy if status == 429 or retry_after_s is not None else EngineUnreachable
            raise kind(f"server {self.url}: it answered {status}", retry_after_s)

    def _check(self, status: int) -> None:
        if 200 <= status < 300:
            return
        remedy = "Is it the URL of an OpenAI-compatible API, which mostly ends in /v1?"
        if status in (401, 403):
            remedy = "It wants another key: set EMBEDFLEET_OPENAI_API_KEY."
        elif 300 <= status < 400:
            remedy = "Redirects are not followed: give the URL that it leads to."
        elif status == 404:
            remedy = "It has no such model (EMBEDFLEET_OPENAI_MODEL), or the URL lacks a path such as /v1."
        raise Unfit(f"server {self.url}: it answered {status}. {remedy}")


def _retry_after_s(value: str) -> float | None:
    """Seconds, given as such or as a date; None for anything else."""
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        moment = parsedate_to_datetime(value)
        return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _reason(exc: Exception) -> str:
    """Why there is no answer. What the server sent is not repeated."""
    if isinstance(exc, httpcore2.TimeoutException):
        return "it did not answer in time"
    if isinstance(exc, httpcore2.ProtocolError | httpcore2.ReadError | httpcore2.WriteError):
        return "it closed the connection, or did not answer in HTTP"
    return f"no connection ({first_line(exc)})"
