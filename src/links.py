"""Which login has which Telegram chat, and the codes that link them.

    telegram_users.json   {username: {"chat_id": int, "linked_at": "2026-01-31T12:00:00Z", …}}
    pending_codes.json    {code: {"chat_id": int, "created_at": unix seconds, …}}

The bot and the web page write both. Whoever needs both locks the codes first. A code is used up after the link
is on disk: a crash between leaves the link made and the code usable for the same chat, never neither.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from jsonstore import JsonStore, StoreError

log = logging.getLogger("links")

CODE_SECONDS = 600
WELCOME_SECONDS = 86400


class LinkError(Exception):
    """A code that links nothing; the message says why, for the person who typed it."""


class Link:
    """One link as it is on disk: `chat_id`, `linked_at` (ISO 8601, UTC), `blocked` (a reason, or None), and the chat
    that it took the place of (`previous`, or None)."""

    __slots__ = ("user", "chat_id", "linked_at", "blocked", "welcomed", "name", "previous")

    def __init__(self, user: str, record: dict):
        self.user = user
        self.chat_id = record["chat_id"]
        self.linked_at = str(record.get("linked_at", ""))
        self.blocked = record.get("blocked")
        self.welcomed = "welcomed_at" in record
        self.name = str(record.get("chat_name", ""))
        previous = record.get("previous_chat_id")
        self.previous = previous if type(previous) is int else None


class Links:
    """The links and codes in a data directory. Every method raises StoreError where a file is unusable."""

    def __init__(self, data_dir: Path):
        self._users = JsonStore(data_dir / "telegram_users.json")
        self._codes = JsonStore(data_dir / "pending_codes.json")
        self._index: tuple[dict, dict[str, Link], dict[int, Link]] | None = None

    def of_user(self, user: str) -> Link | None:
        return self._indexed()[1].get(user)

    def of_chat(self, chat_id: int) -> Link | None:
        """The link of a chat; the newest, where software other than this linked one chat to two logins."""
        return self._indexed()[2].get(chat_id)

    def all(self) -> dict[str, Link]:
        """Every link by username; shared, do not change it."""
        return self._indexed()[1]

    def create_code(self, chat_id: int, chat_name: str, now: float | None = None) -> str:
        """A new six-digit code for a chat, valid CODE_SECONDS. Older ones of the chat and expired ones go."""
        now = time.time() if now is None else now
        with self._codes.update() as codes:
            for code in [code for code, entry in codes.items()
                         if not _is_valid(entry, now) or entry["chat_id"] == chat_id]:
                del codes[code]
            code = _unused(codes)
            codes[code] = {"chat_id": chat_id, "created_at": int(now), "chat_name": chat_name}
        return code

    def peek(self, code: str, now: float | None = None) -> dict:
        """What stands behind a code, without using it up. Raises LinkError."""
        return _valid_entry(self._codes.read(), code, time.time() if now is None else now)

    def redeem(self, code: str, user: str, now: float | None = None) -> int:
        """Link `user` to the chat behind `code` and use the code up, in one locked section. Raises LinkError.

        It ends the link of another login that the chat has got since it was given the code."""
        now = time.time() if now is None else now
        with self._codes.update() as codes:
            entry = _valid_entry(codes, code, now)
            with self._users.update() as users:
                _free_chat(users, entry["chat_id"], user)
                _put(users, user, entry["chat_id"], str(entry.get("chat_name", "")), now)
            del codes[code]
        return entry["chat_id"]

    def link(self, user: str, chat_id: int, chat_name: str, now: float) -> None:
        """Link `user` to a chat that has confirmed it, in place of the chat of `user` and of other logins of the chat.

        A link that is there already stays as it is: it is not news."""
        with self._users.update() as users:
            _free_chat(users, chat_id, user)
            record = users.get(user)
            if not _is_record(record) or record["chat_id"] != chat_id or record.get("blocked"):
                _put(users, user, chat_id, chat_name, now)

    def unlink(self, user: str) -> bool:
        """Take a link away; False when there was none."""
        with self._users.update() as users:
            return users.pop(user, None) is not None

    def mark_welcomed(self, link: Link, now: float) -> None:
        self._change(link, welcomed_at=_iso(now))

    def mark_blocked(self, link: Link, reason: str) -> None:
        """Record that Telegram delivers nothing to this chat any more. A new link clears it."""
        self._change(link, blocked=reason)

    def mark_reachable(self, link: Link) -> None:
        """The person has written in the chat, so Telegram delivers to it again."""
        self._change(link, blocked=None)

    def move_chat(self, link: Link, chat_id: int) -> None:
        """Follow a chat to its new id (Bot API, ResponseParameters.migrate_to_chat_id)."""
        self._change(link, chat_id=chat_id)

    def to_welcome(self, now: float) -> list[Link]:
        """Links that nobody has been told of in their chat. One older than a day is no news any more."""
        since, until = _iso(now - WELCOME_SECONDS), _iso(now + WELCOME_SECONDS)
        # Times of this form sort as text does; to parse them takes half a second where there are 100,000.
        return [link for link in self.all().values() if not link.welcomed and since < link.linked_at < until]

    def _change(self, link: Link, **fields) -> None:
        with self._users.update() as users:
            record = users.get(link.user)
            # The person may have linked another chat meanwhile: what is known of the old one is not true of it.
            if _is_record(record) and record["chat_id"] == link.chat_id:
                record.update(fields)

    def _indexed(self) -> tuple[dict, dict[str, Link], dict[int, Link]]:
        document = self._users.read()
        index = self._index
        if index is None or index[0] is not document:
            index = self._index = (document, *_make_index(document))
        return index


def _make_index(document: dict) -> tuple[dict[str, Link], dict[int, Link]]:
    by_user, by_chat = {}, {}
    for user, record in document.items():
        if not _is_record(record):
            log.error("telegram_users.json: the entry of %r has no whole number as chat_id; it is left out", user)
            continue
        by_user[user] = link = Link(user, record)
        other = by_chat.get(link.chat_id)
        if other is None or other.linked_at <= link.linked_at:
            by_chat[link.chat_id] = link
    return by_user, by_chat


def _free_chat(users: dict, chat_id: int, user: str) -> None:
    """A chat has one login: take the chat from all but `user`."""
    for other in [other for other, record in users.items()
                  if other != user and _is_record(record) and record["chat_id"] == chat_id]:
        del users[other]


def _put(users: dict, user: str, chat_id: int, chat_name: str, now: float) -> None:
    """A new link. What other software keeps with it stays; what was known of the old chat goes."""
    old = users[user] if isinstance(users.get(user), dict) else {}
    kept = {name: value for name, value in old.items() if name not in ("blocked", "welcomed_at", "previous_chat_id")}
    users[user] = kept | {"chat_id": chat_id, "linked_at": _iso(now), "chat_name": chat_name}
    if _is_record(old) and old["chat_id"] != chat_id and not old.get("blocked"):
        users[user]["previous_chat_id"] = old["chat_id"]


def _is_record(record) -> bool:
    return isinstance(record, dict) and type(record.get("chat_id")) is int


def _is_valid(entry, now: float) -> bool:
    if not _is_record(entry) or type(entry.get("created_at")) not in (int, float):
        return False
    # A code from the future was made before the clock was set back; it is not older than that step.
    return -CODE_SECONDS < now - entry["created_at"] < CODE_SECONDS


def _valid_entry(codes: dict, code: str, now: float) -> dict:
    entry = codes.get(code)
    if entry is None or not _is_record(entry):
        raise LinkError("This code is not valid. Send /start to the bot for a new one.")
    if not _is_valid(entry, now):
        raise LinkError("This code has expired. Send /start to the bot for a new one.")
    return entry


def _unused(codes: dict) -> str:
    import secrets  # it takes a tenth of the time of a request to the link page, which makes no codes
    for _ in range(1000):
        code = f"{secrets.randbelow(1_000_000):06d}"
        if code not in codes:
            return code
    raise StoreError("too many codes are pending; try again in ten minutes")


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
