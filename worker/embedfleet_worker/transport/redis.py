"""Leases on Redis: a message is taken and leased in one step on the server, by the server's clock.

Stock kombu pops first and writes the lease when the reply has been read. A worker killed in between has lost
the message, and with an engine busy in the same process that is not rare.
"""

import itertools
import logging
import os
import socket
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from redis.exceptions import OutOfMemoryError

from embedfleet.redis import RedisBroker, lease_keys, lists
from embedfleet_worker.transport import Order, Taken

log = logging.getLogger(__name__)

# How long one blocked look lasts, of which one comes after another while a lane is empty. Shorter than the driver's
# timeout. What a plain Celery producer published with another priority than the highest waits for its end.
_LOOK_S = 5
_FULL_S = 1.0  # instead of a look at a server at its memory limit
_SCRIPTS = ("take", "renew", "settle", "sweep")


class RedisLeases:
    """Leases of some queues. Each names this process, and its number here."""

    def __init__(self, broker: RedisBroker, queues: Sequence[str]) -> None:
        self._broker = broker
        self._lease_s = broker.settings.lease_s
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._numbers = itertools.count()
        folder = files(__package__).joinpath("lua")
        self._scripts: dict[str, Any] = {
            name: broker.redis.register_script(folder.joinpath(f"{name}.lua").read_text(encoding="utf-8"))
            for name in _SCRIPTS
        }
        self._lanes = [key for queue in queues for key in (*lease_keys(queue), queue)]

    def take(self, queue: str, room: int) -> list[Taken]:
        """What there is at once; if there is nothing, nothing, after a look that removes none.

        Who stopped taking meanwhile, and gave back what the look saw, must not take it again as the process ends.
        """
        found = self._take(queue, room)
        if not found:
            self._broker.call(self._look, queue)
        return found

    def asking(self) -> bool:
        """A blocked look takes nothing."""
        return False

    def renew(self, queue: str, leases: list[str]) -> None:
        """Let them last from now on."""
        self._run("renew", [lease_keys(queue)[1]], [self._lease_s, *leases])

    def settle(self, orders: list[Order]) -> list[Order]:
        """All in one request a queue; what is refused now may be told later."""
        queues: dict[str, list[object]] = defaultdict(list)
        for order in orders:
            queues[order.queue] += [_how(order), order.lease]
        for queue, told in queues.items():
            self._run("settle", [*lease_keys(queue), queue], told)
        return []

    def sweep(self) -> None:
        """Give out again what has a lease that is over."""
        count = self._run("sweep", self._lanes, [])
        if count:
            log.info("%d leases were over", count)

    def _look(self, queue: str) -> None:
        """Wait until something is there, or a look is over."""
        try:
            self._broker.redis.blmove(queue, queue, _LOOK_S, "RIGHT", "RIGHT")
        except OutOfMemoryError:  # the server is full and refuses to look, but not to give out what comes back
            time.sleep(_FULL_S)

    def _take(self, queue: str, room: int) -> list[Taken]:
        name = f"{self._holder}:{next(self._numbers)}."
        found = self._run("take", [*lease_keys(queue), *lists(queue)], [room, self._lease_s, name])
        return [Taken(queue, lease.decode(), message) for message, lease in zip(found[::2], found[1::2], strict=True)]

    def _run(self, script: str, keys: Sequence[str], arguments: Sequence[object]) -> Any:
        return self._broker.call(self._scripts[script], keys=keys, args=arguments)


def _how(order: Order) -> object:
    """As the script has it: nothing, ``last`` or seconds."""
    if order.delay_s is None:
        return ""
    return "last" if order.last else order.delay_s
