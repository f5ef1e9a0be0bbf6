"""Says that nobody is there for what is queued. Who is there, a broker knows (Broker.workers)."""

import logging
import time

from embedfleet.broker import Broker

log = logging.getLogger(__name__)

_ASK_AGAIN_S = 60.0  # an application that enqueues all day asks who is there once a minute


class Company:
    """Who was asked for lately, by queue."""

    def __init__(self) -> None:
        self._asked_s: dict[str, float] = {}

    def look_for(self, broker: Broker, queue: str, model: str) -> None:
        """Warn, at most once a minute, when no worker takes from this queue; on SQS that can't be known."""
        if time.monotonic() < self._asked_s.get(queue, -_ASK_AGAIN_S) + _ASK_AGAIN_S:
            return
        self._asked_s[queue] = time.monotonic()
        if broker.workers(queue) == []:
            log.warning("no worker for %s is running; what is queued waits for one", model)
