"""AsyncFleet: every verb for code that runs in an event loop. What it does is the Fleet's (client.py).

The drivers wait in threads, so a loop is never held up. Their number bounds how many calls of one fleet are under way
at once, those that wait for an answer counted apart; more wait their turn.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from embedfleet.client import Fleet
from embedfleet.contract import EmbedSettings, JobSpec, Overflow
from embedfleet.destinations import Target
from embedfleet.errors import WaitTimeout
from embedfleet.fewtexts import embeddings
from embedfleet.job import Job
from embedfleet.jobstatus import JobStatus, unfinished

if TYPE_CHECKING:
    import numpy as np
    import pyarrow.dataset

_THREADS = 64
P = ParamSpec("P")
T = TypeVar("T")


class _Threads:
    """Where calls wait."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="embedfleet")

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The call's result, without holding up the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: call(*args, **kwargs))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class AsyncFleet:
    """:class:`~embedfleet.Fleet` with ``await``: the same arguments, results and errors. Make one per process.

    >>> import asyncio
    >>> from embedfleet.testing import InMemoryFleet
    >>> async def main():
    ...     async with AsyncFleet(InMemoryFleet()) as fleet:
    ...         job = await fleet.enqueue(["what is a lease?"])
    ...         return (await job.wait()).state, (await fleet.embed(["what is a lane?"])).shape
    >>> asyncio.run(main())
    ('done', (1, 384))
    """

    def __init__(self, fleet: Fleet | None = None, **settings: Any) -> None:
        """``fleet``: one that exists already; else its settings."""
        self.fleet = fleet if fleet is not None else Fleet(**settings)
        self._threads = _Threads()
        self._waiting = _Threads()  # for answers: where no worker gives any, other verbs still find a thread

    async def submit(
        self,
        records: Iterable[object],
        *,
        settings: EmbedSettings | None = None,
        to: str | None = None,
        key: str | None = None,
        deliver_to: Sequence[Target] = (),
        expires_in_s: float | None = None,
        callback: str | None = None,
    ) -> "AsyncJob":
        """As :meth:`Fleet.submit`. ``records`` are read in a thread."""
        given: Any = {
            "settings": settings,
            "to": to,
            "key": key,
            "deliver_to": deliver_to,
            "expires_in_s": expires_in_s,
            "callback": callback,
        }
        job = await self._threads.run(self.fleet.submit, records, **given)
        return AsyncJob(job, self._threads)

    async def enqueue(
        self,
        texts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        settings: EmbedSettings | None = None,
        to: str | None = None,
        key: str | None = None,
        deliver_to: Sequence[Target] = (),
        expires_in_s: float | None = None,
        callback: str | None = None,
    ) -> "AsyncJob":
        """As :meth:`Fleet.enqueue`."""
        given: Any = {
            "settings": settings,
            "to": to,
            "key": key,
            "deliver_to": deliver_to,
            "expires_in_s": expires_in_s,
            "callback": callback,
        }
        job = await self._threads.run(self.fleet.enqueue, texts, ids=ids, **given)
        return AsyncJob(job, self._threads)

    async def embed(
        self, texts: Sequence[str], *, settings: EmbedSettings | None = None, timeout_s: float = 60.0
    ) -> "np.ndarray[Any, Any]":
        """As :meth:`Fleet.embed`. A cancelled call gives its thread back within 2 s."""
        abandoned = Event()
        try:
            answer, _ = await self._waiting.run(self.fleet.answer, texts, settings, timeout_s, abandoned)
        finally:
            abandoned.set()
        return embeddings(answer)

    async def job(self, job: str) -> "AsyncJob":
        """As :meth:`Fleet.job`."""
        return AsyncJob(await self._threads.run(self.fleet.job, job), self._threads)

    async def workers(self, model: str | None = None) -> list[str] | None:
        """As :meth:`Fleet.workers`."""
        return await self._threads.run(self.fleet.workers, model)

    async def deliverers(self) -> list[str] | None:
        """As :meth:`Fleet.deliverers`."""
        return await self._threads.run(self.fleet.deliverers)

    async def close(self) -> None:
        """Close the connections; calls that have not begun are cancelled."""
        self._threads.close()
        self._waiting.close()
        self.fleet.close()

    async def __aenter__(self) -> "AsyncFleet":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncJob:
    """:class:`~embedfleet.Job` with ``await``. Get it from :class:`AsyncFleet`."""

    def __init__(self, job: Job, threads: _Threads) -> None:
        self.job = job
        self._threads = threads

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id

    @property
    def uri(self) -> str:
        """The job folder's URI."""
        return self.job.uri

    async def spec(self) -> JobSpec:
        """``job.json``. Raises NotFound."""
        return await self._threads.run(self.job.folder.spec)

    async def status(self) -> JobStatus:
        """As :meth:`Job.status`."""
        return await self._threads.run(self.job.status)

    async def watch(self) -> AsyncIterator[JobStatus]:
        """As :meth:`Job.watch`; between two looks no thread waits."""
        for pause_s in self.job.pauses_s():
            status = await self.status()
            yield status
            if status.finished:
                return
            await asyncio.sleep(pause_s)

    async def wait(self, timeout_s: float | None = None) -> JobStatus:
        """As :meth:`Job.wait`. Raises WaitTimeout."""
        status: JobStatus | None = None
        try:
            async with asyncio.timeout(timeout_s):
                async for seen in self.watch():
                    status = seen
        except TimeoutError:
            pass
        if status is None or not status.finished:
            raise WaitTimeout(unfinished(self.job.id, status, timeout_s))
        return status

    async def rows(self) -> AsyncIterator[dict[str, Any]]:
        """As :meth:`Job.rows`: every outcome so far, a dict a text."""
        rows = self.job.rows()
        while (row := await self._threads.run(next, rows, None)) is not None:
            yield row

    async def results(self) -> "pyarrow.dataset.Dataset":
        """As :meth:`Job.results`."""
        return await self._threads.run(self.job.results)

    async def error_counts(self) -> Counter[str]:
        """As :meth:`Job.error_counts`."""
        return await self._threads.run(self.job.error_counts)

    async def errors_left(self) -> Counter[str]:
        """As :meth:`Job.errors_left`."""
        return await self._threads.run(self.job.errors_left)

    async def retry(self, *, on_overflow: Overflow | None = None) -> "AsyncJob | None":
        """As :meth:`Job.retry`."""
        child = await self._threads.run(self.job.retry, on_overflow=on_overflow)
        return AsyncJob(child, self._threads) if child is not None else None

    async def reembed(
        self,
        *,
        settings: EmbedSettings | None = None,
        to: str | None = None,
        key: str | None = None,
        deliver_to: Sequence[Target] = (),
        expires_in_s: float | None = None,
        callback: str | None = None,
    ) -> "AsyncJob":
        """As :meth:`Job.reembed`."""
        given: Any = {
            "settings": settings,
            "to": to,
            "key": key,
            "deliver_to": deliver_to,
            "expires_in_s": expires_in_s,
            "callback": callback,
        }
        return AsyncJob(await self._threads.run(self.job.reembed, **given), self._threads)

    async def chain(self) -> "list[AsyncJob]":
        """As :meth:`Job.chain`."""
        return [AsyncJob(job, self._threads) for job in await self._threads.run(self.job.chain)]

    async def deliver(self, destination: Target) -> None:
        """As :meth:`Job.deliver`."""
        await self._threads.run(self.job.deliver, destination)

    async def cancel(self) -> JobStatus:
        """As :meth:`Job.cancel`."""
        return await self._threads.run(self.job.cancel)
