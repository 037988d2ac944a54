"""Pause of all calls while Telegram cannot be reached, or refuses the token.

While messages wait, getMe finds out once a second if it lasts, less often after a minute: unlike a message, it leaves
nothing in a chat when its answer is lost.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress

from bot.failures import backoff
from bot.pacing import ChatQueues
from bot.telegram import TelegramAPI, TelegramError, TelegramUnreachable

log = logging.getLogger("delivery")

TOKEN_RETRY_SECONDS = 60
PROBE_SECONDS, PROBES = 1.0, 60
PROBE_ANSWER_SECONDS = 5


class Outage:
    """Pauses `queues`, and says why. The caller holds the lock of the queues."""

    def __init__(self, queues: ChatQueues, api: TelegramAPI):
        self._queues, self._api = queues, api
        self._calls = 0  # in a row that did not reach Telegram
        self._problem: tuple[float, str] | None = None  # its time (monotonic)
        self._probes = 0
        self._probe_at = float("inf")

    @property
    def problem(self) -> str | None:
        """The reason Telegram takes nothing now; None once a call of any kind has succeeded since."""
        problem = self._problem
        return problem[1] if problem and problem[0] > self._api.succeeded_at else None

    def unreachable(self, error: TelegramUnreachable, waiting: int) -> None:
        if self._calls == 0:
            log.warning("Telegram cannot be reached (%s); %d messages wait", error, waiting)
        self._calls += 1
        self._pause(backoff(self._calls), f"Telegram cannot be reached: {error}")
        self._probe_at = time.monotonic() + PROBE_SECONDS

    def wrong_token(self, error: TelegramError, waiting: int) -> None:
        problem = f"Telegram refuses the bot token: {error.description}"
        if self._problem is None or self._problem[1] != problem:
            log.critical("Telegram refuses the bot token (%s): put the right one in place and restart "
                         "notify-bot.service; %d messages wait", error.description, waiting)
        self._probe_at = float("inf")
        self._pause(TOKEN_RETRY_SECONDS, problem)

    def _pause(self, seconds: float, problem: str) -> None:
        now = time.monotonic()
        self._problem = now, problem
        self._queues.one_at_a_time = True
        self._queues.outage_until = now + seconds

    def not_general(self) -> None:
        """A call fails for a reason of its own."""
        self._calls, self._queues.one_at_a_time = 0, False

    def delivered(self, waiting: int) -> None:
        """Telegram has taken a message."""
        if self._problem:
            log.warning("Telegram answers again; %d messages are queued", waiting)
        self._problem, self._probes = None, 0
        self.not_general()

    def seconds_to_probe(self) -> float:
        """Seconds until `probe` is to be called. Ends the pause if a call of any kind has succeeded since."""
        if self._probe_at < float("inf") and self.problem is None:
            self._probe_at = float("inf")
            self._queues.outage_until = 0.0
        return self._probe_at - time.monotonic()

    def probe(self) -> None:
        """Ask Telegram if it is there. To be called without the lock: it may take PROBE_ANSWER_SECONDS."""
        self._probes += 1
        with suppress(TelegramError, TelegramUnreachable):
            self._api.call("getMe", timeout=PROBE_ANSWER_SECONDS)
        self._probe_at = time.monotonic() + max(PROBE_SECONDS, backoff(self._probes - PROBES))
