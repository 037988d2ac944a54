"""A message on disk: one JSON object in a file of the bot's own, and the names of such files made durable."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import threading
from pathlib import Path
from types import NoneType

from bot.receipt import Receipt
from common.clock import EARLIEST

_SHAPE = {"sequence": int, "accepted_at": (int, float), "chat_id": int, "message": dict, "part": int,
          "user": (str, NoneType), "reply": bool, "late_since": (int, float, NoneType)}


_ID = re.compile("[0-9a-f]{1,20}")


class CorruptEntry(Exception):
    """A file that is no entry as the outbox writes one."""


def encode(entry: dict) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def read_entry(path: Path, entry_id: str) -> dict:
    """The entry of a file. Raises CorruptEntry, OSError."""
    try:
        with open_own(path) as file:
            entry = json.loads(file.read())
    except (FileNotFoundError, ValueError, RecursionError) as error:
        raise CorruptEntry(f"{path.name}: {error}") from error
    if not isinstance(entry, dict) or entry.get("id") != entry_id or not _ID.fullmatch(entry_id):
        raise CorruptEntry(f"{path.name} is not an entry of that name")
    for field, kind in _SHAPE.items():
        if not isinstance(entry.get(field), kind):
            raise CorruptEntry(f"{path.name}: {field} is missing or of the wrong type")
    return entry


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


class Names:
    """The names in a folder, made durable for many threads: calls that come meanwhile share the next fsync(2)."""

    def __init__(self, folder: Path):
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._syncing, self._joining = threading.Lock(), threading.Lock()
        self._next: Receipt | None = None

    def close(self) -> None:
        os.close(self._descriptor)

    def sync(self, _folder: Path | None = None) -> None:
        """Make the names given before the call durable. Raises OSError, to all who share it: after one that
        failed, another fsync(2) may report success for what is lost."""
        with self._joining:
            shared, is_first = self._next, self._next is None
            if is_first:
                shared = self._next = Receipt()
        if is_first:
            self._sync_for(shared)
        if error := shared.wait():
            raise OSError(*error.args)

    def _sync_for(self, shared: Receipt) -> None:
        with self._syncing:
            with self._joining:
                self._next = None
            error = None
            try:
                os.fsync(self._descriptor)
            except OSError as found:
                error = found
            shared.settle(error)
