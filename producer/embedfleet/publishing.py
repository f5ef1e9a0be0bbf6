"""Messages of a job on their way to a queue: by tens, and slower while it is too deep. Not the broker (broker.py)."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from embedfleet import policies
from embedfleet.broker import Broker
from embedfleet.envelope import Message
from embedfleet.errors import BrokerUnavailable

MAX_QUEUE_DEPTH = 100_000
"""Messages of a lane above which a producer slows down: 130 MB of the broker's memory, fifty million texts."""
_DEPTH_EVERY = 200  # messages between two looks at the depth
_DEPTH_WAIT_S = 1.0
_TOGETHER = 10  # what SQS takes in one request
_HOLD_S = 0.2  # a stream that stalls holds no message back for longer


class Publisher:
    """Publishes to one queue. What is held back is sent a moment later, or when its block ends without an error.

    After an error it need not be: whoever goes on with the job publishes every batch that has no part.
    ``while_waiting`` is called again and again while the queue is too deep; None: nothing waits for that.
    ``before_first`` and ``after_last`` are called around the messages, if there is any.
    """

    def __init__(
        self,
        broker: Broker,
        queue: str,
        while_waiting: Callable[[], object] | None,
        before_first: Callable[[], object] = lambda: None,
        after_last: Callable[[], object] = lambda: None,
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._while_waiting = while_waiting
        self._before_first = before_first
        self._after_last = after_last
        self._held: list[Message] = []
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._count = 0

    def __call__(self, message: Message) -> None:
        """Send a message, perhaps with those that come next. Raises BrokerUnavailable, for earlier ones too."""
        if self._count == 0:
            self._before_first()
        if self._count % _DEPTH_EVERY == 0 and self._while_waiting is not None:
            self._wait_for_room(self._while_waiting)
        self._count += 1
        with self._lock:
            self._held.append(message)
            if len(self._held) >= _TOGETHER:
                self._flush()
            elif self._timer is None:
                self._timer = threading.Timer(_HOLD_S, self._late)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Send what is held back. Raises BrokerUnavailable."""
        with self._lock:
            self._flush()

    def sent(self) -> float | None:
        """When, on the broker's clock, all was sent; None while it can't be: the end of the block says so."""
        with suppress(BrokerUnavailable):
            self.flush()
            return self._broker.now()
        return None

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        with self._lock:
            if error is None:
                self._flush()
            self._held = []
            if self._timer is not None:
                self._timer.cancel()
        if error is None and self._count:
            self._after_last()

    def _late(self) -> None:
        """In the timer's thread. What could not be sent is sent, or said, with the next message."""
        with self._lock, suppress(BrokerUnavailable):
            self._timer = None
            self._flush()

    def _flush(self) -> None:
        if self._held:
            self._broker.publish_all(self._held, self._queue)
        self._held = []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait_for_room(self, while_waiting: Callable[[], object]) -> None:
        while policies.BROKER(self._broker.depth, self._queue) > MAX_QUEUE_DEPTH:
            while_waiting()
            time.sleep(_DEPTH_WAIT_S)
