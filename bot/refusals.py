"""Refused requests in the log: one line a minute for each user, the others by their number."""

from __future__ import annotations

import logging
import threading
import time

log = logging.getLogger("http")

SECONDS = 60
MAX_REASON = 300


class Refusals:
    """Logs the first refusal of a user at once, and what follows within a minute as a number. Threads may share it."""

    def __init__(self):
        self._lock = threading.Lock()
        self._of_user: dict[int, tuple] = {}  # uid: since when, how many were counted, the last reason

    def note(self, uid: int, reason: str) -> None:
        reason = reason[:MAX_REASON]
        with self._lock:
            counted = self._of_user.get(uid)
            if counted:
                self._of_user[uid] = (counted[0], counted[1] + 1, reason)
                return
            self._of_user[uid] = (time.monotonic(), 0, "")
        log.info("refused uid %d: %s", uid, reason)

    def flush(self, seconds: float = SECONDS) -> None:
        """Log what was counted for `seconds` or longer."""
        now = time.monotonic()
        with self._lock:
            over = {uid: counted for uid, counted in self._of_user.items() if now - counted[0] >= seconds}
            for uid, (_, count, _) in over.items():
                if count:
                    self._of_user[uid] = (now, 0, "")
                else:
                    del self._of_user[uid]
        for uid, (since, count, reason) in over.items():
            if count:
                log.info("refused uid %d %d times more within %d s, the last: %s", uid, count, now - since, reason)
