"""Which files the inputs name: files as given, directories recursively. Not what is in them (inputs.py, formats.py)."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from embedfleet.errors import InputError
from embedfleet.formats import Format, format_of


@dataclass(frozen=True, slots=True)
class Source:
    """A file: where it is, what errors call it, and what ids made up for its records start with."""

    path: str
    shown: str
    name: str
    format: Format


def sources_of(inputs: Sequence[str]) -> list[Source]:
    """The files to read, in order: inputs as they come, what is below a directory sorted by its path in there.

    Raises InputError for what is missing, unreadable, no regular file, or an empty directory.
    """
    sources: list[Source] = []
    for path in inputs:
        found = sorted(_files(path, "", frozenset()), key=lambda source: source.name)
        if not found:
            raise InputError(f"{_printable(path)}: the directory has no files but hidden ones. Name another.")
        sources += found
    return sources


def _files(path: str, name: str, parents: frozenset[tuple[int, int]]) -> Iterator[Source]:
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
        if not entry.startswith("."):
            inner = f"{name}/{_printable(entry)}" if name else _printable(entry)
            yield from _files(os.path.join(path, entry), inner, parents | {identity})  # noqa: PTH118


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
