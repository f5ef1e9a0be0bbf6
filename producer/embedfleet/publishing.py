"""Messages of a job on their way to a queue: by tens, and slower while it is too deep. Not the broker (broker.py)."""

import time
from collections.abc import Callable
from types import TracebackType

from embedfleet.broker import Broker
from embedfleet.envelope import Message

MAX_QUEUE_DEPTH = 100_000
"""Messages of a lane above which a producer slows down: 130 MB of the broker's memory, fifty million texts."""
_DEPTH_EVERY = 200  # messages between two looks at the depth
_DEPTH_WAIT_S = 1.0
_TOGETHER = 10  # what SQS takes in one request
_HOLD_S = 0.5  # a stream slower than this sends each message by itself


class Publisher:
    """Publishes to one queue. What is held back is sent when its block ends without an error.

    After an error it need not be: whoever goes on with the job publishes every batch that has no part.
    """

    def __init__(
        self,
        broker: Broker,
        queue: str,
        while_waiting: Callable[[], object],
        before_first: Callable[[], object] = lambda: None,
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._while_waiting = while_waiting
        self._before_first = before_first
        self._held: list[Message] = []
        self._count = 0
        self._sent_at = time.monotonic() - _HOLD_S

    def __call__(self, message: Message) -> None:
        """Send a message, perhaps with those that come next."""
        if self._count == 0:
            self._before_first()
        if self._count % _DEPTH_EVERY == 0:
            self._wait_for_room()
        self._count += 1
        self._held.append(message)
        if len(self._held) >= _TOGETHER or time.monotonic() - self._sent_at > _HOLD_S:
            self._flush()

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if error is None:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            self._broker.publish_all(self._held, self._queue)
        self._held = []
        self._sent_at = time.monotonic()

    def _wait_for_room(self) -> None:
        while self._broker.depth(self._queue) > MAX_QUEUE_DEPTH:
            self._while_waiting()
            time.sleep(_DEPTH_WAIT_S)
