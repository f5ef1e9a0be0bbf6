"""Submitting a job: fresh, after its producer died between any two steps, and with another input."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedfleet.contract import Batch, Batching, Chunking, EmbedSettings, JobSpec, Sealed
from embedfleet.errors import InputError, JobMismatch
from embedfleet.folder import Folder
from embedfleet.jobfolder import JobFolder
from embedfleet.records import Record
from embedfleet.submission import publish_missing, submit
from embedfleet.tables import read_input

JOB = "j-1"
BATCH_TEXTS = 3
STREAM = [Record(f"id-{n}", f"text {n}", {"page": str(n)}) for n in range(8)]
STEPS = 1 + 2 * 3 + 1
"""job.json, an input and a message for each of three batches, sealed.json."""
SETTINGS = EmbedSettings(model="a model", dimensions=4)
SPEC = JobSpec(
    job=JOB, created_at="2026-11-20T14:00:00+00:00", settings=SETTINGS, batching=Batching(max_texts=BATCH_TEXTS)
)


class Died(BaseException):
    """The producer's end; nothing in embedfleet catches it."""


@dataclass
class Life:
    """Lets a number of steps be taken; the next one kills, before it was done or right after."""

    steps: float = float("inf")
    after: bool = False

    def step(self, action: Callable[[], None]) -> None:
        self.steps -= 1
        if self.steps >= 0:
            return action()
        if self.after:
            action()
        raise Died


class MortalStore(Folder):
    """A store whose writer may die."""

    life: Life = Life()

    def create(self, path: str, data: bytes) -> None:
        self.life.step(lambda: Folder.create(self, path, data))


@dataclass
class Queue:
    """A broker that keeps what was published, and checks that its input was there by then."""

    store: Folder
    life: Life
    messages: list[Batch] = field(default_factory=list)

    def __call__(self, message: Batch) -> None:
        self.life.step(lambda: self._accept(message))

    def _accept(self, message: Batch) -> None:
        assert self.store.exists(folder_of(self.store).input_path(message.batch)), "a message that points at nothing"
        self.messages.append(message)

    def numbers(self) -> list[int]:
        return [message.batch for message in self.messages]


@dataclass
class Producer:
    """Submits into one store; each time with a life of its own."""

    store: MortalStore
    published: list[int] = field(default_factory=list)

    def submit(self, records: Sequence[Record] = STREAM, life: Life | None = None, spec: JobSpec = SPEC) -> Sealed:
        self.store.life = life or Life()
        queue = Queue(self.store, self.store.life)
        try:
            return submit(folder_of(self.store), spec, iter(records), queue)
        finally:
            self.published = queue.numbers()

    def refusal(self, records: Sequence[Record], spec: JobSpec = SPEC) -> str:
        with pytest.raises(JobMismatch) as refused:
            self.submit(records, spec=spec)
        return str(refused.value)


def folder_of(store: Folder) -> JobFolder:
    return JobFolder(store, JOB)


def inputs_of(store: Folder) -> dict[str, bytes]:
    return {path: store.get(path) for path in store.paths(f"{JOB}/input")}


@pytest.fixture
def new_producer(tmp_path: Path) -> Callable[[], Producer]:
    numbers: Iterator[int] = iter(range(10_000))
    return lambda: Producer(MortalStore(str(tmp_path / str(next(numbers))), make=True))


@pytest.fixture
def producer(new_producer: Callable[[], Producer]) -> Producer:
    return new_producer()


@pytest.fixture
def fresh(new_producer: Callable[[], Producer]) -> tuple[Sealed, dict[str, bytes]]:
    """What an undisturbed submission leaves: its seal and its inputs."""
    undisturbed = new_producer()
    return undisturbed.submit(), inputs_of(undisturbed.store)


# A fresh job


def test_a_job_is_written_published_in_order_and_sealed(producer: Producer) -> None:
    sealed = producer.submit()
    folder = folder_of(producer.store)
    assert folder.spec() == SPEC
    assert (sealed.batches, sealed.texts) == (3, 8)
    assert folder.sealed() == sealed
    assert producer.published == folder.inputs() == [0, 1, 2]
    ids = [read_input(producer.store.get(folder.input_path(number)), "input").ids for number in folder.inputs()]
    assert ids == [["id-0", "id-1", "id-2"], ["id-3", "id-4", "id-5"], ["id-6", "id-7"]]


def test_a_message_says_where_its_batch_is_and_how_large(producer: Producer) -> None:
    producer.store.life = Life()
    queue = Queue(producer.store, producer.store.life)
    submit(folder_of(producer.store), SPEC, STREAM, queue)
    first = queue.messages[0]
    assert (first.to, first.job, first.batch) == (producer.store.uri, JOB, 0)
    assert first.tokens == read_input(producer.store.get(f"{JOB}/input/00000000.parquet"), "input").info.tokens > 0


def test_a_stream_without_records_is_sealed_with_none(producer: Producer) -> None:
    sealed = producer.submit([])
    assert (sealed.batches, sealed.texts, producer.published) == (0, 0, [])
    assert producer.submit([]) == sealed


def test_the_steps_of_a_submission_are_as_many_as_the_tests_below_try(producer: Producer) -> None:
    life = Life(steps=STEPS)
    producer.submit(life=life)
    assert life.steps == 0


# A producer that dies


@pytest.mark.parametrize("after", [False, True], ids=["before the step", "after the step"])
@pytest.mark.parametrize("steps", range(STEPS))
def test_whatever_step_it_dies_at_the_next_one_finishes_the_job(
    producer: Producer, fresh: tuple[Sealed, dict[str, bytes]], steps: int, after: bool
) -> None:
    with pytest.raises(Died):
        producer.submit(life=Life(steps, after))
    sealed = producer.submit()
    assert (sealed, inputs_of(producer.store)) == fresh
    assert producer.published == [0, 1, 2], "no part is there yet, so every batch needs a message"


def test_it_may_die_twice_at_any_two_steps(
    new_producer: Callable[[], Producer], fresh: tuple[Sealed, dict[str, bytes]]
) -> None:
    for first in range(STEPS):
        for second in range(STEPS):
            producer = new_producer()
            for steps in (first, second):
                with suppress(Died):  # the second time there is less left to do
                    producer.submit(life=Life(steps))
            assert (producer.submit(), inputs_of(producer.store)) == fresh


def test_a_stream_that_fails_in_the_middle_can_be_gone_on_with(
    producer: Producer, fresh: tuple[Sealed, dict[str, bytes]]
) -> None:
    def failing() -> Iterator[Record]:
        yield from STREAM[:7]
        raise InputError("line 8: it is no record")

    producer.store.life = Life()
    with pytest.raises(InputError, match="line 8"):
        submit(folder_of(producer.store), SPEC, failing(), lambda _: None)
    assert folder_of(producer.store).sealed() is None
    assert (producer.submit(), inputs_of(producer.store)) == fresh


def test_batch_borders_are_taken_from_what_is_there(producer: Producer) -> None:
    with pytest.raises(Died):
        producer.submit(life=Life(steps=3))
    larger = SPEC.model_copy(update={"batching": Batching(max_texts=100)})
    assert producer.submit(spec=larger).batches == 3


# The same again


def test_the_same_stream_again_changes_nothing(producer: Producer) -> None:
    sealed = producer.submit()
    before = {path: producer.store.get(path) for path in producer.store.paths(JOB)}
    assert producer.submit() == sealed
    assert {path: producer.store.get(path) for path in producer.store.paths(JOB)} == before


def test_the_same_stream_again_publishes_only_batches_without_a_part(producer: Producer) -> None:
    producer.submit()
    folder_of(producer.store).write_part(1, b"")
    producer.submit()
    assert producer.published == [0, 2]
    for number in (0, 2):
        folder_of(producer.store).write_part(number, b"")
    producer.submit()
    assert producer.published == []


def test_what_was_lost_is_published_again_without_the_stream(producer: Producer) -> None:
    producer.submit()
    folder_of(producer.store).write_part(0, b"")
    queue = Queue(producer.store, Life())
    publish_missing(folder_of(producer.store), queue)
    assert queue.numbers() == [1, 2]
    assert all(message.tokens > 0 for message in queue.messages)


def test_texts_that_cannot_be_stored_are_the_same_again_too(producer: Producer) -> None:
    stream = [Record("a", None), Record("b", 5), Record("c", "\ud800"), Record("d", ""), Record("e", "fine")]
    assert producer.submit(stream) == producer.submit(stream)


# Something else under the same key


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({4: Record("id-4", "another text", {"page": "4"})}, "the input differs at id 'id-4' (was 'id-4'), record 4."),
        ({4: Record("id-x", "text 4", {"page": "4"})}, "the input differs at id 'id-x' (was 'id-4'), record 4."),
        ({4: Record("id-4", "text 4", {"page": "5"})}, "the input differs at id 'id-4' (was 'id-4'), record 4."),
        ({4: Record("id-4", "text 4")}, "the input differs at id 'id-4' (was 'id-4'), record 4."),
        ({4: STREAM[5], 5: STREAM[4]}, "the input differs at id 'id-5' (was 'id-4'), record 4."),
        ({0: Record("id-0", "Text 0", {"page": "0"})}, "the input differs at id 'id-0' (was 'id-0'), record 0."),
        ({7: Record("id-7", "", {"page": "7"})}, "the input differs at id 'id-7' (was 'id-7'), record 7."),
    ],
)
def test_another_record_is_named_with_its_position(producer: Producer, change: dict[int, Record], said: str) -> None:
    producer.submit()
    other = [change.get(position, record) for position, record in enumerate(STREAM)]
    assert said in producer.refusal(other)


def test_a_difference_stops_before_anything_behind_it_is_published(producer: Producer) -> None:
    producer.submit()
    producer.refusal([*STREAM[:4], Record("id-4", "another text"), *STREAM[5:]])
    assert producer.published == [0]


@pytest.mark.parametrize("length", range(len(STREAM)))
def test_a_shorter_stream_is_told_where_it_ends(producer: Producer, length: int) -> None:
    producer.submit()
    assert f"the input ends before id 'id-{length}', record {length}." in producer.refusal(STREAM[:length])


def test_a_longer_stream_is_told_its_first_record_too_many(producer: Producer) -> None:
    producer.submit()
    said = producer.refusal([*STREAM, Record("id-8", "one more"), Record("id-9", "and another")])
    assert "it was sealed with 8 texts and the stream has more, from id 'id-8' on" in said
    assert folder_of(producer.store).inputs() == [0, 1, 2]


def test_a_text_that_is_no_string_of_another_kind_is_a_difference(producer: Producer) -> None:
    producer.submit([Record("a", None), Record("b", "fine")])
    assert "the input differs in records 0 and following" in producer.refusal([Record("a", 5), Record("b", "fine")])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "another model"),
        ("dimensions", 2),
        ("instruction", "Find it"),
        ("prompt_name", "query"),
        ("input_type", "query"),
        ("encoding", "float16"),
        ("on_overflow", "truncate"),
        ("chunking", Chunking(max_tokens=64)),
        ("cache", "off"),
    ],
)
def test_another_setting_is_named_with_both_values(producer: Producer, name: str, value: object) -> None:
    producer.submit()
    other = SPEC.model_copy(update={"settings": SETTINGS.model_copy(update={name: value})})
    said = producer.refusal(STREAM, other)
    assert f"it was submitted with {name}={getattr(SETTINGS, name)!r} and now has {name}={value!r}" in said
    assert producer.published == []


def test_every_setting_is_compared() -> None:
    compared = {"model", "dimensions", "instruction", "prompt_name", "input_type", "encoding", "on_overflow"}
    assert compared | {"chunking", "cache"} == set(EmbedSettings.model_fields), "add the new one to the test above"


def overtaken(producer: Producer, others: list[Record]) -> Iterator[Record]:
    """The stream of a producer which another one overtakes at the second batch."""
    yield from STREAM[:4]
    submit(folder_of(producer.store), SPEC, others, lambda _: None)
    yield from STREAM[4:]


def test_two_producers_of_the_same_stream_at_once_make_one_job(producer: Producer) -> None:
    sent: list[Batch] = []
    sealed = submit(folder_of(producer.store), SPEC, overtaken(producer, STREAM), sent.append)
    assert sealed.texts == len(STREAM)
    assert [message.batch for message in sent] == list(range(sealed.batches))


def test_two_producers_of_different_streams_at_once_stop_one_of_them(producer: Producer) -> None:
    others = [*STREAM[:4], *(Record(record.id, "another text") for record in STREAM[4:])]
    with pytest.raises(JobMismatch, match="another producer is submitting another input"):
        submit(folder_of(producer.store), SPEC, overtaken(producer, others), lambda _: None)


# Ids


@pytest.mark.parametrize(("again", "position"), [("id-0", 1), ("id-1", 7), ("id-5", 7), ("id-6", 7)])
def test_an_id_that_comes_twice_is_named_within_a_batch_and_across(
    producer: Producer, again: str, position: int
) -> None:
    stream = [*STREAM[:position], Record(again, "twice"), *STREAM[position + 1 :]]
    with pytest.raises(InputError, match=f"^record {position}: the id '{again}' was there before"):
        producer.submit(stream)
    assert folder_of(producer.store).sealed() is None


def test_an_id_of_the_inputs_that_are_there_may_not_come_again(producer: Producer) -> None:
    with pytest.raises(Died):
        producer.submit(life=Life(steps=3))
    with pytest.raises(InputError, match=r"^record 7: the id 'id-0' was there before"):
        producer.submit([*STREAM[:7], Record("id-0", "twice")])


# Whatever the stream

texts = st.one_of(st.text(max_size=8), st.none(), st.integers(), st.sampled_from(["", "\ud800", "😀"]))
streams = st.lists(texts, max_size=12).map(lambda found: [Record(str(n), text) for n, text in enumerate(found)])


@settings(deadline=None, max_examples=60)
@given(stream=streams, steps=st.integers(0, 20), after=st.booleans())
def test_any_stream_is_sealed_alike_with_and_without_a_death(
    tmp_path_factory: pytest.TempPathFactory, stream: list[Record], steps: int, after: bool
) -> None:
    undisturbed, disturbed = (Producer(MortalStore(str(tmp_path_factory.mktemp("store")), make=True)) for _ in range(2))
    expected = undisturbed.submit(stream)
    with suppress(Died):
        disturbed.submit(stream, Life(steps, after))
    assert disturbed.submit(stream) == expected
    assert inputs_of(disturbed.store) == inputs_of(undisturbed.store)
    assert disturbed.published == list(range(expected.batches))
