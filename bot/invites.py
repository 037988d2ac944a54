"""One-press links: `https://t.me/BOT?start=PAYLOAD`, asked for on the page, confirmed in the chat that opens them.

    invites.json   {payload: {"user": str, "uid": int, "created_at": unix seconds}}

Mode 0600: a payload links whoever has it.

Who needs both locks the invites before the links. An invite is used up after the link is on disk: a crash between
leaves the link made and the invite usable for the same login, never neither.
"""

from __future__ import annotations

import re
import secrets
import time
from pathlib import Path

from common.jsonstore import JsonStore
from common.links import Links

INVITE_SECONDS = 600
_PAYLOAD_BYTES = 24
# Telegram takes up to 64 of these (Bot API, "Deep linking"), and in a button there is more to say.
_PAYLOAD = r"[A-Za-z0-9_-]{32}"


class InviteError(Exception):
    """An invite that links nothing; the message says why, for the person in the chat."""


class Invites:
    """The invites in a data directory. Every method raises StoreError where a file is unusable."""

    def __init__(self, data_dir: Path, links: Links):
        self._store = JsonStore(data_dir / "invites.json", mode=0o600)
        self._links = links

    def create(self, user: str, uid: int, now: float | None = None) -> tuple[str, int]:
        """A new payload for a login, and when it expires (unix seconds). An older one of the login goes."""
        now = time.time() if now is None else now
        payload = secrets.token_urlsafe(_PAYLOAD_BYTES)
        with self._store.update() as invites:
            for old in [old for old, entry in invites.items()
                        if not _is_valid(entry, now) or entry["user"] == user]:
                del invites[old]
            invites[payload] = {"user": user, "uid": uid, "created_at": int(now)}
        return payload, int(now) + INVITE_SECONDS

    def user_of(self, payload: str, now: float | None = None) -> str:
        """The login an invite links, without using it up. Raises InviteError."""
        return _valid_user(self._store.read(), payload, time.time() if now is None else now)

    def accept(self, payload: str, chat_id: int, chat_name: str, now: float | None = None) -> str:
        """Link the login of an invite to a chat and use the invite up, in one locked section; the login.

        Raises InviteError."""
        now = time.time() if now is None else now
        with self._store.update() as invites:
            user = _valid_user(invites, payload, now)
            self._links.link(user, invites[payload]["uid"], chat_id, chat_name, now)
            del invites[payload]
        return user


def _is_valid(entry, now: float) -> bool:
    if not isinstance(entry, dict) or type(entry.get("user")) is not str or type(entry.get("uid")) is not int:
        return False
    # One from the future was made before the clock was set back; it is not older than that step.
    created_at = entry.get("created_at")
    return type(created_at) in (int, float) and -INVITE_SECONDS < now - created_at < INVITE_SECONDS


def _valid_user(invites: dict, payload: str, now: float) -> str:
    entry = invites.get(payload) if re.fullmatch(_PAYLOAD, payload) else None
    if not _is_valid(entry, now):
        raise InviteError("This link is not valid any more: it links once, and for "
                          f"{INVITE_SECONDS // 60} minutes. Make a new one on the page, or send /start for a code.")
    return entry["user"]
