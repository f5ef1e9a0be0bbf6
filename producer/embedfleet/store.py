"""One interface to object stores: folders now, S3 and others through the same library. Not what is kept where."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore

from embedfleet.errors import (
    AlreadyExists,
    ConfigurationError,
    NotFound,
    StoreNotAllowed,
    StoreUnavailable,
)


def canonical_uri(store: str) -> str:
    """A store's URI in one spelling: absolute, no trailing slash; a path becomes ``file://``.

    >>> canonical_uri("/data/vectors/")
    'file:///data/vectors'
    """
    parts = urlsplit(store)
    if parts.scheme == "file":
        return Path(unquote(parts.path)).resolve().as_uri()
    if "://" in store:
        raise ConfigurationError(f"store {store!r}: {parts.scheme}:// is not supported yet. Give a folder.")
    return Path(store).expanduser().resolve().as_uri()


class Store:
    """Objects under one URI. Every error of the driver leaves here as one of embedfleet's."""

    def __init__(self, uri: str) -> None:
        self.uri = canonical_uri(uri)
        try:
            self._driver: ObjectStore = LocalStore(self.folder, mkdir=True)
        except (BaseError, OSError) as exc:
            raise ConfigurationError(f"store {self.uri}: it can't be opened or made ({_first_line(exc)}).") from None

    @property
    def folder(self) -> Path:
        """The local folder."""
        return Path(unquote(urlsplit(self.uri).path))

    def get(self, path: str) -> bytes:
        """The object's bytes. Raises NotFound or StoreUnavailable."""
        return bytes(self._call(path, obstore.get, path).bytes())

    def tail(self, path: str, size_bytes: int) -> bytes:
        """The object's last bytes; all of them if it is shorter."""
        options = {"range": {"suffix": size_bytes}}
        return bytes(self._call(path, obstore.get, path, options=options).bytes())

    def exists(self, path: str) -> bool:
        """Whether the object is there."""
        try:
            self._call(path, obstore.head, path)
        except NotFound:
            return False
        return True

    def create(self, path: str, data: bytes) -> None:
        """Write an object that must not be there yet, atomically. Raises AlreadyExists."""
        self._call(path, self._create_file, path, data)

    def delete(self, path: str) -> None:
        """Remove an object; one that is not there is no error."""
        try:
            self._call(path, obstore.delete, path)
        except NotFound:
            return

    def paths(self, prefix: str, after: str | None = None) -> Iterator[str]:
        """Paths under ``prefix`` in string order, from the one behind ``after`` on."""
        try:
            pages = obstore.list(self._driver, prefix=prefix, offset=after)
            yield from sorted(meta["path"] for page in pages for meta in page)
        except BaseError as exc:
            raise StoreUnavailable(f"store {self.uri}: listing {prefix!r} failed ({_first_line(exc)}).") from None

    def check_writable(self) -> None:
        """Write and remove a probe object. Raises ConfigurationError naming the store."""
        probe = f".embedfleet-probe-{uuid.uuid4().hex}"
        try:
            self.create(probe, b"")
            self.delete(probe)
        except StoreUnavailable as exc:
            raise ConfigurationError(f"store {self.uri}: it can't be written. {exc}") from None

    def _create_file(self, _: ObjectStore, path: str, data: bytes) -> None:
        """Written in full under a hidden name, then linked: there is never half an object.

        Not obstore's own create-once: killed in the middle it leaves ``name#1`` behind, on which readers of the
        whole folder stumble. Hidden names they all leave out.
        """
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        hidden = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with hidden.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())  # the commit point must not come back empty after a power cut
            os.link(hidden, target)
        finally:
            hidden.unlink(missing_ok=True)

    def _call(self, path: str, operation: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return operation(self._driver, *args, **kwargs)
        except (AlreadyExistsError, FileExistsError):
            raise AlreadyExists(f"{self.uri}/{path}: it is there already.") from None
        except (NotFoundError, FileNotFoundError):
            raise NotFound(f"{self.uri}/{path}: there is no such object.") from None
        except (BaseError, OSError) as exc:
            raise StoreUnavailable(f"store {self.uri}: {path} failed ({_first_line(exc)}).") from None


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


def _first_line(exc: BaseException) -> str:
    return (str(exc) or type(exc).__name__).splitlines()[0][:300]
