"""Bot API calls of a message: which is next, and making it, another way where Telegram does not take it as it is."""

from __future__ import annotations

import logging
from contextlib import ExitStack

from bot.entries import CorruptEntry
from bot.message import Step, compose, message_ids_of
from bot.outbox import Outbox
from bot.telegram import TelegramAPI, TelegramError, call_seconds

log = logging.getLogger("delivery")

MAX_CALL_BYTES = 51 << 20  # the largest photo and its form


def next_step(entry: dict) -> tuple[Step, bool]:
    """The next call of a message, and if it is the last one. Raises CorruptEntry."""
    try:
        steps = compose(entry["message"], entry["late_since"], entry.get("text_first") is True)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # The send API has checked the types, so somebody else has written this file.
        raise CorruptEntry(f"its message cannot be composed: {error!r}") from error
    part = min(entry["part"], len(steps) - 1)
    return steps[part], part == len(steps) - 1


class Calls:
    """`extend(chat_id, seconds)` is told of a call that may take so much longer. Raises TelegramError,
    TelegramUnreachable, CorruptEntry where the picture is missing, OSError."""

    def __init__(self, outbox: Outbox, api: TelegramAPI, extend):
        self._outbox, self._api, self._extend = outbox, api, extend

    def make(self, step: Step, chat_id: int, entry: dict) -> list[int]:
        """Telegram's IDs of the messages that a call has made."""
        try:
            return self.make_as_is(step, chat_id, entry)
        except TelegramError as error:
            other = step.other_way(error.code, error.description)
            if other is None:
                raise
            log.info("%s: Telegram says %s; sent another way", entry["id"], error.description)
            return self.make(other, chat_id, entry)

    def make_as_is(self, step: Step, chat_id: int, entry: dict) -> list[int]:
        """The same, and no other way."""
        files = None
        with ExitStack() as opened:
            if step.attachment:
                parameter, filename, content = step.attachment
                content = opened.enter_context(self._outbox.photo(entry)) if content is None else content
                files = {parameter: (filename, content)}
                self._extend(chat_id, call_seconds(MAX_CALL_BYTES))
            return message_ids_of(self._api.call(step.method, {"chat_id": chat_id, **step.params}, files))
