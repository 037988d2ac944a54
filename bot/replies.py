"""Messages from the bot itself, queued through the outbox, at most once per key."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bot.keys import identify
from bot.message import photo_name, whole
from common.links import Link, uid_of

MAX_REPLIES_PER_CHAT = 20
SAMPLE_TITLE = "Sample notification"


class Replies:
    """Queues the bot's messages for delivery. Thread-safe."""

    def __init__(self, outbox, delivery):
        self._outbox, self._delivery = outbox, delivery

    def are_full(self, chat_id: int) -> bool:
        """True while too many replies wait for a chat: no further request from it is handled."""
        return self._delivery.replies(chat_id) >= MAX_REPLIES_PER_CHAT

    def has(self, key: str) -> bool:
        """True if a message was queued under this key within a day."""
        return self._outbox.find(identify(key)) is not None

    def tell(self, key: str, chat_id: int, text: str, parse_mode: str = "Markdown", title: str = "",
             buttons: list = (), picture=None, picture_name: str = "", user: str | None = None,
             script: str = "", reply: bool = True):
        """Queue a message for a chat, once a day per key. Returns the receipt, None where it was queued before.

        `picture` is a binary file; the desktop of `user` shows the message too. A reply goes ahead of notifications.
        Raises OutboxError, and OSError where the picture cannot be written.
        """
        message = {"title": whole(title), "text": whole(text), "parse_mode": parse_mode, "buttons": list(buttons)}
        fields = {"chat_id": chat_id, "reply": reply, "user": user, "uid": uid_of(user) if user else None,
                  "script": script, "message": message}
        with self._outbox.claim(key) as (entry_id, found):
            if found is not None:
                return None
            if picture is None:
                return self._delivery.submit(self._outbox.add(entry_id, fields))
            with self._outbox.upload(user) as file:
                shutil.copyfileobj(picture, file)
                file.flush()
                os.fsync(file.fileno())
                message["photo_size"] = file.tell()
                file.seek(0)
                message["photo"] = photo_name(file.read(8), picture_name)
                if message["photo"] is None:
                    message["text"] += "\n\n(Its image is not a PNG or JPEG and was left out.)"
                return self._delivery.submit(self._outbox.add(entry_id, fields, file if message["photo"] else None))

    def sample(self, key: str, link: Link, **options):
        """Send a sample notification to the chat of a link; as `tell`."""
        path = Path(__file__).with_name("sample_chart.png")
        with open(path, "rb") as picture:
            return self.tell(key, link.chat_id, f"This is how a notification looks, `{link.user}`: a *title*, a "
                             "_message_, and a picture if the script makes one.", title=SAMPLE_TITLE,
                             picture=picture, picture_name=path.name, **options)
