"""Failed calls: tells an outage of Telegram from a message that it cannot take and from a chat that is gone.

A call without an answer may be the fault of either. It is the message's while calls for other chats succeed, or, where
only one chat has something to send, while polls succeed.

Nothing here locks; the caller passes the time, time.monotonic().
"""

from __future__ import annotations

import random
import time

from bot.telegram import LONGEST_REST_SECONDS, TelegramError
from common.clock import age

MAX_BACKOFF_SECONDS = 60
FLOOD_CHATS, FLOOD_SECONDS = 3, 20
SUSPECT_FAILURES = 2  # from then on a message is no sign of an outage
TEXT_FIRST_FAILURES = 3
HOPELESS_FAILURES, HOPELESS_SECONDS = 8, 600


class _Trouble:
    """A message whose calls fail. `own`: failures while other calls succeeded; `since`, `latest`: their times."""

    __slots__ = ("chat_id", "latest", "own", "since")

    def __init__(self, chat_id: int, now: float):
        self.chat_id = chat_id
        self.since = self.latest = now
        self.own = 0


class Failures:
    """Messages whose calls fail, and the chats that fail together."""

    def __init__(self):
        self._troubles: dict[str, _Trouble] = {}
        self._failing: set[int] = set()  # chats that failed since a message was delivered
        self._delivered_at = float("-inf")

    def failed(self, entry_id: str, chat_id: int, now: float, answered_at: float) -> bool:
        """Record a call without an answer. True when several chats fail, which means an outage. `answered_at`: the time
        of the latest success of any call."""
        trouble = self._troubles.setdefault(entry_id, _Trouble(chat_id, now))
        alone = not self._failing - {chat_id}
        if self._delivered_at > trouble.latest or (alone and answered_at > trouble.latest):
            trouble.own += 1
        trouble.latest = now
        if trouble.own >= SUSPECT_FAILURES:
            self._failing.discard(chat_id)
        else:
            self._failing.add(chat_id)
        return len(self._failing) > 1

    def succeeded(self, entry_id: str, now: float) -> None:
        """Record a successful call."""
        self.forget(entry_id)
        self._delivered_at = now
        self._failing.clear()

    def forget(self, entry_id: str) -> None:
        self._troubles.pop(entry_id, None)

    def wants_text_first(self, entry_id: str) -> bool:
        trouble = self._troubles.get(entry_id)
        return trouble is not None and trouble.own >= TEXT_FIRST_FAILURES

    def is_hopeless(self, entry_id: str, now: float) -> bool:
        trouble = self._troubles.get(entry_id)
        return (trouble is not None and trouble.own >= HOPELESS_FAILURES
                and now - trouble.since >= HOPELESS_SECONDS)


class Floods:
    """Chats that Telegram refused for the rate of calls."""

    def __init__(self):
        self._delays: dict[int, tuple[float, int]] = {}  # time of the refusal, retry_after

    def refused(self, chat_id: int, seconds: int, now: float) -> int | None:
        """The delay that all chats need, None where only this one does.

        Several chats refused at once mean that the bot as a whole is too fast; the delay they share is the shortest."""
        self._delays = {chat: delay for chat, delay in self._delays.items() if now - delay[0] < FLOOD_SECONDS}
        self._delays[chat_id] = now, seconds
        return min(delay for _, delay in self._delays.values()) if len(self._delays) >= FLOOD_CHATS else None


def backoff(failures: int) -> float:
    """Seconds to wait after `failures` in a row, with jitter."""
    return min(MAX_BACKOFF_SECONDS, 0.5 * 2 ** min(failures, 10)) * random.uniform(0.5, 1)


def delay_left(entry: dict) -> float:
    """Seconds left of the retry_after that Telegram gave an earlier run for the chat of this entry."""
    since, seconds = entry.get("refused_at"), entry.get("retry_after")
    if type(since) not in (int, float) or type(seconds) is not int or not 0 < seconds <= LONGEST_REST_SECONDS:
        return 0.0
    return max(0.0, seconds - age(since, time.time()))


def is_gone(error: TelegramError) -> bool:
    """Is the error final for the chat: the bot blocked, the chat gone?"""
    return error.code == 403 or error.description.lower() in ("bad request: chat not found", "chat not found")
