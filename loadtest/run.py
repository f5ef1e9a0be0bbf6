"""A load test, headless: a minute unless told otherwise. Leaves HTML and CSV in build/loadtest/.

    python -m loadtest.run [OPTION_OF_LOCUST | USER_CLASS]...

The fleet is that of EMBEDFLEET_BROKER_URL. Without one it is started on this machine, for as long as the test runs,
and job folders are removed with it. The exit code is not 0 when a request failed or a kind of user got no answer.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedfleet.errors import ConfigurationError, EmbedfleetError
from embedfleet.local import LocalFleet
from embedfleet.settings import FleetSettings, load

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
OUT = Path("build/loadtest")
# Ten users: one submits, six enqueue, three ask. What they have begun when the time is over they may finish.
DEFAULTS = ["--users", "10", "--spawn-rate", "10", "--run-time", "60s", "--stop-timeout", "60s", "--only-summary"]


def main() -> int:
    """The exit code: locust's, or 2 for a configuration that is wrong."""
    try:
        with fleet() as settings:
            return locust(settings)
    except EmbedfleetError as exc:
        print(f"loadtest: {exc}", file=sys.stderr)
        return 2


@contextmanager
def fleet() -> Iterator[FleetSettings]:
    """The settings of the fleet to load: the configured one, or one of its own."""
    settings = load()
    if settings.broker_url is not None:
        if settings.store is None:
            raise ConfigurationError("no store: set EMBEDFLEET_STORE to where this fleet's workers may write.")
        yield settings
        return
    with tempfile.TemporaryDirectory(prefix="embedfleet-loadtest-") as store:
        own = settings.model_copy(update={"store": store, "allowed_stores": (), "health_port": 0})
        with LocalFleet(own, stores=(store,)) as local:
            print(f"loadtest: starting a fleet with {own.model} ({own.engine})", file=sys.stderr)
            local.wait_ready()
            yield local.settings


def locust(settings: FleetSettings) -> int:
    """Run locust to its end."""
    OUT.mkdir(parents=True, exist_ok=True)
    files = ["--html", str(OUT / "report.html"), "--csv", str(OUT / "loadtest")]
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", *files, *DEFAULTS, *sys.argv[1:]]
    environment = {**os.environ, **settings.environment(), "LOCUST_SKIP_MONKEY_PATCH": "1"}
    with subprocess.Popen(command, env=environment) as running:
        signal.signal(signal.SIGINT, lambda *_: None)  # locust hears Ctrl-C too: it stops its users and reports
        return running.wait()


if __name__ == "__main__":
    sys.exit(main())
