"""SQS as broker: sending by tens, finding and making queues. Leases are the worker's (its transport/sqs.py).

Credentials, roles, proxies and a stand-in's endpoint are AWS' own variables (AWS_PROFILE, AWS_ENDPOINT_URL and so on).
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from embedfleet import policies
from embedfleet.broker import CONNECT_TIMEOUT_S, Broker, masked_reason
from embedfleet.envelope import Message, wrap
from embedfleet.errors import BrokerUnavailable, ConfigurationError
from embedfleet.letters import MAX_LETTERS, Letter, Listing, listing
from embedfleet.masking import mask_url
from embedfleet.queueview import QueueView
from embedfleet.settings import FleetSettings
from embedfleet.sqsdead import look

TENS = 10
"""Entries of one batch request at most."""
MAX_BYTES = 1024 * 1024
"""Of one message, and of all in one request."""
RETENTION_S = 14 * 24 * 3600  # the most SQS keeps: time for a person to come back from leave
MAX_RECEIVES = 1000  # the most SQS allows: it counts what is given back too, so only what goes on for ever ends here
MIN_RECEIVES = 100  # a store that is down for a minute gives a message back a few times: that is no reason for a letter
_READ_TIMEOUT_S = 5.0  # a lease is renewed meanwhile, and an application waits
_POLL_TIMEOUT_S = 30.0  # longer than the longest poll, 20 s
_MISSING = ("AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist")
_ANSWERS = {"get_queue_url": "QueueUrl", "get_queue_attributes": "Attributes", "send_message": "MessageId"}
"""What an answer has to have: a proxy's page with status 200 is read as an empty one."""


class SqsBroker(Broker):
    """The queues of one account and region. It carries messages one way: no replies, no list of workers."""

    looks = 3  # its counts are approximate, and it can't be searched for a message

    def __init__(self, settings: FleetSettings, url: str) -> None:
        super().__init__(settings, url)
        region = _region(url)
        try:
            session = boto3.session.Session()
            self._client = session.client("sqs", region_name=region, config=_config(_READ_TIMEOUT_S))
            self._polls = session.client("sqs", region_name=region, config=_config(_POLL_TIMEOUT_S))
        except (BotoCoreError, ValueError) as exc:
            raise ConfigurationError(f"broker {mask_url(url)}: {masked_reason(exc)}.") from None
        self._urls: dict[str, str] = {}

    def call(self, operation: str, queue: str, **arguments: Any) -> Any:
        """An SQS operation on a queue. Raises BrokerUnavailable, and ConfigurationError if there is no such queue."""
        return self._call(operation, queue, QueueUrl=self._queue_url(queue), **arguments)

    def call_batch(
        self, operation: str, queue: str, entries: Sequence[Mapping[str, object]]
    ) -> tuple[set[int], dict[int, Mapping[str, Any]]]:
        """An operation on at most ten: the positions that are done, and what SQS said of others. Raises as `call`.

        A position that is in neither got no answer.
        """
        numbered = [{"Id": str(row), **entry} for row, entry in enumerate(entries)]
        answer = self.call(operation, queue, Entries=numbered)
        done = {int(entry.get("Id", -1)) for entry in answer.get("Successful", [])}
        return done, {int(entry.get("Id", -1)): entry for entry in answer.get("Failed", [])}

    def check(self, *queues: str) -> None:
        """Find the queues; without any, ask for a sign of life: of a queue that this fleet's roles may ask for."""
        for queue in queues:
            self._queue_url(queue)
        if not queues:
            with suppress(ConfigurationError):
                self._queue_url(self.lane("bulk"))

    def publish_all(self, messages: Sequence[Message], queue: str) -> None:
        """By tens; what SQS did not take of a request is sent again."""
        for start in range(0, len(messages), TENS):
            left = list(messages[start : start + TENS])
            policies.BROKER(self._send, left, queue)

    def depth(self, queue: str) -> int:
        """Messages waiting, approximately."""
        name = "ApproximateNumberOfMessages"
        return int(self.call("get_queue_attributes", queue, AttributeNames=[name])["Attributes"][name])

    def look(self, queue: str) -> QueueView:
        """Empty if nothing is visible, in flight or delayed, approximately; else nothing is known of what is there."""
        suffixes = ("", "NotVisible", "Delayed")
        names = [f"ApproximateNumberOfMessages{suffix}" for suffix in suffixes]
        at = self.clock()
        found = self.call("get_queue_attributes", queue, AttributeNames=names)["Attributes"]
        return QueueView(at, 0.0 if any(int(found[name]) for name in names) else None, frozenset())

    def dead_letter(self, letter: Letter) -> None:
        """Send it to the dead-letter queue."""
        self.call("send_message", self.dead_queue, MessageBody=letter.dumps())

    def letters(self, limit: int = MAX_LETTERS) -> Listing:
        """The dead letters, newest first, and what SQS moved there by itself. They stay."""
        with look(self, limit) as queue:
            return listing([held.letter for held in queue.found.values()], limit, complete=queue.complete)

    def remove_letters(self, ids: Collection[str]) -> int:
        """Forget dead letters; how many were there."""
        with look(self, MAX_LETTERS) as queue:
            return queue.delete(ids)

    def find_or_make(self, queue: str) -> bool:
        """Whether the queue had to be made, or given retention and dead letters. Make the dead-letter queue first."""
        wanted = self._attributes(queue)
        try:
            found = self.call("get_queue_attributes", queue, AttributeNames=["All"])["Attributes"]
        except ConfigurationError:
            self._call("create_queue", queue, QueueName=queue, Attributes=wanted)
            return True
        lacking = {name: value for name, value in wanted.items() if not _enough(name, found.get(name))}
        if lacking:
            self.call("set_queue_attributes", queue, Attributes=lacking)
        return bool(lacking)

    def lacks(self, queue: str) -> str | None:
        """What is missing of a queue, for people; None when nothing is."""
        try:
            found = self.call("get_queue_attributes", queue, AttributeNames=["All"])["Attributes"]
        except ConfigurationError:
            return f"{queue} is not there"
        if not _enough("MessageRetentionPeriod", found.get("MessageRetentionPeriod")):
            return f"{queue} keeps messages for less than 14 days"
        policy = found.get("RedrivePolicy")
        if queue == self.dead_queue or _enough("RedrivePolicy", policy):
            return None
        if not policy:
            return f"{queue} has no dead-letter queue"
        return f"{queue} makes a dead letter of what was received {_receives(policy)} times, and SQS counts give-backs"

    def announce(self, queue: str, worker: str, ttl_s: float) -> None:
        """Nobody can ask."""

    def withdraw(self, queue: str, worker: str) -> None:
        """Nobody can ask."""

    def workers(self, queue: str) -> None:
        """Not known: SQS does not say who receives."""

    def clock(self) -> float:
        """From the date of an answer, to the second."""
        queue = [*self._urls, self.lane("bulk")][0]  # one that this fleet's role may ask for, if one is known
        headers = self._call("get_queue_url", queue, QueueName=queue)["ResponseMetadata"].get("HTTPHeaders", {})
        try:
            return parsedate_to_datetime(headers["date"]).timestamp()
        except (LookupError, ValueError):
            raise self._unavailable("its answer has no date") from None

    def reply_key(self) -> str:
        """Impossible."""
        raise self._no_replies()

    def reply(self, key: str, payload: bytes) -> None:  # noqa: ARG002
        """Impossible."""
        raise self._no_replies()

    def await_reply(self, key: str, timeout_s: float, abandoned: Event | None = None) -> bytes:  # noqa: ARG002
        """Impossible."""
        raise self._no_replies()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._polls.close()

    def _no_replies(self) -> ConfigurationError:
        return ConfigurationError(
            f"broker {self.url}: SQS carries no answers back. Use `enqueue` or `submit`, or a Redis broker for `embed`."
        )

    def _send(self, left: list[Message], queue: str) -> None:
        """Send what is left; what was taken is taken off the list, so that trying again sends the rest only."""
        self._queue_url(queue)  # first, so that the clock is asked of a queue that is there
        at, key = self.now(), self.settings.signing_key
        fitting = _fitting([wrap(message, queue, at=at, key=key) for message in left])
        done, failed = self.call_batch("send_message_batch", queue, [{"MessageBody": body} for body in fitting])
        left[:] = [message for row, message in enumerate(left) if row not in done]
        if len(done) < len(fitting):
            reason = next((entry.get("Code") for entry in failed.values()), "no answer")
            raise BrokerUnavailable(
                f"broker {self.url}: {len(fitting) - len(done)} messages were not taken ({reason})."
            )
        if left:
            self._send(left, queue)

    def _attributes(self, queue: str) -> dict[str, str]:
        attributes = {"MessageRetentionPeriod": str(RETENTION_S), "SqsManagedSseEnabled": "true"}
        if queue != self.dead_queue:
            dead = self.call("get_queue_attributes", self.dead_queue, AttributeNames=["QueueArn"])["Attributes"]
            redrive = {"deadLetterTargetArn": dead["QueueArn"], "maxReceiveCount": MAX_RECEIVES}
            attributes["RedrivePolicy"] = json.dumps(redrive)
            attributes["VisibilityTimeout"] = str(int(self.settings.lease_s))
        return attributes

    def _queue_url(self, queue: str) -> str:
        if queue not in self._urls:
            self._urls[queue] = self._call("get_queue_url", queue, QueueName=queue)["QueueUrl"]
        return self._urls[queue]

    def _call(self, operation: str, queue: str, **arguments: Any) -> Any:
        client = self._polls if operation == "receive_message" else self._client
        try:
            answer = getattr(client, operation)(**arguments)
        except ClientError as exc:
            if exc.response["Error"].get("Code") in _MISSING:
                self._urls.pop(queue, None)
                raise ConfigurationError(
                    f"broker {self.url}: the queue {queue} is not there. Make it with `embedfleet doctor --fix`, or "
                    "correct EMBEDFLEET_QUEUE_PREFIX, EMBEDFLEET_MODEL and EMBEDFLEET_REVISION."
                ) from None
            raise self._unavailable(_said(exc)) from None
        except (BotoCoreError, OSError) as exc:
            raise self._unavailable(masked_reason(exc)) from None
        except (AttributeError, LookupError, TypeError, ValueError):  # what botocore's parsers trip over
            raise self._unavailable("what answers is not SQS") from None
        if _ANSWERS.get(operation, "ResponseMetadata") not in answer:
            raise self._unavailable("what answers is not SQS")
        return answer

    def _unavailable(self, reason: str) -> BrokerUnavailable:
        """Also for credentials that are refused: they expire and are renewed."""
        return BrokerUnavailable(
            f"broker {self.url}: it can't be reached ({reason}). Check the region, the credentials in AWS' own "
            "variables or the machine's role, and that they may use the queues."
        )


def _config(read_timeout_s: float) -> Config:
    return Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=read_timeout_s,
        retries={"total_max_attempts": 1},  # one retry policy, ours
        max_pool_connections=32,
    )


def _said(exc: ClientError) -> str:
    """What SQS said, in one line."""
    error = exc.response["Error"]
    said = f"{error.get('Code')}: {error.get('Message')}".splitlines()[0]
    return mask_url(said[:200])


def _region(url: str) -> str:
    parts = urlsplit(url)
    region = parts.netloc
    if not re.fullmatch(r"[a-z]{2}[a-z-]*-\d", region) or parts.path.strip("/") or parts.query or parts.fragment:
        shown = url if re.fullmatch(r"sqs:[a-z0-9./-]{,40}", url) else "sqs://***"  # a secret has capitals
        raise ConfigurationError(
            f"broker {shown}: it looks like sqs://eu-central-1, the region and nothing else. Credentials come "
            "from AWS' own variables or the machine's role, the endpoint of a stand-in from AWS_ENDPOINT_URL."
        )
    return region


def _fitting(bodies: list[str]) -> list[str]:
    """As many as one request may hold; at least one."""
    size = 0
    for row, body in enumerate(bodies):
        size += len(body)
        if row and size > MAX_BYTES:
            return bodies[:row]
    return bodies


def _enough(name: str, found: str | None) -> bool:
    """Whether an attribute that is there will do: who made the queue may have wanted another lease, or more letters."""
    if name == "MessageRetentionPeriod":
        return int(found or 0) >= RETENTION_S
    if name == "RedrivePolicy":
        return _receives(found) >= MIN_RECEIVES
    return bool(found)


def _receives(policy: str | None) -> int:
    """After how many receives a redrive policy moves a message; 0 without one."""
    return int(json.loads(policy or "{}").get("maxReceiveCount", 0))
