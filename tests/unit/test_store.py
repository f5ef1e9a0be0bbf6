"""The store on a folder: one winner for each object, order, ends of files, and no foreign exception ever."""

import os
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import obstore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.exceptions import BaseError, GenericError, PermissionDeniedError

from embedfleet.errors import (
    AlreadyExists,
    ConfigurationError,
    EmbedfleetError,
    NotFound,
    StoreNotAllowed,
    StoreUnavailable,
)
from embedfleet.folder import MARKER, Folder
from embedfleet.jobfolder import JobFolder, job_id_of
from embedfleet.s3 import S3
from embedfleet.store import Store, canonical_uri, check_allowed, open_store


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> S3:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return S3("s3://vectors/a")


# Creating


def test_of_twenty_that_create_the_same_object_one_wins_and_its_content_stays(store: Folder) -> None:
    for round_ in range(10):
        path, start = f"parts/{round_}", threading.Barrier(20)
        contents = [b"%d " % n * 10_000 for n in range(20)]

        def create(content: bytes, path: str = path, start: threading.Barrier = start) -> bool:
            start.wait()
            try:
                store.create(path, content)
            except AlreadyExists:
                return False
            return True

        with ThreadPoolExecutor(20) as pool:
            won = list(pool.map(create, contents))
        assert won.count(True) == 1
        assert store.get(path) == contents[won.index(True)]


def test_what_is_there_is_not_written_over(store: Folder) -> None:
    store.create("a/b", b"first")
    with pytest.raises(AlreadyExists, match="a/b: it is there already"):
        store.create("a/b", b"second")
    assert store.get("a/b") == b"first"


def test_an_object_is_there_whole_or_not_at_all(store: Folder) -> None:
    """A reader that looks all the time never sees the beginning of an object."""
    content = b"x" * 5_000_000
    writer = threading.Thread(target=store.create, args=("large", content))
    writer.start()
    while not store.exists("large"):
        pass
    assert len(store.get("large")) == len(content)
    writer.join()


# Reading


def test_the_end_of_an_object(store: Folder) -> None:
    store.create("a", b"0123456789")
    store.create("empty", b"")
    assert store.tail("a", 3) == b"789"
    assert store.tail("a", 10) == store.tail("a", 1000) == b"0123456789"
    assert store.tail("empty", 3) == b""


def test_paths_come_in_string_order_behind_the_given_one(store: Folder) -> None:
    store.create("job/job.json", b"")
    for number in (10, 2, 99_999_999, 1, 0):
        store.create(f"job/parts/{number:08d}.parquet", b"")
    store.create("job/parts-of-another/00000003.parquet", b"")
    store.create("job/sealed.json", b"")
    found = list(store.paths("job/parts"))
    assert found == [f"job/parts/{number:08d}.parquet" for number in (0, 1, 2, 10, 99_999_999)]
    assert list(store.paths("job/parts", after=found[1])) == found[2:]
    assert list(store.paths("job/parts", after="job/parts/00000005.parquet")) == found[3:]
    assert list(store.paths("job/parts", after=found[-1])) == []
    assert list(store.paths("job/parts", after=found[0], limit=2)) == found[1:3]
    assert list(store.paths("job/parts", limit=1000)) == found
    assert list(store.paths("nothing")) == []


def test_more_objects_than_one_page_of_a_listing(store: Folder) -> None:
    names = [f"parts/{number:08d}" for number in range(2500)]
    (store.folder / "parts").mkdir()
    for name in names:
        (store.folder / name).touch()
    assert list(store.paths("parts")) == names
    assert list(store.paths("parts", after=names[1200])) == names[1201:]


def test_what_is_not_there(store: Folder) -> None:
    assert not store.exists("a")
    for read in (lambda: store.get("a"), lambda: store.tail("a", 1)):
        with pytest.raises(NotFound, match="a: there is no such object"):
            read()


# Every error is one of ours

OPERATIONS: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get("a/b"),
    "tail": lambda store: store.tail("a/b", 5),
    "exists": lambda store: store.exists("a/b"),
    "create": lambda store: store.create("a/new", b"1"),
    "paths": lambda store: list(store.paths("a")),
    "check_writable": lambda store: store.check_writable(),
}


def vanish(store: Folder) -> None:
    shutil.rmtree(store.folder)


def become_a_file(store: Folder) -> None:
    shutil.rmtree(store.folder)
    store.folder.write_text("a file in its place")


def become_a_link_to_itself(store: Folder) -> None:
    shutil.rmtree(store.folder)
    store.folder.symlink_to(store.folder)


@pytest.mark.parametrize("harm", [vanish, become_a_file, become_a_link_to_itself])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_folder_that_is_taken_away_causes_only_our_errors(
    store: Folder, name: str, harm: Callable[[Folder], None]
) -> None:
    store.create("a/b", b"1")
    harm(store)
    with suppress(EmbedfleetError):
        OPERATIONS[name](store)


@pytest.mark.parametrize(
    "path", ["", "/", "..", "../a", "/{outside}", "a/../../a", "a//b", "a\0b", "\ud800", "x" * 5000]
)
def test_an_odd_path_causes_only_our_errors_and_leads_nowhere_else(store: Folder, path: str) -> None:
    outside = store.folder.parent / "a"
    outside.write_text("outside")
    path = path.format(outside=outside)
    for operation in (store.get, store.exists, lambda odd: store.tail(odd, 1)):
        with suppress(EmbedfleetError):
            operation(path)
    for operation in (lambda odd: list(store.paths(odd)), lambda odd: store.create(f"{odd}-new", b"1")):
        with suppress(EmbedfleetError):
            operation(path)
    assert list(store.folder.parent.iterdir()) in ([outside, store.folder], [store.folder, outside])
    assert outside.read_text() == "outside"


@pytest.mark.parametrize(
    "driver_error",
    [GenericError("timed out"), PermissionDeniedError("403"), BaseError("?"), OSError(5, "I/O error"), TimeoutError()],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize(
    ("function", "name"),
    [("get", "get"), ("get", "tail"), ("head", "exists"), ("list", "paths")],
)
def test_every_error_of_the_driver_is_mapped(
    bucket: S3, monkeypatch: pytest.MonkeyPatch, function: str, name: str, driver_error: Exception
) -> None:
    monkeypatch.setattr(obstore, function, raising(driver_error))
    with pytest.raises(StoreUnavailable, match=str(bucket.uri)):
        OPERATIONS[name](bucket)


@pytest.mark.parametrize("error", [OSError(5, "I/O error"), OSError(116, "Stale"), PermissionError(13, "no")])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        ("pathlib.Path.read_bytes", "get"),
        ("pathlib.Path.open", "tail"),
        ("pathlib.Path.stat", "exists"),
        ("os.scandir", "paths"),
    ],
)
def test_every_error_of_reading_a_folder_is_mapped(
    store: Folder, monkeypatch: pytest.MonkeyPatch, function: str, name: str, error: OSError
) -> None:
    store.create("a/b", b"1")
    with monkeypatch.context() as patched:
        patched.setattr(function, raising(error))
        with pytest.raises(StoreUnavailable, match=str(store.uri)):
            OPERATIONS[name](store)


def test_a_bucket_is_refused_in_a_forked_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """There obstore's calls would hang."""
    monkeypatch.setattr("embedfleet.s3._process", os.getpid() + 1)
    with pytest.raises(ConfigurationError, match="this process was forked after"):
        S3("s3://vectors/a").get("b")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12, of any fork where there are threads
def test_a_folder_works_in_a_forked_child(store: Folder) -> None:
    store.create("a", b"1")
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        assert pool.submit(store.get, "a").result(timeout=10) == b"1"
        pool.submit(store.create, "b", b"2").result(timeout=10)
    assert store.get("b") == b"2"


NO_SPACE, READ_ONLY, STALE = OSError(28, "No space left"), OSError(30, "Read-only"), OSError(116, "Stale file handle")


@pytest.mark.parametrize("error", [NO_SPACE, READ_ONLY, STALE, PermissionError(13, "Denied")], ids=str)
@pytest.mark.parametrize("function", ["link", "fsync", "mkdir"])
def test_every_error_of_writing_is_mapped_and_leaves_nothing_behind(
    store: Folder, monkeypatch: pytest.MonkeyPatch, function: str, error: OSError
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, function, raising(error))
        with pytest.raises(StoreUnavailable, match=str(store.uri)):
            store.create("a/new", b"1")
    assert [path for path in store.folder.rglob("*") if path.is_file()] == [store.folder / MARKER]


def a_file(place: Path) -> None:
    place.write_text("a file in its place")


def a_link_to_nowhere(place: Path) -> None:
    place.symlink_to(place.parent / "nowhere")


@pytest.mark.parametrize("in_the_way", [a_file, a_link_to_nowhere])
def test_what_is_in_the_way_of_a_folder_is_not_the_object(store: Folder, in_the_way: Callable[[Path], None]) -> None:
    """A worker that is told "it exists" takes its batch for committed: then it would be lost."""
    in_the_way(store.folder / "parts")
    with pytest.raises(StoreUnavailable):
        store.create("parts/00000000.parquet", b"1")


def test_a_folder_that_vanishes_while_it_is_written_to_is_no_missing_object(
    store: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", raising(FileNotFoundError(2, "No such file or directory")))
    with pytest.raises(StoreUnavailable):
        store.create("parts/00000000.parquet", b"1")


def raising(error: Exception) -> Callable[..., None]:
    def broken(*_: object, **__: object) -> None:
        raise error

    return broken


@pytest.mark.parametrize("driver_error", [GenericError("cut off"), OSError(5, "I/O error")], ids=repr)
@pytest.mark.parametrize("name", ["get", "tail"])
def test_an_object_that_breaks_off_while_it_is_read_is_mapped_too(
    bucket: S3, monkeypatch: pytest.MonkeyPatch, name: str, driver_error: Exception
) -> None:
    class Body:
        def bytes(self) -> bytes:
            raise driver_error

    monkeypatch.setattr(obstore, "get", lambda *_, **__: Body())
    with pytest.raises(StoreUnavailable):
        OPERATIONS[name](bucket)


@pytest.mark.parametrize("driver_error", [GenericError("cut off"), OSError(5, "I/O error")], ids=repr)
def test_a_listing_that_breaks_off_is_mapped_too(
    bucket: S3, monkeypatch: pytest.MonkeyPatch, driver_error: Exception
) -> None:
    def pages(*_: object, **__: object) -> object:
        yield [{"path": "a"}]
        raise driver_error

    monkeypatch.setattr(obstore, "list", pages)
    with pytest.raises(StoreUnavailable):
        list(bucket.paths("a"))


@pytest.mark.parametrize(
    "uri",
    [
        "s3://",
        "s3://b/x",
        "s3://bucket/a//b",
        "s3://bucket/../a",
        "gs://bucket/x",
        "http://h/x",
        "/proc/nope/x",
        "/dev/null/x",
        "a\0b",
        "file://[",
        "~nosuchuser/x",
        "\ud800",
    ],
)
def test_a_store_that_cannot_be_is_a_configuration_error(uri: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^store "):
        open_store(uri, make=True)


def test_credentials_in_a_store_are_not_repeated() -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_store("s3://key:very-secret@bucket/vectors")
    assert "very-secret" not in str(refused.value)


def test_a_store_that_can_be_written_is_left_as_it_was(store: Folder) -> None:
    before = list(store.folder.rglob("*"))
    store.check_writable()
    assert list(store.folder.rglob("*")) == before


def test_a_store_that_cannot_be_written_is_a_configuration_error(
    store: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", raising(READ_ONLY))
    with pytest.raises(ConfigurationError, match="it can't be written"):
        store.check_writable()


def unmount(store: Folder) -> None:
    """An empty folder is left."""
    vanish(store)
    store.folder.mkdir()


@pytest.mark.parametrize("name", ["get", "tail", "exists", "create", "paths", "check_writable"])
def test_a_mount_point_without_its_disk_is_no_store(store: Folder, name: str) -> None:
    """Nothing there is "not found", and nothing is written where the disk would hide it."""
    store.create("a/b", b"1")
    unmount(store)
    with pytest.raises(StoreUnavailable, match="it is not there"):
        OPERATIONS[name](store)
    assert list(store.folder.iterdir()) == []


def test_a_part_does_not_make_a_job_folder(store: Folder) -> None:
    with pytest.raises(StoreUnavailable):
        JobFolder(store, "j-1").write_part(0, b"1")
    assert not (store.folder / "j-1").exists()


@pytest.mark.parametrize("harm", [vanish, become_a_file, unmount])
def test_a_store_that_is_not_there_may_be_there_later(store: Folder, harm: Callable[[Folder], None]) -> None:
    harm(store)
    with pytest.raises(StoreUnavailable, match="Mount it, or make it"):
        store.check_writable()


# One spelling of a URI


@pytest.mark.parametrize("spelling", ["{0}", "{0}/", "{0}/.", "{0}/x/..", "file://{0}", "file://{0}/", "file://{0}//"])
def test_a_folder_has_one_uri(tmp_path: Path, spelling: str) -> None:
    assert canonical_uri(spelling.format(tmp_path)) == f"file://{tmp_path}"


def test_a_relative_folder_is_below_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert canonical_uri("vectors") == f"file://{tmp_path}/vectors"
    assert canonical_uri(".") == f"file://{tmp_path}"


@given(st.lists(st.text(min_size=1, max_size=6).filter(lambda name: name not in (".", "..")), min_size=1, max_size=3))
def test_a_uri_leads_back_to_itself(names: list[str]) -> None:
    path = "/nowhere/" + "/".join(name.replace("\0", "0").replace("/", "%2f") for name in names)
    uri = canonical_uri(path)
    assert canonical_uri(uri) == uri
    assert check_allowed(uri, (path,)) == check_allowed(path, (uri,)) == uri


def test_odd_names_of_folders_work_throughout(tmp_path: Path) -> None:
    for name in ("with space", "ü 東京", "per%20cent", "hash#tag?query", "a:b", "-"):
        found = open_store(str(tmp_path / name), make=True)
        found.create("a/b", b"1")
        assert found.folder == tmp_path / name
        assert (tmp_path / name / "a" / "b").read_bytes() == b"1"
        assert open_store(found.uri).get("a/b") == b"1"


# Allowed stores


def test_nothing_is_allowed_by_default() -> None:
    with pytest.raises(StoreNotAllowed, match=r"this worker may use none\. Add it to EMBEDFLEET_ALLOWED_STORES"):
        check_allowed("/data", ())


def test_one_of_several_is_enough() -> None:
    assert check_allowed("/b/team", ("/a", "/b")) == "file:///b/team"
    assert check_allowed("/b", ("/",)) == "file:///b"


@pytest.mark.parametrize(
    "uri", ["/data-evil", "/dat", "/", "/data/../etc", "file:///data-evil", "file:///data/%2e%2e/etc"]
)
def test_what_only_looks_allowed_is_not(uri: str) -> None:
    with pytest.raises(StoreNotAllowed):
        check_allowed(uri, ("/data",))


# Job folders


@given(st.text(st.characters()))
def test_any_key_makes_a_job_id_that_suits_paths_and_messages(key: str) -> None:
    assert re.fullmatch(r"[a-z0-9-]{1,64}", job_id_of(key))


@given(st.text(max_size=5), st.text(max_size=5))
def test_different_keys_are_different_jobs(first: str, second: str) -> None:
    assert (job_id_of(first) == job_id_of(second)) == (first == second)


def test_parts_are_listed_in_order_and_behind_a_number(store: Folder) -> None:
    folder = JobFolder(store, "j-1")
    store.create("j-1/job.json", b"")
    store.create("j-10/job.json", b"")
    for number in (3, 0, 10, 1):
        folder.write_part(number, b"")
    store.create("j-1/parts/readme.txt", b"")
    store.create("j-10/parts/00000007.parquet", b"")
    assert list(folder.parts()) == [0, 1, 3, 10]
    assert list(folder.parts(after=1)) == [3, 10]
    assert list(folder.parts(after=2)) == [3, 10]
    assert list(folder.parts(after=10)) == []


def test_the_second_write_of_a_part_says_so(store: Folder) -> None:
    folder = JobFolder(store, "j-1")
    store.create("j-1/job.json", b"")
    assert folder.write_part(0, b"first")
    assert not folder.write_part(0, b"second")
    assert store.get(folder.part_path(0)) == b"first"


def test_a_job_that_is_not_there(store: Folder) -> None:
    folder = JobFolder(store, "j-1")
    assert not folder.exists()
    assert not folder.is_cancelled()
    assert folder.sealed() is None
    assert folder.manifest() is None
    with pytest.raises(NotFound, match="job j-1: there is none in file://"):
        folder.spec()


def test_cancelling_twice_is_cancelling(store: Folder) -> None:
    folder = JobFolder(store, "j-1")
    folder.cancel()
    folder.cancel()
    assert folder.is_cancelled()
