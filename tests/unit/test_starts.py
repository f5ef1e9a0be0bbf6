"""Whose start counts, who runs alone, and where it is counted: in Redis, or for SQS in the job folder."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from embedfleet.broker import connect
from embedfleet.errors import (
    BrokerUnavailable,
    DeadlineExceeded,
    EngineFailed,
    EngineUnavailable,
    NotFound,
    StoreUnavailable,
)
from embedfleet.folder import Folder
from embedfleet.jobfolder import JobFolder
from embedfleet.redis import RedisBroker
from embedfleet.settings import load
from embedfleet_worker import starts as module
from embedfleet_worker.settling import GiveBack, Turns
from embedfleet_worker.starts import ALONE_STARTS, Hopeless, Starts
from embedfleet_worker.transport.counts import Count, Counts, FolderCounts, RedisCounts
from tests.unit.redis_server import RedisServer, running_redis
from tests.waiting import wait_until

CHARGED = [EngineFailed("a step"), DeadlineExceeded("too long"), EngineUnavailable("it broke")]
FREE = [GiveBack("later"), StoreUnavailable("gone"), NotFound("none"), ValueError("a defect"), KeyboardInterrupt()]


class FakeCounts:
    """Counts in memory."""

    def __init__(self, in_company: int = 0, alone: int = 0) -> None:
        self.count = Count(in_company, alone)
        self.fails = False

    def get(self) -> Count:
        return self.count

    def add(self, *, alone: bool) -> None:
        self.count = Count(self.count.in_company + (not alone), self.count.alone + alone)

    def undo(self, *, alone: bool) -> None:
        self.count = Count(self.count.in_company - (not alone), self.count.alone - alone)

    def clear(self) -> None:
        if self.fails:
            raise BrokerUnavailable("gone")
        self.count = Count()


class Inside:
    """A start in a thread of its own, that lasts until it is told to end."""

    def __init__(self, starts: Starts, counts: Counts) -> None:
        self._starts, self._counts = starts, counts
        self.begun, self.ended, self._end = threading.Event(), threading.Event(), threading.Event()
        self.alone: bool | None = None
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._end.set()
        self._thread.join(10)
        assert self.ended.is_set()

    def _run(self) -> None:
        try:
            with self._starts.start(self._counts) as self.alone:
                self.begun.set()
                self._end.wait(30)
        except GiveBack as exc:
            self.failure = exc
        self.ended.set()


# Who runs alone


def test_who_was_never_charged_runs_in_company() -> None:
    starts = Starts()
    both = [Inside(starts, FakeCounts()) for _ in range(2)]
    assert all(each.begun.wait(5) for each in both)
    assert [each.alone for each in both] == [False, False]
    for each in both:
        each.end()


def test_a_suspect_waits_until_it_is_alone_and_newcomers_wait_for_it() -> None:
    starts = Starts()
    company = [Inside(starts, FakeCounts()) for _ in range(2)]
    assert all(each.begun.wait(5) for each in company)
    suspect = Inside(starts, FakeCounts(in_company=1))
    company[0].end()
    assert not suspect.begun.wait(0.2), "another is inside"
    newcomer = Inside(starts, FakeCounts())
    assert not newcomer.begun.wait(0.2), "else others would always be inside"
    company[1].end()
    assert suspect.begun.wait(5)
    assert suspect.alone
    assert not newcomer.begun.wait(0.2)
    suspect.end()
    assert newcomer.begun.wait(5)
    assert newcomer.alone is False
    newcomer.end()


def test_suspects_run_one_after_another() -> None:
    starts = Starts()
    suspects = [Inside(starts, FakeCounts(in_company=1)) for _ in range(3)]
    for left in (3, 2, 1):
        wait_until(lambda: any(each.begun.is_set() for each in suspects), "one to begin")
        time.sleep(0.1)
        inside = [each for each in suspects if each.begun.is_set()]
        assert (len(inside), len(suspects)) == (1, left)
        suspects.remove(inside[0])
        inside[0].end()


def test_a_newcomer_that_waits_too_long_is_given_back_and_not_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAIT_S", 0.2)
    starts, counts = Starts(), FakeCounts()
    suspect = Inside(starts, FakeCounts(in_company=1))
    assert suspect.begun.wait(5)
    newcomer = Inside(starts, counts)
    assert newcomer.ended.wait(5)
    assert "has to run alone" in str(newcomer.failure)
    assert counts.count == Count()
    suspect.end()


def test_a_suspect_that_never_is_alone_is_given_back_and_then_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SUSPECT_WAIT_S", 0.2)
    starts, counts = Starts(), FakeCounts(in_company=1)
    long = Inside(starts, FakeCounts())
    assert long.begun.wait(5)
    suspect = Inside(starts, counts)
    assert suspect.ended.wait(5)
    assert "other work all the time" in str(suspect.failure)
    assert counts.count == Count(1, 0)
    newcomer = Inside(starts, FakeCounts())
    assert newcomer.begun.wait(5)
    newcomer.end()
    long.end()


# Which starts count


def start(counts: Counts, error: BaseException | None = None, starts: Starts | None = None) -> None:
    with (starts or Starts()).start(counts):
        if error is not None:
            raise error


@pytest.mark.parametrize("error", CHARGED, ids=repr)
def test_what_breaks_the_engine_is_charged(error: Exception) -> None:
    counts = FakeCounts()
    for expected in (Count(1, 0), Count(1, 1), Count(1, 2)):
        with pytest.raises(type(error)):
            start(counts, error)
        assert counts.count == expected


@pytest.mark.parametrize("before", [Count(), Count(1, 0), Count(1, 3)], ids=repr)
def test_what_ends_well_is_cleared(before: Count) -> None:
    counts = FakeCounts(before.in_company, before.alone)
    start(counts)
    assert counts.count == Count()


@pytest.mark.parametrize("error", FREE, ids=repr)
@pytest.mark.parametrize("before", [Count(), Count(1, 0), Count(1, 3)], ids=repr)
def test_every_other_end_counts_for_nothing(error: BaseException, before: Count) -> None:
    """Nor does it clear what was before: a store that is down must not save a batch that ends its workers."""
    counts = FakeCounts(before.in_company, before.alone)
    with pytest.raises(type(error)):
        start(counts, error)
    assert counts.count == before


@pytest.mark.parametrize("error", [None, *CHARGED, *FREE], ids=repr)
def test_whatever_ends_a_start_others_may_begin(error: BaseException | None) -> None:
    starts = Starts()
    with nullcontext() if error is None else pytest.raises(type(error)):
        start(FakeCounts(in_company=1), error, starts)
    for counts in (FakeCounts(), FakeCounts(in_company=1)):
        start(counts, starts=starts)


def test_who_ended_its_worker_too_often_does_not_start() -> None:
    start(FakeCounts(9, ALONE_STARTS - 1))
    counts = FakeCounts(0, ALONE_STARTS)
    with pytest.raises(Hopeless, match=f"ended its worker {ALONE_STARTS} times"):
        start(counts)
    assert counts.count == Count(0, ALONE_STARTS)


def test_a_start_whose_note_is_made_though_its_answer_is_lost_is_taken_back() -> None:
    counts = FakeCounts()
    add = counts.add

    def lost(*, alone: bool) -> None:
        add(alone=alone)
        raise BrokerUnavailable("no answer")

    counts.add = lost  # type: ignore[method-assign]
    with pytest.raises(BrokerUnavailable):
        start(counts)
    assert counts.count == Count()


def test_counts_that_can_not_be_cleared_end_nothing() -> None:
    counts = FakeCounts()
    counts.fails = True
    start(counts)
    assert counts.count == Count(1, 0)


def test_a_process_that_ends_for_another_reason_charges_nothing_of_what_is_under_way() -> None:
    starts, under_way, before = Starts(), FakeCounts(), FakeCounts()
    with pytest.raises(EngineFailed):
        start(before, EngineFailed("a step"), starts)
    inside = Inside(starts, under_way)
    assert inside.begun.wait(5)
    assert under_way.count == Count(1, 0)
    starts.forgive()
    assert (under_way.count, before.count) == (Count(), Count(1, 0))
    inside.end()
    assert under_way.count == Count(), "once"


# Where they are counted


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path) as running:
        yield running


@pytest.mark.parametrize("is_full", [False, True], ids=["", "at the memory limit"])
def test_redis_counts(server: RedisServer, is_full: bool) -> None:
    broker = connect(load(broker_url=server.url))
    assert isinstance(broker, RedisBroker)
    server.client.config_set("maxmemory", int(is_full))
    one, other = (RedisCounts(broker, "q", name) for name in ("j-1/0", "j-1/00"))
    one.add(alone=False)
    one.add(alone=True)
    one.add(alone=True)
    other.add(alone=False)
    assert (one.get(), other.get()) == (Count(1, 2), Count(1, 0))
    assert RedisCounts(broker, "another", "j-1/0").get() == Count()
    one.undo(alone=True)
    other.undo(alone=False)
    assert (one.get(), other.get()) == (Count(1, 1), Count())
    one.clear()
    assert one.get() == Count()
    assert not server.client.exists("q-starts")
    broker.close()


def test_counts_in_a_redis_that_is_gone_are_an_outage(server: RedisServer) -> None:
    broker = connect(load(broker_url=server.url))
    counts = RedisCounts(broker, "q", "j-1/0")
    server.kill()
    for ask in (counts.get, lambda: counts.add(alone=True)):
        with pytest.raises(BrokerUnavailable):
            ask()
    broker.close()


@pytest.fixture
def folder(store: Folder) -> JobFolder:
    made = JobFolder(store, "j-1")
    made.write_once("job.json", "{}")  # a folder store has starts only of a job that is there
    return made


def test_a_job_folder_counts_the_starts_alone(folder: JobFolder) -> None:
    for times in range(2, 2 + ALONE_STARTS):
        counts = FolderCounts(folder, 7, times)
        assert counts.get() == Count(times - 1, times - 2)
        counts.add(alone=True)
    with pytest.raises(Hopeless):
        start(FolderCounts(folder, 7, 99))
    assert FolderCounts(folder, 8, 1).get() == Count()


def test_a_job_folder_is_not_asked_or_written_for_a_message_that_comes_for_the_first_time(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> Any:
        raise AssertionError

    for name in ("paths", "create"):
        monkeypatch.setattr(folder.store, name, asked)
    start(FolderCounts(folder, 7, 1))


@pytest.mark.parametrize(
    "end", [lambda counts: start(counts), lambda counts: charged_and_forgiven(counts)], ids=["done", "forgiven"]
)
def test_a_start_alone_that_did_not_end_its_worker_is_taken_back(
    folder: JobFolder, end: Callable[[Counts], None]
) -> None:
    killed = FolderCounts(folder, 7, 2)
    killed.add(alone=True)
    end(FolderCounts(folder, 7, 3))
    assert FolderCounts(folder, 7, 4).get() == Count(3, 1)


def charged_and_forgiven(counts: Counts) -> None:
    starts = Starts()
    inside = Inside(starts, counts)
    assert inside.begun.wait(5)
    starts.forgive()
    inside.end()


def test_starts_that_a_store_could_not_be_told_the_end_of_charge_nobody(folder: JobFolder) -> None:
    """SQS gave the message out twice: one came to nothing, whatever is noted."""
    for _ in range(ALONE_STARTS + 3):
        folder.begin_start(7)
    assert FolderCounts(folder, 7, 2).get() == Count(1, 1)


def test_two_that_begin_at_once_count_twice(folder: JobFolder) -> None:
    names = {folder.begin_start(7) for _ in range(3)}
    assert len(names) == folder.starts(7) == 3


# Turns


def test_the_same_work_is_done_once_at_a_time_and_other_work_beside_it() -> None:
    turns, inside, second = Turns(), threading.Event(), threading.Event()

    def again() -> None:
        with turns.turn("a"):
            second.set()

    with turns.turn("a"):
        threading.Thread(target=again, daemon=True).start()
        with turns.turn("b"):
            inside.set()
        assert not second.wait(0.2)
    assert second.wait(5)
    assert inside.is_set()


def test_a_turn_ends_with_an_error_too() -> None:
    turns = Turns()
    for _ in range(2):
        with pytest.raises(ValueError, match="x"), turns.turn("a"):
            raise ValueError("x")


def test_what_is_forgiven_while_it_begins_is_charged_with_nothing() -> None:
    starts, counts = Starts(), FakeCounts()
    add = counts.add

    def slowly(*, alone: bool) -> None:
        starts.forgive()
        add(alone=alone)

    counts.add = slowly  # type: ignore[method-assign]
    with pytest.raises(GiveBack), starts.start(counts):
        pytest.fail("nothing is begun any more")
    assert counts.count == Count()
