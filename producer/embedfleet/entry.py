"""The entry point of the command line: what becomes of its errors. Not the commands (cli.py)."""

import contextlib
import os
import signal
import sys

import click

from embedfleet.cli import cli
from embedfleet.errors import EmbedfleetError, WaitTimeout
from embedfleet.running import Unfinished

_EXIT_USAGE, _EXIT_UNFINISHED = 2, 3


def main() -> None:
    """Entry point: errors become one message on stderr and an exit code."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _interrupt)
    try:
        # Not cli.main, which turns a closed stdout into exit code 1.
        with cli.make_context("embedfleet", sys.argv[1:]) as context:
            code = cli.invoke(context)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.Exit as exc:  # --help, --version
        code = exc.exit_code
    except click.ClickException as exc:
        exc.show()
        code = _EXIT_USAGE
    except (click.exceptions.Abort, KeyboardInterrupt):
        code = _complain("stopped; run the same command again to go on.", _EXIT_UNFINISHED)
    except (Unfinished, WaitTimeout) as exc:
        code = _complain(exc, _EXIT_UNFINISHED)
    except EmbedfleetError as exc:
        code = _complain(exc, _EXIT_USAGE)
    except BrokenPipeError:  # embedfleet results … | head
        code = 0
        _forget_stdout()
    except OSError as exc:  # of a file it has the name, of a stream none
        what = f"{exc.filename}: it failed" if exc.filename else "the output can't be written"
        code = _complain(f"{what} ({exc.strerror or exc}).", _EXIT_UNFINISHED)
        _forget_stdout()
    _leave(code or 0)


def _interrupt(*_: object) -> None:
    """Stop, once: it takes seconds, and who presses again shall not lose the hint of how to go on."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    raise KeyboardInterrupt


def _leave(code: int) -> None:
    """End now. While the interpreter took itself down, one of Arrow's threads once aborted a command that was done."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none at all
            stream.flush()
    os._exit(code)


def _forget_stdout() -> None:
    """What is left in its buffer would fail once more at the end of the process."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: object, code: int) -> int:
    click.echo(f"embedfleet: {message}", err=True)
    return code
