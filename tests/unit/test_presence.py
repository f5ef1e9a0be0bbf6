"""A worker says that it is there, and takes it back, whatever is under way then."""

import threading
from typing import Any

from embedfleet.settings import load
from embedfleet_worker.lifecycle.presence import NAME, Presence


class SlowBroker:
    """Keeps what it was told; an announcement takes until it is let go."""

    def __init__(self) -> None:
        self.settings = load(lease_s=30)
        self.told: list[str] = []
        self.asked, self.go_on = threading.Event(), threading.Event()

    def announce(self, queue: str, name: str, lasts_s: float) -> None:
        assert name == NAME
        self.asked.set()
        self.go_on.wait(5)
        self.told.append(f"there {queue}")

    def withdraw(self, queue: str, name: str) -> None:
        self.told.append(f"gone {queue}")


def test_what_is_being_announced_is_taken_back_behind_it() -> None:
    broker: Any = SlowBroker()
    presence = Presence(broker, ["one", "two"])
    presence.start()
    assert broker.asked.wait(5)
    threading.Timer(0.2, broker.go_on.set).start()
    presence.withdraw()
    assert broker.told == ["there one", "gone one", "gone two"]
