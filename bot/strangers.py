"""Strangers: chats that are linked to nobody. Together they get a bounded share of the bot's work.

Anybody on Telegram can write to the bot. A place is taken before any work is done for a stranger's update, and held
until the reply has been sent; what finds no place is left unanswered, and only counted.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter

log = logging.getLogger("strangers")

MAX_WAITING, MAX_WAITING_PER_CHAT = 100, 5
STRANGER_SECONDS = 0.2  # between two updates, and between two calls: five a second
REPORT_SECONDS = 60


class Strangers:
    """Places for what waits to be handled or sent, by a key. Threads may share it. `is_linked(chat_id)` tells whose
    chat is somebody's."""

    def __init__(self, is_linked=lambda chat_id: True):
        self._is_linked = is_linked
        self._lock = threading.Lock()
        self._chats: dict[str, int] = {}
        self._in_chat: Counter = Counter()
        self._refused = 0
        self._reported = 0.0

    def include(self, chat_id: int) -> bool:
        return not self._is_linked(chat_id)

    def admit(self, key: str, chat_id: int) -> bool:
        """Take a place; False where there is none, which is counted."""
        with self._lock:
            if len(self._chats) < MAX_WAITING and self._in_chat[chat_id] < MAX_WAITING_PER_CHAT:
                self._take(key, chat_id)
                return True
            if not self._in_chat[chat_id]:
                del self._in_chat[chat_id]  # a Counter keeps what it was asked for
            self._refused += 1
            return False

    def hold(self, key: str, chat_id: int) -> None:
        """Take a place for a reply, whose update has been admitted, or for what an earlier run admitted."""
        with self._lock:
            self._take(key, chat_id)

    def leave(self, key: str) -> None:
        """Give a place back; nothing where the key has none."""
        with self._lock:
            chat_id = self._chats.pop(key, None)
            if chat_id is not None:
                self._in_chat[chat_id] -= 1
                if not self._in_chat[chat_id]:
                    del self._in_chat[chat_id]

    def report(self, now: float) -> None:
        """Log how many updates were left unanswered, at most once a minute. `now` is monotonic."""
        with self._lock:
            if not self._refused or now - self._reported < REPORT_SECONDS:
                return
            refused, self._refused, self._reported = self._refused, 0, now
        log.warning("%d updates of chats that are linked to nobody were left unanswered: too many wait", refused)

    def _take(self, key: str, chat_id: int) -> None:
        if key not in self._chats:
            self._chats[key] = chat_id
            self._in_chat[chat_id] += 1
