"""What `embed`, `submit` and `retry` share: the source, the fleet it runs on, following the job, stopping cleanly."""

import json
import shlex
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import click

from embedfleet import inputs, progress
from embedfleet.client import Fleet
from embedfleet.contract import Completion, EmbedSettings
from embedfleet.destinations import CALLBACK
from embedfleet.errors import InputError, NotFound, Retryable
from embedfleet.job import Job
from embedfleet.jobfolder import job_id_of
from embedfleet.jobstatus import JobStatus, State
from embedfleet.local import LocalFleet
from embedfleet.masking import mask
from embedfleet.records import Record
from embedfleet.settings import LANES, FleetSettings, Lane
from embedfleet.store import Store

_CALLBACK_S = 20.0  # longer than one try
_CHECK_EVERY = 512  # records between two looks at the local worker


def exit_code(state: State, errors: int) -> int:
    """What a command ends with for a job that is finished: 3 cancelled, 1 some texts have errors, 0 none has."""
    if state == "cancelled":
        return 3
    return 1 if errors else 0


class Unfinished(Exception):
    """Something was begun and can be gone on with; the message says how."""


class Source:
    """The inputs of a command: checked before anything is queued, then read as records."""

    def __init__(
        self,
        names: tuple[str, ...],
        text_field: str,
        id_field: str | None,
        key: str | None,
        settings: EmbedSettings,
        fleet: FleetSettings,
        store: str,
    ) -> None:
        scan = inputs.scan(names, text_field=text_field, id_field=id_field, store=store)
        self.texts = scan.texts
        self._given_key = key
        # What makes vectors differ and is not in the settings of a task is in the key too.
        worker = fleet.what_makes_vectors(settings.model)
        made = json.dumps([scan.fingerprint, text_field, id_field, settings.model_dump(), worker])
        self.key = key or (made if scan.fingerprint else uuid.uuid4().hex)
        self._is_pipe = scan.fingerprint is None
        stream = inputs.read(names, text_field=text_field, id_field=id_field, store=store)
        # The first record now: a pipe that is empty or wrong at once is refused before a job exists.
        self._records = chain([next(stream)], stream)

    def records(self) -> Iterator[Record]:
        """The records, once."""
        return self._records

    def resume_hint(self) -> str:
        """The command that goes on with this job."""
        if self._is_pipe:
            key = "" if self._given_key else f" --key {shlex.quote(self.key)}"
            return f"Go on with the same input: … | {command_line()}{key}"
        return f"Go on with: {command_line()}"


def command_line() -> str:
    """This command as it was typed, but for secrets: whoever goes on fills them in again."""
    words = ["embedfleet"]
    secret = {f"--{name.replace('_', '-')}" for name in FleetSettings.secrets()}
    for word in sys.argv[1:]:
        option, equals, value = word.partition("=")
        if equals and option in secret:
            word = f"{option}={mask(value)}"
        elif words[-1] in secret:
            word = mask(word)
        words.append(word)
    return shlex.join(words)


@contextmanager
def resumable(hint: str) -> Iterator[None]:
    """Inside, a job exists: what stops it is Unfinished, with the hint."""
    try:
        yield
    except KeyboardInterrupt:
        raise Unfinished(f"stopped; nothing that was done is lost. {hint}") from None
    except (InputError, Retryable) as exc:
        raise Unfinished(f"{exc} {hint}") from None


class Run:
    """A fleet to run a job on: the configured one, or one on this machine for as long as the command runs."""

    def __init__(self, fleet: Fleet, local: LocalFleet | None) -> None:
        self.fleet = fleet
        self.fleet.while_waiting = self._check
        self._local = local
        self._done = 0

    def done_before(self, store: Store, key: str) -> int:
        """Texts of a key's job that have an outcome already; 0 if there is no such job."""
        try:
            return self.fleet.job(f"{store.uri}/{job_id_of(key)}").status().totals.texts
        except NotFound:
            return 0

    def supervised(self, records: Iterable[Record], bar: progress.Bar) -> Iterator[Record]:
        """The records, with a look at the bar and the local worker now and then."""
        for number, record in enumerate(records):
            if number % _CHECK_EVERY == 0:
                bar.queued(number)
                self._check()
            yield record

    def follow(self, job: Job, begun: float, before: int, bar: progress.Bar) -> dict[str, Any]:
        """Show the job until it is finished; the summary.

        ``before``: texts that had an outcome when the clock ``begun`` started.
        """
        if self._local is None:
            self._say_if_alone(job)
        for status in job.watch():
            bar.show(status)
            self._supervise(job, status)
        if self._local is not None and job.spec.callback is not None:
            self._call_back(job)
        return progress.summary_of(job, status, time.monotonic() - begun, before)

    def _call_back(self, job: Job) -> None:
        """The janitor would do it within a minute; a local fleet ends with the command."""
        before = receipt = job.folder.receipt(CALLBACK, 0)
        if receipt is None or receipt.state == "waiting":
            completion = Completion(to=job.folder.store.uri, job=job.id)
            self.fleet.broker.publish(completion, self.fleet.broker.deliver_queue)
            end = time.monotonic() + _CALLBACK_S
            while receipt == before and time.monotonic() < end:
                self._check()
                time.sleep(0.1)
                receipt = job.folder.receipt(CALLBACK, 0)
        if receipt is None or receipt.state != "confirmed":
            reason = f" ({receipt.detail.rstrip('.')})" if receipt is not None else ""
            click.echo(f"note: the callback was not told{reason}. The same command tries again.", err=True)

    def _supervise(self, job: Job, status: JobStatus) -> None:
        if self._local is None or status.finished:
            return
        if status.batches_done > self._done:
            self._local.progressed()
        self._done = status.batches_done
        if self._check():
            self.fleet.republish(job)  # now, rather than when the dead worker's leases end

    def _check(self) -> bool:
        """Whether the local worker had died; what it complains of is said."""
        if self._local is None:
            return False
        for line in self._local.warnings():
            click.echo(f"worker: {line}", err=True)
        return self._local.check()

    def _say_if_alone(self, job: Job) -> None:
        status = job.status()
        delivers = not status.finished and bool(job.folder.destinations())
        if delivers and self.fleet.deliverers() == []:
            click.echo("note: no worker that delivers is running; the deliveries wait for one.", err=True)


@contextmanager
def running(settings: FleetSettings, store: Store, queues: tuple[Lane, ...] = LANES) -> Iterator[Run]:
    """The fleet at the configured broker, or without one a local fleet whose worker is ready for these lanes."""
    with ExitStack() as stack:
        local = None
        if settings.broker_url is None:
            local = stack.enter_context(LocalFleet(settings, stores=(store.uri,), queues=queues))
            local.wait_ready()
            settings = local.settings
        fleet = stack.enter_context(Fleet(**dict(settings)))
        fleet.broker.check()
        yield Run(fleet, local)
