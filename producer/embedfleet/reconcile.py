"""Looking after open jobs: closing what is finished, publishing again what was lost. Not who asks (operate.py).

``<store>/open/<job id>`` names a job's folder from before its first message until the job is found finished. All of
this is idempotent: two that do it at once, or a message too many, change nothing.
"""

from embedfleet.broker import Broker
from embedfleet.client import Fleet
from embedfleet.contract import OpenJob
from embedfleet.errors import ConfigurationError
from embedfleet.job import Job
from embedfleet.jobfolder import JobFolder, delivery, open_path
from embedfleet.publishing import Publisher
from embedfleet.store import Store, check_allowed, open_store


def open_jobs(fleet: Fleet) -> list[str]:
    """Ids of the jobs that the fleet's store names as open. Raises ConfigurationError without a store."""
    return [path.rpartition("/")[2] for path in _store(fleet).paths("open")]


def reconcile_open(fleet: Fleet, job: str) -> str:
    """See to a job that the store names as open; what was found. Raises NotFound when another was quicker."""
    store, path = _store(fleet), open_path(job)
    uri = OpenJob.loads(store.get(path), f"{store.uri}/{path}").uri
    where, _, name = uri.rpartition("/")
    # An entry in the store is not trusted further than the stores that are allowed anyway.
    if not JobFolder(open_store(check_allowed(where, fleet.settings.stores)), name).exists():
        store.delete(path)
        return "gone"
    return reconcile(fleet, fleet.job(uri))


def reconcile(fleet: Fleet, job: Job) -> str:
    """See to a job; what was found. Its manifest is written if it can be."""
    status = job.status()
    if status.finished:
        if fleet.settings.store is not None:
            _store(fleet).delete(open_path(job.id))
        return "finished"
    broker = fleet.broker
    lane = broker.deliver_queue if status.embedded else broker.queue_of(job.spec)
    if not broker.is_idle(lane):  # what is there may be this job's
        return "running"
    count = _deliver_again(broker, job) if status.embedded else fleet.republish(job)
    return f"published again: {count}" if count else "running"


def _deliver_again(broker: Broker, job: Job) -> int:
    """Queue the deliveries that have not ended."""
    count = 0
    with Publisher(broker, broker.deliver_queue, while_waiting=None) as publish:
        for destination in job.folder.destinations():
            for number, receipt in job.folder.undelivered(destination.name):
                if receipt is None or receipt.state == "waiting":
                    publish(delivery(job.folder, number, destination.name))
                    count += 1
    return count


def _store(fleet: Fleet) -> Store:
    if fleet.settings.store is None:
        raise ConfigurationError("reconcile: no store. Set EMBEDFLEET_STORE: it names the open jobs.")
    return open_store(fleet.settings.store)
