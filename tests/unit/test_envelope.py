"""The envelope of a message, written and read: what is signed, and what a reader refuses before it looks inside."""

import base64
import bz2
import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr

from embedfleet.contract import Batch, EmbedSettings, Request
from embedfleet.envelope import AT, SIGNATURE, sign, wrap
from embedfleet.fewtexts import check_embed
from embedfleet_worker.transport import envelope
from embedfleet_worker.transport.envelope import MAX_BYTES, read

KEY, ANOTHER = SecretStr("a key of twenty-nine characters"), SecretStr("another of the same kind")
BATCH = Batch(to="file:///a-secret-text", job="j-1", batch=0, tokens=1)

Change = Callable[[dict[str, Any]], object]


def sent(key: SecretStr | None = KEY, change: Change = lambda _: None) -> bytes:
    """A message as a producer sends it, and somebody on the way changes it."""
    message = json.loads(wrap(BATCH, "q", at=1_763_740_000.5, key=key))
    change(message)
    return json.dumps(message).encode()


def refusal(message: bytes, key: SecretStr | None = KEY) -> str:
    with pytest.raises(ValueError, match=r".") as refused:
        read(message, key)
    assert type(refused.value) is ValueError, "any other is logged by its type only"
    assert "secret" not in str(refused.value)
    return str(refused.value)


# Signatures


@pytest.mark.parametrize("at", [0, 1_763_740_000, 1_763_740_000.123456, 0.1 + 0.2])
def test_a_message_is_read_with_the_key_that_signed_it(at: float) -> None:
    found = read(wrap(BATCH, "q", at=at, key=KEY).encode(), KEY)
    assert found["headers"][AT] == pytest.approx(at, abs=0.001)


def test_without_a_key_both_are_read() -> None:
    read(sent(KEY), None)
    read(sent(None), None)


def test_what_is_not_signed_is_said() -> None:
    assert refusal(sent(None)) == "it is not signed, and this fleet has an EMBEDFLEET_SIGNING_KEY"


def swap_bodies(message: dict[str, Any]) -> None:
    message["body"] = json.loads(wrap(Batch(to="file:///x", job="j-2", batch=0, tokens=1), "q", at=0, key=None))["body"]


FORGED: dict[str, Change] = {
    "another body": swap_bodies,
    "another task": lambda message: message["headers"].update(task="embedfleet.deliver"),
    "another time": lambda message: message["headers"].update({AT: 1_763_740_000.6}),
    "no time": lambda message: message["headers"].pop(AT),
    "another signature": lambda message: message["headers"].update({SIGNATURE: "0" * 64}),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_was_changed_after_it_was_signed_is_refused(name: str) -> None:
    assert "its signature does not fit" in refusal(sent(KEY, FORGED[name]))


def test_another_key_does_not_fit() -> None:
    assert "another EMBEDFLEET_SIGNING_KEY?" in refusal(sent(ANOTHER))


def test_a_message_that_is_sent_again_under_new_ids_stays_signed() -> None:
    """As with what is replayed: its queue and ids are another's."""

    def again(message: dict[str, Any]) -> None:
        message["headers"].update(id="new", root_id="new", redelivered=True)
        message["properties"].update(correlation_id="new", delivery_tag="new")

    read(sent(KEY, again), KEY)


def test_fields_that_read_alike_side_by_side_have_signatures_of_their_own() -> None:
    assert len({sign("a", 1, "b", KEY), sign("a1", None, "b", KEY), sign("a", None, "1b", KEY)}) == 3


def test_the_body_of_what_is_not_signed_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    parse = envelope._parse
    monkeypatch.setattr(envelope, "_parse", lambda text: parsed.append(text) or parse(text))
    refusal(sent(None))
    assert len(parsed) == 1


@pytest.mark.parametrize("header", [AT, SIGNATURE])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, True, "1", [1], {}, "é" * 64, "\ud800"])
def test_headers_of_ours_that_are_no_such_thing_are_refused(header: str, value: object) -> None:
    refusal(sent(None, lambda message: message["headers"].update({header: value})), None)


# Sizes


def test_what_is_too_large_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "_parse", lambda _: pytest.fail("it was parsed"))
    assert refusal(b"[" * (MAX_BYTES + 1)) == f"it has {MAX_BYTES + 1} bytes, and {MAX_BYTES} are the most"


@pytest.mark.parametrize(
    "texts", [["\x01" * 2**20], ["\x01"] * 2**20, ["é" * 2**19], ["\U0001f600" * 2**18]], ids=lambda _: ""
)
def test_every_embed_that_a_producer_sends_is_read(texts: list[str]) -> None:
    """A MiB of texts, escaped, quoted and in base64."""
    check_embed(texts)
    settings = EmbedSettings(instruction="x" * 1000, input_type="query")
    request = Request(reply_to=f"p-reply-{'0' * 32}", settings=settings, texts=texts, expires_at=0)
    read(wrap(request, "q", at=0, key=KEY).encode(), KEY)


BOMB = b"\0" * 10_000_000
PACKED = {"zlib": zlib.compress(BOMB), "gzip": gzip.compress(BOMB), "bzip2": bz2.compress(BOMB)}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("said", [{}, {"content-encoding": "binary"}, {"compression": "application/x-gzip"}], ids=repr)
def test_what_is_packed_is_never_unpacked(packed: str, said: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """kombu would, by a header, without a limit."""
    for module, name in ((zlib, "decompress"), (gzip, "decompress"), (bz2, "decompress"), (zlib, "decompressobj")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("it was unpacked"))

    def bomb(message: dict[str, Any]) -> None:
        message["body"] = base64.b64encode(PACKED[packed]).decode()
        message["headers"].update({name: value for name, value in said.items() if name == "compression"})
        message.update({name: value for name, value in said.items() if name != "compression"})

    refusal(sent(None, bomb), None)


# What goes on to Celery


def test_of_the_headers_only_those_that_were_checked_go_on() -> None:
    """Celery acts on more names than anybody remembers: a chain, callbacks, a chord."""

    def odd(message: dict[str, Any]) -> None:
        message["headers"].update(chain=5, errbacks=[{"task": "os.system"}], chord={}, traceparent="00-0-0-00")
        message["properties"].update(application_headers={"x": 1})
        message["chord"] = 7

    found = read(sent(KEY, odd), KEY)
    assert found["headers"]["traceparent"] == "00-0-0-00"
    assert not {"chain", "errbacks", "chord"} & found["headers"].keys()
    assert found["properties"].keys() <= {
        "delivery_tag",
        "delivery_info",
        "body_encoding",
        "correlation_id",
        "priority",
    }
    assert found.keys() == {"body", "content-type", "content-encoding", "headers", "properties"}


@pytest.mark.parametrize("kind", ["uuid", "somebody's"])
def test_a_body_that_kombu_can_not_read_is_refused_here(kind: str) -> None:
    """kombu has types of its own in JSON, and drops what it can't make of them."""
    argument = {"__type__": kind, "__value__": {"hex": 7}}
    body = base64.b64encode(json.dumps([[argument], {}, {}]).encode()).decode()
    assert "its body is not JSON" in refusal(sent(None, lambda message: message.update(body=body)), None)
