"""A job's inputs again, as a new job: which inputs, under which settings, and when it would be the same job."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedfleet import EmbedSettings, Job
from embedfleet.asynchronous import AsyncFleet
from embedfleet.errors import JobMismatch, NotFinished, SettingsError
from embedfleet.testing import InMemoryFleet

QWEN = "Qwen/Qwen3-Embedding-0.6B"
RECORDS = [
    {"id": "a", "text": "a text", "lang": "en"},
    {"id": "empty", "text": ""},
    {"id": "number", "text": 7},
    {"id": "half", "text": "\ud800"},
    {"id": "long", "text": "word " * 40_000},
]


@pytest.fixture
def fleet() -> Iterator[InMemoryFleet]:
    with InMemoryFleet(model=QWEN) as running:
        yield running


def outcomes(job: Job) -> list[tuple[object, ...]]:
    return [(row["id"], row["error"], row["error_message"], row["lang"]) for row in job.rows()]


def test_every_input_comes_along_with_its_error_and_columns(fleet: InMemoryFleet) -> None:
    job = fleet.submit(RECORDS)

    again = job.reembed(settings=EmbedSettings(dimensions=32))

    assert again.id != job.id
    assert outcomes(again) == outcomes(job)
    assert [code for _, code, _, _ in outcomes(again)] == [None, "empty", "not_a_string", "lone_surrogate", "too_long"]
    assert again.spec.settings == job.spec.settings.model_copy(update={"dimensions": 32})
    assert again.results().to_table()["embedding"].type.list_size == 32


def test_the_inputs_of_a_retry_are_all_of_its_job(fleet: InMemoryFleet) -> None:
    job = fleet.submit(RECORDS)
    child = job.retry(on_overflow="truncate")
    assert child is not None

    again = child.reembed(settings=EmbedSettings(dimensions=32))

    assert [row["id"] for row in again.rows()] == [record["id"] for record in RECORDS]
    assert again.spec.settings.on_overflow == "error", "the settings are those of the job, not of its retry"


def test_an_enqueued_job_has_inputs_too(fleet: InMemoryFleet) -> None:
    again = fleet.enqueue(["a text", ""], ids=["a", "b"]).reembed(settings=EmbedSettings(dimensions=32))
    assert [(row["id"], row["error"]) for row in again.rows()] == [("a", None), ("b", "empty")]


def test_many_batches(fleet: InMemoryFleet) -> None:
    job = fleet.submit(f"text {n}" for n in range(1300))
    again = job.reembed(settings=EmbedSettings(input_type="query"))
    assert again.status().batches == job.status().batches == 3
    assert [row["id"] for row in again.rows()] == [row["id"] for row in job.rows()]


def test_the_same_call_goes_on_with_the_same_job(fleet: InMemoryFleet) -> None:
    job = fleet.submit(RECORDS)
    first = job.reembed(settings=EmbedSettings(dimensions=32))
    assert job.reembed(settings=EmbedSettings(dimensions=32)).id == first.id
    assert job.reembed(settings=EmbedSettings(dimensions=64)).id != first.id
    assert first.reembed(settings=EmbedSettings(dimensions=64)).id not in (first.id, job.id)


def test_what_would_be_the_same_job_is_refused(fleet: InMemoryFleet, tmp_path: Path) -> None:
    job = fleet.submit(RECORDS)
    for settings in (None, EmbedSettings(), EmbedSettings(dimensions=1024), EmbedSettings(input_type="document")):
        with pytest.raises(JobMismatch, match="it would be the same job again"):
            job.reembed(settings=settings)
    assert job.reembed(key="once more").id != job.id
    elsewhere = job.reembed(to=str(tmp_path / "elsewhere"))
    assert elsewhere.uri.startswith((tmp_path / "elsewhere").as_uri())
    assert outcomes(elsewhere) == outcomes(job)


def test_what_follows_from_a_setting_is_found_anew(fleet: InMemoryFleet) -> None:
    queries = EmbedSettings(input_type="query", instruction="Find the clause", dimensions=64, encoding="float16")
    job = fleet.submit(["a text"], settings=queries)

    documents = job.reembed(settings=EmbedSettings(input_type="document")).spec.settings
    assert (documents.instruction, documents.dimensions, documents.encoding) == (None, 64, "float16")
    other = job.reembed(settings=EmbedSettings(model="sentence-transformers/all-MiniLM-L6-v2")).spec.settings
    assert (other.instruction, other.dimensions, other.input_type) == (None, 384, "query")
    with pytest.raises(SettingsError, match="gives 32 to 1024"):
        job.reembed(settings=EmbedSettings(dimensions=2000))


def test_a_job_that_is_not_sealed_may_lack_inputs(fleet: InMemoryFleet) -> None:
    def broken() -> Iterator[str]:
        yield from (f"text {n}" for n in range(600))
        raise ConnectionError

    with pytest.raises(ConnectionError):
        fleet.submit(broken(), key="broken")
    [job] = [fleet.job(path.name) for path in Path(str(fleet.settings.store)).glob("j-*")]
    with pytest.raises(NotFinished, match="has not sealed it"):
        job.reembed(settings=EmbedSettings(dimensions=32))


def test_destinations_are_those_that_are_given(fleet: InMemoryFleet) -> None:
    from embedfleet import Webhook

    job = fleet.submit(["a text"], deliver_to=[Webhook(url="https://app.example/one")])
    assert job.reembed(settings=EmbedSettings(dimensions=32)).spec.deliver_to == ()
    two = Webhook(url="https://app.example/two")
    assert job.reembed(settings=EmbedSettings(dimensions=64), deliver_to=[two]).spec.deliver_to == (two,)


def test_with_await(fleet: InMemoryFleet) -> None:
    async def again() -> list[str]:
        async with AsyncFleet(fleet) as running:
            job = await running.submit(RECORDS)
            new = await job.reembed(settings=EmbedSettings(dimensions=32))
            return [row["id"] async for row in new.rows()]

    assert asyncio.run(again()) == [record["id"] for record in RECORDS]
