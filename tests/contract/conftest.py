"""Fixtures of the contract tests, and where the golden files are."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedfleet.broker import Broker, connect
from embedfleet.settings import load
from tests.unit.redis_server import RedisServer, running_redis

GOLDEN = Path(__file__).parent / "golden"


class Golden:
    """What version 1 looks like. A file here never changes: what is on disk and in queues was written like this.

    A new version gets new files beside these.
    """

    def text(self, name: str) -> str:
        return (GOLDEN / name).read_text(encoding="utf-8").removesuffix("\n")

    def json(self, name: str) -> Any:
        return json.loads(self.text(name))

    def bytes(self, name: str) -> bytes:
        return (GOLDEN / name).read_bytes()


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def broker(redis_server: RedisServer) -> Iterator[Broker]:
    redis_server.client.flushall()
    connected = connect(load(broker_url=redis_server.url))
    yield connected
    connected.close()
