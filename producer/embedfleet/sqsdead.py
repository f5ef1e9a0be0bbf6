"""The dead-letter queue on SQS: all of it looked at, and made visible again. Not what a letter is (letters.py).

A queue can't be listed. So a look receives what is there, hides it from other looks while it lasts, and shows it again.
"""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedfleet.errors import BrokerUnavailable
from embedfleet.letters import Letter, digest, is_letter

if TYPE_CHECKING:
    from embedfleet.sqs import SqsBroker

_LOOK_S = 20.0  # somebody waits
_HIDDEN_S = 60  # longer than a look and what is done about it; of one that was killed the letters are back soon
_WAIT_S = 1  # a poll that waits asks all of SQS' servers; one that does not may miss what is there
_TENS = 10
_TIMES, _SENT = "ApproximateReceiveCount", "SentTimestamp"
_HELD = "ApproximateNumberOfMessagesNotVisible"


@dataclass(frozen=True)
class Held:
    """A message of the dead-letter queue."""

    letter: Letter
    body: str
    moved: bool
    """Whether SQS moved it there by itself."""
    handle: str


class DeadQueue:
    """What one look found. Get it from :func:`look`."""

    def __init__(self, broker: "SqsBroker") -> None:
        self._broker = broker
        self._handles: dict[str, list[str]] = {}
        self.found: dict[str, Held] = {}
        """By the letter's id."""
        self.complete = False
        """Whether these are all, as far as SQS can say."""

    def receive(self, limit: int) -> None:
        """Take what is there, until nothing more comes, ``limit`` are there, or the time is over."""
        end = time.monotonic() + _LOOK_S
        while len(self.found) < limit and time.monotonic() < end:
            answer = self._broker.call(
                "receive_message",
                self._broker.dead_queue,
                MaxNumberOfMessages=_TENS,
                WaitTimeSeconds=_WAIT_S,
                VisibilityTimeout=_HIDDEN_S,
                MessageSystemAttributeNames=[_TIMES, _SENT],
            )
            messages = [each for each in answer.get("Messages", []) if each.keys() >= {"ReceiptHandle", "Body"}]
            if not messages:
                self.complete = not self._held_by_others()
                return
            for message in messages:
                self._add(_held(message))

    def delete(self, ids: Collection[str]) -> int:
        """Remove letters; how many were there. Raises BrokerUnavailable when some could not be."""
        there = [letter for letter in set(ids) if letter in self.found]
        handles = [handle for letter in there for handle in self._handles[letter]]
        if self._each_ten("delete_message_batch", [{"ReceiptHandle": handle} for handle in handles]) < len(handles):
            raise BrokerUnavailable("SQS did not delete all of the letters; try again.")
        for letter in there:
            del self.found[letter], self._handles[letter]
        return len(there)

    def release(self) -> None:
        """Show again what is left. Where SQS can't be told, it shows by itself in a minute."""
        handles = [handle for handles in self._handles.values() for handle in handles]
        with suppress(BrokerUnavailable):
            entries = [{"ReceiptHandle": handle, "VisibilityTimeout": 0} for handle in handles]
            self._each_ten("change_message_visibility_batch", entries)

    def _add(self, held: Held) -> None:
        before = self.found.get(held.letter.id)
        if before is None or not before.moved:  # of a message and its letter, whose sender was killed: the message
            self.found[held.letter.id] = held
        self._handles.setdefault(held.letter.id, []).append(held.handle)

    def _each_ten(self, operation: str, entries: list[dict[str, Any]]) -> int:
        done = 0
        for start in range(0, len(entries), _TENS):
            took, _ = self._broker.call_batch(operation, self._broker.dead_queue, entries[start : start + _TENS])
            done += len(took)
        return done

    def _held_by_others(self) -> bool:
        answer = self._broker.call("get_queue_attributes", self._broker.dead_queue, AttributeNames=[_HELD])
        return int(answer["Attributes"].get(_HELD, 0)) > sum(len(handles) for handles in self._handles.values())


@contextmanager
def look(broker: "SqsBroker", limit: int) -> Iterator[DeadQueue]:
    """Inside, what is in the dead-letter queue is hidden from other looks. Raises BrokerUnavailable."""
    queue = DeadQueue(broker)
    try:
        queue.receive(limit)
        yield queue
    finally:
        queue.release()


def _held(message: dict[str, Any]) -> Held:
    attributes, body = message.get("Attributes", {}), message["Body"]
    sent_at = int(attributes.get(_SENT, 0)) / 1000
    if is_letter(body):
        return Held(Letter.read(body.encode(errors="replace")), body, False, message["ReceiptHandle"])
    letter = Letter.moved(body, digest(message.get("MessageId", body)), sent_at, int(attributes.get(_TIMES, 1)))
    return Held(letter, body, True, message["ReceiptHandle"])
