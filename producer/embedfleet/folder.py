"""A folder as a store. Not which store a URI names (store.py)."""

import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from obstore.store import LocalStore, ObjectStore

from embedfleet.errors import AlreadyExists, ConfigurationError, EmbedfleetError, NotFound, StoreUnavailable
from embedfleet.store import Store, canonical_uri, first_line

if TYPE_CHECKING:
    import pyarrow.dataset


class Folder(Store):
    """Objects are files. With ``make`` the folder is made; else one that is not there is StoreUnavailable."""

    def __init__(self, uri: str, *, make: bool = False) -> None:
        super().__init__(canonical_uri(uri))
        self.folder = Path(unquote(urlsplit(self.uri).path))
        """The local folder."""
        if make:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as exc:
                raise ConfigurationError(f"store {self.uri}: it can't be made ({first_line(exc)}).") from None

    def create(self, path: str, data: bytes) -> None:
        """Write an object that must not be there yet, atomically. Raises AlreadyExists or StoreUnavailable."""
        try:
            self._call(path, lambda _: self._create_file(path, data))
        except NotFound as exc:  # a folder that vanished meanwhile, not a missing object
            raise StoreUnavailable(str(exc)) from None

    def check_writable(self) -> None:
        """Write and remove a probe file."""
        if not self.folder.is_dir():
            raise StoreUnavailable(f"store {self.uri}: it is not there. Mount it, or make the folder.")
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

    def _open(self) -> ObjectStore:
        return LocalStore(self.folder)

    def _is_gone(self, exc: BaseException) -> bool:  # noqa: ARG002 - the folder itself says it
        return not self.folder.is_dir()

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
