"""One interface to object stores: folders now, S3 and others through the same library. Not what is kept where."""

import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore

from embedfleet.errors import (
    AlreadyExists,
    ConfigurationError,
    ContractError,
    EmbedfleetError,
    NotFound,
    StoreNotAllowed,
    StoreUnavailable,
)
from embedfleet.settings import mask_url


def canonical_uri(store: str) -> str:
    """A store's URI in one spelling: absolute, no trailing slash; a path becomes ``file://``.

    >>> canonical_uri("/data/vectors/")
    'file:///data/vectors'
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", store)
    if scheme and scheme[1].lower() != "file":
        raise ConfigurationError(f"store {mask_url(store)}: {scheme[1]}:// is not supported. Give a folder.")
    try:
        path = Path(unquote(urlsplit(store).path)) if scheme else Path(store).expanduser()
        return path.resolve().as_uri()
    except (ValueError, OSError, RuntimeError) as exc:  # NUL, half a surrogate, an unknown user, a loop of links
        raise ConfigurationError(f"store {store!r}: it is no path ({_first_line(exc)}).") from None


class Store:
    """Objects under one URI. Every error of the driver leaves here as one of embedfleet's.

    A producer makes the store (``make=True``); for everybody else one that is not there is StoreUnavailable.
    """

    def __init__(self, uri: str, *, make: bool = False) -> None:
        self.uri = canonical_uri(uri)
        self.folder = Path(unquote(urlsplit(self.uri).path))
        """The local folder."""
        self._opened: ObjectStore | None = None
        if make:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as exc:
                raise ConfigurationError(f"store {self.uri}: it can't be made ({_first_line(exc)}).") from None

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

    def create(self, path: str, data: bytes) -> None:
        """Write an object that must not be there yet, atomically. Raises AlreadyExists or StoreUnavailable."""
        try:
            self._call(path, lambda _: self._create_file(path, data))
        except NotFound as exc:  # a folder that vanished meanwhile, not a missing object
            raise StoreUnavailable(str(exc)) from None

    def delete(self, path: str) -> None:
        """Remove an object; one that is not there is no error."""
        try:
            self._call(path, lambda driver: obstore.delete(driver, path))
        except NotFound:
            return

    def paths(self, prefix: str, after: str | None = None) -> Iterator[str]:
        """Paths under ``prefix`` in string order, from the one behind ``after`` on."""

        def found(driver: ObjectStore) -> list[str]:
            pages = obstore.list(driver, prefix=prefix, offset=after)
            return sorted(meta["path"] for page in pages for meta in page)

        yield from self._call(prefix, found)

    def check_writable(self) -> None:
        """Write and remove a probe object. Raises ConfigurationError naming the store."""
        probe = f".embedfleet-probe-{uuid.uuid4().hex}"
        try:
            self.create(probe, b"")
            self.delete(probe)
        except EmbedfleetError as exc:
            raise ConfigurationError(f"store {self.uri}: it can't be written. {exc}") from None

    def _create_file(self, path: str, data: bytes) -> None:
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
            _link(hidden, target)
            _sync_folder(target.parent)
        finally:
            hidden.unlink(missing_ok=True)

    def _call(self, path: str, operation: Callable[[ObjectStore], Any]) -> Any:
        _check_name(path)
        try:
            if self._opened is None:
                self._opened = LocalStore(self.folder)
            return operation(self._opened)
        except (NotFoundError, FileNotFoundError) as exc:
            if not self.folder.is_dir():  # an unmounted disk is no reason to take a job for deleted
                raise StoreUnavailable(f"store {self.uri}: it is not there.") from None
            raise NotFound(f"{self.uri}/{path}: there is no such object ({_first_line(exc)}).") from None
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


def _link(source: Path, target: Path) -> None:
    """The one step that makes an object: it fails if the name is taken, whoever else tries."""
    try:
        os.link(source, target)
    except FileExistsError:
        if target.is_file():
            raise AlreadyExists(f"{target}: it is there already.") from None
        raise  # something else is in the way; that is no commit


def _sync_folder(folder: Path) -> None:
    """Make the new name last, as the contents do."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_name(path: str) -> None:
    """Names lead nowhere but below the store."""
    parts = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise ContractError(f"object name {path!r}: it is not a plain path.")
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise ContractError(f"object name {path!r}: it has no UTF-8 form.") from None


def _first_line(exc: BaseException) -> str:
    return (str(exc) or type(exc).__name__).splitlines()[0][:300]
