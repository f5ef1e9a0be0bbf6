"""Every exception embedfleet raises, in one tree. What to retry is decided by class, never by message.

    EmbedfleetError
    ├── Retryable                 the same call may succeed later
    │   ├── BrokerUnavailable
    │   ├── StoreUnavailable
    │   ├── CacheUnavailable
    │   ├── EngineUnavailable
    │   ├── EngineFailed          at these texts; the engine goes on
    │   ├── EngineUnreachable     the server that embeds; no text is at fault
    │   ├── DeadlineExceeded
    │   └── DestinationUnavailable
    ├── Permanent                 the same call will fail again
    │   ├── ConfigurationError    a setting of this fleet
    │   │   └── ModelDoesNotFit
    │   ├── SettingsError         an EmbedSettings the model can't satisfy
    │   │   └── UnknownModel
    │   ├── InputError            a file or a record
    │   ├── ContractError         a message, job.json or part nobody here can read
    │   ├── AlreadyExists         create-once met an object that is there
    │   ├── NotFound              no such job or object
    │   ├── NotFinished           the job still runs
    │   ├── JobMismatch           submitted again, with something else
    │   ├── StoreNotAllowed       a store outside EMBEDFLEET_ALLOWED_STORES
    │   ├── DestinationRefused    a destination that will never take it
    │   └── TextError             texts that have no vector (Fleet.embed)
    └── WaitTimeout               what was waited for is still going on

A message says what happened, to which text, batch or setting, and what to do.
"""

from collections.abc import Mapping


class EmbedfleetError(Exception):
    """Base of everything raised on purpose."""


class Retryable(EmbedfleetError):
    """The same call may succeed later."""


class BrokerUnavailable(Retryable):
    """The broker did not answer."""


class StoreUnavailable(Retryable):
    """The object store did not answer, or refused for now."""


class CacheUnavailable(Retryable):
    """The connection to the vector cache was lost. Never leaves the worker: it goes on without."""


class EngineUnavailable(Retryable):
    """The engine stopped; another worker can do the work."""


class EngineFailed(Retryable):
    """The engine failed at what it was given, and goes on without it."""


class EngineUnreachable(Retryable):
    """The server that embeds did not answer, or not now: no text is at fault.

    ``retry_after_s``: when it asked for. ``late``: it took all the time there was, so that there is none to try again.
    """

    def __init__(self, message: str, retry_after_s: float | None = None, *, late: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.late = late


class DeadlineExceeded(Retryable):
    """The engine took longer than a batch may; what it had of it was aborted."""


class DestinationUnavailable(Retryable):
    """A webhook's receiver or a vector store did not take it this time. ``retry_after_s``: when it asked for."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Permanent(EmbedfleetError):
    """The same call will fail again."""


class ConfigurationError(Permanent):
    """A setting of the fleet is missing or wrong."""


class ModelDoesNotFit(ConfigurationError):
    """The model needs more memory than there is."""


class SettingsError(Permanent):
    """The settings ask for what the model can't give."""


class UnknownModel(SettingsError):
    """No profile is known for the model."""


class InputError(Permanent):
    """A file or a record can't be used."""


class ContractError(Permanent):
    """A message, job.json or part has an unknown version or field."""


class AlreadyExists(Permanent):
    """Create-once met an object that is already there."""


class NotFound(Permanent):
    """There is no such object or job."""


class NotFinished(Permanent):
    """The job is still running."""


class JobMismatch(Permanent):
    """The job exists and was made from something else."""


class StoreNotAllowed(Permanent):
    """The store is not among the allowed ones."""


class DestinationRefused(Permanent):
    """The destination is not allowed, gone, or can't hold the vectors."""


class TextError(Permanent):
    """Some texts have no vector. ``errors`` maps their positions to ``"code: message"``."""

    def __init__(self, message: str, errors: Mapping[int, str] | None = None) -> None:
        super().__init__(message)
        self.errors = dict(errors or {})


class WaitTimeout(EmbedfleetError):
    """The time to wait is over and the work is not."""
