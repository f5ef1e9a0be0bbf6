"""Fleet: what is checked before anything is queued, and looking a job up."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from embedfleet import EmbedSettings, Fleet, company, publishing
from embedfleet.errors import (
    BrokerUnavailable,
    ConfigurationError,
    InputError,
    NotFound,
    SettingsError,
    TextError,
    WaitTimeout,
)
from tests.unit.redis_server import RedisServer


@pytest.fixture
def fleet(redis_server: RedisServer, tmp_path: Path) -> Any:
    with Fleet(broker_url=redis_server.url, store=str(tmp_path / "store")) as connected:
        yield connected


def nothing_happened(fleet: Fleet, server: RedisServer, folder: Path) -> bool:
    return not server.client.keys() and not list(folder.rglob("job.json"))


# Looking a job up


@pytest.mark.parametrize("name", ["j-1", "", ".", "..", "../j-1", "a b", "a\0b", "\ud800", "~", "j-1/../.."])
def test_a_job_that_is_not_there_is_not_found(fleet: Fleet, name: str) -> None:
    with pytest.raises(NotFound):
        fleet.job(name)


def test_looking_a_job_up_makes_no_folder(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        fleet.job(str(tmp_path / "a typo" / "j-1"))
    assert not (tmp_path / "a typo").exists()


def test_a_job_is_found_by_id_path_and_uri(fleet: Fleet, tmp_path: Path) -> None:
    job = fleet.submit(["a text"])
    for name in (job.id, str(tmp_path / "store" / job.id), job.uri, job.uri + "/"):
        assert fleet.job(name).id == job.id


# Before anything is queued


@pytest.mark.parametrize(
    "settings",
    [EmbedSettings(dimensions=17), EmbedSettings(instruction="x"), EmbedSettings(model="nobody/knows")],
    ids=["dimensions", "instruction", "model"],
)
def test_settings_the_model_cannot_satisfy_queue_nothing(
    fleet: Fleet, redis_server: RedisServer, tmp_path: Path, settings: EmbedSettings
) -> None:
    with pytest.raises(SettingsError):
        fleet.submit(["a text"], settings=settings)
    with pytest.raises(SettingsError):
        fleet.embed(["a text"], settings=settings)
    assert nothing_happened(fleet, redis_server, tmp_path)


def test_a_broker_that_is_not_there_leaves_no_job(tmp_path: Path) -> None:
    nowhere = f"redis+socket://{tmp_path}/nowhere.sock"
    with Fleet(broker_url=nowhere, store=str(tmp_path)) as fleet, pytest.raises(BrokerUnavailable):
        fleet.submit(["a text"])
    assert not list(tmp_path.rglob("job.json"))


def test_without_a_store_it_says_how_to_give_one(redis_server: RedisServer) -> None:
    with Fleet(broker_url=redis_server.url) as fleet, pytest.raises(ConfigurationError, match="EMBEDFLEET_STORE"):
        fleet.submit(["a text"])


@pytest.mark.parametrize("texts", ["a text", [], ()])
def test_embed_takes_a_list_of_texts(fleet: Fleet, redis_server: RedisServer, texts: Any) -> None:
    with pytest.raises(InputError, match="a list of at least one text"):
        fleet.embed(texts)
    assert redis_server.client.keys() == []


def test_embed_names_every_bad_text_without_asking_a_worker(fleet: Fleet, redis_server: RedisServer) -> None:
    with pytest.raises(TextError) as refused:
        fleet.embed(["fine", "", "fine", None])  # type: ignore[list-item]
    assert set(refused.value.errors) == {1, 3}
    assert str(refused.value).startswith("text 1 has no vector: empty: ")
    assert redis_server.client.keys() == []


def test_embed_refuses_more_than_fits_a_message(fleet: Fleet, redis_server: RedisServer) -> None:
    with pytest.raises(InputError, match="Use submit for as much"):
        fleet.embed(["x" * 600_000, "y" * 600_000])
    assert redis_server.client.keys() == []


@pytest.mark.parametrize("records", ["abc", b"abc", {"id": "a", "text": "b"}])
def test_a_single_record_is_no_stream_of_records(
    fleet: Fleet, redis_server: RedisServer, tmp_path: Path, records: Any
) -> None:
    """Its letters, or its keys, would be embedded."""
    with pytest.raises(InputError, match="Put it into a list"):
        fleet.submit(records)
    assert nothing_happened(fleet, redis_server, tmp_path)


# Jobs


def test_while_submit_waits_for_the_queue_it_looks_after_what_drains_it(
    fleet: Fleet, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local fleet's worker may have died just then."""
    monkeypatch.setattr(publishing, "MAX_QUEUE_DEPTH", 0)
    monkeypatch.setattr(publishing, "_DEPTH_EVERY", 1)
    monkeypatch.setattr(publishing, "_DEPTH_WAIT_S", 0)
    fleet.while_waiting = lambda: redis_server.client.delete(fleet.broker.queue(fleet.settings.model, "bulk"))
    assert fleet.submit(f"text {n}" for n in range(1100)).status().batches == 3


def test_the_same_key_is_the_same_job(fleet: Fleet) -> None:
    first = fleet.submit(["a", "b"], key="k")
    assert fleet.submit(["a", "b"], key="k").id == first.id
    assert fleet.submit(["a", "b"], key="another").id != first.id
    assert fleet.submit(["a", "b"]).id != fleet.submit(["a", "b"]).id


def test_a_job_says_where_it_is(fleet: Fleet) -> None:
    job = fleet.submit(["a", "b"])
    assert (job.status().state, job.status().batches, job.status().texts) == ("running", 1, 2)
    job.cancel()
    assert job.status().state == "cancelled"


def test_what_was_lost_is_published_again(fleet: Fleet, redis_server: RedisServer) -> None:
    job = fleet.submit(["a", "b"])
    redis_server.client.flushall()
    fleet.republish(job)
    assert fleet.broker.depth(fleet.broker.queue(fleet.settings.model, "bulk")) == 1


# Whether anybody is there


def queue_for_one(fleet: Fleet) -> None:
    fleet.submit(["a text"])


def ask_one(fleet: Fleet) -> None:
    with pytest.raises(WaitTimeout):
        fleet.embed(["a text"], timeout_s=0.05)


VERBS = {"submit": queue_for_one, "enqueue": lambda fleet: fleet.enqueue(["a text"]), "embed": ask_one}
ALONE = "no worker for sentence-transformers/all-MiniLM-L6-v2 is running; what is queued waits for one"


@pytest.mark.parametrize("verb", VERBS)
def test_that_nobody_is_there_is_said_once_a_minute(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    for _ in range(3):
        VERBS[verb](fleet)
    assert caplog.messages == [ALONE]
    monkeypatch.setattr(company, "_ASK_AGAIN_S", 0)
    VERBS[verb](fleet)
    assert caplog.messages == [ALONE, ALONE]


@pytest.mark.parametrize("verb", VERBS)
def test_nothing_is_said_where_a_worker_is_announced(fleet: Fleet, caplog: pytest.LogCaptureFixture, verb: str) -> None:
    for lane in ("bulk", "interactive"):
        fleet.broker.announce(fleet.broker.queue(fleet.settings.model, lane), "somebody", 60)
    VERBS[verb](fleet)
    assert caplog.messages == []


@pytest.mark.parametrize("unknown", [None, ["somebody"]])
def test_nothing_is_said_where_it_can_not_be_known(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, unknown: object
) -> None:
    """None is what SQS says."""
    monkeypatch.setattr(fleet.broker, "workers", lambda _: unknown)
    fleet.submit(["a text"])
    assert caplog.messages == []


def test_nothing_is_said_when_nothing_is_queued(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    fleet.submit([], key="k")
    assert caplog.messages == []


def test_the_command_says_it_on_stderr(redis_server: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a text\n")
    command = [sys.executable, "-c", "from embedfleet.entry import main; main()", "submit", "in.txt", "--to", "out"]
    environment = {**os.environ, "EMBEDFLEET_BROKER_URL": redis_server.url}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ALONE + "\n")
