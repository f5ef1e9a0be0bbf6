"""Connections that are given up when nobody waits for the answer any more. Not what is asked on them."""

import ssl
import threading
import time
from contextlib import suppress
from typing import Any, cast

import httpcore2

_LOOK_S = 0.25  # between two looks at whether anybody still waits
_CONNECT_S = 10.0

# What the HTTP client raises has no common base; a test compares the webhook's list, which is this one, with its own.
VENDOR_ERRORS = (
    httpcore2.TimeoutException,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.ProxyError,
    httpcore2.UnsupportedProtocol,
    httpcore2.ConnectionNotAvailable,
    OSError,
)


class Patience:
    """How long an answer is waited for: so many seconds, or until nobody wants it any more.

    It takes the place of the HTTP client's timeouts, which are handed through to here as they are: these would be for
    each piece of an answer, and start anew with every byte.
    """

    def __init__(self, seconds: float, abandoned: threading.Event) -> None:
        self._end = time.monotonic() + seconds
        self._abandoned = abandoned

    def left_s(self) -> float:
        """Raises TimeoutException when there is none left."""
        left_s = self._end - time.monotonic()
        if left_s <= 0 or self._abandoned.is_set():
            raise httpcore2.TimeoutException
        return left_s


class Backend(httpcore2.NetworkBackend):
    """Connections whose timeouts are a :class:`Patience`."""

    def __init__(self) -> None:
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *_args: object, **_kwargs: object
    ) -> httpcore2.NetworkStream:
        left_s = min(cast(Patience, timeout).left_s(), _CONNECT_S)
        return _Stream(self._sockets.connect_tcp(host, port, left_s))


class _Stream(httpcore2.NetworkStream):
    """A connection that looks up from reading: for an answer that nobody wants any more it does not wait."""

    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        while True:
            left_s = cast(Patience, timeout).left_s()
            with suppress(httpcore2.ReadTimeout):
                return self._stream.read(max_bytes, min(left_s, _LOOK_S))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, cast(Patience, timeout).left_s())

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        left_s = min(cast(Patience, timeout).left_s(), _CONNECT_S)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left_s))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def close(self) -> None:
        self._stream.close()
