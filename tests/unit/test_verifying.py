"""Verifying a job: which texts are sampled, and what is said of vectors that do not agree."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedfleet import EmbedSettings, Job
from embedfleet.agreement import cosines, is_unit, least_cosine
from embedfleet.errors import NotFinished, NotFound
from embedfleet.folder import Folder
from embedfleet.testing import InMemoryFleet
from embedfleet.verifying import Comparison, Verification, sample

Change = Callable[[np.ndarray[Any, Any]], object]


@pytest.fixture
def fleet() -> Iterator[InMemoryFleet]:
    with InMemoryFleet() as running:
        yield running


def verified(fleet: InMemoryFleet, job: Job, size: int = 100) -> Verification:
    """As the command does it."""
    comparison = Comparison(job)
    for each in sample(job, size):
        again = fleet.submit([text.record for text in each.texts], settings=each.settings)
        comparison.add(each, again.folder)
    return comparison.result()


def tamper(job: Job, change: Change, number: int = 0) -> None:
    """Change vectors of a part behind everybody's back."""
    [file] = Path(str(job.uri).removeprefix("file://")).glob(f"parts/{number:08d}.parquet")
    table = pq.read_table(file)
    column = table["embedding"].combine_chunks()
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size).copy()
    change(vectors)
    rewritten = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), column.type.list_size)
    pq.write_table(table.set_column(2, table.schema.field(2), rewritten), file)


def test_the_same_vectors_agree(fleet: InMemoryFleet) -> None:
    job = fleet.submit([f"text {n}" for n in range(600)] + [""])
    found = verified(fleet, job)
    assert (found.texts, found.vectors, found.below, found.differing, found.differences) == (100, 100, 0, [], [])
    assert found.cosine_min == pytest.approx(1, abs=1e-7)
    assert found.least == 0.99999
    assert len(found.verified_by) == 1


def test_one_vector_that_was_changed_is_named(fleet: InMemoryFleet) -> None:
    job = fleet.submit(f"text {n}" for n in range(50))

    def swap(vectors: np.ndarray[Any, Any]) -> None:
        vectors[7] = vectors[8]

    tamper(job, swap)
    found = verified(fleet, job)
    assert (found.texts, found.below) == (50, 1)
    assert [each["id"] for each in found.differing] == ["7"]
    assert found.cosine_min is not None
    assert found.cosine_median is not None
    assert found.cosine_min < 0.5 < 0.99999 < found.cosine_median


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "cosine 0.000000"), (np.inf, "cosine 0.000000"), (0, "cosine 0.000000")]
)
def test_what_is_no_vector_agrees_with_nothing(fleet: InMemoryFleet, value: float, reason: str) -> None:
    job = fleet.submit(f"text {n}" for n in range(5))
    tamper(job, lambda vectors: vectors[2].fill(value))
    found = verified(fleet, job)
    assert [(each["id"], each["reason"]) for each in found.differing] == [("2", reason)]


def test_a_vector_of_another_norm_does_not_agree(fleet: InMemoryFleet) -> None:
    job = fleet.submit(f"text {n}" for n in range(5))

    def scale(vectors: np.ndarray[Any, Any]) -> None:
        vectors[3] *= 1.01

    tamper(job, scale)
    [found] = verified(fleet, job).differing
    assert (found["id"], found["reason"]) == ("3", "the vector that was written has not norm 1")


def test_a_sample_is_embedded_with_the_jobs_settings_and_past_the_cache(fleet: InMemoryFleet) -> None:
    """What is in the cache may be what is to be verified."""
    job = fleet.submit(["a text"], settings=EmbedSettings(encoding="float16", on_overflow="truncate"))
    [each] = sample(job, 10)
    assert each.settings == job.spec.settings.model_copy(update={"cache": "off"})


def test_float16_agrees_as_float32_does(fleet: InMemoryFleet) -> None:
    job = fleet.submit([f"text {n}" for n in range(50)], settings=EmbedSettings(encoding="float16"))
    found = verified(fleet, job)
    assert (found.below, found.least) == (0, 0.99999)


def test_the_sample_is_by_chance_and_always_the_same(fleet: InMemoryFleet) -> None:
    job = fleet.submit(("" if n % 3 == 0 else f"text {n}") for n in range(2000))
    ids = [[text.record.id for each in sample(job, 40) for text in each.texts] for _ in range(2)]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 40
    assert all(int(record_id) % 3 for record_id in ids[0])
    assert len({int(record_id) // 512 for record_id in ids[0]}) > 1, "from several parts"
    assert len({text.record.id for each in sample(job, 5000) for text in each.texts}) == 1333


def test_of_many_parts_only_some_are_looked_at(fleet: InMemoryFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    job = fleet.submit(f"text {n}" for n in range(5000))
    assert job.wait().batches_done == 10
    looked: list[str] = []
    get, tail = Folder.get, Folder.tail

    def counted_get(store: Folder, path: str) -> bytes:
        looked.append(path)
        return get(store, path)

    def counted_tail(store: Folder, path: str, size_bytes: int) -> bytes:
        looked.append(path)
        return tail(store, path, size_bytes)

    monkeypatch.setattr(Folder, "get", counted_get)
    monkeypatch.setattr(Folder, "tail", counted_tail)
    assert sum(len(each.texts) for each in sample(job, 2)) == 2
    assert len([path for path in looked if "/parts/" in path]) <= 4, "the ends of two parts, then these"


def test_the_texts_of_a_retry_are_verified_with_its_settings(fleet: InMemoryFleet) -> None:
    job = fleet.submit(["a text", "word " * 5000])
    assert job.retry(on_overflow="truncate") is not None
    by_policy = {each.settings.on_overflow: [text.record.id for text in each.texts] for each in sample(job, 10)}
    assert by_policy == {"error": ["0"], "truncate": ["1"]}
    found = verified(fleet, job)
    assert (found.texts, found.below, len(found.verified_by)) == (2, 0, 2)


def test_what_made_the_vectors_is_compared_field_by_field(fleet: InMemoryFleet) -> None:
    job = fleet.submit(["a text", "another text"])
    [each] = sample(job, 10)
    other = fleet.submit([text.record for text in each.texts], settings=EmbedSettings(encoding="float16"))
    comparison = Comparison(job)
    comparison.add(each, other.folder)
    assert comparison.result().differences == [{"field": "encoding", "before": "float32", "now": "float16", "texts": 2}]


def test_a_text_that_has_an_error_now_is_named(fleet: InMemoryFleet) -> None:
    job = fleet.submit(["a text", "word " * 5000], settings=EmbedSettings(on_overflow="truncate"))
    [each] = sample(job, 10)
    other = fleet.submit([text.record for text in each.texts], settings=EmbedSettings(on_overflow="error"))
    comparison = Comparison(job)
    comparison.add(each, other.folder)
    [found] = comparison.result().differing
    assert found["id"] == "1"
    assert found["reason"].startswith("now it has an error: too_long: ")


def test_a_job_without_a_vector(fleet: InMemoryFleet) -> None:
    with pytest.raises(NotFound, match="no text of it has a vector"):
        sample(fleet.submit(["", " "]), 10)


def test_a_job_that_is_not_finished(fleet: InMemoryFleet) -> None:
    job = fleet.submit(f"text {n}" for n in range(1000))
    Path(str(job.uri).removeprefix("file://"), "parts", "00000001.parquet").unlink()
    with pytest.raises(NotFinished, match="1 of 2 batches have an outcome"):
        sample(job, 10)


def test_thresholds() -> None:
    assert least_cosine("float32", "float32") == 0.99999
    assert least_cosine("float32", "bfloat16") == least_cosine("None") == 0.999


def test_cosines_are_of_float64() -> None:
    """In float16 squares of small numbers are zero, and in float32 the last digits are lost."""
    small = np.full((1, 8), 1e-4, np.float16)
    assert cosines(small, small)[0] == pytest.approx(1, abs=1e-12)
    assert list(is_unit(np.array([[1.0, 0], [1.001, 0], [1.01, 0], [np.nan, 0]]))) == [True, True, False, False]
