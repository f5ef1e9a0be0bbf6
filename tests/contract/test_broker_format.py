"""What is really in Redis: queue names, Celery's envelope around a message, dead letters, replies."""

import base64
import itertools
import json
import re
import uuid
from typing import Any

import pytest
from pydantic import SecretStr

from embedfleet import envelope as module
from embedfleet.broker import Broker, connect, queue_name
from embedfleet.contract import TASK_ANSWER, TASK_DELIVER, TASK_EMBED, Batch
from embedfleet.errors import ConfigurationError
from embedfleet.letters import Letter
from embedfleet.profiles import PROFILES
from embedfleet.settings import load
from embedfleet_worker.transport.envelope import read
from tests.contract.conftest import Golden
from tests.contract.documents import DOCUMENTS, MESSAGES
from tests.unit.redis_server import RedisServer

BATCH = MESSAGES["batch-v1.json"]
TASKS = {
    "batch-v1.json": "embedfleet.embed",
    "request-v1.json": "embedfleet.answer",
    "delivery-v1.json": "embedfleet.deliver",
    "completion-v1.json": "embedfleet.complete",
}


def envelopes(server: RedisServer, queue: str = "q") -> list[dict[str, Any]]:
    """What a queue holds, in the order of publishing."""
    return [json.loads(raw) for raw in reversed(server.client.lrange(queue, 0, -1))]


def body(envelope: dict[str, Any]) -> Any:
    return json.loads(base64.b64decode(envelope["body"]))


def test_the_names_of_the_tasks() -> None:
    assert (TASK_EMBED, TASK_ANSWER, TASK_DELIVER) == ("embedfleet.embed", "embedfleet.answer", "embedfleet.deliver")


@pytest.mark.parametrize("name", TASKS)
def test_a_message_travels_as_the_one_argument_of_its_task(
    broker: Broker, redis_server: RedisServer, golden: Golden, name: str
) -> None:
    broker.publish(MESSAGES[name], "q")
    (envelope,) = envelopes(redis_server)
    assert envelope["headers"]["task"] == TASKS[name]
    assert (envelope["content-type"], envelope["content-encoding"]) == ("application/json", "utf-8")
    assert envelope["properties"]["body_encoding"] == "base64"
    args, kwargs, _ = body(envelope)
    assert args == [golden.json(name)]
    assert kwargs == {}


SIGNING_KEY = SecretStr("0123456789abcdef")


def test_an_envelope_is_written_in_exactly_these_bytes(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count(1)
    monkeypatch.setattr(module.uuid, "uuid4", lambda: uuid.UUID(int=next(numbers)))
    assert module.wrap(BATCH, "q", at=1_800_000_000.25, key=SIGNING_KEY) == golden.text("envelope-v2.json")


@pytest.mark.parametrize(("name", "key"), [("envelope-v1.json", None), ("envelope-v2.json", SIGNING_KEY)])
def test_an_envelope_of_every_version_is_still_read(golden: Golden, name: str, key: SecretStr | None) -> None:
    """Version 1 had no time and no signature; plain Celery sends neither."""
    assert body(read(golden.bytes(name), key))[0] == [golden.json("batch-v1.json")]


def test_a_message_says_when_it_was_published_on_the_clock_of_the_broker(
    broker: Broker, redis_server: RedisServer
) -> None:
    begun = broker.clock()
    broker.publish(BATCH, "q")
    (envelope,) = envelopes(redis_server)
    assert begun - 0.001 <= envelope["headers"]["embedfleet_at"] <= broker.clock() + 0.001
    assert "embedfleet_signature" not in envelope["headers"]


def test_a_fleet_with_a_key_signs_what_it_sends(redis_server: RedisServer) -> None:
    redis_server.client.flushall()
    signing = connect(load(broker_url=redis_server.url, signing_key=SIGNING_KEY.get_secret_value()))
    signing.publish(BATCH, "q")
    signing.close()
    read(redis_server.client.lindex("q", 0), SIGNING_KEY)  # type: ignore[arg-type]


def test_a_message_neither_expires_nor_waits_nor_is_retried_by_celery(
    broker: Broker, redis_server: RedisServer
) -> None:
    broker.publish(BATCH, "q")
    (envelope,) = envelopes(redis_server)
    headers = envelope["headers"]
    assert {name: headers[name] for name in ("eta", "expires", "retries", "timelimit")} == {
        "eta": None,
        "expires": None,
        "retries": 0,
        "timelimit": [None, None],
    }


def test_the_same_message_published_twice_has_two_task_ids(broker: Broker, redis_server: RedisServer) -> None:
    broker.publish(BATCH, "q")
    broker.publish(BATCH, "q")
    first, second = envelopes(redis_server)
    assert body(first)[0] == body(second)[0]
    assert first["headers"]["id"] != second["headers"]["id"]
    assert first["properties"]["correlation_id"] != second["properties"]["correlation_id"]


def test_a_batch_takes_less_than_2_kb_of_redis(broker: Broker, redis_server: RedisServer) -> None:
    longest = Batch(to="file:///" + "d" * 200, job="j" * 64, batch=99_999_999, tokens=10**9)
    broker.publish(longest, "q")
    assert redis_server.client.memory_usage("q", samples=0) < 2048


def test_publishing_leaves_nothing_but_the_message_behind(broker: Broker, redis_server: RedisServer) -> None:
    broker.publish(BATCH, "q")
    others = set(redis_server.client.keys()) - {b"q"}
    assert others <= {b"_kombu.binding.q"}, "one binding a queue, however many messages"


@pytest.mark.parametrize(
    ("model", "revision", "lane", "name"),
    [
        (
            "sentence-transformers/all-MiniLM-L6-v2",
            None,
            "bulk",
            "embedfleet-sentence-transformers-all-minilm-l6-v2-b01c9bbb-bulk",
        ),
        ("Qwen/Qwen3-Embedding-8B", None, "interactive", "embedfleet-qwen-qwen3-embedding-8b-52ee6cae-interactive"),
        ("Qwen/Qwen3-Embedding-8B", "v2", "bulk", "embedfleet-qwen-qwen3-embedding-8b-ee0f7b79-bulk"),
        ("/models/Ünïcode Name/", None, "bulk", "embedfleet-models-n-code-name-b3238965-bulk"),
    ],
)
def test_the_names_of_queues(model: str, revision: str | None, lane: str, name: str) -> None:
    assert queue_name("embedfleet", model, revision, lane) == name


def test_models_share_no_queue() -> None:
    models = [*PROFILES, "m" * 300, "/a/b", "/a-b", "//a/b", "日本語", ""]
    assert len({queue_name("embedfleet", model, None, "interactive") for model in models}) == len(models)


@pytest.mark.parametrize("model", [*PROFILES, "m" * 300, "日本語", "-", ""])
def test_every_queue_name_suits_sqs(model: str) -> None:
    longest_prefix = max((n for n in range(1, 81) if allowed_prefix("p" * n)), default=0)
    assert re.fullmatch(r"[a-z0-9-]{1,80}", queue_name("p" * longest_prefix, model, None, "interactive"))


def allowed_prefix(prefix: str) -> bool:
    try:
        return load(queue_prefix=prefix).queue_prefix == prefix
    except ConfigurationError:
        return False


def test_a_dead_letter_is_a_document_in_a_list(broker: Broker, redis_server: RedisServer, golden: Golden) -> None:
    letter = DOCUMENTS["letter-v1.json"]
    assert isinstance(letter, Letter)
    broker.dead_letter(letter)
    assert redis_server.client.lrange("embedfleet-dead", 0, -1) == [golden.text("letter-v1.json").encode()]


def test_a_reply_is_forgotten_after_ten_minutes(broker: Broker, redis_server: RedisServer) -> None:
    broker.reply("embedfleet-reply-1", b"\x00\xff")
    assert 0 < redis_server.client.ttl("embedfleet-reply-1") <= 600
    assert broker.await_reply("embedfleet-reply-1", 1) == b"\x00\xff"
    assert not redis_server.client.exists("embedfleet-reply-1")


def test_the_texts_of_a_request_are_in_its_body_only(broker: Broker, redis_server: RedisServer) -> None:
    """Headers end in logs."""
    broker.publish(MESSAGES["request-v1.json"], "q")
    (envelope,) = envelopes(redis_server)
    del envelope["body"]
    assert "lease" not in json.dumps(envelope)
