"""When what failed is tried again: one policy a dependency, bounded in tries and time. What is retryable, classes say.

What is still down then is not waited for here: a producer is told, a worker gives the message back and takes no more
of its lane for a while (its transport/holding.py). None of these is used inside another, and Celery's own are off. Of
the drivers, S3's tries a request twice more, for producers too, who have no policy of ours around a single object.
"""

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    stop_before_delay,
)
from tenacity.wait import wait_exponential_jitter

from embedfleet.errors import (
    BrokerUnavailable,
    CacheUnavailable,
    DestinationUnavailable,
    EngineUnreachable,
    StoreUnavailable,
)

BROKER = Retrying(
    retry=retry_if_exception_type(BrokerUnavailable),
    stop=stop_after_attempt(4) | stop_after_delay(15),
    wait=wait_exponential_jitter(multiplier=0.2, max=3),
    reraise=True,
)
"""Publishing: a message that comes twice is harmless, so what may or may not have arrived is sent again."""

STORE = Retrying(
    retry=retry_if_exception_type(StoreUnavailable),
    stop=stop_after_attempt(5) | stop_after_delay(20),
    wait=wait_exponential_jitter(multiplier=0.2, max=5),
    reraise=True,
)
"""Reading, and creating a part: that either wins or finds that it is there."""

CACHE = Retrying(
    retry=retry_if_exception_type(CacheUnavailable),
    stop=stop_after_attempt(2) | stop_after_delay(0.5),
    wait=wait_exponential_jitter(multiplier=0.01, max=0.05, jitter=0.02),
    reraise=True,
)
"""A connection that was closed while nobody used it; a cache that is down is passed by."""

DESTINATION = Retrying(
    retry=retry_if_exception(lambda exc: isinstance(exc, DestinationUnavailable) and exc.retry_after_s is None),
    stop=stop_after_attempt(2) | stop_after_delay(3),
    wait=wait_exponential_jitter(multiplier=0.2, max=1),
    reraise=True,
)
"""A blip. The day of tries that a destination has is made of deliveries that are given back."""

_ENGINE_WAIT = wait_exponential_jitter(multiplier=0.5, max=8)


def _engine_wait_s(state: RetryCallState) -> float:
    """As long as the server asked for, else a little more each time."""
    failure = state.outcome.exception() if state.outcome else None
    asked_s = failure.retry_after_s if isinstance(failure, EngineUnreachable) else None
    return _ENGINE_WAIT(state) if asked_s is None else asked_s


ENGINE = Retrying(
    retry=retry_if_exception(lambda exc: isinstance(exc, EngineUnreachable) and not exc.late),
    stop=stop_after_attempt(5) | stop_before_delay(30),
    wait=_engine_wait_s,
    reraise=True,
)
"""A request to the server that embeds. One that asks for more time is an outage, like one that is down."""
