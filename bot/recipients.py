"""Recipients of messages: a user's link, the quota of queued messages, chats that blocked the bot or moved."""

from __future__ import annotations

import logging
import threading
from collections import Counter

from bot.desktop import Desktop
from bot.receipt import Outcome
from common.jsonstore import StoreError
from common.links import Link, Links
from common.problem import Problem

log = logging.getLogger("recipients")

MAX_QUEUED = 200


class Recipients:
    """Thread-safe. Methods without a word on errors log those of the store."""

    def __init__(self, links: Links, desktop: Desktop):
        self._links, self._desktop = links, desktop
        self._lock = threading.Lock()
        self._expired: Counter[str] = Counter()

    def link_of(self, user: str) -> Link:
        """The link of a login whose chat can be written to. Raises Problem (404, 409), StoreError."""
        link = self._links.of_user(user)
        if link is None:
            raise Problem(404, f"User '{user}' has no linked Telegram")
        if link.blocked:
            raise Problem(409, f"Telegram delivers nothing to the chat of '{user}': {link.blocked}. "
                               "It takes a new /start there")
        return link

    def admit(self, user: str, queued: int) -> Link:
        """The same, for one more message beside the `queued` ones of the login. Raises Problem (429 as well)."""
        link = self.link_of(user)
        if queued >= MAX_QUEUED:
            raise Problem(429, f"{MAX_QUEUED} messages for '{user}' are queued", {"Retry-After": "60"})
        return link

    def chat_of(self, entry: dict) -> int | Outcome:
        """The chat of a message for a user now, or the reason why there is none."""
        user, uid = entry["user"], entry.get("uid")
        try:
            link = self._links.of_user(user)
        except StoreError as error:
            log.error("%s; a message goes to the chat that it was accepted for", error)
            return entry["chat_id"]
        if link is None:
            return Outcome(404, f"User '{user}' has no linked Telegram any more")
        if uid not in (None, link.uid):
            return Outcome(404, f"it was for uid {uid}, and the account '{user}' has the uid {link.uid} now")
        return Outcome(409, str(link.blocked)) if link.blocked else link.chat_id

    def is_linked(self, chat_id: int) -> bool:
        try:
            return self._links.of_chat(chat_id) is not None
        except StoreError:
            return False  # the chat is told so when it is answered

    def blocked(self, chat_id: int, reason: str) -> None:
        """Telegram delivers nothing to this chat any more."""
        self._change(chat_id, lambda link: self._links.mark_blocked(link, reason))

    def moved(self, chat_id: int, new_chat_id: int) -> None:
        """The chat has a new id."""
        self._change(chat_id, lambda link: self._links.move_chat(link, new_chat_id))

    def delivered(self, entry: dict) -> None:
        """A message is in its chat, whole; the desktop of its user shows it too."""
        if entry["user"]:
            message = entry["message"]
            self._desktop.show(entry["user"], message.get("title") or "", message.get("text") or "",
                               str(entry.get("script") or ""))

    def expired(self, user: str) -> None:
        """A message for `user` was given up because of its age."""
        with self._lock:
            self._expired[user] += 1

    def take_expired(self) -> dict[str, int]:
        """The number of messages given up since the last call, by user."""
        with self._lock:
            expired, self._expired = self._expired, Counter()
        return expired

    def _change(self, chat_id: int, change) -> None:
        try:
            if link := self._links.of_chat(chat_id):
                change(link)
        except StoreError as error:
            log.error("%s", error)
