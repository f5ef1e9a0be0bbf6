"""The webhook: a signed request a part, or a finished job, and what its answers mean. Not where it may go (address.py).

Standard Webhooks: https://www.standardwebhooks.com
"""

import base64
import hashlib
import hmac
import json
import time
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeAlias

import httpcore2
from pydantic import SecretStr

from embedfleet import __version__
from embedfleet.destinations import CALLBACK, Webhook
from embedfleet.errors import ConfigurationError, DestinationRefused, DestinationUnavailable
from embedfleet.jobfolder import JobFolder
from embedfleet.jobstatus import JobStatus
from embedfleet.settings import FleetSettings
from embedfleet.store import first_line
from embedfleet_worker.destinations.address import Backend, Guard, Origin
from embedfleet_worker.destinations.base import Parcel

_CONNECT_S = 5.0  # name, connection and TLS together
_WHOLE_S = 15.0  # a receiver is to take note and work later, as the standard says
_KEEP_ALIVE_S = 5.0  # shorter than most receivers', so that they seldom close first
_MAX_BODY_BYTES = 4096
_MAX_RETRY_AFTER_S = 3600.0

_Headers: TypeAlias = list[tuple[str | bytes, str | bytes]]

# What the HTTP client raises has no common base; a test compares this with its list.
_VENDOR_ERRORS = (
    httpcore2.TimeoutException,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.ProxyError,
    httpcore2.UnsupportedProtocol,
    httpcore2.ConnectionNotAvailable,
    OSError,
)


class WebhookDestination:
    """Posts references to parts. Thread-safe; holds the connections.

    It uses httpcore2 without httpx2: that follows no redirects, takes no proxies or passwords from the environment,
    keeps no cookies, unpacks no bodies and logs no URLs, so nothing of it must be turned off.
    """

    def __init__(self, settings: FleetSettings) -> None:
        """Raises ConfigurationError for origins, networks or certificates that can't be read."""
        self._secret = settings.webhook_secret
        self._guard = Guard(settings.webhook_origins, settings.webhook_networks)
        try:
            certificates = httpcore2.default_ssl_context()
        except OSError as exc:
            raise ConfigurationError(f"SSL_CERT_FILE or SSL_CERT_DIR: {first_line(exc)}.") from None
        self._pool = httpcore2.ConnectionPool(
            ssl_context=certificates,
            max_connections=None,  # as many as there are threads that deliver: none waits for another
            max_keepalive_connections=10,
            keepalive_expiry=_KEEP_ALIVE_S,
            network_backend=Backend(self._guard),
        )

    def deliver(self, target: Webhook, parcel: Parcel) -> str:
        """Post it; the answer, for the receipt. At most 15 s. Raises DestinationUnavailable or DestinationRefused."""
        return self._send(target, f"{parcel.folder.job}-{parcel.batch:08d}-{parcel.destination}", _embedded(parcel))

    def complete(self, target: Webhook, folder: JobFolder, status: JobStatus) -> str:
        """Say that a job is finished; returns and raises as :meth:`deliver`."""
        return self._send(target, f"{folder.job}-{CALLBACK}", _done(folder, status))

    def _send(self, target: Webhook, message_id: str, body: bytes) -> str:
        """``message_id``: the same in every try, so that a receiver knows what it has already."""
        key = _key(self._secret)
        origin, path = self._guard.admit(target.url)
        headers = [("host", origin.authority), *_headers(key, message_id, int(time.time()), body)]
        try:
            status, retry_after_s = self._post(origin, path, headers, body)
        except _VENDOR_ERRORS as exc:
            raise DestinationUnavailable(f"webhook {origin.authority}: {_reason(exc)}.") from None
        return _meaning(origin.authority, status, retry_after_s)

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def _post(self, origin: Origin, path: str, headers: _Headers, body: bytes) -> tuple[int, float | None]:
        """Status of the answer, and when it asks to be tried again."""
        url = httpcore2.URL(scheme=origin.scheme, host=origin.host, port=origin.port, target=path)
        end = time.monotonic() + _WHOLE_S
        moments = {"connect": time.monotonic() + _CONNECT_S, "write": end, "read": end}  # not spans, see Backend
        extensions = {"timeout": moments}
        with self._pool.stream("POST", url, headers=headers, content=body, extensions=extensions) as response:
            # The status counts. The rest is read only so that the connection can be used again.
            with suppress(*_VENDOR_ERRORS):
                size = 0
                for chunk in response.iter_stream():
                    size += len(chunk)
                    if size >= _MAX_BODY_BYTES:
                        break
            asked = [value for name, value in response.headers if name.lower() == b"retry-after"]
            return response.status, _retry_after_s(asked[0].decode("latin-1")) if asked else None


def _key(secret: SecretStr | None) -> bytes:
    """The key that signs. Raises DestinationRefused, without the value."""
    remedy = "Give the workers that deliver EMBEDFLEET_WEBHOOK_SECRET: whsec_ and 24 to 64 random bytes in base64."
    if secret is None:
        raise DestinationRefused(f"webhook: there is no secret to sign with. {remedy}")
    prefix, _, text = secret.get_secret_value().partition("_")
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        key = b""
    if prefix != "whsec" or not 24 <= len(key) <= 64:
        raise DestinationRefused(f"webhook: the secret to sign with has another form. {remedy}")
    return key


def _embedded(parcel: Parcel) -> bytes:
    """References and counts, the same bytes in every try. No time: nobody recorded when the part was made."""
    info = parcel.info
    folder = parcel.folder
    data = {
        "job": folder.job,
        "batch": parcel.batch,
        "folder": folder.uri,
        "part": f"{folder.store.uri}/{folder.part_path(parcel.batch)}",
        **info.totals.model_dump(),
        "model": info.provenance.get("model"),
        "dimensions": info.provenance.get("dimensions"),
    }
    return _event("embedfleet.batch.embedded", data)


def _done(folder: JobFolder, status: JobStatus) -> bytes:
    """How the job ended: counts over all of it, and over the deliveries of each destination."""
    counts = [
        {"destination": each.destination, "confirmed": each.confirmed, "dead": each.dead} for each in status.deliveries
    ]
    data = {"job": folder.job, "folder": folder.uri, "state": status.state, "batches": status.batches_done}
    return _event("embedfleet.job.done", {**data, **status.totals.model_dump(), "deliveries": counts})


def _event(kind: str, data: dict[str, object]) -> bytes:
    return json.dumps({"type": kind, "data": data}, separators=(",", ":")).encode()


def _headers(key: bytes, message_id: str, timestamp: int, body: bytes) -> _Headers:
    signed = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return [
        ("content-type", "application/json"),
        ("user-agent", f"embedfleet/{__version__}"),
        ("webhook-id", message_id),
        ("webhook-timestamp", str(timestamp)),
        ("webhook-signature", f"v1,{base64.b64encode(signed).decode()}"),
    ]


def _meaning(receiver: str, status: int, retry_after_s: float | None) -> str:
    if 200 <= status < 300:
        return f"{receiver} answered {status}"
    if 300 <= status < 400:
        raise DestinationRefused(
            f"webhook {receiver}: it answered {status}, and redirects are not followed. Give the URL that it leads to."
        )
    if status == 410:
        raise DestinationRefused(f"webhook {receiver}: it answered 410 (gone), so it wants no more.")
    raise DestinationUnavailable(
        f"webhook {receiver}: it answered {status}.", retry_after_s if status in (429, 503) else None
    )


def _retry_after_s(value: str) -> float | None:
    """Seconds, given as such or as a date; an hour at most. None for anything else."""
    if value.isascii() and value.isdigit():
        return min(float(value), _MAX_RETRY_AFTER_S)
    try:
        moment = parsedate_to_datetime(value)
        wait_s = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(wait_s, 0.0), _MAX_RETRY_AFTER_S)


def _reason(exc: Exception) -> str:
    """Why there is no answer. What the receiver sent is not repeated: it may hold anything."""
    if isinstance(exc, httpcore2.TimeoutException):
        return "it did not answer in time"
    if isinstance(exc, httpcore2.ProtocolError):
        return "it closed the connection, or did not answer in HTTP"
    return first_line(exc)
