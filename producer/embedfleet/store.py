"""Objects under one URI: what every store can do, which one a URI names, and which are allowed. Not what is kept where.

The folder is in folder.py, S3 in s3.py.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import ObjectStore

from embedfleet.errors import ConfigurationError, ContractError, NotFound, StoreNotAllowed, StoreUnavailable
from embedfleet.settings import mask_url

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
        return path.resolve().as_uri()
    except (ValueError, OSError, RuntimeError) as exc:  # NUL, half a surrogate, an unknown user, a loop of links
        raise ConfigurationError(f"store {store!r}: it is no path ({first_line(exc)}).") from None


def _path_of(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise ValueError("a file:// URI is file:// and an absolute path, with %3F for ? and %23 for #")
    return Path(unquote(parts.path))


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
    """Objects under one URI. Every error of the driver leaves here as one of embedfleet's."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._driver: ObjectStore | None = None

    def get(self, path: str) -> bytes:
        """The object's bytes. Raises NotFound or StoreUnavailable."""
        return bytes(self._call(path, lambda driver: obstore.get(driver, path).bytes()))

    def tail(self, path: str, size_bytes: int) -> bytes:
        """The object's last bytes; all of them if it is shorter."""
        suffix: Any = {"range": {"suffix": size_bytes}}
        return bytes(self._call(path, lambda driver: obstore.get(driver, path, options=suffix).bytes()))

    def exists(self, path: str) -> bool:
        """Whether the object is there."""
        try:
            self._call(path, lambda driver: obstore.head(driver, path))
        except NotFound:
            return False
        return True

    @abstractmethod
    def create(self, path: str, data: bytes) -> None:
        """Write an object that must not be there yet, atomically. Raises AlreadyExists or StoreUnavailable."""

    def paths(self, prefix: str, after: str | None = None) -> Iterator[str]:
        """Paths under ``prefix`` in string order, from the one behind ``after`` on."""

        def found(driver: ObjectStore) -> list[str]:
            pages = obstore.list(driver, prefix=prefix, offset=after)
            return sorted(meta["path"] for page in pages for meta in page)

        yield from self._call(prefix, found)

    @abstractmethod
    def check_writable(self) -> None:
        """Try what a job needs: writing, and that nothing is written twice.

        Raises ConfigurationError, or StoreUnavailable for what may be different later.
        """

    @abstractmethod
    def dataset(self, paths: Sequence[str]) -> "pyarrow.dataset.Dataset":
        """Parquet objects as one pyarrow Dataset, read when it is."""

    @abstractmethod
    def _open(self) -> ObjectStore:
        """The driver."""

    @abstractmethod
    def _is_gone(self, exc: BaseException) -> bool:
        """Whether an object was not found because the whole store is not there."""

    def _call(self, path: str, operation: Callable[[ObjectStore], Any]) -> Any:
        check_name(path)
        try:
            if self._driver is None:
                self._driver = self._open()
            return operation(self._driver)
        except (NotFoundError, FileNotFoundError) as exc:
            if self._is_gone(exc):  # an unmounted disk is no reason to take a job for deleted
                raise StoreUnavailable(f"store {self.uri}: it is not there.") from None
            raise NotFound(f"{self.uri}/{path}: there is no such object ({first_line(exc)}).") from None
        except (BaseError, OSError) as exc:
            raise StoreUnavailable(f"store {self.uri}: {path} failed ({first_line(exc)}).") from None


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
