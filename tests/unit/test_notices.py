"""What EC2 tells of the end of a machine is told on, once; what it does not tell is not made up."""

import json
import logging
import socket
import threading
from collections.abc import Iterator

import pytest

from embedfleet.errors import ConfigurationError
from embedfleet_worker.lifecycle import notices
from tests.unit.metadata_server import AUTO_SCALING, REBALANCE, SPOT, TOKEN, Answer, MetadataServer, metadata_server
from tests.waiting import wait_until

ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
TERMINATED: Answer = (200, b"Terminated\n")
STOPPED = json.dumps({"action": "stop", "time": "2026-11-21T08:22:00Z"}).encode()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Five seconds are 20 ms here. Every thread that a test started has ended when it is over."""
    monkeypatch.setattr(notices, "_PERIOD_S", 0.02)
    monkeypatch.setattr(notices, "_FIRST_TRIES_S", (0.0, 0.02, 0.02))
    monkeypatch.setattr(notices, "_TIMEOUT_S", 0.2)
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    yield
    _ended()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MetadataServer]:
    """The service of this machine, which is terminated when the test is over."""
    with metadata_server() as running:
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{running.port}/")
        yield running
        _end(running)


def _end(server: MetadataServer) -> None:
    server.answers = {AUTO_SCALING: TERMINATED}
    _ended()


def _watching() -> bool:
    return any(thread.name == "notices" for thread in threading.enumerate())


def _ended() -> None:
    wait_until(lambda: not _watching(), "the watcher to end", timeout_s=5)


def _rounds(server: MetadataServer, count: int = 3) -> None:
    """Let so many more rounds pass; each asks for a rebalance recommendation last."""
    before = len([path for path, _ in server.seen if path == REBALANCE])
    wait_until(lambda: len([p for p, _ in server.seen if p == REBALANCE]) >= before + count, "more rounds")


@pytest.mark.parametrize(
    ("path", "body", "line"),
    [
        (SPOT, STOPPED, "spot: the instance is stopped at 2026-11-21T08:22:00+00:00"),
        (SPOT, STOPPED.replace(b"stop", b"terminate"), "spot: the instance is terminated at 2026-11-21T08:22:00+00:00"),
        (SPOT, STOPPED.replace(b"stop", b"hibernate"), "spot: the instance is hibernated at 2026-11-21T08:22:00+00:00"),
        (AUTO_SCALING, b"Terminated", "auto scaling: the instance is being terminated"),
        (
            REBALANCE,
            b'{"noticeTime": "2026-11-21T08:22:00Z"}',
            "rebalance recommendation of 2026-11-21T08:22:00+00:00: the instance may soon be interrupted",
        ),
    ],
)
def test_a_notice_is_told_once(server: MetadataServer, path: str, body: bytes, line: str) -> None:
    told: list[str] = []
    notices.watch(told.append)
    _rounds(server)
    assert told == []
    server.answers[path] = (200, body)
    _ended()
    assert told == [line]
    assert server.count(TOKEN, 200) == 1
    assert {status for _, status in server.seen} == {200, 404}


def test_the_most_urgent_is_told(server: MetadataServer) -> None:
    server.answers = {
        REBALANCE: (200, b'{"noticeTime": "2026-11-21T08:00:00Z"}'),
        AUTO_SCALING: TERMINATED,
        SPOT: (200, STOPPED),
    }
    told: list[str] = []
    notices.watch(told.append)
    [line] = wait_until(lambda: told, "the notice")
    assert line.startswith("spot: ")


def test_a_token_is_renewed_before_it_ends(server: MetadataServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_TOKEN_S", 1)
    notices.watch(lambda line: None)
    wait_until(lambda: server.count(TOKEN, 200) == 4, "a fourth token")
    assert 401 not in {status for _, status in server.seen}


def test_a_token_that_is_forgotten_is_replaced(server: MetadataServer) -> None:
    told: list[str] = []
    notices.watch(told.append)
    _rounds(server)
    server.valid_until.clear()
    wait_until(lambda: server.count(TOKEN, 200) == 2, "another token")
    server.answers[SPOT] = (200, STOPPED)
    wait_until(lambda: told, "the notice")


GARBAGE: list[Answer] = [
    (200, b""),
    (200, b"\xff\xfe\x00"),
    (200, b"<html>Terminated</html>"),
    (200, b"null"),
    (200, b"[]"),
    (200, b"[" * 4000),
    (200, b'{"action": "terminate"}'),
    (200, b'{"action": "noop", "time": "2026-11-21T08:22:00Z"}'),
    (200, b'{"action": ["stop"], "time": "2026-11-21T08:22:00Z"}'),
    (200, b'{"action": "stop", "time": "soon"}'),
    (200, b'{"action": "stop", "time": 1, "noticeTime": 1}'),
    (200, b'{"noticeTime": null}'),
    (200, STOPPED + b" " * 10_000),
    (200, b"InService"),
    (201, STOPPED),
    (302, b""),
    (403, STOPPED),
    (500, STOPPED),
    (503, b"Terminated"),
]


@pytest.mark.parametrize("answer", GARBAGE, ids=lambda answer: f"{answer[0]} {answer[1][:50]!r}")
def test_garbage_is_no_notice_and_ends_nothing(server: MetadataServer, answer: Answer) -> None:
    told: list[str] = []
    server.answers = dict.fromkeys((SPOT, AUTO_SCALING, REBALANCE), answer)
    notices.watch(told.append)
    _rounds(server)
    assert told == []
    server.answers = {SPOT: (200, STOPPED)}
    wait_until(lambda: told, "the notice")


def test_one_that_fails_hides_no_other(server: MetadataServer) -> None:
    told: list[str] = []
    server.answers = {SPOT: (500, b""), AUTO_SCALING: (200, b"x" * 10_000), REBALANCE: (404, b"")}
    notices.watch(told.append)
    _rounds(server)
    server.answers[REBALANCE] = (200, b'{"noticeTime": "2026-11-21T08:22:00Z"}')
    wait_until(lambda: told, "the notice")


def test_a_body_without_end_is_not_read(server: MetadataServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_TIMEOUT_S", 5.0)
    told: list[str] = []
    server.answers[SPOT] = (200, b"x" * 50_000_000)
    notices.watch(told.append)
    wait_until(lambda: server.cut_short >= 2, "the server to find that nobody reads")
    assert told == []


def test_outages_are_waited_out_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    connections: list[socket.socket] = []
    with metadata_server() as first:
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{first.port}")
        notices.watch(told.append)
        _rounds(first)
    wait_until(lambda: "ConnectionRefusedError" in caplog.text, "the warning")
    with socket.create_server(("127.0.0.1", first.port)) as silent:
        for _ in range(3):  # the first is never answered, the others are hung up on
            connections.append(silent.accept()[0])
            for connection in connections[1:]:
                connection.close()
    connections[0].close()
    with metadata_server(first.port) as second:  # with other tokens
        _rounds(second)
        assert second.count(SPOT, 401) == 1
        assert told == []
        second.answers[SPOT] = (200, STOPPED)
        wait_until(lambda: told, "the notice")
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert 1 <= len(warnings) <= 2  # of the outage, and perhaps of the tokens that were no good after it


def test_off_ec2_it_ends_silently(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody accepts: the connection hangs, as to a link-local address that no machine has."""
    told: list[str] = []
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{address[1]}")
        notices.watch(told.append)
        _ended()
        for each in waiting:
            each.close()
    assert told == []
    assert caplog.text == ""


@pytest.mark.parametrize(
    "answer", [(404, b""), (403, b""), (405, b""), (200, b"<html>log in</html>"), (200, b""), (200, b"a\r\nb: c")]
)
def test_another_clouds_metadata_ends_it(server: MetadataServer, answer: Answer) -> None:
    server.answers = {TOKEN: answer}
    notices.watch(lambda line: None)
    _ended()
    assert [path for path, _ in server.seen] == [TOKEN] * 3


def test_a_late_service_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_FIRST_TRIES_S", (0.0, *(0.02,) * 1000))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{port}")
        notices.watch(lambda line: None)
        connection, _ = taken.accept()
        connection.close()
    with metadata_server(port) as late:
        _rounds(late)
        _end(late)


def test_a_busy_service_is_not_given_up(server: MetadataServer) -> None:
    server.answers = {TOKEN: (503, b"")}
    told: list[str] = []
    notices.watch(told.append)
    wait_until(lambda: server.count(TOKEN, 503) > 10, "more tries than at first")
    server.answers = {SPOT: (200, STOPPED)}
    wait_until(lambda: told, "the notice")


def test_no_proxy_is_asked(server: MetadataServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    notices.watch(lambda line: None)
    _rounds(server)


@pytest.mark.parametrize("value", ["true", "True"])
def test_not_watched_where_aws_own_variable_says_so(
    server: MetadataServer, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", value)
    notices.watch(lambda line: None)
    assert not _watching()


@pytest.mark.parametrize(
    "value", ["169.254.169.254", "https://169.254.169.254", "http://", "http://[::1", "http://h:x"]
)
def test_an_endpoint_that_is_no_url_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(ENDPOINT, value)
    with pytest.raises(ConfigurationError, match=rf"{ENDPOINT}.*http://HOST"):
        notices.watch(lambda line: None)
