"""embedfleet: hand texts to a fleet of GPU workers, get vectors. Importing it is light: no torch, no numpy."""

from embedfleet import errors
from embedfleet.client import Fleet
from embedfleet.contract import EmbedSettings
from embedfleet.errors import EmbedfleetError
from embedfleet.job import Job, JobStatus

__all__ = ["EmbedSettings", "EmbedfleetError", "Fleet", "Job", "JobStatus", "errors"]
__version__ = "0.1.0"
