"""The commands for dead letters, on real Redis: what is said of a letter, what is done again, what is forgotten."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from embedfleet import Fleet, Pgvector
from embedfleet.cli import cli
from embedfleet.contract import Batch, Delivery, EmbedSettings, Receipt
from embedfleet.errors import BrokerUnavailable, ConfigurationError, NotFound
from embedfleet.job import Job
from embedfleet.jobfolder import delivery, now
from embedfleet.letters import Letter
from embedfleet.redis import RedisBroker
from embedfleet.running import Unfinished
from tests.unit.redis_server import RedisServer
from tests.unit.test_job import commit

TABLE = Pgvector(table="docs")
REPLY_TO = "embedfleet-reply-0123456789abcdef0123456789abcdef"


class World:
    """A fleet without workers, and the commands."""

    def __init__(self, fleet: Fleet, server: RedisServer) -> None:
        self.fleet = fleet
        self.server = server
        self.broker = fleet.broker
        self.bulk = fleet.broker.queue(fleet.settings.model, "bulk")

    def dead(self, *arguments: str) -> Result:
        """Run a command; what it raises is raised."""
        options = ["--broker-url", self.server.url, "--store", str(self.fleet.settings.store)]
        done = CliRunner().invoke(cli, ["dead", *arguments, *options], standalone_mode=False)
        if done.exception is not None:
            raise done.exception
        return done

    def letter(self, message: object, *, part: bool = False, queue: str | None = None, at: float = 100.0) -> Letter:
        dump = message.model_dump(mode="json") if isinstance(message, Batch | Delivery) else message
        letter = Letter.of(dump, "a reason", self.bulk if queue is None else queue, at, part=part)
        self.broker.dead_letter(letter)
        return letter

    def submit(self, *texts: str, **others: Any) -> Job:
        """A job whose messages are taken off the queue."""
        job = self.fleet.submit(list(texts), **others)
        self.server.client.delete(self.bulk)
        return job

    def batch(self, job: Job, number: int = 0) -> Batch:
        return Batch(to=job.folder.store.uri, job=job.id, batch=number, tokens=1)

    def queued(self, queue: str) -> list[dict[str, Any]]:
        found = [json.loads(base64.b64decode(json.loads(raw)["body"])) for raw in self.taken(queue)]
        return [body[0][0] for body in found]

    def taken(self, queue: str) -> list[bytes]:
        found: list[bytes] = self.server.client.lrange(queue, 0, -1)
        return found[::-1]

    def left(self) -> list[str]:
        return [letter.id for letter in self.broker.letters().letters]


@pytest.fixture
def world(redis_server: RedisServer, tmp_path: Path) -> Any:
    with Fleet(broker_url=redis_server.url, store=str(tmp_path / "store")) as fleet:
        yield World(fleet, redis_server)


# Looking


def test_an_empty_list_says_so(world: World) -> None:
    assert world.dead("list").output == "no dead letters in embedfleet-dead\n"
    assert json.loads(world.dead("list", "--json").output) == []


def test_the_list_says_when_what_and_why_newest_first(world: World) -> None:
    job = world.submit("a")
    old, new = world.letter(world.batch(job), at=1_793_612_345), world.letter({"reply_to": REPLY_TO}, at=1_793_612_346)
    world.broker.dead_letter(Letter.quarantined(b"a secret", "not JSON", "q", 0, "0" * 12))
    assert world.dead("list").output.splitlines() == [
        f"{new.id}  2026-11-02 09:39:06Z  round trip: a reason",
        f"{old.id}  2026-11-02 09:39:05Z  {job.id} batch 0: a reason",
        f"{'0' * 12}  at an unknown time  quarantined: not JSON",
    ]
    listed = json.loads(world.dead("list", "--json").output)
    assert [each["id"] for each in listed] == [new.id, old.id, "0" * 12]
    assert listed[1]["message"] == world.batch(job).model_dump()
    assert (listed[2]["raw_bytes"], "raw" in listed[2]) == (8, False)


def test_what_is_no_message_is_shown_only_when_asked_for(world: World) -> None:
    poison = Letter.quarantined(b"a secret", "not JSON", "q", 100)
    world.broker.dead_letter(poison)
    shown = world.dead("show", poison.id).output
    assert "raw_bytes: 8\nraw_sha256: " in shown
    assert "to do: it can't be replayed: it is no message of this fleet" in shown
    for output in (shown, world.dead("list").output, world.dead("list", "--json").output):
        assert "secret" not in output
        assert base64.b64encode(b"a secret").decode() not in output
    assert base64.b64decode(json.loads(world.dead("show", poison.id, "--json").output)["raw"]) == b"a secret"


def test_a_letter_is_shown_with_what_to_do(world: World) -> None:
    letter = world.letter(Delivery(to="file:///data", job="j-1", batch=7, destination=TABLE.name), at=1_793_612_345)
    lines = world.dead("show", letter.id).output.splitlines()
    assert f"id: {letter.id}" in lines
    assert "at: 2026-11-02 09:39:05Z" in lines
    assert "reason: a reason" in lines
    assert lines[-1] == f"to do: embedfleet dead replay {letter.id}"


@pytest.mark.parametrize("verb", ["show", "replay", "purge"])
def test_an_id_that_nobody_has_is_said_before_anything_is_done(world: World, verb: str) -> None:
    letter = world.letter(Batch(to="file:///data", job="j-1", batch=7, tokens=1))
    ids = [letter.id] if verb != "show" else []
    with pytest.raises(NotFound, match=r"none with the id 00ff in embedfleet-dead. See `embedfleet dead list`"):
        world.dead(verb, *ids, "00ff")
    assert world.left() == [letter.id]
    assert world.queued(world.bulk) == []


@pytest.mark.parametrize("verb", ["replay", "purge"])
def test_all_is_asked_for(world: World, verb: str) -> None:
    for arguments in ([], ["0" * 12, "--all"]):
        with pytest.raises(ConfigurationError, match=f"dead {verb}: give the letters' ids, or --all"):
            world.dead(verb, *arguments)


# Again


def test_a_batch_without_a_part_is_published_again_where_it_belongs(world: World) -> None:
    job = world.submit("a")
    letter = world.letter(world.batch(job), queue="embedfleet-deliver")
    done = world.dead("replay", letter.id)
    assert done.return_value == 0
    assert f"{letter.id}: {job.id} batch 0 is published again in {world.bulk}" in done.output
    assert world.queued(world.bulk) == [world.batch(job).model_dump()]
    assert world.left() == []


def test_a_batch_that_was_done_meanwhile_is_published_for_its_deliveries(world: World) -> None:
    job = world.submit("a")
    commit(job, 0)
    world.letter(world.batch(job), part=True)
    assert world.dead("replay", "--all").return_value == 0
    assert len(world.queued(world.bulk)) == 1


@pytest.mark.parametrize("part", [True, False])  # also when the part was written after the letter
def test_letters_whose_parts_are_dead_are_one_retry_of_their_job(world: World, part: bool) -> None:
    job = world.submit(*[f"text {n}" for n in range(600)])
    commit(job, 0, failing=["1", "2"], code="dead_letter")
    commit(job, 1, failing=["599"], code="dead_letter")
    letters = [world.letter(world.batch(job, number), part=part) for number in (0, 1)]
    done = json.loads(world.dead("replay", "--all", "--json").output)
    child = world.fleet.job(done[0]["job"])
    assert child.spec.parent == job.id
    assert [record.id for record in child.folder.records(0)] == ["1", "2", "599"]
    assert [each["job"] for each in done] == [child.uri] * 2
    assert {each["letter"] for each in done} == {letter.id for letter in letters}
    assert world.queued(world.bulk) == [
        world.batch(child).model_dump() | {"tokens": child.folder.input_info(0)[0].tokens}
    ]
    assert world.left() == []


def test_a_retry_is_for_the_model_that_the_job_was_for(world: World) -> None:
    settings = EmbedSettings(model="Qwen/Qwen3-Embedding-0.6B", dimensions=384)
    with Fleet(
        broker_url=world.server.url, store=world.fleet.settings.store, revision="v2", engine="synthetic"
    ) as other:
        job = other.submit(["a"], settings=settings)
    commit(job, 0, failing=["0"], code="dead_letter")
    world.letter(world.batch(job), part=True)
    child = world.fleet.job(json.loads(world.dead("replay", "--all", "--json").output)[0]["job"])
    assert (child.spec.settings, child.spec.revision, child.spec.synthetic) == (job.spec.settings, "v2", True)


def test_a_job_that_was_retried_meanwhile_needs_nothing(world: World) -> None:
    job = world.submit("a")
    commit(job, 0, failing=["0"], code="dead_letter")
    child = job.retry()
    assert child is not None
    commit(child, 0)
    world.letter(world.batch(job), part=True)
    done = world.dead("replay", "--all")
    assert done.return_value == 0
    assert "it was retried meanwhile" in done.output
    assert world.left() == []


def test_a_job_that_still_runs_keeps_its_letter(world: World) -> None:
    job = world.submit(*[f"text {n}" for n in range(600)])
    commit(job, 0, failing=["1"], code="dead_letter")
    letter = world.letter(world.batch(job), part=True)
    done = world.dead("replay", letter.id)
    assert done.return_value == 3
    assert f"{letter.id}: it stays. job {job.id}: 1 of 2 batches have an outcome" in done.output
    assert world.left() == [letter.id]


def test_a_job_that_can_not_be_read_here_is_published_in_the_queue_it_was_in(world: World) -> None:
    elsewhere = Batch(to="file:///data/elsewhere", job="j-1", batch=0, tokens=1)
    world.letter(elsewhere, queue="embedfleet-a-model-bulk")
    assert world.dead("replay", "--all").return_value == 0
    assert world.queued("embedfleet-a-model-bulk") == [elsewhere.model_dump()]


@pytest.mark.parametrize("queue", ["", "another-fleets-queue"])
def test_a_queue_that_is_not_this_fleets_gets_nothing(world: World, queue: str) -> None:
    letter = world.letter(Batch(to="file:///data/elsewhere", job="j-1", batch=0, tokens=1), queue=queue)
    done = world.dead("replay", "--all")
    assert done.return_value == 1
    assert "which queue it needs is not known" in done.output
    assert world.left() == [letter.id]
    assert world.queued("another-fleets-queue") == []


def test_a_part_that_can_not_be_read_keeps_its_letter(world: World) -> None:
    letter = world.letter(Batch(to="file:///data/elsewhere", job="j-1", batch=0, tokens=1), part=True)
    assert world.dead("replay", "--all").return_value == 1
    assert world.left() == [letter.id]


def receipt(job: Job, state: Any, number: int = 0) -> None:
    job.folder.write_receipt(
        Receipt(job=job.id, batch=number, destination=TABLE.name, state=state, detail="said so", at=now())
    )


def test_a_dead_delivery_is_sent_on_once_for_its_job(world: World) -> None:
    job = world.submit(*[f"text {n}" for n in range(600)], deliver_to=[TABLE])
    commit(job, 0, 1)
    for number in (0, 1):
        receipt(job, "dead", number)
        world.letter(delivery(job.folder, number, TABLE.name), part=True)
    assert world.dead("replay", "--all").return_value == 0
    assert [each["batch"] for each in world.queued(world.broker.deliver_queue)] == [0, 1]
    assert job.status().state == "embedded", "its receipts wait again"
    assert world.left() == []


@pytest.mark.parametrize(("state", "published"), [(None, 1), ("waiting", 1), ("confirmed", 0)])
def test_a_delivery_that_has_not_ended_is_published_again(world: World, state: Any, published: int) -> None:
    job = world.submit("a", deliver_to=[TABLE])
    commit(job, 0)
    if state is not None:
        receipt(job, state)
    world.letter(delivery(job.folder, 0, TABLE.name))
    assert world.dead("replay", "--all").return_value == 0
    assert len(world.queued(world.broker.deliver_queue)) == published
    assert world.left() == []


def test_what_can_not_be_replayed_says_why_and_stays(world: World) -> None:
    for message in ({"reply_to": REPLY_TO}, {"job": "j-1", "batch": 0}):
        world.letter(message)
    world.broker.dead_letter(Letter.quarantined(b"x", "unsigned", "q", 0))
    good = world.letter(Batch(to="file:///data/elsewhere", job="j-1", batch=0, tokens=1))
    done = world.dead("replay", "--all")
    assert done.return_value == 1
    assert "if the fleet has a signing key, signed with that" in done.output
    assert "the texts of a round trip are not kept" in done.output
    assert "it does not hold the whole message" in done.output
    assert len(world.left()) == 3
    assert good.id not in world.left()


def test_a_letter_stays_until_its_message_is_published(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What went before is published and removed; the rest is left for the next try."""
    job = world.submit("a")
    new, old = world.letter(world.batch(job), at=2), world.letter(world.batch(job), at=1)
    publish, removed = RedisBroker.publish, list[str]()
    count = iter(range(10))

    def once(self: RedisBroker, *arguments: Any) -> None:
        assert removed == []
        if next(count):
            raise BrokerUnavailable("gone")
        publish(self, *arguments)

    monkeypatch.setattr(RedisBroker, "publish", once)
    with pytest.raises(Unfinished, match="gone Go on with: embedfleet"):
        world.dead("replay", "--all")
    assert world.left() == [old.id]
    assert len(world.queued(world.bulk)) == 1
    assert new.id not in world.left()


def test_nothing_to_replay_is_said(world: World) -> None:
    assert world.dead("replay", "--all").output == "no dead letters to replay\n"


# Forgetting


def test_letters_are_forgotten_by_id_or_all(world: World) -> None:
    letters = [world.letter({"reply_to": REPLY_TO}) for _ in range(3)]
    assert world.dead("purge", letters[0].id, letters[0].id).output == "1 letter removed\n"
    done = world.dead("purge", "--all")
    assert (done.output, done.return_value) == ("2 letters removed\n", 0)
    assert world.left() == []
    assert world.dead("purge", "--all").output == "0 letters removed\n"


def test_what_a_job_waits_for_is_said(world: World) -> None:
    waits = world.submit("a", deliver_to=[TABLE])
    told = world.submit("b")
    commit(told, 0, failing=["0"], code="dead_letter")
    gone = world.submit("c")
    for job in (waits, told, gone):
        world.letter(world.batch(job), part=job is told)
    world.letter(delivery(waits.folder, 0, TABLE.name))
    world.letter(world.batch(waits).model_copy(update={"batch": 7}))
    shutil.rmtree(f"{world.fleet.settings.store}/{gone.id}")
    done = json.loads(world.dead("purge", "--all", "--json").output)
    assert done["removed"] == 5
    assert sorted(done["waiting"]) == sorted(
        f"job {waits.id} still waits for {what}: `embedfleet reconcile {waits.uri}` will publish it again"
        for what in ("batch 0", f"the delivery of batch 0 to {TABLE.name}")
    )
