"""What a job is told of work that can't be done: a part or a receipt that says why, so that it ends all the same."""

import numpy as np

from embedfleet import policies
from embedfleet.contract import Batch, Delivery, EmbedSettings, Receipt
from embedfleet.errors import ContractError, NotFound, Permanent
from embedfleet.jobfolder import JobFolder, input_name, now
from embedfleet.store import check_allowed, open_store
from embedfleet.tables import Outcome, Outcomes, write_part
from embedfleet_worker.pipeline import Problem

_WIDEST = 65_536  # more dimensions than any model has


def failed(ids: list[str], dimensions: int | None, problem: Problem) -> Outcomes:
    """The same error for each text, in a part of vectors of this length."""
    rows = [Outcome(record_id, error=problem) for record_id in ids]
    dimensions = dimensions or 1  # perhaps refused because nobody has as many
    return Outcomes(rows, np.zeros((len(rows), dimensions if dimensions <= _WIDEST else 1), np.float32))


def dead_outcomes(folder: JobFolder, number: int, settings: EmbedSettings, reason: Permanent) -> Outcomes:
    """The outcomes of a batch that can't be done. Raises the reason when the batch is none of the job's."""
    try:
        ids = policies.STORE(folder.input, number).ids
    except (ContractError, NotFound):
        sealed = folder.sealed()
        if sealed is None or number >= sealed.batches:
            raise reason from None
        ids = [input_name(number)]  # nobody can say any more which texts it held
    return failed(ids, settings.dimensions, ("dead_letter", str(reason)))


class Burial:
    """For what no worker ended: what SQS moved to the dead letters. ``stores``: the allowed ones.

    Raises Retryable where a later try may do it, and Permanent for a job that can't be told.
    """

    def __init__(self, stores: tuple[str, ...]) -> None:
        self._stores = stores

    def batch(self, batch: Batch, reason: str) -> None:
        """Write its part, if it has none."""
        folder = self._folder(batch)
        if not folder.has_part(batch.batch):
            settings = folder.spec().settings
            outcomes = dead_outcomes(folder, batch.batch, settings, NotFound(reason))
            folder.write_part(batch.batch, write_part(outcomes, settings.encoding, folder.job, batch.batch))

    def delivery(self, delivery: Delivery, reason: str) -> None:
        """Write its receipt, unless it is confirmed."""
        folder = self._folder(delivery)
        folder.destination(delivery.destination)
        receipt = folder.receipt(delivery.destination, delivery.batch)
        if receipt is None or receipt.state != "confirmed":
            dead = Receipt(
                job=delivery.job,
                batch=delivery.batch,
                destination=delivery.destination,
                state="dead",
                detail=reason,
                at=now(),
            )
            folder.write_receipt(dead)

    def _folder(self, work: Batch | Delivery) -> JobFolder:
        return JobFolder(open_store(check_allowed(work.to, self._stores)), work.job)
