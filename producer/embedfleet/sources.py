"""Which files the inputs name: files as given, directories recursively. Not what is in them (inputs.py, formats.py)."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from embedfleet.errors import InputError
from embedfleet.formats import Format, format_of
from embedfleet.store import local_path

_Identity = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Source:
    """A file: where it is, what errors call it, and what ids made up for its records start with."""

    path: str
    shown: str
    name: str
    format: Format


def sources_of(inputs: Sequence[str], store: str | None = None) -> list[Source]:
    """The files to read, in order: inputs as they come, what is below a directory sorted by its path in there.

    ``store``: URI of a store; if it is a folder below a directory, it is left out. Raises InputError for what is
    missing, unreadable, no regular file, an empty directory, or the store itself.
    """
    sources: list[Source] = []
    left_out = _identity_of(store)
    for path in inputs:
        if left_out is not None and _identity(path) == left_out:
            raise InputError(
                f"{_printable(path)}: it is the store. Put the texts, or the vectors, into another folder."
            )
        found = sorted(_files(path, "", frozenset(), left_out), key=lambda source: source.name)
        if not found:
            raise InputError(f"{_printable(path)}: the directory has no files but hidden ones. Name another.")
        sources += found
    return sources


def _files(path: str, name: str, parents: frozenset[_Identity], left_out: _Identity | None) -> Iterator[Source]:
    """The file at ``path``, or all below it. ``name`` is its path within the directory that was given, if any."""
    shown = _printable(path)
    try:
        info = os.stat(path)  # noqa: PTH116 (paths are kept as they were given)
        entries = sorted(os.listdir(path)) if stat.S_ISDIR(info.st_mode) else []  # noqa: PTH208
    except (OSError, ValueError) as exc:
        raise unreadable(shown, exc) from None
    if stat.S_ISREG(info.st_mode):
        yield Source(path, shown, name or shown, format_of(path))
        return
    if not stat.S_ISDIR(info.st_mode):
        raise InputError(f"{shown}: no regular file; it could be read only once. Pipe it in and name - instead.")
    identity = (info.st_dev, info.st_ino)
    if identity in parents:
        raise InputError(f"{shown}: a link back to a directory that contains it. Remove the link.")
    for entry in entries:
        below = os.path.join(path, entry)  # noqa: PTH118
        if not entry.startswith(".") and (left_out is None or _identity(below) != left_out):
            inner = f"{name}/{_printable(entry)}" if name else _printable(entry)
            yield from _files(below, inner, parents | {identity}, left_out)


def _identity_of(store: str | None) -> _Identity | None:
    return _identity(str(local_path(urlsplit(store).path))) if store and store.startswith("file:") else None


def _identity(path: str) -> _Identity | None:
    """Device and inode of what is there."""
    try:
        info = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return info.st_dev, info.st_ino


def _printable(path: str) -> str:
    """A path as text: bytes that are no UTF-8 come from the file system as lone surrogates."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def unreadable(shown: str, exc: Exception) -> InputError:
    """An error of the operating system as an InputError."""
    if isinstance(exc, FileNotFoundError):
        return InputError(f"{shown}: no such file or directory. Check the path.")
    if isinstance(exc, PermissionError):
        return InputError(f"{shown}: permission denied. Make it readable for this user.")
    said = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
    return InputError(f"{shown}: can't be read ({said}). Check the file.")
