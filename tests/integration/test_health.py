"""A worker's /livez, /readyz, /metrics and log, asked of real processes."""

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from embedfleet import EmbedSettings, Fleet
from embedfleet.contract import Batch, Request
from embedfleet.errors import ConfigurationError, TextError
from embedfleet.job import Job
from embedfleet.local import LocalFleet
from embedfleet.models import resolve
from embedfleet.settings import load
from embedfleet_worker.lifecycle.health import Health, Server
from embedfleet_worker.telemetry import Metrics
from tests.integration.command import environment
from tests.unit.redis_server import RedisServer, running_redis
from tests.waiting import wait_until

MARKER = "zq8-secret-text"

# Each runs the worker as it is, with another synthetic engine.
LOADS_SLOWLY = """
import os, runpy, time
from embedfleet_worker.engine.synthetic import SyntheticEngine
load = SyntheticEngine.__init__
def slowly(*arguments):
    while not os.path.exists("loaded"):
        time.sleep(0.02)
    load(*arguments)
SyntheticEngine.__init__ = slowly
runpy.run_module("embedfleet_worker", run_name="__main__")
"""
DIES = """
import runpy, time
from embedfleet_worker.engine.synthetic import SyntheticEngine
SyntheticEngine._embed = lambda engine, prompts: (engine.dead.set(), time.sleep(30))
runpy.run_module("embedfleet_worker", run_name="__main__")
"""
SPOILS = """
import logging, runpy, sys, threading, warnings
from embedfleet_worker.engine.synthetic import SyntheticEngine
embed = SyntheticEngine._embed
def spoil(engine, prompts):
    found = embed(engine, prompts)
    vectors = list(found.vectors)
    for row, tokens in enumerate(prompts):
        if "stray" in tokens.prompt:
            threading.Thread(target=stray, args=(tokens.prompt,)).start()
            print(f"no text", file=sys.stderr)
            warnings.warn("no text either")
        if "refused" in tokens.prompt:
            found.errors[row] = "refused"
        if "nan" in tokens.prompt:
            vectors[row][0] = float("nan")
        if "norm" in tokens.prompt:
            vectors[row] *= 2
        if "length" in tokens.prompt:
            vectors[row] = vectors[row][:5]
    found.vectors = vectors
    return found
def stray(prompt):
    logging.getLogger("celery.somewhere").error("it broke: %r", KeyError(prompt))
    raise ValueError(prompt)
SyntheticEngine._embed = spoil
from embedfleet_worker import pipeline
render = pipeline.render
def defective(text, *args):
    if "defect" in text:
        raise ValueError(text)
    return render(text, *args)
pipeline.render = defective
runpy.run_module("embedfleet_worker", run_name="__main__")
"""


class Worker:
    """A worker process with a port of its own, and what it says there."""

    def __init__(self, script: str | None, folder: Path, **settings: object) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "embedfleet_worker"] if script is None else [sys.executable, "-c", script]
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(**{"engine": "synthetic", "health_port": self.port, **settings}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def get(self, path: str) -> tuple[int, str]:
        """Status and body; (0, "") while nobody answers."""
        with suppress(ConnectionError):
            return get(self.port, path)
        return 0, ""

    def is_ready(self) -> bool:
        return self.get("/readyz") == (200, "ok\n")

    def samples(self) -> dict[str, float]:
        """Each sample that is not 0 of the metrics, as ``name label label``."""
        families = text_string_to_metric_families(self.get("/metrics")[1])
        samples = [sample for family in families for sample in family.samples]
        return {" ".join([s.name, *s.labels.values()]).removeprefix("embedfleet_"): s.value for s in samples if s.value}

    def end(self) -> tuple[int, bytes, bytes]:
        """Stop it; exit code, stdout, stderr."""
        self.process.terminate()
        stdout, stderr = self.process.communicate(timeout=30)
        return self.process.returncode, stdout, stderr


def get(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    with running_redis(tmp_path / "redis") as running:
        yield running
        running.process.send_signal(signal.SIGCONT)


@contextmanager
def started(script: str | None, folder: Path, server: RedisServer, **settings: object) -> Iterator[Worker]:
    (folder / "store").mkdir(exist_ok=True)
    worker = Worker(script, folder, **{"broker_url": server.url, "store": folder / "store", **settings})
    try:
        yield worker
    finally:
        worker.process.kill()
        worker.process.communicate()


def fleet_of(folder: Path, server: RedisServer) -> Fleet:
    return Fleet(broker_url=server.url, store=str(folder / "store"), engine="synthetic")


def log_lines(log: bytes) -> list[dict[str, Any]]:
    """Every line is an object with the four fields."""
    lines = [json.loads(line) for line in log.decode().splitlines()]
    assert all(line.keys() >= {"at", "level", "logger", "message"} for line in lines)
    return lines


# Alive and ready


def test_ready_means_connected_to_the_broker(server: RedisServer, tmp_path: Path) -> None:
    """While Redis is paused, is killed, and is there again."""
    server.process.send_signal(signal.SIGSTOP)
    with started(None, tmp_path, server) as worker:
        assert wait_until(lambda: worker.get("/readyz")[0], "an answer") == 503
        assert worker.get("/livez") == (200, "ok\n")
        server.process.send_signal(signal.SIGCONT)
        wait_until(worker.is_ready, "the worker to be ready")
        server.kill()
        wait_until(lambda: not worker.is_ready(), "the loss to be noticed")
        assert worker.get("/readyz") == (503, "the broker was lost; trying again\n")
        assert worker.get("/livez") == (200, "ok\n")
        wait_until(lambda: not any("queue_depth" in name for name in worker.samples()), "depths to be gone")
        (tmp_path / "redis" / "r.sock").unlink()
        with running_redis(tmp_path / "redis"):
            wait_until(worker.is_ready, "the worker to be ready again")
            code, stdout, log = worker.end()
    assert (code, stdout) == (0, b"")
    log_lines(log)


def test_a_worker_that_loads_is_alive_and_not_ready(server: RedisServer, tmp_path: Path) -> None:
    with started(LOADS_SLOWLY, tmp_path, server) as worker:
        wait_until(lambda: worker.get("/readyz") == (503, "loading the model\n"), "it to load")
        assert worker.get("/livez") == (200, "ok\n")
        assert "tokens_total" in worker.get("/metrics")[1]
        (tmp_path / "loaded").touch()
        wait_until(worker.is_ready, "the worker to be ready")


def test_a_dead_engine_is_not_alive(server: RedisServer, tmp_path: Path) -> None:
    with started(DIES, tmp_path, server) as worker, fleet_of(tmp_path, server) as fleet:
        wait_until(worker.is_ready, "the worker to be ready")
        fleet.submit(["a text"])
        wait_until(lambda: worker.get("/livez")[0] == 503, "the engine's death to show")
        assert worker.get("/livez") == worker.get("/readyz") == (503, "the engine is dead; the process ends\n")
        assert worker.process.wait(30) == 70


def test_a_stopping_worker_is_not_ready_and_finishes(server: RedisServer, tmp_path: Path) -> None:
    with started(None, tmp_path, server, synthetic_texts_per_s=5) as worker, fleet_of(tmp_path, server) as fleet:
        wait_until(worker.is_ready, "the worker to be ready")
        job = fleet.submit(f"text {n}" for n in range(10))
        wait_until(lambda: worker.samples().get("batches_in_flight bulk"), "the batch to be begun")
        worker.process.terminate()
        wait_until(lambda: worker.get("/readyz") == (503, "stopping: what is begun is finished\n"), "it to stop")
        assert worker.get("/livez") == (200, "ok\n")
        assert worker.process.wait(30) == 0
        assert job.status().state == "done"


def test_a_port_in_use_is_a_configuration_error(server: RedisServer, tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with started(None, tmp_path, server, health_port=port) as worker:
            _, log = worker.process.communicate(timeout=30)
    assert worker.process.returncode == 2
    (line,) = log_lines(log)
    assert line["message"].startswith(f"port {port}: it can't be listened on (Address already in use). Set EMBEDFLEET")
    assert "EMBEDFLEET_HEALTH_PORT" in line["message"]


# The server alone


@pytest.fixture
def served() -> Iterator[Server]:
    server = Server(free_port(), Health(), Metrics())
    yield server
    server.shutdown()
    server.server_close()


def test_only_get_and_three_paths(served: Server, capfd: pytest.CaptureFixture[str]) -> None:
    port = served.server_address[1]
    assert get(port, "/livez?verbose=1") == (200, "ok\n")
    assert get(port, "/")[0] == get(port, "/metrics/x")[0] == 404
    assert get(port, "/livez", "POST")[0] == get(port, "/livez", "DELETE")[0] == 501
    assert capfd.readouterr() == ("", ""), "no line a request"


def test_slow_clients_keep_nobody_out(served: Server) -> None:
    port = served.server_address[1]
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
    for client in slow:
        with suppress(OSError):
            client.sendall(b"GET /livez HT")
    begun = time.monotonic()
    assert get(port, "/livez") == (200, "ok\n")
    assert time.monotonic() - begun < 2
    wait_until(lambda: len(served._open) <= 32, "the oldest to be closed", timeout_s=3)  # idle ones go after five
    for client in slow:
        client.close()


def test_a_port_below_1024_or_in_use_is_named(served: Server) -> None:
    port = served.server_address[1]
    with pytest.raises(ConfigurationError, match=rf"^port {port}: .*EMBEDFLEET_HEALTH_PORT"):
        Server(port, Health(), Metrics())


def test_both_kinds_of_addresses_are_served(served: Server) -> None:
    if not socket.has_dualstack_ipv6() or not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    with socket.create_connection(("::1", served.server_address[1]), timeout=10) as client:
        client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.0 200")


# Metrics


STAGES = ("read", "prepare", "cache", "tokenise", "engine", "check", "write")


def numbered(texts: list[object]) -> list[tuple[str, object]]:
    return [(str(number), text) for number, text in enumerate(texts)]


def test_what_a_job_did_is_counted_exactly(server: RedisServer, tmp_path: Path) -> None:
    texts = ["one text", "one text", "another", "", "  ", 7, "half \ud800", "long " * 2000]
    with (
        started(None, tmp_path, server, cache_url=server.url) as worker,
        fleet_of(tmp_path, server) as fleet,
    ):
        totals = fleet.submit(numbered(texts), key="first").wait(timeout_s=60).totals
        wait_until(lambda: worker.samples().get("batches_total bulk embedded") == 1, "the batch to be counted")
        found = worker.samples()
        assert totals.texts == 8
        assert {name: count for name, count in found.items() if name.startswith("texts_total")} == {
            "texts_total embedded": 3, "texts_total empty": 2, "texts_total not_a_string": 1,
            "texts_total lone_surrogate": 1, "texts_total too_long": 1,
        }  # fmt: skip
        assert found["tokens_total"] == totals.tokens
        assert found["cache_lookups_total miss"] == 3, "two texts and the long one: duplicates are looked up once"
        assert [found[f"stage_seconds_count {stage}"] for stage in STAGES] == [1] * len(STAGES)

        cut = EmbedSettings(on_overflow="truncate")
        fleet.submit(numbered([*texts[:3], texts[-1]]), key="second", settings=cut).wait(timeout_s=60)
        fleet.submit(numbered(texts[:3]), key="third").wait(timeout_s=60)
        fleet.embed(["another"])
        wait_until(lambda: worker.samples().get("batches_total interactive embedded") == 1, "the answer")
        found = worker.samples()
        assert found["truncated_texts_total"] == 1
        assert found["texts_total cached"] == 4
        assert found["cache_lookups_total hit"] == 3
        assert found["batches_total bulk embedded"] == 3
        assert "batches_in_flight bulk" not in found


def test_how_messages_end_is_counted(server: RedisServer, tmp_path: Path) -> None:
    with started(None, tmp_path, server) as worker, fleet_of(tmp_path, server) as fleet:
        job = fleet.submit(["a text"])
        job.wait(timeout_s=60)
        bulk = fleet.broker.queue(fleet.settings.model, "bulk")
        interactive = fleet.broker.queue(fleet.settings.model, "interactive")
        batch = batch_of(job)
        fleet.broker.publish(batch, bulk)
        fleet.broker.publish(batch.model_copy(update={"batch": 7}), bulk)
        settings = resolve(EmbedSettings(), fleet.settings.model)
        key = f"{fleet.settings.queue_prefix}-reply-{'0' * 32}"
        fleet.broker.publish(Request(reply_to=key, settings=settings, texts=["a"], expires_at=0), interactive)
        wait_until(
            lambda: (
                {name: n for name, n in worker.samples().items() if name.startswith("batches_total")}
                == {
                    "batches_total bulk embedded": 1,
                    "batches_total bulk duplicate": 1,
                    "batches_total bulk dead_letter": 1,
                    "batches_total interactive expired": 1,
                }
            ),
            "one of each",
        )
        (tmp_path / "store").rename(tmp_path / "away")
        fleet.broker.publish(batch, bulk)
        wait_until(lambda: worker.samples().get("batches_total bulk given_back", 0) >= 1, "a give-back")
        (tmp_path / "away").rename(tmp_path / "store")


def batch_of(job: Job) -> Batch:
    """The message of a job's first batch, to send it again."""
    return Batch(to=job.uri.rpartition("/")[0], job=job.id, batch=0, tokens=1)


def test_the_depth_of_a_queue_is_what_waits(server: RedisServer, tmp_path: Path) -> None:
    with started(None, tmp_path, server, synthetic_texts_per_s=1) as worker, fleet_of(tmp_path, server) as fleet:
        wait_until(worker.is_ready, "the worker to be ready")
        for number in range(20):
            fleet.submit([f"text {number}", "another"])
        bulk = fleet.broker.queue(fleet.settings.model, "bulk")
        wait_until(lambda: "queue_depth bulk" in worker.samples(), "the depth to be asked again")
        assert worker.samples()["queue_depth bulk"] <= 20
        assert fleet.broker.depth(bulk) > 0


# The log


def test_no_text_reaches_the_log_and_every_line_is_json(server: RedisServer, tmp_path: Path) -> None:
    """Success, each error a text can have, defects, poison and round trips; each text holds the marker."""
    text = MARKER + " "
    kinds = ["sound", "refused", "nan", "norm", "length", "stray", "long " * 2000, "half \ud800"]
    with fleet_of(tmp_path, server) as fleet:
        cancelled = fleet.submit([text + "cancelled"], key="cancelled")
        cancelled.cancel()
    with started(SPOILS, tmp_path, server) as worker, fleet_of(tmp_path, server) as fleet:
        jobs = [
            fleet.submit(numbered([text + kind for kind in kinds] + ["", {MARKER: 1}]), key="kinds"),
            fleet.submit([text + "defect"], key="defect"),
        ]
        for queue in (fleet.broker.queue(fleet.settings.model, lane) for lane in ("bulk", "interactive")):
            poison(server, queue)
        codes = {row["error"] for job in [cancelled, *jobs] if job.wait(timeout_s=60) for row in job.rows()}
        fleet.embed([text])
        with pytest.raises(TextError):
            fleet.embed([text + "defect"])
        wait_until(lambda: server.client.llen("embedfleet-dead") >= 10, "the dead letters, and the poison")
        (tmp_path / "store").rename(tmp_path / "away")
        fleet.broker.publish(batch_of(jobs[0]), fleet.broker.queue(fleet.settings.model, "bulk"))
        wait_until(lambda: worker.samples().get("batches_total bulk given_back"), "a give-back")
        code, stdout, log = worker.end()
    assert code == 0
    assert codes == {
        None, "empty", "not_a_string", "lone_surrogate", "too_long", "not_finite", "wrong_length", "not_unit_norm",
        "engine_error", "internal_error", "cancelled",
    }  # fmt: skip
    assert stdout == b""
    assert MARKER.encode() not in log
    lines = log_lines(log)
    said = {line["message"].partition(":")[0] for line in lines}
    assert said >= {"batch done", "batch failed", "dead letter", "given back", "no text", "it broke"}
    assert "uncaught exception in" in " ".join(said)
    assert "py.warnings" in {line["logger"] for line in lines}
    done = next(line for line in lines if line["message"] == "batch done" and line["texts"] == 10)
    assert done.keys() >= {"job", "batch", "errors", "cached", "truncated", "tokens", "seconds"}
    defect = next(line for line in lines if line["message"].startswith("batch failed"))
    assert (defect["error"], defect["job"]) == ("ValueError", jobs[1].id)
    assert any("pipeline.py" in frame for frame in defect["frames"])


def poison(server: RedisServer, queue: str) -> None:
    """What is no message of ours, in the shapes that Celery, kombu or we would quote."""

    def message(body: object, **headers: object) -> bytes:
        properties = {
            "delivery_tag": os.urandom(8).hex(), "body_encoding": "base64",
            "delivery_info": {"exchange": "", "routing_key": queue},
        }  # fmt: skip
        return json.dumps(
            {
                "body": base64.b64encode(json.dumps(body).encode()).decode(),
                "content-type": "application/json",
                "content-encoding": "utf-8",
                "headers": {"task": "embedfleet.embed", "id": "1", **headers},
                "properties": properties,
            }
        ).encode()

    document = {"version": 1, "texts": [MARKER]}
    for body in (
        MARKER.encode(),
        message([[document], {}, {}], task="somebody.elses"),
        message([[document], {}, {"chain": [MARKER]}]),
        message([[document], {}, {}], argsrepr=MARKER, eta=MARKER),
        message([[document], {}, {}], argsrepr=MARKER),
        message([[MARKER], {"texts": MARKER}, {}]),
        message([[document], {}, {}], task="embedfleet.answer"),
    ):
        server.client.lpush(queue, body)


def test_what_nobody_catches_is_a_line_too(server: RedisServer, tmp_path: Path) -> None:
    script = (
        "import runpy\n"
        "from embedfleet_worker import weights\n"
        "from embedfleet_worker.engine.synthetic import SyntheticEngine\n"
        f"def breaks(*_): raise RuntimeError('{MARKER}')\n"
        "SyntheticEngine.__init__ = breaks\n"
        "runpy.run_module('embedfleet_worker', run_name='__main__')\n"
    )
    with started(script, tmp_path, server) as worker:
        _, log = worker.process.communicate(timeout=30)
    assert worker.process.returncode == 1
    assert MARKER.encode() not in log
    line = log_lines(log)[-1]
    assert (line["level"], line["error"]) == ("ERROR", "RuntimeError")
    assert line["frames"][-1].endswith("breaks")


def test_local_fleets_serve_nothing_and_read_their_workers_log(tmp_path: Path) -> None:
    local = LocalFleet(load(store=str(tmp_path), health_port=9464))
    try:
        assert local.settings.health_port == 0
        log = Path(local.settings.broker_url.get_secret_value().removeprefix("redis+socket://")).with_name("worker.log")
        warning = json.dumps({"at": "", "level": "WARNING", "logger": "l", "message": 'given back: "x" – wait'})
        log.write_text(f"{warning}\n{warning}\nSegmentation fault\n[1]\n" + '{"level": 1}\n', encoding="utf-8")
        assert local.warnings() == ['given back: "x" – wait']
        assert local.warnings() == []
        assert local._tail().splitlines()[1:3] == ['WARNING given back: "x" – wait', "Segmentation fault"]
    finally:
        local.stop()
