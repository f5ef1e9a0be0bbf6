"""Dead letters: what is kept of a message and what is not, on Redis; also those of earlier versions, and garbage."""

import base64
import json
from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError

from embedfleet.contract import Batch, Completion, Delivery
from embedfleet.letters import MAX_RAW_BYTES, Letter
from embedfleet.redis import RedisBroker
from tests.unit.redis_server import RedisServer

BATCH = Batch(to="file:///data", job="j-1", batch=7, tokens=1)
DELIVERY = Delivery(to="file:///data", job="j-1", batch=7, destination="pgvector-a8ab8934")
REPLY_TO = "embedfleet-reply-0123456789abcdef0123456789abcdef"


def letter(message: object = None, reason: str = "a reason", at: float = 100.0) -> Letter:
    return Letter.of(BATCH.model_dump() if message is None else message, reason, "embedfleet-m-bulk", at)


@pytest.mark.parametrize("message", [BATCH, DELIVERY])
def test_a_message_of_ours_is_kept_whole(message: Batch | Delivery) -> None:
    kept = letter(message.model_dump(mode="json"))
    assert kept.work == message
    assert Letter.read(kept.dumps().encode()) == kept


@pytest.mark.parametrize(
    "message",
    [
        {"version": 1, "reply_to": REPLY_TO, "settings": {}, "texts": ["a secret"]},
        {**BATCH.model_dump(), "texts": ["a secret"]},
        {**BATCH.model_dump(), "job": "a secret"},
        {**BATCH.model_dump(), "to": "a\nsecret"},
        {**BATCH.model_dump(), "tokens": "a secret"},
        {"a secret": 1, "destination": "a secret"},
        ["a secret"],
        "a secret",
    ],
)
def test_nothing_that_may_be_a_text_is_kept(message: object) -> None:
    kept = letter(message)
    assert "secret" not in kept.dumps()
    assert kept.work is None or "texts" in message  # type: ignore[operator]


def test_what_it_is_about_is_said_in_a_few_words() -> None:
    assert letter().what == "j-1 batch 7"
    assert letter(DELIVERY.model_dump()).what == "j-1 batch 7 to pgvector-a8ab8934"
    assert letter({"job": "j-1"}).what == "j-1 batch ?"
    assert letter(Completion(to="file:///x", job="j-1").model_dump()).what == "j-1 callback"
    assert letter({"reply_to": REPLY_TO, "texts": []}).what == "round trip"
    assert letter("7").what == "unreadable message"
    assert Letter.quarantined(b"", "no", "q", 0).what == "quarantined"


def test_a_reason_is_one_line_that_a_terminal_shows() -> None:
    assert letter(reason="one\ntwo\x1b[2J \ud800").reason == "one two\ufffd[2J \ufffd"
    assert len(letter(reason="x" * 10_000).reason) == 2001


def test_what_is_no_message_is_kept_as_it_came_up_to_a_limit() -> None:
    assert Letter.quarantined(b"\x00\xff", "no", "q", 0).raw_bytes == b"\x00\xff"
    long = Letter.quarantined(b"x" * (MAX_RAW_BYTES + 1), "no", "q", 0)
    assert len(long.raw_bytes or b"") == MAX_RAW_BYTES
    assert long.reason == "no (its first 65536 bytes of 65537 are kept)"


def test_a_letter_that_somebody_else_wrote_says_nothing_that_ours_could_not() -> None:
    written = json.loads(letter().dumps())
    forged = {**written, "reason": "\x1b[2J", "queue": "a\nb", "message": {**written["message"], "job": "\x1b[2J"}}
    found = Letter.read(json.dumps(forged).encode())
    assert (found.reason, found.queue) == ("\ufffd[2J", "a b")
    assert found.work is None
    no_base64 = Letter.read(json.dumps({**written, "raw": "ü"}).encode())
    assert no_base64.raw_bytes == json.dumps({**written, "raw": "ü"}).encode()


# On Redis


def test_letters_are_listed_newest_first_and_stay(broker: RedisBroker) -> None:
    letters = [letter(at=float(at)) for at in (1, 2, 3)]
    for each in letters:
        broker.dead_letter(each)
    assert broker.letters().letters == letters[::-1]
    assert broker.letters().complete
    assert broker.letters() == broker.letters()
    newest = broker.letters(limit=2)
    assert (newest.letters, newest.complete) == (letters[:0:-1], False)


def test_letters_are_removed_by_their_ids(broker: RedisBroker) -> None:
    letters = [letter(at=float(at)) for at in range(450)]  # more than are read in one go
    for each in letters:
        broker.dead_letter(each)
    assert broker.remove_letters([letters[0].id, letters[449].id, "0" * 12]) == 2
    assert broker.letters().letters == letters[448:0:-1]
    assert broker.remove_letters([]) == 0


OLD: dict[str, Any] = {
    "of a message": {"message": BATCH.model_dump(), "reason": "a reason", "at": 12.5},
    "of a string": {"message": "a secret", "reason": "a reason", "at": 12.5},
    "of nothing": {"message": None, "reason": "a reason", "at": 12.5},
    "of a strange time": {"message": None, "reason": "a reason", "at": "noon"},
}


@pytest.mark.parametrize("name", OLD)
def test_a_letter_of_an_earlier_version_is_listed_and_removed(
    broker: RedisBroker, redis_server: RedisServer, name: str
) -> None:
    redis_server.client.lpush(broker.dead_queue, json.dumps(OLD[name]))
    [found] = broker.letters().letters
    assert (found.reason, found.at) == ("a reason", 0.0 if "time" in name else 12.5)
    assert found.work == (BATCH if name == "of a message" else None)
    assert found.raw_bytes == (b"a secret" if name == "of a string" else None)
    assert broker.letters().letters == [found], "the same id at every look"
    assert broker.remove_letters([found.id]) == 1
    assert broker.letters().letters == []


@pytest.mark.parametrize("garbage", [b"\xff", b"no json", b"[" * 100_000, b"7", b"{}", b'{"version":2}', b'{"id":"x"}'])
def test_garbage_among_the_letters_is_listed_and_removed(
    broker: RedisBroker, redis_server: RedisServer, garbage: bytes
) -> None:
    redis_server.client.lpush(broker.dead_queue, garbage, garbage)
    broker.dead_letter(letter())
    first, found = broker.letters().letters
    assert (first.work, found.what) == (BATCH, "quarantined")
    assert found.raw_bytes == garbage[:MAX_RAW_BYTES]
    assert broker.remove_letters([found.id]) == 1
    assert broker.letters().letters == [first]


def test_what_an_earlier_version_set_aside_is_listed_and_removed(
    broker: RedisBroker, redis_server: RedisServer
) -> None:
    redis_server.client.lpush("unacked-quarantine", "poison", "more poison")
    found = broker.letters().letters
    assert sorted(each.raw_bytes or b"" for each in found) == [b"more poison", b"poison"]
    assert broker.remove_letters([each.id for each in found]) == 2
    assert not redis_server.client.exists("unacked-quarantine")


def test_a_letter_is_kept_also_at_the_memory_limit_and_letters_can_be_removed(
    broker: RedisBroker, redis_server: RedisServer
) -> None:
    broker.dead_letter(letter())
    redis_server.client.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemoryError):
            redis_server.client.lpush("another", "x")
        broker.dead_letter(letter())
        found, another = broker.letters().letters
        assert broker.remove_letters([found.id, another.id]) == 2
    finally:
        redis_server.client.config_set("maxmemory", 0)


def test_raw_is_base64(broker: RedisBroker) -> None:
    broker.dead_letter(Letter.quarantined("ä".encode(), "no", "q", 0))
    [found] = broker.letters().letters
    assert base64.b64decode(found.raw or "") == "ä".encode()


def test_a_letter_of_no_time_that_a_calendar_knows_is_none(broker: RedisBroker) -> None:
    """Whoever can write to the broker may have written it, and it is to be shown."""
    broker.redis.lpush(broker.dead_queue, letter().model_dump_json().replace(f'"at":{letter().at}', '"at":1e15'))
    [found] = broker.letters().letters
    assert "at: Input should be less than" in found.reason
