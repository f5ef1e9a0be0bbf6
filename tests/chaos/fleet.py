"""Workers under test: started, stopped, killed and replaced; jobs of small batches. Not what goes wrong (faults.py)."""

import ctypes
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from embedfleet import Fleet, Job
from embedfleet.broker import Broker, connect
from embedfleet.contract import Batching, JobSpec
from embedfleet.jobfolder import JobFolder
from embedfleet.redis import RedisBroker
from embedfleet.settings import FleetSettings
from embedfleet.sqs import SqsBroker
from tests.chaos.journal import Batch, Journal
from tests.chaos.report import Figures, kills
from tests.waiting import wait_until

_ROOT = Path(__file__).parents[2]
_WATCH_S = 0.05
_LIBC = ctypes.CDLL(None)


def _end_with_parent() -> None:
    """Nothing stays behind when the tests are killed themselves."""
    _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class SmallBatches(Fleet):
    """A producer whose batches are small, so that many are under way."""

    max_texts = 10

    def _begin(self, *args: Any, **kwargs: Any) -> tuple[JobFolder, JobSpec]:
        folder, spec = super()._begin(*args, **kwargs)
        return folder, spec.model_copy(update={"batching": Batching(max_texts=self.max_texts)})


class Worker:
    """A process in a group of its own."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                command,
                cwd=_ROOT,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        """To the whole group; nothing when it is gone."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def end(self) -> None:
        """Now, whatever it does."""
        self.signal(signal.SIGKILL)
        self.process.wait()


class ChaosFleet:
    """Workers at one broker, kept at a number: who dies is replaced at once, as a supervisor does."""

    def __init__(self, settings: FleetSettings, folder: Path, scenario: str, **environment: str) -> None:
        self.settings = settings
        self.folder = folder
        self.journal = Journal(folder / "journal")
        self.figures = Figures(scenario, settings.lease_s)
        self.producer = SmallBatches(**dict(settings))
        self.broker: Broker = connect(settings)
        self.environment = environment
        """Of workers that are started from now on."""
        self.command = [sys.executable, "-m", "tests.chaos.worker"]
        self.exits: list[int] = []
        """Codes of workers that ended by themselves or were killed, in order."""
        self.workers: list[Worker] = []
        self._all: list[Worker] = []
        self._numbers = itertools.count()
        self._watch = threading.Lock()
        self._stopping = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, daemon=True)
        self._supervisor.start()

    @property
    def bulk(self) -> str:
        """The queue of batches."""
        return self.broker.lane("bulk")

    def keep(self, count: int) -> None:
        """Have so many workers from now on; those there are too many are killed."""
        with self._watch:
            for worker in self.workers[count:]:
                self._kill(worker)
            self.workers = self.workers[:count]
            while len(self.workers) < count:
                self.workers.append(self._start())

    def start(self, **environment: str) -> Worker:
        """One more worker, that nobody replaces."""
        return self._start(environment)

    def ready(self, count: int) -> None:
        """Wait until so many workers consume."""
        wait_until(lambda: len(self.consuming()) >= count, f"{count} workers to consume")

    def consuming(self) -> list[Worker]:
        """Workers that live, and take messages."""
        return [worker for worker in self.workers if worker.alive and b'"consuming ' in worker.log.read_bytes()]

    def holding(self) -> list[Worker]:
        """Workers that live and hold a lease."""
        return [worker for worker in self.workers if worker.alive and self.journal.held(worker.name)]

    def kill(self, worker: Worker) -> None:
        """kill -9."""
        with self._watch:
            self._kill(worker)

    def kill_somebody(self, chance: random.Random) -> None:
        """kill -9 of any worker that holds a lease, while another one works that can take it over."""
        self.kill(chance.choice(wait_until(lambda: len(found := self.holding()) >= 2 and found, "two busy workers")))

    def kill_at(self, point: str, timeout_s: float = 60) -> None:
        """Have the next worker that comes to this point kill itself; returns when it has."""
        (self.folder / f"kill at {point}").touch()
        wait_until(lambda: not (self.folder / f"kill at {point}").exists(), f"a worker killed at {point}", timeout_s)

    def interrupted(self) -> set[Batch]:
        """What killed workers held."""
        return {batch for _, held in kills(self.journal.events()) for batch in held}

    def submit(self, records: Iterable[object], key: str | None = None, **others: Any) -> Job:
        """A job of small batches."""
        return self.producer.submit(records, key=key, **others)

    def is_idle(self) -> bool:
        """Nothing waits to be embedded, and nobody holds any of it."""
        return self.broker.look(self.bulk).empty

    def forget_messages(self) -> None:
        """Have the broker lose all that it has."""
        if isinstance(self.broker, RedisBroker):
            self.broker.redis.flushall()
            return
        assert isinstance(self.broker, SqsBroker)
        for queue in self.broker.queues:
            self.broker.call("purge_queue", queue)

    def logs(self) -> str:
        """What the workers said, for who reads a failure."""
        return "\n".join(
            f"== {path.name}\n{path.read_text(encoding='utf-8', errors='replace')[-1500:]}"
            for path in sorted(self.folder.glob("*.log"))[-6:]
        )

    def close(self) -> None:
        """End every worker."""
        self._stopping.set()
        self._supervisor.join()
        for worker in self._all:
            worker.end()
        self.producer.close()
        self.broker.close()
        self.figures.measure(self.journal.events())
        self.journal.close()

    def _start(self, environment: Mapping[str, str] | None = None) -> Worker:
        name = f"w{next(self._numbers):04d}"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDFLEET_")}
        given = {
            **inherited,
            **self.settings.environment(),
            "CHAOS_FOLDER": str(self.folder),
            "CHAOS_WORKER": name,
            "PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            **self.environment,
            **(environment or {}),
        }
        worker = Worker(name, self.command, given, self.folder / f"{name}.log")
        self._all.append(worker)
        return worker

    def _kill(self, worker: Worker) -> None:
        # Stopped first: what it held in the moment of its death is what the journal says.
        worker.signal(signal.SIGSTOP)
        if worker.alive:
            self.journal.write(worker.name, "killed")
        worker.end()

    def _supervise(self) -> None:
        while not self._stopping.wait(_WATCH_S):
            with self._watch:
                for place, worker in enumerate(self.workers):
                    if not worker.alive and not self._stopping.is_set():
                        self.exits.append(worker.process.returncode)
                        self.workers[place] = self._start()
