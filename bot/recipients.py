"""The people behind the chats, as delivery knows them."""

from __future__ import annotations

from bot.receipt import Outcome


class Recipients:
    """What delivery asks and tells of the people behind the chats. The service has the real one."""

    def chat_of(self, entry: dict) -> int | Outcome:
        """Where a message for a user goes now, or why nowhere; its `chat_id` is where it was to go when accepted."""
        return entry["chat_id"]

    def blocked(self, user: str | None, chat_id: int, reason: str) -> None:
        """Telegram delivers nothing to this chat any more."""

    def moved(self, user: str | None, chat_id: int, new_chat_id: int) -> None:
        """The chat has a new id."""

    def delivered(self, entry: dict) -> None:
        """A message is in the chat, whole."""

    def expired(self, user: str) -> None:
        """A message for `user` had grown too old and was given up."""
