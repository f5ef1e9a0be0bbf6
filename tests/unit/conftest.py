"""Fixtures of the unit tests: a Redis for the session, a broker at it, a store in a folder of the test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from embedfleet.broker import Broker, connect
from embedfleet.folder import Folder
from embedfleet.settings import load
from tests import aws
from tests.unit.redis_server import RedisServer, running_redis


@pytest.fixture(scope="session")
def redis_of_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_server(redis_of_session: RedisServer) -> RedisServer:
    """The session's server, emptied."""
    redis_of_session.client.flushall()
    return redis_of_session


@pytest.fixture
def broker(redis_server: RedisServer) -> Iterator[Broker]:
    connected = connect(load(broker_url=redis_server.url))
    yield connected
    connected.close()


@pytest.fixture
def store(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "store"), make=True)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """A stand-in for AWS."""
    with aws.moto() as endpoint:
        yield endpoint
