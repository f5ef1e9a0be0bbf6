"""An S3 bucket, or what speaks its language, as a store. Not which store a URI names (store.py).

Region, endpoint and credentials are AWS' own variables (AWS_REGION, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …), or
the role of the machine or container; with boto3 installed also profiles.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import S3Store

from embedfleet.errors import AlreadyExists, ConfigurationError, NotFound, StoreUnavailable
from embedfleet.store import Store, check_name, first_line

if TYPE_CHECKING:
    import pyarrow.dataset

_CONNECT_TIMEOUT = "5s"
_TIMEOUT = "60s"  # of one request: a part of 512 vectors of 4096 numbers has 8 MB
# The driver's own tries, below the worker's policy: enough for a dropped connection.
_RETRIES: Any = {"max_retries": 2}
_PROBE = ".embedfleet-probe"
_process: int | None = None
"""Id of the process that first used a store here."""


class S3(Store):
    """Objects below a prefix of a bucket, which must be there."""

    def get(self, path: str) -> bytes:
        """The object's bytes."""
        return bytes(self._call(path, lambda driver: obstore.get(driver, path).bytes()))

    def tail(self, path: str, size_bytes: int) -> bytes:
        """The object's last bytes."""
        suffix: Any = {"range": {"suffix": size_bytes}}
        return bytes(self._call(path, lambda driver: obstore.get(driver, path, options=suffix).bytes()))

    def exists(self, path: str) -> bool:
        """Whether the object is there."""
        try:
            self._call(path, lambda driver: obstore.head(driver, path))
        except NotFound:
            return False
        return True

    def paths(self, prefix: str, after: str | None = None, limit: int | None = None) -> list[str]:
        """Objects below a prefix. S3 lists them in order, so that the first pages are enough for the first objects."""

        def found(driver: S3Store) -> list[str]:
            pages = obstore.list(driver, prefix=prefix, offset=after)
            return sorted(itertools.islice((meta["path"] for page in pages for meta in page), limit))

        listed: list[str] = self._call(prefix, found)
        return listed

    def create(self, path: str, data: bytes) -> None:
        """Write an object that must not be there yet, in one conditional request."""
        try:
            self._call(path, lambda driver: self._put(driver, path, data))
        except NotFound as exc:
            raise StoreUnavailable(f"store {self.uri}: there is no such bucket ({exc}).") from None

    def replace(self, path: str, data: bytes) -> None:
        """Write an object in one request."""
        try:
            self._call(path, lambda driver: obstore.put(driver, path, data, use_multipart=False))
        except NotFound as exc:
            raise StoreUnavailable(f"store {self.uri}: there is no such bucket ({exc}).") from None

    def delete(self, path: str) -> None:
        """Remove an object; S3 does not say whether it was there."""
        self._call(path, lambda driver: obstore.delete(driver, path))

    def check_writable(self) -> None:
        """Write a small object, twice: the second time must be refused."""
        try:
            for _ in range(2):
                self.create(_PROBE, b"")
        except AlreadyExists:
            return
        except StoreUnavailable as exc:
            raise StoreUnavailable(
                f"store {self.uri}: it can't be written. {exc} Check the bucket, AWS_REGION, AWS_ENDPOINT_URL and "
                "that the credentials may get, put and list."
            ) from None
        raise ConfigurationError(
            f"store {self.uri}: it wrote the same object twice though the second had If-None-Match: *. A batch could "
            "count twice there. Take AWS S3, or a server that honours conditional writes."
        )

    def dataset(self, paths: Sequence[str]) -> "pyarrow.dataset.Dataset":
        """Parquet objects as one Dataset."""
        import pyarrow.dataset as ds
        from obstore.fsspec import FsspecStore

        # fsspec would give out the one it made before, with the endpoint and credentials of then.
        options: dict[str, Any] = {**self._options, "skip_instance_cache": True}
        filesystem = FsspecStore("s3", **options)
        below = self.uri.removeprefix("s3://")
        return ds.dataset([f"{below}/{path}" for path in paths], filesystem=filesystem, format="parquet")

    @cached_property
    def _options(self) -> dict[str, Any]:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        client = {"connect_timeout": _CONNECT_TIMEOUT, "timeout": _TIMEOUT, "allow_http": endpoint.startswith("http:")}
        return {"client_options": client, "retry_config": _RETRIES, **_credentials()}

    @cached_property
    def _driver(self) -> S3Store:
        bucket, _, prefix = self.uri.removeprefix("s3://").partition("/")
        return S3Store(bucket, prefix=prefix or None, **self._options)

    def _call(self, path: str, operation: Callable[[S3Store], Any]) -> Any:
        check_name(path)
        _check_process()
        try:
            return operation(self._driver)
        except (NotFoundError, FileNotFoundError) as exc:
            raise (self._gone() if "NoSuchBucket" in str(exc) else self._not_found(path, exc)) from None
        except (BaseError, OSError) as exc:
            raise self._unavailable(path, exc) from None

    def _put(self, driver: S3Store, path: str, data: bytes) -> None:
        try:
            obstore.put(driver, path, data, mode="create", use_multipart=False)
        except AlreadyExistsError as exc:
            raise AlreadyExists(f"{self.uri}/{path}: it is there already ({first_line(exc)}).") from None


def _check_process() -> None:
    """The driver's threads do not live on in a forked child, where every call would hang."""
    global _process
    _process = _process or os.getpid()
    if _process != os.getpid():
        raise ConfigurationError(
            "S3: this process was forked after its parent had used an S3 store, whose threads are missing here. Use a "
            "fleet only after forking, or start processes by spawn."
        )


def _credentials() -> dict[str, Any]:
    """Profiles are boto3's to read; without it the driver looks at the environment and the machine's role."""
    if "AWS_PROFILE" not in os.environ or find_spec("boto3") is None:
        return {}
    from obstore.auth.boto3 import Boto3CredentialProvider

    return {"credential_provider": Boto3CredentialProvider()}
