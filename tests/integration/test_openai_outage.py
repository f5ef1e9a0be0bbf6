"""A real worker whose server goes away and comes back: it pauses, charges nobody, and loses nothing."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedfleet import Fleet
from tests.embedding_server import embedding_server, only_with, status, unit_vector
from tests.integration.command import environment
from tests.waiting import wait_until

DIMENSIONS = 128
TEXTS = [f"text {number}" for number in range(512 * 6)]


@pytest.fixture
def settings(redis_url: str, tmp_path: Path, tiny_qwen3: Path) -> dict[str, Any]:
    return {"broker_url": redis_url, "store": str(tmp_path / "store"), "model": str(tiny_qwen3), "engine": "openai"}


def worker(url: str, folder: Path, **settings: Any) -> "subprocess.Popen[bytes]":
    variables = environment(openai_url=url, openai_model="m", **settings)
    with (folder / "log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "embedfleet_worker"], env=variables, stderr=log)


def logged(folder: Path) -> list[str]:
    return [json.loads(line)["message"] for line in (folder / "log").read_text(encoding="utf-8").splitlines()]


def test_a_server_that_goes_away_in_the_middle_of_a_job_costs_it_nothing(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """A worker that is started without a server ends with 75 meanwhile, to be started again."""
    (tmp_path / "early").mkdir()
    early = worker("http://127.0.0.1:9/v1", tmp_path / "early", **settings)
    with Fleet(**settings) as fleet:
        with embedding_server(DIMENSIONS) as server:
            port = server.server_address[1]
            server.fault = lambda *_: bool(time.sleep(0.1))
            running = worker(server.url, tmp_path, **settings)
            try:
                job = fleet.submit(TEXTS)
                wait_until(lambda: len(server.asked) > 15, "the server is asked for more than the probe texts")
            except BaseException:
                running.kill()
                raise
        try:
            wait_until(lambda: any("given back: server" in line for line in logged(tmp_path)), "the outage is met")
            with embedding_server(DIMENSIONS, port):
                totals = job.wait(timeout_s=90).totals
        finally:
            running.kill()
            running.wait()
        assert (totals.texts, totals.errors) == (len(TEXTS), 0)
        table = job.results().to_table()
        for record, vector in zip(table["id"].to_pylist(), table["embedding"].to_pylist(), strict=True):
            np.testing.assert_allclose(vector, unit_vector(TEXTS[int(record)], DIMENSIONS), atol=1e-6)
        assert fleet.broker.letters().letters == []
    assert early.wait(60) == 75
    assert "server http://127.0.0.1:9/v1: no connection" in logged(tmp_path / "early")[-1]


def test_a_text_that_the_server_fails_at_is_found_and_costs_no_other(settings: dict[str, Any], tmp_path: Path) -> None:
    texts = [*TEXTS[:3], "a bad one", *TEXTS[3:6]]
    with embedding_server(DIMENSIONS) as server, Fleet(**settings) as fleet:
        server.fault = only_with("bad", status(500))
        running = worker(server.url, tmp_path, **settings)
        try:
            job = fleet.submit(texts)
            job.wait(timeout_s=120)
        finally:
            running.kill()
            running.wait()
        assert {row["id"]: row["error"] for row in job.rows() if row["error"]} == {"3": "engine_error"}


def test_a_worker_whose_server_has_another_model_ends_with_2(settings: dict[str, Any], tmp_path: Path) -> None:
    with embedding_server(DIMENSIONS) as server:
        server.models = {"data": [{"id": "another"}]}
        assert worker(server.url, tmp_path, **settings).wait(60) == 2
    assert "it does not know the model 'm'; it has another" in logged(tmp_path)[-1]


def test_doctor_asks_the_server(settings: dict[str, Any], tmp_path: Path) -> None:
    with embedding_server(DIMENSIONS) as server:
        for model, ok, said in (("m", True, "embeds (stand-in 1.2)"), ("n", False, "does not know the model 'n'")):
            variables = environment(openai_url=server.url, openai_model=model, **settings)
            command = [sys.executable, "-m", "embedfleet_worker.doctor"]
            ran = subprocess.run(command, env=variables, capture_output=True, check=True, timeout=60)
            found = json.loads(ran.stdout)
            assert found["ok"] is ok
            assert said in found["detail"]
