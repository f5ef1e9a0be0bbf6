"""The janitor: a timer in every worker that has one of them, once a minute, look after the open jobs.

Which one, a create-once object a minute says: that saves work. What is done (embedfleet.reconcile) is safe to be done
by several at once, and a janitor that is killed is made up for by the next minute's.
"""

import logging
import random
import re
import threading
import time
from collections.abc import Iterator

from embedfleet.broker import Broker
from embedfleet.client import Fleet
from embedfleet.contract import JOB_ID
from embedfleet.delivering import Delivering
from embedfleet.errors import AlreadyExists, BrokerUnavailable, NotFound
from embedfleet.lost import Lanes
from embedfleet.openjobs import open_jobs, open_path
from embedfleet.reconcile import RUNNING, UNDECIDED, Sweep
from embedfleet.settings import FleetSettings
from embedfleet.store import Store, open_store
from embedfleet_worker import logs
from embedfleet_worker.burial import Burial
from embedfleet_worker.redriven import Seen, settle_redriven

log = logging.getLogger(__name__)

SLOT_S = 60.0
_SWEEP_S = 45.0  # then the rest is for the next minute: a sweep has ended when the next one begins
_KEPT = 60  # slots, an hour's
_TIDY = 200  # old slots removed at a time
_SAID = 1000  # errors that are remembered, to be said once
_FIRST_S, _OTHERS_S, _SPREAD_S = 1.0, 5.0, 20.0
_ALL = "-"
"""What a slot says whose sweep saw every job; else it names the last one that was seen. Empty: it has not ended."""


class Janitor:
    """One thread, which nobody waits for at the end. Without EMBEDFLEET_STORE, which names the open jobs, none."""

    def __init__(self, settings: FleetSettings, broker: Broker) -> None:
        self._broker = broker
        self._fleet = _WorkersFleet(settings, broker)
        self._lanes = Lanes(broker)
        self._receipts: dict[str, Delivering] = {}
        self._store_uri = settings.store
        self._burial = Burial(settings.stores)
        self._seen = Seen()
        self._said: set[tuple[str, str]] = set()
        self._had_last = False

    def start(self) -> None:
        """Begin; the first turn is in the next minute."""
        if self._store_uri is None:
            log.info("no janitor: it needs EMBEDFLEET_STORE, which names the open jobs")
            return
        threading.Thread(target=self._run, name="janitor", daemon=True).start()

    def turn(self) -> bool:
        """Look after the open jobs unless another janitor does so this minute. Whether this one did.

        Raises what the store and the broker do.
        """
        store, slot = open_store(self._store_uri or ""), int(self._broker.clock() // SLOT_S)
        try:
            store.create(_path(slot), b"")
        except AlreadyExists:
            self._had_last = False
            return False
        self._had_last = True
        reached = self._sweep(store, _begin(store, slot))
        store.replace(_path(slot), reached.encode())
        _tidy(store, slot)
        settle_redriven(self._broker, self._burial.batch, self._burial.delivery, self._seen)
        return True

    def _run(self) -> None:
        with logs.about():
            while True:
                try:
                    time.sleep(self._pause_s())
                    self.turn()
                except Exception as exc:  # the next minute is another try
                    log.warning("janitor: missed this time (%s)", type(exc).__name__)

    def _pause_s(self) -> float:
        """Until the next slot. Who had the last one goes first: on SQS it remembers what it saw a minute ago."""
        spread_s = random.uniform(0, _FIRST_S) if self._had_last else _OTHERS_S + random.uniform(0, _SPREAD_S)
        try:
            return SLOT_S - self._broker.clock() % SLOT_S + spread_s
        except BrokerUnavailable:
            return SLOT_S + spread_s

    def _sweep(self, store: Store, after: str) -> str:
        """See to the jobs behind ``after``, then to those before, while there is time. Where it stopped."""
        sweep = Sweep(self._fleet, self._lanes, time.monotonic() + _SWEEP_S, receipts=self._receipts)
        reached, seen = after, set[str]()
        for job in _round(store, after):
            seen.add(job)
            if time.monotonic() > sweep.ends_at:
                log.info("janitor: not all open jobs were seen; the next sweep goes on")
                return reached
            self._see_to(sweep, job)
            reached = job
        for uri in [uri for uri in self._receipts if uri.rpartition("/")[2] not in seen]:
            del self._receipts[uri]  # another janitor closed it
        return _ALL

    def _see_to(self, sweep: Sweep, job: str) -> None:
        """A job that can't be seen to, for whatever reason, keeps none of the others from it."""
        try:
            found = sweep.open_job(job)
        except Exception as exc:
            if isinstance(exc, NotFound) and not sweep.store.exists(open_path(job)):
                return  # another was quicker
            if (job, type(exc).__name__) not in self._said and len(self._said) < _SAID:
                self._said.add((job, type(exc).__name__))
                log.warning("janitor: an open job can't be seen to (%s)", type(exc).__name__, extra={"job": job[:64]})
        else:
            if found not in (RUNNING, UNDECIDED):
                log.info("janitor: %s", found, extra={"job": job[:64]})


class _WorkersFleet(Fleet):
    """A fleet at the worker's own connection."""

    def __init__(self, settings: FleetSettings, broker: Broker) -> None:
        super().__init__(**dict(settings))
        self._broker_of_worker = broker

    def _connect(self) -> Broker:
        return self._broker_of_worker


def _path(slot: int) -> str:
    return f"janitor/{slot:010d}"


def _begin(store: Store, slot: int) -> str:
    """Where to begin: where the last sweep stopped.

    If that one did not end, anywhere: whatever job ended it, those behind it are not kept waiting.
    """
    before = [path for path in store.paths("janitor", _path(slot - _KEPT), limit=_KEPT) if path < _path(slot)]
    try:
        said = store.get(before[-1]).decode(errors="replace") if before else _ALL
    except NotFound:
        said = ""
    if said == _ALL:
        return ""
    return said if re.fullmatch(JOB_ID, said) else f"j-{random.randbytes(4).hex()}"


def _tidy(store: Store, slot: int) -> None:
    """Remove the slots of more than an hour ago."""
    for path in store.paths("janitor", limit=_TIDY):
        if path <= _path(slot - _KEPT):
            store.delete(path)


def _round(store: Store, after: str) -> Iterator[str]:
    """Every open job once, from the one behind ``after`` on."""
    yield from open_jobs(store, after)
    if after:
        for job in open_jobs(store):
            if job > after:
                return
            yield job
