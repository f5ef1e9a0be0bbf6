"""Where webhooks may go: which URLs, which addresses, and connections to exactly these. Not what is sent there.

URLs come with jobs, and a worker stands inside a network: unchecked, a job could reach metadata services and databases.
"""

import re
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple, TypeAlias

import httpcore2

from embedfleet.errors import ConfigurationError, DestinationRefused, DestinationUnavailable
from embedfleet.store import first_line

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

# IANA's registries of special-purpose addresses. ipaddress.is_global knows some of it, and more with every version of
# Python; here it is the same on all of them.
_NOT_PUBLIC_4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32",  # Azure's own services, at a public address
    )
)  # fmt: skip
# All that is public is in here. Outside: loopback, mapped IPv4, NAT64, ULA, link- and site-local, multicast.
_UNICAST_6 = IPv6Network("2000::/3")
# Inside and yet not: Teredo and other protocols, documentation, 6to4.
_NOT_PUBLIC_6 = tuple(IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))

_URL = re.compile(
    r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?((?:[/?][]!$%&'()*+,./0-9:;=?@A-Z_a-z~[-]*)?)",
    re.A | re.I,
)
_SHOWN = re.compile(r"[^:/?#\\]*://(?:[^/?#\\]*@)?(\[[^]/?#\\]*\]?|[^/?#\\:]*)")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORTS = {"https": 443, "http": 80}


class Origin(NamedTuple):
    """Scheme, host and port of a URL, each in one spelling; an IPv6 host without brackets."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """What the header ``Host`` says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


class Guard:
    """What the operator allows. Without origins: every ``https://`` URL whose addresses are all public."""

    def __init__(self, origins: Iterable[str], networks: Iterable[str]) -> None:
        """Raises ConfigurationError naming the entry."""
        self._origins = frozenset(_origin(entry) for entry in origins)
        self._networks = tuple(_network(entry) for entry in networks)

    def admit(self, url: str) -> tuple[Origin, str]:
        """Origin of the URL, and its path with the query. Raises DestinationRefused, which names its host only."""
        try:
            origin, path = _split(url)
        except ValueError as exc:
            raise DestinationRefused(f"webhook {_shown(url)}: {exc}.") from None
        if self._origins and origin not in self._origins:
            raise DestinationRefused(
                f"webhook {origin.authority}: {origin.scheme}://{origin.authority} is not among the "
                "allowed origins (EMBEDFLEET_WEBHOOK_ORIGINS)."
            )
        if origin.scheme != "https" and origin not in self._origins:
            raise DestinationRefused(
                f"webhook {origin.authority}: https:// is needed. If http:// is meant, list its origin in "
                "EMBEDFLEET_WEBHOOK_ORIGINS."
            )
        return origin, path

    def addresses(self, host: str, port: int, timeout_s: float) -> list[str]:
        """All addresses of a host, each of which is allowed. Raises DestinationRefused or DestinationUnavailable."""
        found = [ip_address(address) for address in _resolve(host, port, timeout_s)]
        for address in found:
            if not is_public(address) and not any(address in network for network in self._networks):
                raise DestinationRefused(
                    f"webhook {host}: its address {address} is not public. If it is meant, list its network in "
                    "EMBEDFLEET_WEBHOOK_NETWORKS."
                )
        return [str(address) for address in found]


class Backend(httpcore2.NetworkBackend):
    """Connects to addresses that the guard has seen, never to names: a name may lead elsewhere the next time.

    The HTTP client hands timeouts through to here, and they are moments on ``time.monotonic()``: a span
    would start anew with every byte.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *_args: object, **_kwargs: object
    ) -> httpcore2.NetworkStream:
        """A connection to the first address that takes it; each has its share of the time."""
        addresses = self._guard.addresses(host, port, _left_s(timeout))
        failed: Exception = httpcore2.ConnectError("the name has no address")
        for number, address in enumerate(addresses):
            share_s = _left_s(timeout) / (len(addresses) - number)
            try:
                return _Stream(self._sockets.connect_tcp(address, port, share_s))
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as exc:
                failed = exc
        raise failed


class _Stream(httpcore2.NetworkStream):
    """A connection whose timeouts are moments, see :class:`Backend`."""

    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(min(max_bytes, 4096), _left_s(timeout))  # answers are short, or not of interest

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left_s(timeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, _left_s(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def close(self) -> None:
        self._stream.close()


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet's, and holds no other.

    >>> is_public(ip_address("93.184.216.34")), is_public(ip_address("::ffff:93.184.216.34"))
    (True, False)
    """
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    isatap = (int(address) >> 32) & 0xFDFF_FFFF == 0x5EFE  # RFC 5214: the last 32 bits are an IPv4 address
    return address in _UNICAST_6 and not isatap and not any(address in network for network in _NOT_PUBLIC_6)


def _resolve(host: str, port: int, timeout_s: float) -> list[str]:
    """Addresses of a name, in the system's order. getaddrinfo has no timeout: a thread nobody joins does it."""
    answer: Future[list[Any]] = Future()

    def ask() -> None:
        try:
            answer.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as exc:
            answer.set_exception(exc)

    threading.Thread(target=ask, name="webhook-name", daemon=True).start()
    try:
        return list(dict.fromkeys(str(entry[4][0]) for entry in answer.result(timeout_s)))
    except TimeoutError:
        raise DestinationUnavailable(f"webhook {host}: the name was not resolved in time.") from None
    except (OSError, UnicodeError) as exc:
        raise DestinationUnavailable(f"webhook {host}: the name does not resolve ({first_line(exc)}).") from None


def _split(url: str) -> tuple[Origin, str]:
    """A URL in the one strict reading that no two parsers differ on. Raises ValueError, the reason."""
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError(
            "it is no plain https://host:port/path in ASCII, without user, fragment and escapes in the host"
        )
    scheme, path = match[1].lower(), match[4]
    port = int(match[3]) if match[3] else _PORTS[scheme]
    if not 0 < port <= 65_535:
        raise ValueError("there is no such port")
    return Origin(scheme, _host(match[2].lower()), port), path if path.startswith("/") else f"/{path}"


def _host(host: str) -> str:
    name = host.removesuffix(".")
    try:
        if host.startswith("["):
            return str(IPv6Address(host[1:-1]))
        if _NUMBER.fullmatch(name.rpartition(".")[2]):  # what some resolvers read as an address: 127.1, 0x7f000001
            return str(IPv4Address(name))
    except ValueError:
        raise ValueError("an address is written as four decimal numbers, or in brackets as IPv6") from None
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise ValueError("its host is no name")
    return name


def _origin(entry: str) -> Origin:
    try:
        origin, path = _split(entry)
        if path != "/":
            raise ValueError("an origin ends behind the port")
    except ValueError as exc:
        raise ConfigurationError(
            f"EMBEDFLEET_WEBHOOK_ORIGINS: {entry!r}: {exc}. Write it like https://app.example or "
            "http://localhost:8080, names in ASCII (xn--…)."
        ) from None
    return origin


def _network(entry: str) -> Network:
    try:
        return ip_network(entry)
    except ValueError as exc:
        raise ConfigurationError(
            f"EMBEDFLEET_WEBHOOK_NETWORKS: {exc}. Write it like 10.1.0.0/16 or 10.1.2.3."
        ) from None


def _shown(url: str) -> str:
    """The host of a URL that is wrong in some way, for people: no user, path or query, which may be secret."""
    match = _SHOWN.match(url)
    return ascii(match[1][:100]) if match else "without a host"


def _left_s(until: float | None) -> float:
    left_s = (until or 0.0) - time.monotonic()
    if left_s <= 0:
        raise httpcore2.TimeoutException("the time for it is over")
    return left_s
