"""The janitor: one at a time, bounded, and nothing that it meets keeps it from the next job, or the next minute."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from embedfleet import Fleet, Pgvector
from embedfleet.broker import Broker
from embedfleet.errors import StoreUnavailable
from embedfleet.openjobs import OpenJob, open_path, read
from embedfleet.reconcile import Sweep
from embedfleet.settings import FleetSettings, load
from embedfleet.store import open_store
from embedfleet_worker.lifecycle import janitor as module
from embedfleet_worker.lifecycle.janitor import Janitor
from tests.unit.redis_server import RedisServer
from tests.unit.test_job import TEXTS, commit
from tests.unit.test_reconcile import bulk, queued
from tests.waiting import wait_until


@pytest.fixture
def fleet(redis_server: RedisServer, tmp_path: Path) -> Any:
    with Fleet(broker_url=redis_server.url, store=str(tmp_path / "store")) as connected:
        yield connected


class Clock:
    """The broker's clock, as the test sets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broker: Broker) -> None:
        self.at = broker.clock()
        monkeypatch.setattr(type(broker), "clock", lambda _: self.at)
        monkeypatch.setattr(type(broker), "now", lambda _: self.at)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, fleet: Fleet) -> Clock:
    return Clock(monkeypatch, fleet.broker)


def janitor(fleet: Fleet) -> Janitor:
    return Janitor(fleet.settings, fleet.broker)


def slots(fleet: Fleet) -> dict[str, str]:
    """What the slots say, by path."""
    store = open_store(fleet.settings.store or "")
    return {path: store.get(path).decode() for path in store.paths("janitor")}


def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The jobs that are looked after from now on, in order."""
    found: list[str] = []
    before = Sweep.open_job
    monkeypatch.setattr(Sweep, "open_job", lambda sweep, job: found.append(job) or before(sweep, job))
    return found


def jobs(fleet: Fleet, count: int) -> list[str]:
    return sorted(fleet.submit([f"text {number}"]).id for number in range(count))


def test_a_finished_job_is_closed_and_a_lost_one_published_again(fleet: Fleet, redis_server: RedisServer) -> None:
    finished, lost = fleet.submit(["a"]), fleet.submit(TEXTS)
    commit(finished, 0)
    redis_server.client.flushall()
    assert janitor(fleet).turn()
    assert finished.folder.manifest() is not None
    assert open_store(fleet.settings.store or "").paths("open") == [open_path(lost.id)]
    assert queued(redis_server, bulk(fleet)) == [0, 1, 2]


def test_of_a_job_that_another_janitor_closed_nothing_is_kept(fleet: Fleet, clock: Clock) -> None:
    job = fleet.submit(["a"], deliver_to=[Pgvector(table="docs")])
    commit(job, 0)
    watching = janitor(fleet)
    assert watching.turn()
    assert list(watching._receipts) == [job.uri]
    open_store(fleet.settings.store or "").delete(open_path(job.id))
    clock.at += 60
    assert watching.turn()
    assert not watching._receipts


def test_of_two_janitors_one_has_the_minute_and_anyone_the_next(
    fleet: Fleet, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = seen(monkeypatch)
    every = jobs(fleet, 3)
    janitors = [janitor(fleet) for _ in range(8)]
    together = threading.Barrier(8)

    def turn(each: Janitor) -> bool:
        together.wait(10)
        return each.turn()

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(turn, janitors)) == [False] * 7 + [True]
    assert found == every
    clock.at += 60
    assert janitors[3].turn()
    assert found == every * 2


def test_two_at_once_do_no_harm(fleet: Fleet, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the slots, as where a sweep takes longer than a minute."""
    lost = [fleet.submit(TEXTS, key=str(number)) for number in range(3)]
    redis_server.client.flushall()
    numbers = iter(range(100))
    monkeypatch.setattr(module, "_path", lambda _: f"janitor/{next(numbers)}")
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: janitor(fleet).turn(), range(4)))
    assert set(queued(redis_server, bulk(fleet))) == {0, 1, 2}
    for job in lost:
        commit(job, 0, 1, 2)
    janitor(fleet).turn()
    assert [job.status().state for job in lost] == ["done"] * 3
    assert open_store(fleet.settings.store or "").paths("open") == []


_KILLED = """
import os, signal, sys
from embedfleet.broker import connect
from embedfleet.broker import Broker
from embedfleet.redis import RedisBroker
from embedfleet.settings import load
from embedfleet_worker.lifecycle.janitor import Janitor

publish_all = RedisBroker.publish_all

def dying(broker, messages, queue):
    publish_all(broker, messages[:1], queue)
    os.kill(os.getpid(), signal.SIGKILL)

RedisBroker.publish_all = dying
settings = load()
Janitor(settings, connect(settings)).turn()
"""


def test_a_worker_killed_in_the_middle_of_a_sweep_costs_its_minute(
    fleet: Fleet, redis_server: RedisServer, clock: Clock
) -> None:
    lost = [fleet.submit(TEXTS, key=str(number)) for number in range(2)]
    redis_server.client.flushall()
    environment = {**os.environ, "EMBEDFLEET_BROKER_URL": redis_server.url, "EMBEDFLEET_STORE": fleet.settings.store}
    killed = subprocess.run([sys.executable, "-c", _KILLED], env=environment, timeout=60)  # type: ignore[arg-type]
    assert killed.returncode == -signal.SIGKILL
    assert list(slots(fleet).values()) == [""], "it did not say where it stopped"
    (number,) = queued(redis_server, bulk(fleet))
    redis_server.client.flushall()
    first, second = sorted(lost, key=lambda job: job.id)
    commit(first, number)
    clock.at += 90  # the next minute; a little more, because the other process has its own clock
    assert janitor(fleet).turn()
    assert sorted(queued(redis_server, bulk(fleet))) == [0, 1, 1, 2, 2]
    commit(first, 1, 2)
    commit(second, 0, 1, 2)
    clock.at += 60
    janitor(fleet).turn()
    assert open_store(fleet.settings.store or "").paths("open") == []


# Bounds


def test_a_sweep_that_has_no_more_time_is_gone_on_with_by_whoever_has_the_next_minute(
    fleet: Fleet, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    every, found = jobs(fleet, 5), seen(monkeypatch)
    before = Sweep.open_job
    moment = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: moment[0])

    def slow(sweep: Sweep, job: str) -> str:
        moment[0] += 20
        return before(sweep, job)

    monkeypatch.setattr(Sweep, "open_job", slow)
    for expected in (every[:3], [*every[3:], every[0]], every[1:4]):
        found.clear()
        assert janitor(fleet).turn()
        assert found == expected
        clock.at += 60
    assert [*slots(fleet).values()] == [every[2], every[0], every[3]]


def test_after_a_sweep_that_did_not_end_it_begins_anywhere(
    fleet: Fleet, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that ends every sweep that comes to it must not keep those behind it from being seen to."""
    every = jobs(fleet, 8)
    store = open_store(fleet.settings.store or "")
    found = seen(monkeypatch)
    first = set()
    for _ in range(30):
        store.create(module._path(int(clock.at // 60)), b"")
        clock.at += 60
        assert janitor(fleet).turn()
        assert sorted(found) == every
        first.add(found[0])
        found.clear()
        clock.at += 60
    assert len(first) > 3


def test_old_slots_are_removed(fleet: Fleet, clock: Clock) -> None:
    jobs(fleet, 1)
    for _ in range(70):
        janitor(fleet).turn()
        clock.at += 60
    assert 59 <= len(slots(fleet)) <= 61
    assert set(slots(fleet).values()) == {"-"}


def test_a_job_that_cannot_be_seen_to_keeps_no_other_waiting(
    fleet: Fleet, redis_server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken, lost = [fleet.job(name) for name in jobs(fleet, 5)], fleet.submit(["a secret text"])
    (tmp_path / "store" / broken[0].id / "job.json").write_text("{")
    (tmp_path / "store" / broken[1].id / "sealed.json").write_bytes(b"\xff\x00")
    (tmp_path / "store" / broken[2].id / "job.json").write_text("[]")
    (tmp_path / "store" / "open" / broken[3].id).write_text(OpenJob(uri="s3://not-mine/" + broken[3].id).dumps())
    (tmp_path / "store" / "open" / broken[4].id).write_text(OpenJob(uri="no/../uri\0").dumps())
    (tmp_path / "store" / "open" / "Ünlaut 💥").write_text("a secret text")
    redis_server.client.flushall()
    caplog.clear()  # of what the producer says
    caplog.set_level(logging.INFO)
    each = janitor(fleet)
    assert each.turn()
    assert fleet.broker.depth(bulk(fleet)) == 1
    assert read(open_store(fleet.settings.store or ""), lost.id).again == 1
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sorted(said) == sorted(
        f"janitor: an open job can't be seen to ({kind})" for kind in ("ContractError",) * 4 + ("StoreNotAllowed",) * 2
    )
    assert "secret" not in caplog.text


def test_a_job_that_can_not_be_read_is_spoken_of_once(
    fleet: Fleet, redis_server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = fleet.submit(["a"])
    (tmp_path / "store" / job.id / "job.json").write_text("{")
    redis_server.client.flushall()
    caplog.clear()  # of what the producer says
    each = janitor(fleet)
    for number in range(3):
        open_store(fleet.settings.store or "").delete(next(iter(slots(fleet)), "janitor/none"))
        assert each.turn(), number
    assert caplog.messages == ["janitor: an open job can't be seen to (ContractError)"]


def test_a_store_that_times_out_is_asked_once_a_sweep(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand jobs in a store that is down would keep all the others waiting."""
    from embedfleet.folder import Folder

    settings: FleetSettings = fleet.settings.model_copy(update={"allowed_stores": (str(tmp_path),)})
    with Fleet(**dict(settings)) as wide:
        elsewhere = [wide.submit([f"{n}"], to=str(tmp_path / "down")).id for n in range(4)]
        here = wide.submit(["a"])
        commit(here, 0)
        asked = []
        before = Folder.exists
        moment = [0.0]
        monkeypatch.setattr(module.time, "monotonic", lambda: moment[0])

        def exists(store: Folder, path: str) -> bool:
            if store.uri.endswith("/down"):
                asked.append(path)
                moment[0] += 6
                raise StoreUnavailable("it does not answer")
            return before(store, path)

        monkeypatch.setattr(Folder, "exists", exists)
        assert Janitor(settings, wide.broker).turn()
        assert len(asked) == 1
        assert sorted(path.removeprefix("open/") for path in open_store(settings.store or "").paths("open")) == sorted(
            elsewhere
        )


def test_without_a_store_there_is_no_janitor(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    settings = load(broker_url=redis_server.url, allowed_stores="/data/vectors")
    with Fleet(**dict(settings)) as fleet:
        Janitor(settings, fleet.broker).start()
    assert caplog.messages == ["no janitor: it needs EMBEDFLEET_STORE, which names the open jobs"]
    assert "janitor" not in {thread.name for thread in threading.enumerate()}


def test_a_turn_that_fails_is_missed_and_the_next_one_is_not(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    turns: list[float] = []

    def turn(_: Janitor) -> bool:
        turns.append(time.monotonic())
        if len(turns) == 1:
            raise RuntimeError("a secret text")
        if len(turns) > 3:
            threading.Event().wait()  # for ever, as a store may hang: the process ends all the same
        return True

    monkeypatch.setattr(Janitor, "turn", turn)
    monkeypatch.setattr(Janitor, "_pause_s", lambda _: 0.01)
    janitor(fleet).start()
    wait_until(lambda: len(turns) > 3, "the fourth turn")
    assert "janitor: missed this time (RuntimeError)" in caplog.messages
    assert "secret" not in caplog.text
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "janitor"] == [True]


def test_who_had_the_last_minute_goes_first_and_the_others_do_not_come_together(fleet: Fleet, clock: Clock) -> None:
    jobs(fleet, 1)
    clock.at = 6000.0 + 20
    first, other = janitor(fleet), janitor(fleet)
    assert first.turn()
    assert not other.turn()
    mine, others = {first._pause_s() for _ in range(50)}, {other._pause_s() for _ in range(50)}
    assert 40 <= min(mine) < max(mine) <= 41
    assert 45 <= min(others) < max(others) <= 65
    assert max(others) - min(others) > 5
