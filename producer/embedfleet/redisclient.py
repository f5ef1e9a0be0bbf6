"""A Redis URL, checked and made a client of: one server, a socket, or whichever server is a Sentinel's master.

What is done with the client is for others (redis.py, the worker's cache and transport).
"""

import copy
import re
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from embedfleet.errors import ConfigurationError
from embedfleet.masking import mask, mask_url

# By scheme, what Celery and redis-py both understand behind the question mark; a Sentinel's is ours alone.
_TLS_OPTIONS = ("ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")
_URL_OPTIONS: dict[str, tuple[str, ...]] = {
    "redis": (),
    "rediss": _TLS_OPTIONS,
    "redis+socket": ("virtual_host",),
    "redis+sentinel": ("sentinel_username", "sentinel_password"),
}
_DATABASE = r"/?\d*", "the database behind the host must be a number"
_PATHS = {
    "redis": _DATABASE,
    "rediss": _DATABASE,
    "redis+socket": (".*", ""),
    "redis+sentinel": (r"/[\w.-]+(/\d*)?", "behind the Sentinels stands the master's name, then perhaps the database"),
}
_SENTINEL_PORT = 26379
_QUOTED = "in a password write / as %2F, # as %23, ? as %3F, @ as %40"


def client_of(url: str, **options: Any) -> redis.Redis:
    """A client, thread-safe, that connects when it is first used. ``options`` are those of redis-py's connections.

    ``redis+sentinel://[user:password@]host[:26379][,host2…]/MASTER[/database]``: every new connection goes to the
    server that the Sentinels call the master, so that after a failover the calls that follow find the new one. User
    and password are the master's, and its replicas'. Sentinels have their own, and mostly none: they get
    ``?sentinel_username=…&sentinel_password=…``, and nothing unless it is given, because one without a password
    refuses whoever sends one. A URL that :func:`check_redis_url` refuses may raise anything.
    """
    parts = urlsplit(url)
    if parts.scheme != "redis+sentinel":
        # Said outright: a request that the driver sent twice by itself would take messages twice under one lease.
        return redis.Redis.from_url(redis_url(url), **{"retry": Retry(NoBackoff(), 0), **options})
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    timeouts = {name: value for name, value in options.items() if name.startswith("socket_")}
    to_sentinels = {
        "username": query.get("sentinel_username"),
        "password": query.get("sentinel_password"),
        "retry": Retry(NoBackoff(), 0),  # the next one is asked, and whoever called tries again
        **timeouts,
    }
    name, _, database = parts.path.strip("/").partition("/")
    username, password = _credentials(parts)
    sentinels: Any = _Sentinels(_hosts(parts), sentinel_kwargs=to_sentinels)  # type: ignore[no-untyped-call]
    options |= {"username": username, "password": password, "db": int(database or 0)}
    found: redis.Redis = sentinels.master_for(name, **options)
    return found


def redis_url(url: str) -> str:
    """The URL as redis-py writes it, which has other names for a socket and its database than Celery."""
    return re.sub(r"^redis\+socket:", "unix:", url).replace("?virtual_host=", "?db=")


def check_redis_url(url: str, what: str) -> None:
    """Raise ConfigurationError, naming ``what``, for what is no Redis URL that Celery and redis-py read alike."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in _URL_OPTIONS:
            known = "redis://, rediss://, redis+socket:// or redis+sentinel://"
            raise ValueError(f"{parts.scheme or 'no scheme'} is not supported; give {known}")
        if unknown := set(parse_qs(parts.query, keep_blank_values=True)) - set(_URL_OPTIONS[parts.scheme]):
            raise ValueError(_unknown_option(unknown.pop(), parts))
        path, said = _PATHS[parts.scheme]
        if not re.fullmatch(path, parts.path):
            raise ValueError(said)
        if parts.scheme == "redis+sentinel":
            _hosts(parts)
        else:
            _check_address(parts, url)
    except ValueError as exc:
        raise ConfigurationError(
            f"{what} {mask(url)}: it is no Redis URL ({mask_url(str(exc))}). It looks like redis://host:6379/0, or "
            f"redis+sentinel://host:26379,host2:26379/master/0; {_QUOTED}."
        ) from None


def _check_address(parts: SplitResult, url: str) -> None:
    """What the parsers say is not passed on: they quote what may be half of a password."""
    try:
        parts.port  # noqa: B018 - raises ValueError
        redis.ConnectionPool.from_url(redis_url(url))
    except ValueError:
        raise ValueError("behind the host stands a port, a number up to 65535") from None


def _unknown_option(name: str, parts: SplitResult) -> str:
    """Where an @ follows, it is half of a password."""
    shown = "behind the question mark" if "@" in parts.query else repr(name)
    return f"the option {shown} is not known; {parts.scheme}:// has {', '.join(_URL_OPTIONS[parts.scheme]) or 'none'}"


class _Sentinels(Sentinel):
    """redis-py's, for many threads: it swaps its list's entries in place, and two threads at once would lose one."""

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Address of the master; the Sentinel that knew it is asked first the next time."""
        asked: Any = copy.copy(self)
        asked.sentinels = list(self.sentinels)
        found: tuple[str, int] = Sentinel.discover_master(asked, service_name)  # type: ignore[no-untyped-call]
        self.sentinels = asked.sentinels
        return found


def _credentials(parts: SplitResult) -> tuple[str | None, str | None]:
    """User and password, as redis-py reads them of other URLs."""
    authority, at, _ = parts.netloc.rpartition("@")
    username, _, password = authority.partition(":")
    return (unquote(username) or None, unquote(password) or None) if at else (None, None)


def _hosts(parts: SplitResult) -> list[tuple[str, int]]:
    """Host and port of each Sentinel. Raises ValueError."""
    found = []
    for host in parts.netloc.rpartition("@")[2].split(","):
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::(\d{1,5}))?", host)
        if match is None or int(match[2] or 1) > 65_535:
            raise ValueError("each Sentinel is a host, or host:port; commas separate them")
        found.append((match[1].strip("[]"), int(match[2] or _SENTINEL_PORT)))
    return found
