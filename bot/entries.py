"""A message on disk: a JSON object, in a line of the journal or in a file of the bot's own."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import stat
from pathlib import Path
from types import NoneType

from common.clock import EARLIEST
from common.jsonstore import write_atomic

log = logging.getLogger("outbox")

_SHAPE = {"sequence": int, "accepted_at": (int, float), "chat_id": int, "message": dict, "part": int,
          "user": (str, NoneType), "reply": bool, "picture": (str, NoneType), "late_since": (int, float, NoneType)}


_ID = re.compile("[0-9a-f]{1,20}")
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class CorruptEntry(Exception):
    """Bytes that are no entry as the outbox writes one."""


def encode(entry: dict) -> bytes:
    return _ENCODER.encode(entry).encode("utf-8", "surrogatepass") + b"\n"


def decode(data: bytes, entry_id: str | None = None) -> dict:
    """The entry of a line, or of a file; its ID is `entry_id` where that is known. Raises CorruptEntry."""
    try:
        entry = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptEntry(str(error)) from error
    known = entry.get("id") if isinstance(entry, dict) else None
    if not isinstance(known, str) or not _ID.fullmatch(known) or entry_id not in (None, known):
        raise CorruptEntry("it is not the entry of a message")
    for field, kind in _SHAPE.items():
        if not isinstance(entry.setdefault(field, None), kind):
            raise CorruptEntry(f"{field} is missing or of the wrong type")
    entry.pop("open", None)  # of the journal
    return entry


def read_entry(path: Path, entry_id: str) -> dict:
    """The entry of a file. Raises CorruptEntry, OSError."""
    try:
        with open_own(path) as file:
            return decode(file.read(), entry_id)
    except FileNotFoundError as error:
        raise CorruptEntry(f"{path.name}: {error}") from error


def open_own(path: Path):
    """A file of the bot's own, open for reading; CorruptEntry for a link, for what is no file, or is another's."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise CorruptEntry(f"{path.name} is no regular file") from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        os.close(descriptor)
        raise CorruptEntry(f"{path.name} is no regular file of the bot's")
    return open(descriptor, "rb", buffering=0)


def is_over(path: Path, now: float, days: int) -> bool:
    """True for a file that has been in its folder for more than `days`."""
    try:
        since = path.stat().st_ctime
        if since < EARLIEST <= now:
            os.utime(path)  # the clock was not set: its time begins now
            return False
    except FileNotFoundError:
        return False
    return now - since > days * 86400


class SetAside:
    """A folder with what could not be read, as it was."""

    def __init__(self, folder: Path):
        self._folder = folder

    def keep(self, name: str, reason: str, what: bytes | Path) -> bool:
        """Keep bytes, or a file, which is moved. False where that fails: the next start meets it again."""
        try:
            if isinstance(what, bytes):
                write_atomic(self._folder / name, what, 0o600)
            else:
                os.rename(what, self._folder / name)
        except OSError as error:
            log.error("outbox: %s cannot be set aside (%s): %s", name, reason, error)
            return False
        log.error("outbox: %s is set aside in %s: %s", name, self._folder, reason)
        return True

    def expire(self, now: float, days: int) -> None:
        """Remove what has been there for more than `days`. Raises OSError."""
        for path in self._folder.iterdir():
            if is_over(path, now, days):
                path.unlink()
