"""Strangers, chats that are linked to nobody: together they get a bounded share of the bot's work.

Anybody on Telegram can write to the bot. An update of a stranger takes a place before any work is done for it, and
keeps the place until the reply has been sent; without a free place it is dropped and counted.
"""

from __future__ import annotations

import logging
import threading

from bot.limits import Limiter

log = logging.getLogger("strangers")

MAX_WAITING, MAX_WAITING_PER_CHAT = 100, 5
STRANGER_SECONDS = 0.2  # between two updates, and between two calls
REPORT_SECONDS = 60


class Strangers:
    """Places for updates that are being handled and replies that are queued, by key. Thread-safe. `is_linked(chat_id)`
    tells linked chats from strangers."""

    def __init__(self, is_linked=lambda chat_id: True):
        self._is_linked = is_linked
        self._lock = threading.Lock()
        self._chats: dict[str, int] = {}
        self._places = Limiter(MAX_WAITING_PER_CHAT, MAX_WAITING)
        self._refused = 0
        self._reported = 0.0

    def include(self, chat_id: int) -> bool:
        return not self._is_linked(chat_id)

    def admit(self, key: str, chat_id: int) -> bool:
        """Take a place; False, and counted, where there is none."""
        with self._lock:
            if self._places.take(chat_id):
                self._chats[key] = chat_id
                return True
            self._refused += 1
            return False

    def hold(self, key: str, chat_id: int) -> None:
        """Take a place in any case: for the reply to an admitted update, or an update of an earlier run."""
        with self._lock:
            if key not in self._chats:
                self._chats[key] = chat_id
                self._places.hold(chat_id)

    def leave(self, key: str) -> None:
        """Free the place of a key, if it has one."""
        with self._lock:
            chat_id = self._chats.pop(key, None)
            if chat_id is not None:
                self._places.give_back(chat_id)

    def report(self, now: float) -> None:
        """Log the number of dropped updates, at most once a minute. `now` is monotonic."""
        with self._lock:
            if not self._refused or now - self._reported < REPORT_SECONDS:
                return
            refused, self._refused, self._reported = self._refused, 0, now
        log.warning("%d updates of chats that are linked to nobody were left unanswered: too many wait", refused)
