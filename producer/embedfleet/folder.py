"""A folder as a store. Not which store a URI names (store.py).

Plain files, without obstore: its threads do not live on in a forked child, where every call would hang, and its
create-once, killed in the middle, leaves ``name#1`` behind, on which readers of the whole folder stumble.
"""

import heapq
import os
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from embedfleet.errors import AlreadyExists, ConfigurationError, EmbedfleetError, NotFound, StoreUnavailable
from embedfleet.store import Store, canonical_uri, check_name, first_line, local_path

if TYPE_CHECKING:
    import pyarrow.dataset


MARKER = ".embedfleet-store"


class Folder(Store):
    """Objects are files. With ``make`` the folder and its marker are made; without the marker it is StoreUnavailable.

    An unmounted disk leaves an empty folder behind. What has no marker is no store, and nothing is written there.
    """

    def __init__(self, uri: str, *, make: bool = False) -> None:
        super().__init__(canonical_uri(uri))
        self.folder = local_path(urlsplit(self.uri).path)
        """The local folder."""
        if make:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / MARKER).touch()
            except OSError as exc:
                raise ConfigurationError(f"store {self.uri}: it can't be made ({first_line(exc)}).") from None

    def get(self, path: str) -> bytes:
        """The file's bytes."""
        with self._file(path) as file:
            return file.read_bytes()

    def tail(self, path: str, size_bytes: int) -> bytes:
        """The file's last bytes."""
        with self._file(path) as file, file.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - size_bytes))
            return stream.read()

    def exists(self, path: str) -> bool:
        """Whether the file is there."""
        try:
            with self._file(path) as file:
                return stat.S_ISREG(file.stat().st_mode)
        except NotFound:
            return False

    def create(self, path: str, data: bytes) -> None:
        """Write a file that must not be there yet, whole or not at all."""
        self._write(path, data, _link)

    def replace(self, path: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        self._write(path, data, Path.replace)

    def _write(self, path: str, data: bytes, put: Callable[[Path, Path], object]) -> None:
        try:
            with self._file(path) as target:
                self._write_file(target, data, put)
        except NotFound as exc:  # a folder that vanished meanwhile, not a missing object
            raise StoreUnavailable(str(exc)) from None

    def delete(self, path: str) -> None:
        """Remove a file, if it is there."""
        with suppress(NotFound), self._file(path) as file:
            file.unlink()

    def paths(self, prefix: str, after: str | None = None, limit: int | None = None) -> list[str]:
        """Files below a folder; hidden ones are still being written."""
        try:
            with self._file(prefix) as folder:
                every = (f"{prefix}/{name}" for name in _files_below(folder))
                found = (path for path in every if after is None or path > after)
                return sorted(found) if limit is None else heapq.nsmallest(limit, found)
        except NotFound:
            return []

    def check_writable(self) -> None:
        """Write and remove a probe file."""
        if not self._is_there():
            raise self._gone()
        probe = f".embedfleet-probe-{uuid.uuid4().hex}"
        try:
            self.create(probe, b"")
        except EmbedfleetError as exc:
            raise ConfigurationError(f"store {self.uri}: it can't be written. {exc}") from None
        (self.folder / probe).unlink(missing_ok=True)

    def dataset(self, paths: Sequence[str]) -> "pyarrow.dataset.Dataset":
        """Parquet files as one Dataset."""
        import pyarrow.dataset as ds

        return ds.dataset([str(self.folder / path) for path in paths], format="parquet")

    @contextmanager
    def _file(self, path: str) -> Iterator[Path]:
        """Where the object is; inside, every error becomes one of ours."""
        check_name(path)
        try:
            yield self.folder / path
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise (self._not_found(path, exc) if self._is_there() else self._gone()) from None
        except (OSError, ValueError) as exc:
            raise self._unavailable(path, exc) from None

    def _is_there(self) -> bool:
        return (self.folder / MARKER).is_file()

    def _write_file(self, target: Path, data: bytes, put: Callable[[Path, Path], object]) -> None:
        """Written in full under a hidden name, which readers leave out, then put in place: never half an object."""
        if not self._is_there():
            raise FileNotFoundError("no such store")
        made = self._make_folders(target.parent)
        hidden = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with hidden.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())  # the commit point must not come back empty after a power cut
            put(hidden, target)
            for folder in [target.parent, *(new.parent for new in made)]:
                _sync_folder(folder)
        finally:
            hidden.unlink(missing_ok=True)

    def _make_folders(self, folder: Path) -> list[Path]:
        """Make what is missing of them, but no job's folder below which something lies: a part goes to a job."""
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        if folder == self.folder and len(missing) > 1:
            raise FileNotFoundError("no such job")
        for new in reversed(missing):
            new.mkdir(exist_ok=True)
        return missing


def _files_below(folder: Path, prefix: str = "") -> Iterator[str]:
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from _files_below(Path(entry.path), f"{prefix}{entry.name}/")
        elif not entry.name.startswith("."):
            yield prefix + entry.name


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
