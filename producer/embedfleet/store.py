"""Objects under one URI: what every store can do, which one a URI names, and which are allowed. Not what is kept where.

The folder is in folder.py, S3 in s3.py.
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes, urlsplit

from embedfleet.errors import ConfigurationError, ContractError, NotFound, StoreNotAllowed, StoreUnavailable
from embedfleet.masking import mask_url

if TYPE_CHECKING:
    import pyarrow.dataset

_BUCKET = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"


def canonical_uri(store: str) -> str:
    """A store's URI in one spelling: no trailing slash; a path becomes absolute and ``file://``.

    >>> canonical_uri("/data/vectors/")
    'file:///data/vectors'
    >>> canonical_uri("s3://bucket/vectors/")
    's3://bucket/vectors'
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", store)
    if scheme and scheme[1].lower() == "s3":
        return _canonical_s3(store)
    if scheme and scheme[1].lower() != "file":
        raise ConfigurationError(
            f"store {mask_url(store)}: {scheme[1]}:// is not supported. Give a folder or s3://bucket/prefix."
        )
    try:
        path = _path_of(store) if scheme else Path(store).expanduser()
        uri = path.resolve().as_uri()
        local_path(urlsplit(uri).path)
        return uri
    except (ValueError, OSError, RuntimeError) as exc:  # NUL, half a surrogate, an unknown user, a loop of links
        raise ConfigurationError(f"store {store!r}: it is no path ({first_line(exc)}).") from None


def _path_of(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise ValueError("a file:// URI is file:// and an absolute path, with %3F for ? and %23 for #")
    return local_path(parts.path)


def local_path(quoted: str) -> Path:
    """The path in a file:// URI, in the locale's encoding. Raises ValueError for bytes that are no UTF-8."""
    path = unquote_to_bytes(quoted)
    path.decode("utf-8")  # the driver takes no other
    return Path(os.fsdecode(path))


def _canonical_s3(store: str) -> str:
    bucket, _, prefix = store.rstrip("/")[len("s3://") :].partition("/")
    if not re.fullmatch(_BUCKET, bucket):
        raise ConfigurationError(f"store {mask_url(store)}: it names no bucket. It looks like s3://bucket/prefix.")
    if prefix:
        try:
            check_name(prefix)
        except ContractError:
            raise ConfigurationError(f"store {mask_url(store)}: its prefix is not a plain path.") from None
    return f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"


def open_store(uri: str, *, make: bool = False) -> "Store":
    """The store of a URI. Raises ConfigurationError for one that can't be.

    A producer makes a folder (``make=True``); for everybody else one that is not there is StoreUnavailable.
    """
    uri = canonical_uri(uri)
    if uri.startswith("s3://"):
        from embedfleet.s3 import S3

        return S3(uri)
    from embedfleet.folder import Folder

    return Folder(uri, make=make)


class Store(ABC):
    """Objects under one URI. Every error of the driver leaves as one of embedfleet's, mostly as StoreUnavailable.

    Paths are relative to the URI and plain (:func:`check_name`), else ContractError. A store that is not there is
    StoreUnavailable, never NotFound: an unmounted disk is no reason to take a job for deleted.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @abstractmethod
    def get(self, path: str) -> bytes:
        """The object's bytes. Raises NotFound."""

    @abstractmethod
    def tail(self, path: str, size_bytes: int) -> bytes:
        """The object's last bytes; all of them if it is shorter. Raises NotFound."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether the object is there."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> None:
        """Write an object that must not be there yet, atomically. Raises AlreadyExists."""

    @abstractmethod
    def replace(self, path: str, data: bytes) -> None:
        """Write an object, atomically, whether or not it is there."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove an object, if it is there. Nothing of a job folder is ever removed."""

    @abstractmethod
    def paths(self, prefix: str, after: str | None = None, limit: int | None = None) -> list[str]:
        """Paths of the objects below ``prefix`` in string order, behind ``after`` if given, ``limit`` at most."""

    @abstractmethod
    def check_writable(self) -> None:
        """Try what a job needs: writing, and that nothing is written twice. Raises ConfigurationError too."""

    @abstractmethod
    def dataset(self, paths: Sequence[str]) -> "pyarrow.dataset.Dataset":
        """Parquet objects as one pyarrow Dataset, read when it is."""

    def _unavailable(self, path: str, exc: BaseException) -> StoreUnavailable:
        return StoreUnavailable(f"store {self.uri}: {path} failed ({first_line(exc)}).")

    def _gone(self) -> StoreUnavailable:
        return StoreUnavailable(f"store {self.uri}: it is not there. Mount it, or make it.")

    def _not_found(self, path: str, exc: BaseException) -> NotFound:
        return NotFound(f"{self.uri}/{path}: there is no such object ({first_line(exc)}).")


def check_allowed(uri: str, allowed: tuple[str, ...]) -> str:
    """The canonical URI if it is, or lies under, an allowed store; else StoreNotAllowed."""
    wanted = canonical_uri(uri)
    for store in allowed:
        root = canonical_uri(store)
        if wanted == root or wanted.startswith(root.rstrip("/") + "/"):
            return wanted
    raise StoreNotAllowed(
        f"store {wanted}: this worker may use {', '.join(allowed) or 'none'}. "
        "Add it to EMBEDFLEET_ALLOWED_STORES where the worker runs."
    )


def check_name(path: str) -> None:
    """Names lead nowhere but below the store."""
    parts = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise ContractError(f"object name {path!r}: it is not a plain path.")
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise ContractError(f"object name {path!r}: it has no UTF-8 form.") from None


def first_line(exc: BaseException) -> str:
    """An error for people, without the drivers' many lines."""
    return (str(exc) or type(exc).__name__).splitlines()[0][:300]
