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
    """By which to wait for what becomes of a message."""

    __slots__ = ("_settled", "_outcome")

    def __init__(self):
        self._settled = threading.Lock()
        self._settled.acquire()
        self._outcome: Outcome | None = None

    def wait(self, seconds: float) -> Outcome | None:
        """The outcome, None when there is none within `seconds`."""
        if self._settled.acquire(timeout=seconds):
            self._settled.release()
        return self._outcome

    def settle(self, outcome: Outcome | None) -> None:
        self._outcome = outcome
        self._settled.release()
