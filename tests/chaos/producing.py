"""A producer that goes on while workers come and go."""

import threading
from collections.abc import Iterator
from typing import Any

from embedfleet import Job
from embedfleet.jobfolder import JobFolder, job_id_of
from embedfleet.store import open_store
from tests.chaos.fleet import ChaosFleet

_DEEP = 50  # batches: a queue that is never empty and never long. A kill counts only when a lease is held


class LiveProducer:
    """Submits one stream, as fast as it is embedded, until told to stop; knows what it gave."""

    def __init__(self, fleet: ChaosFleet, **others: Any) -> None:
        self.given: list[str] = []
        self.job: Job | None = None
        self._fleet = fleet
        self._others = others
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def finish(self) -> Job:
        """End the stream; the job, sealed."""
        self._stop.set()
        self._thread.join()
        assert self.job is not None
        return self.job

    def _run(self) -> None:
        self.job = self._fleet.submit(self._stream(), key="live", **self._others)

    def _stream(self) -> Iterator[tuple[str, str]]:
        while not self._stop.is_set():
            number = len(self.given)
            while (
                number % 100 == 0 and self._fleet.broker.depth(self._fleet.bulk) > _DEEP and not self._stop.wait(0.05)
            ):
                pass
            self.given.append(f"t{number}")
            yield f"t{number}", f"text {number}"

    def parts(self) -> set[tuple[str, int]]:
        """The batches that are done."""
        folder = JobFolder(open_store(str(self._fleet.settings.store)), job_id_of("live"))
        return {(folder.job, number) for number in folder.parts()}
