"""One request for vectors, being filled by several threads. Not who fills it (openai.py)."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from embedfleet_worker.engine.base import Embedded, Tokens


class Work:
    """Vectors and errors by row, and the future that they go to when all pieces are done. Thread-safe."""

    def __init__(self, prompts: Sequence[Tokens], dimensions: int, pieces: int) -> None:
        self.prompts = prompts
        self.vectors = np.zeros((len(prompts), dimensions), np.float32)
        self.errors: dict[int, str] = {}
        self.future: Future[Embedded] = Future()
        self.abandoned = threading.Event()
        """Set when nobody waits for it any more."""
        self._pieces = pieces
        self._begun = False
        self._lock = threading.Lock()
        if not pieces:
            self.future.set_result(Embedded(self.vectors))

    def begin(self) -> bool:
        """Its time counts from now on; False when nobody waits any more."""
        with self._lock:
            if not self._begun and not self.abandoned.is_set():
                self.future.set_running_or_notify_cancel()
                self._begun = True
        return not self.abandoned.is_set()

    def piece_done(self) -> None:
        """The vectors are handed over with the last piece, unless the work has failed."""
        with self._lock:
            self._pieces -= 1
            if not self._pieces and not self.abandoned.is_set():
                self.future.set_result(Embedded(self.vectors, self.errors))

    def fail(self, reason: Exception) -> None:
        """Only the first to say so counts; the other pieces are given up."""
        with self._lock:
            if not self.future.done():
                self.abandoned.set()
                self.future.set_exception(reason)
