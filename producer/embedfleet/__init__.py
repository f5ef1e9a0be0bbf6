"""embedfleet: hand texts to a fleet of GPU workers, get vectors. Importing it is light: no torch, no numpy."""

from embedfleet import errors
from embedfleet.asynchronous import AsyncFleet, AsyncJob
from embedfleet.client import Fleet
from embedfleet.contract import Chunking, EmbedSettings
from embedfleet.destinations import Pgvector, Webhook
from embedfleet.errors import EmbedfleetError
from embedfleet.job import Job
from embedfleet.jobstatus import JobStatus

__all__ = [
    "AsyncFleet",
    "AsyncJob",
    "Chunking",
    "EmbedSettings",
    "EmbedfleetError",
    "Fleet",
    "Job",
    "JobStatus",
    "Pgvector",
    "Webhook",
    "errors",
]
__version__ = "0.1.0"
