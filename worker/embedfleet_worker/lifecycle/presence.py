"""A worker says that it is there, for those who ask before they wait. Not the leases (transport/holding.py)."""

import os
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

from embedfleet.broker import Broker
from embedfleet.errors import BrokerUnavailable

_TELLING_S = 2.0  # a broker that hangs holds up no exit
NAME = f"{socket.gethostname()}-{os.getpid()}"


class Presence:
    """Announces this worker at its queues until it withdraws."""

    def __init__(self, broker: Broker, queues: Sequence[str]) -> None:
        self._broker = broker
        self._queues = queues
        self._lasts_s = broker.settings.lease_s
        self._stop = threading.Event()
        self._telling = threading.Lock()

    def start(self) -> None:
        """Announce now, and twice in the time that an announcement lasts."""
        threading.Thread(target=self._run, name="presence", daemon=True).start()

    def withdraw(self) -> None:
        """It consumes no more."""
        self._stop.set()
        mine = self._telling.acquire(timeout=_TELLING_S)  # else what is being announced would be what counts
        try:
            with suppress(BrokerUnavailable):
                for queue in self._queues:
                    self._broker.withdraw(queue, NAME)
        finally:
            if mine:
                self._telling.release()

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._telling, suppress(BrokerUnavailable):  # whoever takes messages says so
                for queue in self._queues:
                    if not self._stop.is_set():
                        self._broker.announce(queue, NAME, self._lasts_s)
            self._stop.wait(self._lasts_s / 2)
