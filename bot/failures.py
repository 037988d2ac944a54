"""Failures of calls: whether Telegram cannot be reached, or one message is of a kind that it cannot take.

A call that gets no answer may say something of the message as well as of Telegram. It is the message while calls for
other chats succeed. Where only one chat has something to send, polls that succeed say the same.

Nothing here locks; the caller passes the time, time.monotonic().
"""

from __future__ import annotations

import random
import time

from bot.telegram import LONGEST_REST_SECONDS, TelegramError
from common.clock import age

MAX_BACKOFF_SECONDS = 60
FLOOD_CHATS, FLOOD_SECONDS = 3, 20
SUSPECT_FAILURES = 2  # of its own, after which a message says nothing of Telegram any more
TEXT_FIRST_FAILURES = 3
HOPELESS_FAILURES, HOPELESS_SECONDS = 8, 600


class _Trouble:
    """A message whose calls fail. `own`: how many failures came while others succeeded, `since` the first."""

    __slots__ = ("chat_id", "latest", "own", "since")

    def __init__(self, chat_id: int, now: float):
        self.chat_id = chat_id
        self.since = self.latest = now
        self.own = 0


class Failures:
    def __init__(self):
        self._troubles: dict[str, _Trouble] = {}
        self._failing: set[int] = set()  # chats that failed since a message was delivered
        self._delivered_at = float("-inf")

    def failed(self, entry_id: str, chat_id: int, now: float, answered_at: float) -> bool:
        """A call has got no answer; `answered_at` is when Telegram last carried out a call of any kind. True when
        several chats fail, so that it is Telegram."""
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
        """A message's call was carried out."""
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
    """Chats that Telegram refused because calls came too fast."""

    def __init__(self):
        self._rests: dict[int, tuple[float, int]] = {}  # when refused, and the seconds of rest

    def refused(self, chat_id: int, seconds: int, now: float) -> int | None:
        """The rest that all chats need, None where it is one chat's own affair.

        Several chats at once are refused for what the bot does, not for what one chat got. What they have in common
        is the least of what they were told."""
        self._rests = {chat: rest for chat, rest in self._rests.items() if now - rest[0] < FLOOD_SECONDS}
        self._rests[chat_id] = now, seconds
        return min(rest for _, rest in self._rests.values()) if len(self._rests) >= FLOOD_CHATS else None


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row, with jitter."""
    return min(MAX_BACKOFF_SECONDS, 0.5 * 2 ** min(failures, 10)) * random.uniform(0.5, 1)


def rest_left(entry: dict) -> float:
    """Seconds for which an earlier run was told to send nothing to the chat of this entry."""
    since, seconds = entry.get("refused_at"), entry.get("retry_after")
    if type(since) not in (int, float) or type(seconds) is not int or not 0 < seconds <= LONGEST_REST_SECONDS:
        return 0.0
    return max(0.0, seconds - age(since, time.time()))


def is_gone(error: TelegramError) -> bool:
    """Whether Telegram delivers nothing to this chat any more."""
    return error.code == 403 or error.description.lower() in ("bad request: chat not found", "chat not found")
