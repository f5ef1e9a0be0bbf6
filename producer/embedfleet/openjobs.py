"""Which jobs are open: ``<store>/open/<job id>``, for the janitor. Not what is done about them (reconcile.py).

A job is noted before its first message, and after what was sent for it; its note goes when the job is found finished.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Literal

from pydantic import Field

from embedfleet.broker import Broker
from embedfleet.contract import Document
from embedfleet.errors import BrokerUnavailable, NotFound
from embedfleet.jobfolder import JobFolder
from embedfleet.store import Store

Stage = Literal["embed", "deliver", "complete"]

SOON_S = 60.0
"""By then what is about to be published is there, or its producer was told that it is not: tries end after 15 s."""
_PAGE = 1000


class OpenJob(Document):
    """``<store>/open/<job id>``: a job that was not found finished yet."""

    uri: str = Field(description="Of its folder.")
    # What is not known or not used is not written: earlier versions refuse fields that they don't know.
    stage: Stage = Field(
        default="embed", exclude_if=lambda value: value == "embed", description="What messages the rest is about."
    )
    published_at: float | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Unix time in s on the broker's clock; by then the messages of this stage were published.",
    )
    again: int = Field(
        default=0, ge=0, exclude_if=lambda value: not value, description="How often sweeps have published since."
    )


def open_path(job: str) -> str:
    """Where the fleet's store names an open job."""
    return f"open/{job}"


def open_jobs(store: Store, after: str = "") -> Iterator[str]:
    """Ids of the open jobs behind ``after``, in string order, a page at a time."""
    while True:
        page = store.paths("open", open_path(after) if after else None, limit=_PAGE)
        for path in page:
            yield path.rpartition("/")[2]
        if len(page) < _PAGE:
            return
        after = page[-1].rpartition("/")[2]


def read(store: Store, job: str) -> OpenJob:
    """A job's note. Raises NotFound for a job that is not open, ContractError."""
    path = open_path(job)
    return OpenJob.loads(store.get(path), f"{store.uri}/{path}")


def write(store: Store, folder: JobFolder, stage: Stage, published_at: float | None, again: int = 0) -> OpenJob:
    """Note a job as open, whatever was noted of it before."""
    entry = OpenJob(uri=folder.uri, stage=stage, published_at=published_at, again=again)
    store.replace(open_path(folder.job), entry.dumps().encode())
    return entry


def note(store: Store, broker: Broker, folder: JobFolder, stage: Stage, within_s: float = 0.0) -> None:
    """Note a job as open whose messages were published, or will be ``within_s`` seconds.

    Also while the broker does not answer: then it is not known when.
    """
    published_at = None
    with suppress(BrokerUnavailable):
        published_at = broker.now() + within_s
    write(store, folder, stage, published_at)


def remove(store: Store, job: str, entry: OpenJob) -> None:
    """Take a job's note away, unless it was noted again meanwhile."""
    with suppress(NotFound):
        if read(store, job) == entry:
            store.delete(open_path(job))
