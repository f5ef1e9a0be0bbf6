"""Looking after open jobs: closing what is finished, publishing again what was lost. Not who asks (operate.py).

``<store>/open/<job id>`` names a job's folder from before its first message until the job is found finished. All of
this is idempotent: two that do it at once, or a message too many, change nothing.
"""

from typing import Literal

from embedfleet.broker import Broker
from embedfleet.client import Fleet
from embedfleet.contract import OpenJob
from embedfleet.errors import ConfigurationError
from embedfleet.job import Job
from embedfleet.jobfolder import delivery, open_path
from embedfleet.publishing import Publisher
from embedfleet.store import Store, check_allowed, open_store

Found = Literal["finished", "running", "published again"]


def open_jobs(fleet: Fleet) -> list[str]:
    """URIs of the jobs that the fleet's store names as open. Raises ConfigurationError without a store."""
    store = _store(fleet)
    return [OpenJob.loads(store.get(path), f"{store.uri}/{path}").uri for path in store.paths("open")]


def reconcile(fleet: Fleet, uri: str) -> Found:
    """See to the job in this folder; what was found. Its manifest is written if it can be.

    Raises StoreNotAllowed for one outside the allowed stores: an entry in the store is not trusted further than that.
    """
    check_allowed(uri.rpartition("/")[0] or uri, fleet.settings.stores)
    job = fleet.job(uri)
    status = job.status()
    if status.finished:
        _store(fleet).delete(open_path(job.id))
        return "finished"
    broker = fleet.broker
    embedded = status.state == "embedded"
    lane = broker.deliver_queue if embedded else broker.queue(job.spec.settings.model or "", "bulk")
    if not broker.is_idle(lane):  # what is there may be this job's
        return "running"
    if embedded:
        _deliver_again(broker, job)
    else:
        fleet.republish(job)
    return "published again"


def _deliver_again(broker: Broker, job: Job) -> None:
    """Queue the deliveries that have not ended."""
    with Publisher(broker, broker.deliver_queue, while_waiting=lambda: None) as publish:
        for destination in job.folder.destinations():
            for number in job.folder.undelivered(destination.name, dead=False):
                publish(delivery(job.folder, number, destination.name))


def _store(fleet: Fleet) -> Store:
    if fleet.settings.store is None:
        raise ConfigurationError("reconcile: no store. Set EMBEDFLEET_STORE: it names the open jobs.")
    return open_store(fleet.settings.store)
