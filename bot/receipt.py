"""What becomes of a message, and how to wait for it."""

from __future__ import annotations

import threading


class Outcome:
    """What became of a message: `status` 200, 404, 409, 410, 502 or 504, and why."""

    __slots__ = ("status", "reason")

    def __init__(self, status: int, reason: str = ""):
        self.status = status
        self.reason = reason


class Receipt:
    """By which many threads may wait for what becomes of something: a message's Outcome, the error of a sync."""

    __slots__ = ("_settled", "_outcome")

    def __init__(self):
        self._settled = threading.Lock()
        self._settled.acquire()
        self._outcome = None

    def wait(self, seconds: float = -1):
        """The outcome, None when there is none within `seconds`; as long as it takes without them."""
        if self._settled.acquire(timeout=seconds):
            self._settled.release()
        return self._outcome

    def settle(self, outcome) -> None:
        self._outcome = outcome
        self._settled.release()
