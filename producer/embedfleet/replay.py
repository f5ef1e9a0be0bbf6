"""Doing dead letters again, and what forgetting one leaves undone. Not the commands (deadletters.py)."""

from collections.abc import Callable
from dataclasses import dataclass

from embedfleet import outcomes
from embedfleet.client import Fleet
from embedfleet.contract import Batch, Delivery
from embedfleet.errors import BrokerUnavailable, ContractError, EmbedfleetError, NotFinished, Permanent, Retryable
from embedfleet.job import Job
from embedfleet.letters import Letter
from embedfleet.store import check_allowed


@dataclass(frozen=True)
class Replayed:
    """What came of one letter."""

    letter: str
    done: bool
    """Whether it may be removed."""
    said: str
    later: bool = False
    """Whether another try may do it."""
    job: str | None = None
    """URI of the job in which its texts are embedded again."""


class Replay:
    """Does letters again, one after the other. What belongs to one job is done once."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._once: dict[tuple[str, str], tuple[str, str | None] | EmbedfleetError] = {}

    def __call__(self, letter: Letter) -> Replayed:
        """Do a letter again; it is not removed. Raises BrokerUnavailable: the others would wait for it too."""
        try:
            said, job = self._again(letter)
        except BrokerUnavailable:
            raise
        except (NotFinished, Retryable) as exc:
            return Replayed(letter.id, False, str(exc), later=True)
        except Permanent as exc:
            return Replayed(letter.id, False, str(exc))
        return Replayed(letter.id, True, said, job=job)

    def _again(self, letter: Letter) -> tuple[str, str | None]:
        work = letter.work
        if work is None:
            raise ContractError(why_not(letter))
        job = _job(self._fleet, letter, work)
        return self._deliver(job, work) if isinstance(work, Delivery) else self._embed(job, work, letter)

    def _embed(self, job: Job | None, batch: Batch, letter: Letter) -> tuple[str, str | None]:
        """A part is for good, so texts whose part says that they are dead are embedded in a child job."""
        if job is not None and outcomes.is_dead(job.folder, batch.batch):
            return self._just_once(job.uri, "", lambda: _retry(self._fleet, job))
        queue = self._fleet.broker.queue_of(job.spec) if job is not None else letter.queue
        if not queue.startswith(f"{self._fleet.settings.queue_prefix}-"):
            raise ContractError(
                f"job {batch.job}: which queue it needs is not known, because its folder can't be read. "
                "Replay it where EMBEDFLEET_STORE or EMBEDFLEET_ALLOWED_STORES has its store."
            )
        self._fleet.broker.publish(batch, queue)
        return f"{batch.job} batch {batch.batch} is published again in {queue}", None

    def _deliver(self, job: Job | None, delivery: Delivery) -> tuple[str, str | None]:
        what = f"{delivery.job} batch {delivery.batch} to {delivery.destination}"
        receipt = job.folder.receipt(delivery.destination, delivery.batch) if job is not None else None
        if receipt is not None and receipt.state == "confirmed":
            return f"{what} was delivered meanwhile", None
        sent_on = job is not None and (job.uri, delivery.destination) in self._once
        if job is not None and receipt is not None and (receipt.state == "dead" or sent_on):
            return self._just_once(job.uri, delivery.destination, lambda: _send_on(self._fleet, job, delivery))
        self._fleet.broker.publish(delivery, self._fleet.broker.deliver_queue)
        return f"{what} is published again", None

    def _just_once(
        self, uri: str, destination: str, do: Callable[[], tuple[str, str | None]]
    ) -> tuple[str, str | None]:
        key = uri, destination
        if key not in self._once:
            try:
                self._once[key] = do()
            except EmbedfleetError as exc:
                self._once[key] = exc
        found = self._once[key]
        if isinstance(found, EmbedfleetError):
            raise found
        return found


def why_not(letter: Letter) -> str:
    """Why a letter that holds no whole message can't be done again, and what to do instead."""
    if letter.raw is not None:
        return (
            "it is no message of this fleet, so nothing is known to do. Have its producer send it again as it should "
            "be; if the fleet has a signing key, signed with that."
        )
    if letter.what == "round trip":
        return "the texts of a round trip are not kept, and its caller waits no more."
    return "it does not hold the whole message. `embedfleet reconcile JOB` publishes what a job still waits for."


def still_waits(fleet: Fleet, letter: Letter) -> str | None:
    """What a job goes on waiting for when this letter is forgotten, for people; None when for nothing."""
    work = letter.work
    if work is None:
        return None
    try:
        job = _job(fleet, letter, work)
        if job is None:
            return None
        job.folder.input_info(work.batch)
        if isinstance(work, Batch):
            what, waits = f"batch {work.batch}", not job.folder.has_part(work.batch)
        else:
            job.folder.destination(work.destination)
            receipt = job.folder.receipt(work.destination, work.batch)
            what = f"the delivery of batch {work.batch} to {work.destination}"
            waits = receipt is None or receipt.state == "waiting"
    except EmbedfleetError:  # it has no such batch, or the folder can't be read from here: nobody knows
        return None
    again = f"`embedfleet reconcile {job.uri}` will publish it again"
    return f"job {job.id} still waits for {what}: {again}" if waits else None


def _job(fleet: Fleet, letter: Letter, work: Batch | Delivery) -> Job | None:
    """The letter's job; None where it can't be read, if no part or receipt of it says how it ended."""
    try:
        # A letter is not trusted further than the stores that are allowed anyway.
        return fleet.job(f"{check_allowed(work.to, fleet.settings.stores)}/{work.job}")
    except EmbedfleetError:
        if letter.part:
            raise
        return None


def _retry(fleet: Fleet, job: Job) -> tuple[str, str | None]:
    """What failed of a job, once more, for the model it was for, whatever this fleet's is."""
    spec = job.spec
    update = {"model": spec.settings.model, "revision": spec.revision}
    if spec.synthetic != (fleet.settings.engine == "synthetic"):
        update["engine"] = "synthetic" if spec.synthetic else "vllm"
    with Fleet(**dict(fleet.settings)) as its_own:
        its_own.settings = fleet.settings.model_copy(update=update)
        child = its_own.job(job.uri).retry()
    if child is None:
        return f"{job.id} has no text left that could do better: it was retried meanwhile", None
    return f"what failed of {job.id} is embedded again as {child.id}; see `embedfleet watch {child.uri}`", child.uri


def _send_on(fleet: Fleet, job: Job, delivery: Delivery) -> tuple[str, str | None]:
    fleet.send_on(job, job.folder.destination(delivery.destination))
    return f"what {delivery.destination} has not confirmed of {job.id} is sent on again", None
