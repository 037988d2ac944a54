"""One-press links: `https://t.me/BOT?start=PAYLOAD`, made on the page, confirmed in the chat that opens them.

    invites.json   {payload: {"user": str, "uid": int, "created_at": unix seconds}}

Mode 0600: anybody who has a payload can link with it.

Lock order: invites, then links. An invite is removed after the link is on disk: a crash in between leaves the link
made and the invite usable for the same login.
"""

from __future__ import annotations

import re
import secrets
import time
from pathlib import Path

from common.jsonstore import JsonStore
from common.links import LinkError, Links

INVITE_SECONDS = 600
_PAYLOAD_BYTES = 24
# Telegram takes up to 64 characters (Bot API, "Deep linking"); the buttons add an action and a digest.
_PAYLOAD = r"[A-Za-z0-9_-]{32}"


class Invites:
    """The invites in a directory. Every method raises StoreError where a file is unusable."""

    def __init__(self, data_dir: Path, links: Links):
        self._store = JsonStore(data_dir / "invites.json", mode=0o600)
        self._links = links

    def create(self, user: str, uid: int) -> tuple[str, int]:
        """A new payload for a login and its expiry (unix seconds). Replaces an older one of the login."""
        now = time.time()
        payload = secrets.token_urlsafe(_PAYLOAD_BYTES)
        with self._store.update() as invites:
            for old in [old for old, entry in invites.items()
                        if not _is_valid(entry, now) or entry["user"] == user]:
                del invites[old]
            invites[payload] = {"user": user, "uid": uid, "created_at": int(now)}
        return payload, int(now) + INVITE_SECONDS

    def user_of(self, payload: str) -> str:
        """The login of an invite, which stays usable. Raises LinkError."""
        return _valid_user(self._store.read(), payload, time.time())

    def accept(self, payload: str, chat_id: int, chat_name: str) -> str:
        """Link the login of an invite to a chat and remove the invite, in one locked section. Returns the login.

        Raises LinkError."""
        now = time.time()
        with self._store.update() as invites:
            user = _valid_user(invites, payload, now)
            self._links.link(user, invites[payload]["uid"], chat_id, chat_name, now)
            del invites[payload]
        return user


def _is_valid(entry, now: float) -> bool:
    if not isinstance(entry, dict) or type(entry.get("user")) is not str or type(entry.get("uid")) is not int:
        return False
    # An invite from the future was made before the clock was set back; it is no older than that step.
    created_at = entry.get("created_at")
    return type(created_at) in (int, float) and -INVITE_SECONDS < now - created_at < INVITE_SECONDS


def _valid_user(invites: dict, payload: str, now: float) -> str:
    entry = invites.get(payload) if re.fullmatch(_PAYLOAD, payload) else None
    if not _is_valid(entry, now):
        raise LinkError("This link is not valid any more: it works once, within "
                        f"{INVITE_SECONDS // 60} minutes. Make a new one on the page, or send /start for a code.")
    return entry["user"]
