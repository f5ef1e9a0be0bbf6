"""The engine that asks a server: what it sends, what it makes of answers and failures. The server is a stand-in."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from embedfleet import policies
from embedfleet.broker import connect
from embedfleet.errors import (
    ConfigurationError,
    DeadlineExceeded,
    EngineFailed,
    EngineUnavailable,
    EngineUnreachable,
)
from embedfleet.models import profile_of
from embedfleet.settings import LANES, FleetSettings, load
from embedfleet_worker.checks import wrong
from embedfleet_worker.engine.base import Embedded, Priority
from embedfleet_worker.engine.openai import OpenaiEngine
from tests.embedding_server import (
    Document,
    EmbeddingServer,
    Fault,
    changed,
    dropped,
    embedding_server,
    flood,
    hang,
    only_with,
    slow,
    status,
    unit_vector,
)
from tests.waiting import wait_until

DIMENSIONS = 128


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tries, with less time between them."""
    monkeypatch.setattr(
        policies, "ENGINE", policies.ENGINE.copy(wait=lambda state: policies._engine_wait_s(state) / 50)
    )


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with embedding_server(DIMENSIONS) as running:
        yield running


@pytest.fixture
def start(server: EmbeddingServer, tiny_qwen3: Path) -> Iterator[Callable[..., OpenaiEngine]]:
    """An engine at the server, for the tiny model."""
    engines = []

    def started(**settings: object) -> OpenaiEngine:
        engines.append(OpenaiEngine(profile_of(str(tiny_qwen3)), settings_of(server, tiny_qwen3, **settings)))
        server.asked.clear()
        return engines[-1]

    yield started
    for engine in engines:
        engine.close()


def settings_of(server: EmbeddingServer, model: Path, **settings: object) -> FleetSettings:
    given = {"engine": "openai", "openai_url": server.url, "openai_model": "m", "model": str(model), **settings}
    return load(**given)


def embed(engine: OpenaiEngine, texts: list[str], priority: Priority = Priority.BULK) -> Embedded:
    return engine.embed(engine.tokenise(texts, truncate=True), priority).result(60)


def numbered(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


def check(embedded: Embedded, texts: list[str]) -> None:
    """Each text has its own vector, and it is what the pipeline wants."""
    assert not embedded.errors
    for vector, text in zip(embedded.vectors, texts, strict=True):
        assert wrong(vector, DIMENSIONS) is None
        np.testing.assert_allclose(vector, unit_vector(text, DIMENSIONS), atol=1e-6)


# What is asked


def test_texts_become_vectors_in_order(start: Callable[..., OpenaiEngine], server: EmbeddingServer) -> None:
    texts = numbered(300)
    check(embed(start(), texts), texts)
    assert sorted(text for asked in server.asked for text in asked) == sorted(texts)
    assert max(map(len, server.asked)) == 64


def test_no_text_is_no_request(start: Callable[..., OpenaiEngine], server: EmbeddingServer) -> None:
    assert embed(start(), []).vectors.shape == (0, DIMENSIONS)
    assert server.asked == []


def test_the_full_vector_is_asked_for_by_the_servers_name_of_the_model(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer
) -> None:
    embed(start(), ["a text"])
    assert server.requests[-1] == {"model": "m", "input": ["a text"], "encoding_format": "base64"}


def test_a_server_without_base64_is_asked_for_floats(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer
) -> None:
    server.knows_base64 = False
    check(embed(start(), ["a text"]), ["a text"])
    assert server.requests[-1]["encoding_format"] == "float"


def test_a_server_that_gives_floats_whatever_it_is_asked_is_understood(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer
) -> None:
    def floats(handler: object, texts: list[str]) -> bool:
        handler.answer(200, {"data": server.rows(texts, as_base64=False)})  # type: ignore[attr-defined]
        return True

    server.fault = floats
    check(embed(start(), ["a text"]), ["a text"])


def test_the_key_is_sent_and_shown_nowhere(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer, tiny_qwen3: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.key = "a-secret-key"
    check(embed(start(openai_api_key="a-secret-key"), ["a text"]), ["a text"])
    with pytest.raises(
        ConfigurationError, match=r"answered 401\. It wants another key: set EMBEDFLEET_OPENAI_API_KEY"
    ) as no:
        start(openai_api_key="another-secret")
    assert "another-secret" not in str(no.value)
    settings = settings_of(server, tiny_qwen3, openai_api_key="a-secret-key")
    assert settings.masked()["openai_api_key"] == "***"
    assert "a-secret-key" not in f"{settings!r} {caplog.text}"


def test_a_long_text_travels_in_a_request_with_few_others(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer
) -> None:
    texts = [f"{number:03} " * 100 for number in range(60)]  # 401 tokens each
    check(embed(start(), texts), texts)
    assert max(map(len, server.asked)) == 40


# Truncation


@pytest.mark.parametrize("limit", [16, 17, 18, 19, 100])
def test_what_is_cut_is_cut_between_characters_and_fits(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer, tiny_qwen3: Path, limit: int
) -> None:
    raw = Tokenizer.from_file(str(tiny_qwen3 / "tokenizer.json"))
    engine = start(max_tokens=limit)
    texts = ["the thin inn " * 60, "東京 " * 60, "x" * 600, "é" * 600, "<|endoftext|>a" * 60]
    tokens = engine.tokenise(texts, truncate=True)
    engine.embed(tokens, Priority.BULK).result(60)
    sent = [text for asked in server.asked for text in asked]
    for text, item, cut in zip(texts, tokens, sent, strict=True):
        assert text.startswith(cut)
        assert item.prompt == text
        assert item.truncated
        assert limit - 3 <= item.count == len(raw.encode(cut).ids) <= limit
        longer = text[: len(cut) + 1]
        assert len(raw.encode(longer).ids) > limit or raw.encode(longer).ids == raw.encode(cut).ids


def test_what_may_not_be_cut_is_marked(start: Callable[..., OpenaiEngine]) -> None:
    short, long = start().tokenise(["a text", "x" * 600], truncate=False)
    assert (short.too_long, short.text, short.count) == (None, None, 7)
    assert long.too_long == 601


def test_a_text_of_which_not_one_character_fits_is_too_long(start: Callable[..., OpenaiEngine]) -> None:
    engine = start(max_tokens=8)
    wide = "\ufb2c" + "a" * 20  # which NFC makes three characters, of two bytes each and more
    (tokens,) = engine.tokenise([wide * 2], truncate=True)
    assert (tokens.count <= 8) if tokens.text else tokens.too_long


def test_a_server_that_cuts_by_itself_is_found_out(start: Callable[..., OpenaiEngine], server: EmbeddingServer) -> None:
    server.count = lambda text: min(len(text) + 1, 100)
    texts = ["short", "x" * 300, "also short"]
    embedded = embed(start(), texts)
    assert list(embedded.errors) == [1]
    assert "it used 100 of 301 tokens: its limit is below EMBEDFLEET_MAX_TOKENS" in embedded.errors[1]


def test_a_server_that_counts_otherwise_is_told_of_at_the_start(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.count = lambda text: 1
    check(embed(start(), ["a text"]), ["a text"])
    assert "it counts 1 tokens in a text of 8" in caplog.text


# What is answered


@pytest.mark.parametrize("norm", [0.01, 7.5])
def test_vectors_of_another_norm_are_normalised_and_told_of(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer, norm: float, caplog: pytest.LogCaptureFixture
) -> None:
    server.norm = norm
    check(embed(start(), ["a text"]), ["a text"])
    assert f"its vectors have norm {norm:g}; they are normalised here" in caplog.text


def swapped(rows: list[Document]) -> list[Document]:
    return rows[::-1]


def test_vectors_in_another_order_are_put_in_order_by_index(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer
) -> None:
    engine = start()
    server.fault = changed(swapped)
    check(embed(engine, numbered(5)), numbered(5))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda rows: rows[:-1], id="one too few"),
        pytest.param(lambda rows: [*rows, rows[0]], id="one too many"),
        pytest.param(lambda rows: [*rows[:-1], rows[0]], id="an index twice"),
        pytest.param(lambda rows: [{**row, "index": row["index"] + 1} for row in rows], id="from one on"),
        pytest.param(lambda rows: [{**row, "index": None} for row in rows], id="no index"),
        pytest.param(lambda rows: [{**row, "index": True} for row in rows], id="an index that is none"),
        pytest.param(lambda rows: [{**row, "embedding": {}} for row in rows], id="no vectors"),
        pytest.param(lambda rows: [{**row, "embedding": "abc"} for row in rows], id="no base64"),
        pytest.param(lambda rows: None, id="no list"),
        pytest.param(lambda rows: ["a"] * len(rows), id="no objects"),
    ],
)
def test_an_answer_that_does_not_fit_is_a_failure_of_its_batch_alone(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer, change: Callable[..., list[Document]]
) -> None:
    engine = start()
    server.fault = only_with("spoil", changed(change))
    with pytest.raises(
        EngineFailed, match=r"server http://127\.0\.0\.1:\d+/v1: it answered with .*, and at a short text"
    ):
        embed(engine, [*numbered(3), "spoil"])
    check(embed(engine, numbered(3)), numbered(3))


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 60_000, b"\xff\xfe"])
def test_an_answer_that_is_no_json_is_a_failure(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer, body: bytes
) -> None:
    def fault(handler: object, _: list[str]) -> bool:
        handler.send_response(200)  # type: ignore[attr-defined]
        handler.send_header("content-length", str(len(body)))  # type: ignore[attr-defined]
        handler.end_headers()  # type: ignore[attr-defined]
        handler.wfile.write(body)  # type: ignore[attr-defined]
        return True

    engine = start()
    server.fault = only_with("spoil", fault)
    with pytest.raises(EngineFailed, match="no JSON"):
        embed(engine, ["spoil"])


@pytest.mark.parametrize(
    ("components", "code"),
    [
        ([float("nan")] * DIMENSIONS, "not_finite"),
        ([float("inf")] * DIMENSIONS, "not_finite"),
        ([1e300] * DIMENSIONS, "not_finite"),
        ([None] * DIMENSIONS, "not_finite"),
        ([0.0] * DIMENSIONS, "not_unit_norm"),
    ],
)
def test_a_vector_that_is_none_is_caught_by_the_check_and_shifts_no_other(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer, components: list[float | None], code: str
) -> None:
    engine = start()
    server.fault = changed(lambda rows: [rows[0], {**rows[1], "embedding": components}, rows[2]])
    embedded = embed(engine, numbered(3))
    found = wrong(embedded.vectors[1], DIMENSIONS)
    assert found is not None
    assert found[0] == code
    for row in (0, 2):
        np.testing.assert_allclose(embedded.vectors[row], unit_vector(f"text {row}", DIMENSIONS), atol=1e-6)


def test_a_short_vector_is_an_error_of_its_text_alone(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer
) -> None:
    engine = start()
    server.fault = changed(lambda rows: [rows[0], {**rows[1], "embedding": [1.0, 0.0]}, rows[2]])
    embedded = embed(engine, numbered(3))
    assert embedded.errors == {1: "the server gave 2 components and 128 were expected"}
    np.testing.assert_allclose(embedded.vectors[2], unit_vector("text 2", DIMENSIONS), atol=1e-6)


def test_an_answer_without_end_is_not_read_to_its_end(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer
) -> None:
    engine = start()
    server.fault = only_with("spoil", flood)
    begun = time.monotonic()
    with pytest.raises(EngineFailed, match="its answer has over 69888 bytes"):
        embed(engine, ["spoil"])
    assert time.monotonic() - begun < 20


# Refusals


def test_a_server_that_takes_fewer_texts_gets_fewer_and_is_asked_so_from_then_on(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer
) -> None:
    server.most_texts = 10
    engine = start()
    check(embed(engine, numbered(64)), numbered(64))
    server.asked.clear()
    check(embed(engine, numbered(64)), numbered(64))
    assert max(map(len, server.asked)) == 8
    assert len(server.asked) == 8


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_text_that_is_refused_is_its_own_error_and_no_neighbours(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer, code: int
) -> None:
    engine = start()
    server.fault = only_with("bad", status(code, {"error": {"message": "it is too long\nfor me"}}))
    texts = [*numbered(20), "bad", *numbered(20)]
    embedded = embed(engine, texts)
    assert embedded.errors == {20: f"the server refused the text (status {code}: it is too long for me)"}
    for row in {*range(41)} - {20}:
        np.testing.assert_allclose(embedded.vectors[row], unit_vector(texts[row], DIMENSIONS), atol=1e-6)


def test_a_server_that_refuses_whatever_it_is_given_is_down_and_no_text_is_to_blame(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer
) -> None:
    engine = start()
    server.fault = status(400, {"message": "the model was unloaded"})
    with pytest.raises(EngineUnreachable):
        embed(engine, numbered(3))


# Failures


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([status(429, {}, retry_after="1")], id="429"),
        pytest.param([status(503, {}, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")], id="503, until a date"),
        pytest.param([status(500), status(502)], id="5xx"),
        pytest.param([dropped, dropped], id="dropped"),
        pytest.param([changed(lambda rows: rows[1:])], id="one too few, once"),
    ],
)
def test_what_fails_once_or_twice_is_asked_again(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer, faults: list[Fault]
) -> None:
    engine = start()
    server.faults = list(faults)
    check(embed(engine, numbered(3)), numbered(3))
    assert len(server.asked) == len(faults) + 1


def test_the_time_that_the_server_asks_for_is_waited(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer
) -> None:
    engine = start()
    server.faults = [status(429, {}, retry_after="20")]  # a fiftieth of it, see above
    begun = time.monotonic()
    check(embed(engine, ["a text"]), ["a text"])
    assert 0.4 <= time.monotonic() - begun < 5


def test_more_time_than_there_is_to_wait_is_an_outage_at_once(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer
) -> None:
    engine = start()
    server.fault = status(429, {}, retry_after="86400")
    with pytest.raises(EngineUnreachable, match="answered 429"):
        embed(engine, ["a text"])
    assert len(server.asked) == 1, "neither tried again nor probed"


def test_a_server_that_fails_at_some_texts_alone_fails_their_batch(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer
) -> None:
    engine = start()
    server.fault = only_with("bad", status(500, {"error": "a text of somebody"}))
    with pytest.raises(EngineFailed, match="answered 500, and at a short text it does not") as failed:
        embed(engine, [*numbered(3), "bad"])
    assert "somebody" not in str(failed.value)
    check(embed(engine, numbered(3)), numbered(3))


def test_a_server_that_is_gone_is_nobodys_fault(start: Callable[..., OpenaiEngine], server: EmbeddingServer) -> None:
    engine = start()
    server.fault = dropped
    with pytest.raises(EngineUnreachable, match="closed the connection"):
        embed(engine, numbered(3))
    server.fault = None
    wait_until(lambda: works(engine), "the server is back")


def works(engine: OpenaiEngine) -> bool:
    try:
        check(embed(engine, numbered(3)), numbered(3))
    except EngineUnreachable:
        return False
    return True


@pytest.mark.parametrize("code", [301, 401, 403, 404])
def test_what_a_person_has_to_mend_is_an_outage_while_it_runs(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer, code: int
) -> None:
    engine = start()
    server.fault = status(code, {}, location="http://127.0.0.1:1/v1/embeddings")
    with pytest.raises(EngineUnreachable, match=f"it answered {code}"):
        embed(engine, numbered(3))


def test_a_server_with_another_model_under_the_name_is_not_used_on(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer
) -> None:
    engine = start()

    def other(handler: object, texts: list[str]) -> bool:
        if "a probe" not in texts:
            return status(500)(handler, texts)  # type: ignore[arg-type]
        rows = server.rows(["something else"])
        handler.answer(200, {"data": rows})  # type: ignore[attr-defined]
        return True

    server.fault = other
    with pytest.raises(EngineUnreachable, match="another vector than at the start"):
        embed(engine, ["a text"])


def test_a_server_that_hangs_is_an_outage_before_the_batchs_time_is_over(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer
) -> None:
    engine = start(deadline_s=2)
    server.fault = hang
    with pytest.raises(EngineUnreachable, match="did not answer in time"):
        engine.embed(engine.tokenise(["a text"], truncate=True), Priority.BULK).result(1.9)


def test_texts_that_take_too_long_at_a_server_that_works_are_to_blame(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer
) -> None:
    engine = start(deadline_s=2)
    server.fault = only_with("slow", hang)
    with pytest.raises(EngineFailed, match="did not answer in time, and at a short text it does not"):
        embed(engine, ["a slow text"])


# Threads


def test_what_is_aborted_is_done_with_at_once_and_frees_its_place(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer
) -> None:
    engine = start()
    server.fault = only_with("hang", hang)
    futures = [engine.embed(engine.tokenise([f"hang {n}"], truncate=True), Priority.BULK) for n in range(8)]
    wait_until(lambda: len(server.asked) == 8, "all places are taken")
    assert all(future.running() for future in futures)
    begun = time.monotonic()
    for future in futures:
        engine.abort(future)
        assert isinstance(future.exception(0), DeadlineExceeded)
    assert time.monotonic() - begun < 1
    check(embed(engine, ["a text"]), ["a text"])


def test_it_runs_from_its_first_request_on_and_waiting_is_not_running(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer
) -> None:
    engine = start()
    server.fault = only_with("hang", hang)
    tokens = engine.tokenise([f"hang {number}" for number in range(64 * 8)], truncate=True)
    inside = engine.embed(tokens, Priority.BULK)
    waiting = engine.embed(tokens[:1], Priority.BULK)
    wait_until(lambda: len(server.asked) == 8, "all places are taken")
    assert (inside.running(), waiting.running()) == (True, False)


def test_interactive_texts_do_not_wait_for_bulk(start: Callable[..., OpenaiEngine], server: EmbeddingServer) -> None:
    engine = start()
    server.fault = only_with("bulk", hang)
    engine.embed(engine.tokenise([f"bulk {n}" for n in range(1000)], truncate=True), Priority.BULK)
    check(embed(engine, ["a question"], Priority.INTERACTIVE), ["a question"])


def test_several_requests_are_in_flight(start: Callable[..., OpenaiEngine], server: EmbeddingServer) -> None:
    engine = start()
    together = threading.Barrier(8, timeout=30)

    def meet(_handler: object, _texts: list[str]) -> bool:
        together.wait()
        return False

    server.fault = meet
    check(embed(engine, numbered(8 * 64)), numbered(8 * 64))


def test_many_batches_at_once_keep_their_vectors(start: Callable[..., OpenaiEngine], server: EmbeddingServer) -> None:
    engine = start()
    server.fault = slow(0.01)
    batches = [[f"{batch}/{number}" for number in range(70)] for batch in range(12)]
    futures: list[Future[Embedded]] = [
        engine.embed(engine.tokenise(batch, truncate=True), Priority(n % 2)) for n, batch in enumerate(batches)
    ]
    assert not wait(futures, 60).not_done
    for future, batch in zip(futures, batches, strict=True):
        check(future.result(), batch)


def test_what_is_under_way_when_it_is_closed_fails(start: Callable[..., OpenaiEngine], server: EmbeddingServer) -> None:
    engine = start()
    server.fault = hang
    future = engine.embed(engine.tokenise(["a text"], truncate=True), Priority.BULK)
    begun = time.monotonic()
    engine.close()
    assert time.monotonic() - begun < 2
    for failed in (future, engine.embed(engine.tokenise(["a text"], truncate=True), Priority.BULK)):
        assert isinstance(failed.exception(0), EngineUnavailable)
    assert not engine.dead.is_set()


# The start


def test_its_identity_says_which_server_and_which_of_its_models(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer
) -> None:
    first = start().identity
    assert (first.engine, first.engine_version, first.weights) == ("openai", "stand-in 1.2", "openai:m")
    assert (first.dtype, first.quantization, first.pooling) == ("unknown", None, "last")
    assert start(revision="abc").identity == replace(first, weights="openai:m@abc", revision="abc")
    server.models = {"data": [{"id": "n:latest"}]}
    server.version = None
    assert start(openai_model="n").identity == replace(first, weights="openai:n:latest", engine_version="unknown")


def test_a_server_that_lists_no_models_is_asked_all_the_same(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer
) -> None:
    server.models = None
    check(embed(start(), ["a text"]), ["a text"])


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        ({}, {"openai_url": ""}, "no server. Set EMBEDFLEET_OPENAI_URL to its API, such as http://host:8000/v1"),
        ({}, {"openai_model": ""}, "it does not know the model '/.*tiny-qwen3'; it has m. Set EMBEDFLEET_OPENAI_MODEL"),
        ({"models": {"data": []}}, {}, "it has none"),
        ({"models": {"ids": []}}, {}, "its /models has no list of models. Does the URL lack a path such as /v1"),
        (
            {"dimensions": 64},
            {},
            "the server gave 64 components and 128 were expected for .*tiny-qwen3. Is it the same",
        ),
        ({"norm": 0.0}, {}, "gives a vector of norm 0 for a short text"),
        ({"norm": float("nan")}, {}, "gives a vector of norm nan for a short text"),
        (
            {"fault": status(301, {}, location="http://elsewhere.example")},
            {},
            "answered 301. Redirects are not followed",
        ),
        (
            {"fault": status(404, {})},
            {},
            "answered 404. It has no such model .EMBEDFLEET_OPENAI_MODEL., or the URL lacks",
        ),
        (
            {"fault": status(400, {"message": "no embeddings here"})},
            {},
            "embeds nothing .status 400: no embeddings here",
        ),
    ],
)
def test_what_a_person_has_to_mend_is_said_at_the_start(
    start: Callable[..., OpenaiEngine], server: EmbeddingServer, change: Document, settings: Document, said: str
) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(ConfigurationError, match=said):
        start(**settings)


def test_a_server_that_is_not_there_may_come(start: Callable[..., OpenaiEngine], server: EmbeddingServer) -> None:
    with pytest.raises(EngineUnreachable, match=r"no connection .*refused"):
        start(openai_url="http://127.0.0.1:9/v1")
    server.fault = status(503, {"error": {"message": "Loading model"}})
    with pytest.raises(EngineUnreachable, match="it answered 503"):
        start()


@pytest.mark.parametrize(
    "url", ["host:8000/v1", "ftp://host/v1", "http://me:secret@host/v1", "http://host/v1?key=secret", "http://"]
)
def test_a_url_that_is_none_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"openai_url: .*it is no http") as refused:
        load(openai_url=url)
    assert "secret" not in str(refused.value)


def test_workers_with_a_server_take_from_the_queues_of_those_with_vllm(tiny_qwen3: Path) -> None:
    own, asks = (
        load(engine=engine, model=str(tiny_qwen3), revision="abc", broker_url="redis://localhost:1/0")
        for engine in ("vllm", "openai")
    )
    assert [connect(own).lane(lane) for lane in LANES] == [connect(asks).lane(lane) for lane in LANES]
