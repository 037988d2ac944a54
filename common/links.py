"""Links between logins and Telegram chats, the codes that make them, and which are still to be welcomed.

    telegram_users.json   {username: {"chat_id": int, "linked_at": "2026-01-31T12:00:00Z", "uid": int, …}}
    pending_codes.json    {code: {"chat_id": int, "created_at": unix seconds, …}}

The bot and the web page write both. Lock order: codes, then users. A code is used up after the link is on disk: a
crash in between leaves the link made and the code usable for the same chat.

A name is not a person: a link belongs to an account by name and uid, and is not used while the name has another uid.
A failed look-up proves nothing (a directory may be away), so a link with a uid stays in use. A link that other software
wrote without a uid gets the uid of the account of its name.
"""

from __future__ import annotations

import logging
import pwd
import threading
import time
from pathlib import Path

from common.clock import EARLIEST
from common.jsonstore import JsonStore, StoreError
from common.problem import Problem

log = logging.getLogger("links")

CODE_SECONDS = 600
WELCOME_SECONDS = 86400
CHECKED_LINKS = 200


class LinkError(Problem):
    """A code that links nothing; the message gives its reader, who typed it, the reason."""

    def __init__(self, message: str):
        super().__init__(404, message)


class Link:
    """One link as on disk: `chat_id`, `uid` (None where other software left it out), `linked_at` (ISO 8601, UTC),
    `blocked` (a reason, or None), and the id of the chat it replaced (`previous`, or None)."""

    __slots__ = ("user", "uid", "chat_id", "linked_at", "blocked", "welcomed", "name", "previous")

    def __init__(self, user: str, record: dict):
        self.user = user
        uid = record.get("uid")
        self.uid = uid if type(uid) is int else None
        self.chat_id = record["chat_id"]
        self.linked_at = str(record.get("linked_at", ""))
        self.blocked = record.get("blocked")
        self.welcomed = "welcomed_at" in record
        self.name = str(record.get("chat_name", ""))
        previous = record.get("previous_chat_id")
        self.previous = previous if type(previous) is int else None

    def why_unused(self) -> str | None:
        """Reason why this link is not in use now, None where it is."""
        uid = uid_of(self.user)
        if uid is None:
            return f"there is no account {self.user}" if self.uid is None else None
        if self.uid in (uid, None):
            return None
        return f"the account {self.user} has the uid {uid}, the link is of {self.uid}"


def uid_of(user: str) -> int | None:
    """The uid of the account of that name; None where there is none, or its directory is away."""
    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):  # ValueError: a name with a NUL in it
        return None


class Links:
    """The links and codes in a data directory. Every method raises StoreError where a file is unusable."""

    def __init__(self, data_dir: Path):
        self._users = JsonStore(data_dir / "telegram_users.json")
        self._codes = JsonStore(data_dir / "pending_codes.json")
        self._index: tuple[dict, dict[str, Link], dict[int, Link]] | None = None
        self._indexing = threading.Lock()
        self._unused: dict[tuple[str, int | None], str] = {}  # links that are not used, and why
        self._used: tuple[dict, object, dict[str, Link]] | None = None
        self._change_of_unused = object()
        self._checked = 0

    def of_user(self, user: str) -> Link | None:
        link = self._indexed()[1].get(user)
        return link if link and self._is_used(link) else None

    def of_chat(self, chat_id: int) -> Link | None:
        """The link of a chat; the newest, where software other than this linked one chat to two logins."""
        _, by_user, by_chat = self._indexed()
        newest = by_chat.get(chat_id)
        if newest is None or self._is_used(newest):
            return newest
        others = [link for link in by_user.values() if link.chat_id == chat_id and self._is_used(link)]
        return max(others, key=lambda link: link.linked_at, default=None)

    def all(self) -> dict[str, Link]:
        """Every link by username, without those found unused; shared, do not change it.

        To look up 100,000 accounts at once takes seconds; `check_accounts` does it in steps."""
        by_user, change, cached = self._indexed()[1], self._change_of_unused, self._used
        if cached is None or cached[0] is not by_user or cached[1] is not change:
            used = {user: link for user, link in by_user.items() if (user, link.uid) not in self._unused}
            cached = self._used = (by_user, change, used)
        return cached[2]

    def on_disk(self) -> dict[str, Link]:
        """Every link by username, used or not; shared, do not change it."""
        return self._indexed()[1]

    def check_accounts(self) -> None:
        """Look up the accounts of the next CHECKED_LINKS links, and give those without a uid that of their account."""
        links = self._indexed()[1]
        names = list(links)[self._checked:self._checked + CHECKED_LINKS]
        self._checked = self._checked + CHECKED_LINKS if len(names) == CHECKED_LINKS else 0
        if not self._checked:
            for user, uid in list(self._unused):
                if user not in links or links[user].uid != uid:
                    self._unused.pop((user, uid), None)
        used = [links[name] for name in names if self._is_used(links[name])]
        uids = {link.user: uid_of(link.user) for link in used if link.uid is None}
        if uids:
            with self._users.update() as users:
                for user, uid in uids.items():
                    if uid is not None and _is_record(users.get(user)) and type(users[user].get("uid")) is not int:
                        users[user]["uid"] = uid

    def create_code(self, chat_id: int, chat_name: str, now: float | None = None) -> str:
        """Make a six-digit code for a chat, valid CODE_SECONDS. Older codes of the chat and expired ones go."""
        now = time.time() if now is None else now
        with self._codes.update() as codes:
            for code in [code for code, entry in codes.items()
                         if not _is_valid(entry, now) or entry["chat_id"] == chat_id]:
                del codes[code]
            code = _unused(codes)
            codes[code] = {"chat_id": chat_id, "created_at": int(now), "chat_name": chat_name}
        return code

    def restamp(self, now: float) -> None:
        """Let codes that were made before the clock was set begin to age now."""
        if now >= EARLIEST and any(map(_is_early, self._codes.read().values())):
            with self._codes.update() as codes:
                for entry in filter(_is_early, codes.values()):
                    entry["created_at"] = int(now)

    def peek(self, code: str, now: float | None = None) -> dict:
        """The entry of a code, which stays valid. Raises LinkError."""
        return _valid_entry(self._codes.read(), code, time.time() if now is None else now)

    def redeem(self, code: str, user: str, uid: int, now: float | None = None) -> int:
        """Link the account `user` to the chat of `code` and use the code up, in one locked section. Returns the chat's
        id. Raises LinkError.

        Ends the link that another login has made with the chat since."""
        now = time.time() if now is None else now
        with self._codes.update() as codes:
            entry = _valid_entry(codes, code, now)
            with self._users.update() as users:
                _free_chat(users, entry["chat_id"], user)
                _put(users, user, uid, entry["chat_id"], str(entry.get("chat_name", "")), now)
            del codes[code]
        return entry["chat_id"]

    def link(self, user: str, uid: int, chat_id: int, chat_name: str, now: float) -> None:
        """Link the account `user` to a chat that has confirmed it. Ends other links of the user and of the chat.

        The same link stays as it is, since it is no news."""
        with self._users.update() as users:
            _free_chat(users, chat_id, user)
            record = users.get(user)
            if (not _is_record(record) or record["chat_id"] != chat_id or record.get("uid") not in (uid, None)
                    or record.get("blocked")):
                _put(users, user, uid, chat_id, chat_name, now)

    def unlink(self, user: str) -> bool:
        """Take a link away; False when there was none."""
        with self._users.update() as users:
            return users.pop(user, None) is not None

    def mark_welcomed(self, links: list[Link], now: float) -> None:
        self._change(links, welcomed_at=_iso(now))

    def mark_blocked(self, link: Link, reason: str) -> None:
        """Record that Telegram delivers nothing to this chat any more. A new link clears it."""
        self._change([link], blocked=reason)

    def mark_reachable(self, link: Link) -> None:
        """The person has written in the chat, so Telegram delivers to it again."""
        self._change([link], blocked=None)

    def move_chat(self, link: Link, chat_id: int) -> None:
        """Follow a chat to its new id (Bot API, ResponseParameters.migrate_to_chat_id)."""
        self._change([link], chat_id=chat_id)

    def to_welcome(self, now: float) -> list[Link]:
        """Links of the last day that have not been announced in their chat."""
        since, until = _iso(now - WELCOME_SECONDS), _iso(now + WELCOME_SECONDS)
        # Times of this form sort as text; to parse 100,000 takes half a second.
        return [link for link in self.all().values() if not link.welcomed and since < link.linked_at < until]

    def _change(self, links: list[Link], **fields) -> None:
        with self._users.update() as users:
            for link in links:
                record = users.get(link.user)
                # The person may have linked another chat meanwhile, for which these fields are not true.
                if _is_record(record) and record["chat_id"] == link.chat_id:
                    record.update(fields)

    def _is_used(self, link: Link) -> bool:
        reason, key = link.why_unused(), (link.user, link.uid)
        if reason != self._unused.get(key):
            if reason:
                self._unused[key] = reason
                log.warning("the link of %s to chat %d is not used: %s", link.user, link.chat_id, reason)
            else:
                self._unused.pop(key, None)
                log.info("the link of %s to chat %d is used", link.user, link.chat_id)
            self._change_of_unused = object()
        return reason is None

    def _indexed(self) -> tuple[dict, dict[str, Link], dict[int, Link]]:
        with self._indexing:  # an index in the making would keep its document beside the next one
            if not self._users.is_read():
                self._index = self._used = None  # frees the old document first
            document = self._users.read()
            if self._index is None or self._index[0] is not document:
                self._index = (document, *_make_index(document))
            return self._index


def _make_index(document: dict) -> tuple[dict[str, Link], dict[int, Link]]:
    by_user, by_chat, left_out = {}, {}, []
    for user, record in document.items():
        if not _is_record(record):
            left_out.append(user)
            continue
        by_user[user] = link = Link(user, record)
        other = by_chat.get(link.chat_id)
        if other is None or other.linked_at <= link.linked_at:
            by_chat[link.chat_id] = link
    if left_out:
        log.error("telegram_users.json: %d entries have no whole number as chat_id and are left out, such as %s",
                  len(left_out), ", ".join(f"{user[:80]!r}" for user in left_out[:3]))
    return by_user, by_chat


def _free_chat(users: dict, chat_id: int, user: str) -> None:
    """Take the chat from all but `user`: a chat has one login."""
    for other in [other for other, record in users.items()
                  if other != user and _is_record(record) and record["chat_id"] == chat_id]:
        del users[other]


def _put(users: dict, user: str, uid: int, chat_id: int, chat_name: str, now: float) -> None:
    """Write a link. Fields of other software stay, facts about the old chat go."""
    old = users[user] if isinstance(users.get(user), dict) else {}
    kept = {name: value for name, value in old.items() if name not in ("blocked", "welcomed_at", "previous_chat_id")}
    users[user] = kept | {"uid": uid, "chat_id": chat_id, "linked_at": _iso(now), "chat_name": chat_name}
    # The chat of a former holder of the name must learn nothing of the present one.
    is_same_person = old.get("uid") in (uid, None)
    if _is_record(old) and old["chat_id"] != chat_id and is_same_person and not old.get("blocked"):
        users[user]["previous_chat_id"] = old["chat_id"]


def _is_record(record) -> bool:
    return isinstance(record, dict) and type(record.get("chat_id")) is int


def _is_early(entry) -> bool:
    return _is_record(entry) and type(entry.get("created_at")) in (int, float) and entry["created_at"] < EARLIEST


def _is_valid(entry, now: float) -> bool:
    if not _is_record(entry) or type(entry.get("created_at")) not in (int, float):
        return False
    if entry["created_at"] < EARLIEST <= now:
        return True  # the clock was not set; `restamp` lets its time begin when that is seen
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
