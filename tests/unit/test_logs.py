"""The log's lines: JSON whatever is logged, fields that are known, and no exception's message."""

import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from embedfleet.errors import StoreUnavailable
from embedfleet_worker import logs

SECRET = "a secret text"


@pytest.fixture
def stream() -> Iterator[io.BufferedReader]:
    reading, writing = os.pipe()
    handler = logs.JsonHandler(writing)
    logger = logging.getLogger("tested")
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    with open(reading, "rb", buffering=0) as found:  # noqa: PTH123 - a descriptor
        os.set_blocking(reading, False)
        yield found
    logger.removeHandler(handler)
    os.close(writing)


def lines(stream: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (stream.read() or b"").splitlines()]


def formatted(record: logging.LogRecord) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(logs.JsonFormatter().format(record))
    return found


def record(message: object, *args: object, name: str = "celery.anything", exc_info: Any = None) -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, "file.py", 7, message, args, exc_info)


def test_a_line_has_its_time_level_logger_message_and_fields(stream: Any) -> None:
    with logs.about():
        logs.bind(job="j-1", batch=3)
        logging.getLogger("tested").info("batch %s", "done", extra={"texts": 5, "data": SECRET})
    logging.getLogger("tested").warning("later")
    first, second = lines(stream)
    assert first.pop("at")[-10:-6].startswith("."), "milliseconds"
    assert first == {
        "level": "INFO", "logger": "tested", "message": "batch done", "job": "j-1", "batch": 3, "texts": 5,
    }  # fmt: skip
    assert "job" not in second, "what was bound ends with its block"


def test_bytes_that_are_no_text_and_line_breaks_make_one_line() -> None:
    """Not through a logger: pytest-xdist can't carry half a surrogate in what it captured."""
    odd = record("a\nb\r\ud800 %s", b"\xff")
    odd.texts = object()
    line = logs.JsonFormatter().format(odd)
    assert line.isascii()
    assert "\n" not in line
    found = json.loads(line)
    assert found["message"] == "a\nb\r\ud800 b'\\xff'"
    assert found["texts"] == "object"


def test_an_exception_is_its_type_and_where_it_happened() -> None:
    try:
        json.loads(f"{{{SECRET}")
    except ValueError:
        found = formatted(record("it broke", exc_info=sys.exc_info()))
    assert found["error"] == "JSONDecodeError"
    assert any(frame.endswith("raw_decode") or frame.endswith("decode") for frame in found["frames"])
    assert SECRET not in json.dumps(found)


@pytest.mark.parametrize("message", ["it broke: %r", "it broke: %s"])
def test_an_exception_among_the_arguments_is_its_type(message: str) -> None:
    assert formatted(record(message, ValueError(SECRET)))["message"].replace("'", "") == "it broke: ValueError"


@pytest.mark.parametrize("exc", [StoreUnavailable("store s3://b: gone"), RedisConnectionError("refused"), OSError(28)])
def test_what_never_quotes_a_text_is_said(exc: Exception) -> None:
    assert str(exc) in formatted(record("it broke: %s", exc))["message"]


@pytest.mark.parametrize(
    "found",
    [
        record("Task %(name)s raised: %(exc)s", {"name": "t", "exc": SECRET}, name="celery.app.trace"),
        record(
            "Received and deleted unknown message... message body: %r", SECRET, name="celery.worker.consumer.consumer"
        ),
        record("%s", f"trace.py:9: RuntimeWarning: Exception raised outside body: X({SECRET!r}):", name="py.warnings"),
        record("%d texts", SECRET),
    ],
    ids=lambda found: str(found.name),
)
def test_what_libraries_say_of_messages_and_arguments_is_left_out(found: logging.LogRecord) -> None:
    line = formatted(found)
    assert SECRET not in json.dumps(line)
    assert line["message"]


def test_what_is_printed_becomes_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    printed = logs.Printed("stderr", 2)
    print("loading 10%\rloading 20%\nhalf a ", end="", file=printed)
    print("line\n", file=printed)
    assert caplog.messages == ["loading 10%", "loading 20%", "half a line"]
    assert printed.fileno() == 2


def test_nobody_reading_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    logs.JsonHandler(writing).handle(record("to nobody"))
    os.close(writing)


def test_kombu_quotes_no_message() -> None:
    odd = record("Could not restore message %r", {"body": SECRET}, name="kombu.transport.redis")
    assert formatted(odd)["message"] == "Could not restore message %r"
