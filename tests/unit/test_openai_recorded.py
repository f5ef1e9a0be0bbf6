"""Servers that can't run here, by answers in the form that their sources have: SGLang, Ollama, TEI."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedfleet.models import profile_of
from embedfleet.settings import load
from embedfleet_worker.engine.base import Priority
from embedfleet_worker.engine.openai import OpenaiEngine
from tests.embedding_server import unit_vector

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.json"))
DIMENSIONS = 128


@pytest.fixture(params=RECORDED, ids=lambda path: path.stem)
def recorded(request: pytest.FixtureRequest) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(request.param.read_text(encoding="utf-8"))
    assert document["source"]
    return document


@contextmanager
def playing(recorded: dict[str, Any]) -> Iterator[tuple[str, list[int]]]:
    """A server that answers so; its URL, and the number of texts in each request that it took."""
    taken: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self.answer(recorded["answers"].get(self.path, {"status": 404, "body": {}}))

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            texts = asked["input"]
            if recorded["most_texts"] and len(texts) > recorded["most_texts"]:
                self.answer(recorded["too_many"])
            elif "too long" in texts:
                self.answer(recorded["too_long"])
            else:
                taken.append(len(texts))
                as_base64 = recorded["base64"] and asked["encoding_format"] == "base64"
                self.answer({"status": 200, "body": filled(recorded, texts, as_base64)})

        def answer(self, recorded_answer: dict[str, Any]) -> None:
            body = json.dumps(recorded_answer["body"]).encode()
            self.send_response(recorded_answer["status"])
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", taken
    server.shutdown()
    server.server_close()
    thread.join()


def filled(recorded: dict[str, Any], texts: list[str], as_base64: bool) -> Any:
    """The recorded form with these texts' vectors in it."""

    def fill(form: Any, names: dict[str, Any]) -> Any:
        if isinstance(form, dict):
            return {key: fill(value, names) for key, value in form.items()}
        return names.get(form, form) if isinstance(form, str) else form

    vectors = [unit_vector(text, DIMENSIONS) for text in texts]
    shown = [base64.b64encode(v.tobytes()).decode() if as_base64 else v.astype(float).tolist() for v in vectors]
    rows = [fill(recorded["vector"], {"VECTOR": each, "INDEX": row}) for row, each in enumerate(shown)]
    return fill(recorded["vectors"], {"VECTORS": rows, "TOKENS": sum(len(text) + 1 for text in texts)})


def test_its_answers_are_understood(recorded: dict[str, Any], tiny_qwen3: Path) -> None:
    with playing(recorded) as (url, taken):
        settings = load(engine="openai", openai_url=url, openai_model=recorded["model"], model=str(tiny_qwen3))
        engine = OpenaiEngine(profile_of(str(tiny_qwen3)), settings)
        says = recorded["says"]
        assert (engine.identity.engine_version, engine.identity.weights) == (says["engine_version"], says["weights"])
        texts = [f"text {number}" for number in range(70)]
        texts[40] = "too long"
        embedded = engine.embed(engine.tokenise(texts, truncate=True), Priority.BULK).result(60)
        assert embedded.errors == {40: f"the server refused the text ({says['too_long']})"}
        for row in {*range(70)} - {40}:
            np.testing.assert_allclose(embedded.vectors[row], unit_vector(texts[row], DIMENSIONS), atol=1e-6)
        assert max(taken) <= (recorded["most_texts"] or 64)
        engine.close()
