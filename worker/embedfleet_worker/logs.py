"""A worker's log: one JSON object a line on stderr, whoever wrote it. Not what is counted (telemetry.py).

Texts never reach it. An exception is its type and where it happened, since its message may quote a text, and the
messages of Celery that do are replaced.
"""

import io
import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from celery.apps import worker as celery_worker
from redis.exceptions import RedisError

from embedfleet.errors import EmbedfleetError

FIELDS = (
    "job", "batch", "lane", "kind", "destination", "tries",
    "texts", "errors", "cached", "truncated", "tokens", "seconds", "error", "frames",
)  # fmt: skip
"""What a record may carry beside its message (``extra=``); anything else, such as Celery's arguments, is left out."""

_QUOTABLE = (OSError, RedisError, EmbedfleetError)  # what these say is about connections, files and settings
_DROPPED = "a message that is none of ours was dropped"
_OUTSIDE = "Exception raised outside body"  # what Celery says, with the exception, of one that it caught late

_about: ContextVar[dict[str, object] | None] = ContextVar("about", default=None)


@contextmanager
def about() -> Iterator[None]:
    """Inside, what :func:`bind` is told is in every line of this thread."""
    token = _about.set({})
    try:
        yield
    finally:
        _about.reset(token)


def bind(**fields: object) -> None:
    """Name what is being worked on, such as ``job`` and ``batch``: checked values only, never a message's own."""
    known = _about.get()
    if known is not None:
        known.update(fields)


def frames(trace: TracebackType | None) -> list[str]:
    """Where an exception was raised, outermost first: ``file:line function``."""
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)]


class JsonFormatter(logging.Formatter):
    """``at`` (UTC), ``level``, ``logger``, ``message``, and those of ``FIELDS`` that are known."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; never fails for what a record holds."""
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
            **(_about.get() or {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line |= {"error": record.exc_info[0].__name__, "frames": frames(record.exc_info[2])}
        line |= {name: record.__dict__[name] for name in FIELDS if name in record.__dict__}
        return json.dumps(line, default=lambda value: type(value).__name__)


class JsonHandler(logging.Handler):
    """Writes each line with one system call: lines of threads don't mix, and a signal handler may log too."""

    def __init__(self, fileno: int = 2) -> None:
        super().__init__()
        self._fileno = fileno
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line, or nothing where nobody can read it."""
        with suppress(OSError):
            left = (self.format(record) + "\n").encode()
            while left:
                left = left[os.write(self._fileno, left) :]


class Printed(io.TextIOBase):
    """Stands in for stdout and stderr: what a library prints, such as a bar while it loads, becomes log lines."""

    def __init__(self, name: str, fileno: int) -> None:
        self._log = logging.getLogger(name)
        self._fileno = fileno
        self._begun = ""
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        """Log the lines that are complete by now; a bar's states are lines too."""
        with self._lock:
            *lines, self._begun = (self._begun + text).replace("\r", "\n").split("\n")
        for line in lines:
            if line.strip():
                self._log.info("%s", line.strip())
        return len(text)

    def fileno(self) -> int:
        """The real stream, for those that write past Python."""
        return self._fileno


def install() -> None:
    """Make this process log so: its own lines, those of libraries, warnings, prints and uncaught exceptions."""
    logging.basicConfig(level=logging.INFO, handlers=[JsonHandler()], force=True)
    logging.captureWarnings(True)
    # Silent, or it would have handlers and streams of its own.
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")
    logging.getLogger("vllm").setLevel(os.environ.get("VLLM_LOGGING_LEVEL", "ERROR").upper())
    sys.stdout, sys.stderr = Printed("stdout", 1), Printed("stderr", 2)
    celery_worker.safe_say = _say
    sys.excepthook = lambda kind, _, trace: _uncaught(kind, trace)
    threading.excepthook = lambda given: _uncaught(given.exc_type, given.exc_traceback)
    sys.unraisablehook = lambda given: _uncaught(given.exc_type, given.exc_traceback)


def _say(message: object, *_: object, **__: object) -> None:
    """Celery's way to speak from signal handlers, which writes to the terminal."""
    logging.getLogger("celery").warning("%s", str(message).strip())


def _uncaught(kind: type[BaseException], trace: TracebackType | None) -> None:
    if kind is not SystemExit:
        extra = {"error": kind.__name__, "frames": frames(trace)}
        logging.getLogger(__name__).error("uncaught exception in %s", threading.current_thread().name, extra=extra)


def _message(record: logging.LogRecord) -> str:
    """The message without what might quote a text."""
    if record.name == "celery.app.trace":  # with the task's arguments, its exception and the traceback
        return "a task ended outside of our code"
    if record.name.startswith("kombu"):  # with whole messages among the arguments
        return str(record.msg)
    if record.name.startswith("celery.worker.consumer") and "message body" in str(record.msg):
        return _DROPPED
    args: Any = record.args
    if isinstance(args, Mapping):
        args = {name: _unquoted(value) for name, value in args.items()}
    elif args:
        args = tuple(_unquoted(value) for value in args)
    try:
        message = str(record.msg) % args if args else str(record.msg)
    except Exception:  # a defect of whoever logs, which is no reason to lose the line, nor to quote what it holds
        message = f"a line that can't be formatted, from {record.pathname}:{record.lineno}"
    quoting = record.name == "py.warnings" and _OUTSIDE in message
    return message.partition(_OUTSIDE)[0] + "an exception outside of a task" if quoting else message


def _unquoted(value: object) -> object:
    """An argument of a message; of an exception only its type, unless it never holds a text."""
    return type(value).__name__ if isinstance(value, BaseException) and not isinstance(value, _QUOTABLE) else value
