"""Publishing a stream of messages: together where they come fast, and none held back for long."""

from collections.abc import Callable
from typing import Any

import pytest

from embedfleet.contract import Batch
from embedfleet.errors import BrokerUnavailable
from embedfleet.publishing import Publisher
from tests.waiting import wait_until


class Recorder:
    """Stands in for a broker."""

    def __init__(self) -> None:
        self.requests: list[list[int]] = []
        self.fail = 0

    def depth(self, queue: str) -> int:
        return 0

    def publish_all(self, messages: Any, queue: str) -> None:
        if self.fail:
            self.fail -= 1
            raise BrokerUnavailable("gone")
        self.requests.append([message.batch for message in messages])


@pytest.fixture
def broker() -> Any:
    return Recorder()


def publisher(broker: Any, before_first: Callable[[], object] = lambda: None) -> Publisher:
    return Publisher(broker, "q", lambda: None, before_first)


def message(number: int) -> Batch:
    return Batch(to="file:///data", job="j-1", batch=number, tokens=1)


def test_messages_go_by_tens_and_in_order(broker: Recorder) -> None:
    with publisher(broker) as publish:
        for number in range(25):
            publish(message(number))
    assert [len(request) for request in broker.requests] == [10, 10, 5]
    assert [number for request in broker.requests for number in request] == list(range(25))


def test_a_stream_that_stalls_holds_no_message_back(broker: Recorder) -> None:
    with publisher(broker) as publish:
        publish(message(0))
        publish(message(1))
        wait_until(lambda: broker.requests == [[0, 1]], "the messages", timeout_s=5)
    assert broker.requests == [[0, 1]]


def test_what_could_not_be_sent_late_is_sent_or_said_at_the_end(broker: Recorder) -> None:
    broker.fail = 1
    with publisher(broker) as publish:
        publish(message(0))
        wait_until(lambda: not broker.fail, "the try", timeout_s=5)
    assert broker.requests == [[0]]
    broker.fail = 100
    with pytest.raises(BrokerUnavailable), publisher(broker) as publish:
        publish(message(1))


def test_the_job_is_named_before_its_first_message(broker: Recorder) -> None:
    seen: list[int] = []
    with publisher(broker, lambda: seen.append(len(broker.requests))) as publish:
        for number in range(11):
            publish(message(number))
    assert seen == [0]


def test_after_an_error_nothing_more_is_sent(broker: Recorder) -> None:
    def stream() -> None:
        with publisher(broker) as publish:
            publish(message(0))
            raise ValueError("the stream")

    with pytest.raises(ValueError, match="the stream"):
        stream()
    assert broker.requests == []


def test_a_blip_while_the_depth_is_asked_for_ends_nothing(broker: Recorder) -> None:
    failures = [BrokerUnavailable("gone")]

    def depth(queue: str) -> int:
        if failures:
            raise failures.pop()
        return 0

    broker.depth = depth  # type: ignore[method-assign]
    with publisher(broker) as publish:
        publish(message(1))
    assert broker.requests == [[1]]
    assert not failures
