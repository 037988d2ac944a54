"""Disk usage: the bytes of each user (uploads in progress, messages that wait or failed), and room on the disk.

Answers in chats without a login (user None) share one account.
"""

from __future__ import annotations

import io
import os
import secrets
import threading
from pathlib import Path

from bot.limits import Limiter

# Ten pictures of the largest size, or the 200 messages that may wait with 2.5 MiB each.
MAX_BYTES = 500 << 20
MAX_FAILED = 200
# Under the lesser of both nothing more is accepted, so that what is queued can go on.
FREE_SHARE, FREE_BYTES = 0.05, 200 << 20


def disk_problem(folder: Path) -> str | None:
    """The reason why a disk takes nothing new, None where there is none."""
    try:
        disk = os.statvfs(folder)
    except OSError as error:
        return f"the disk cannot be used ({error.strerror}): nothing new is accepted"
    free = disk.f_bavail * disk.f_frsize
    if free < min(FREE_SHARE * disk.f_blocks * disk.f_frsize, FREE_BYTES):
        return f"the disk is nearly full ({free >> 20} MiB are free on {folder}): nothing new is accepted"
    return None


class Kept:
    """A message on disk: `user`, `sequence`, `accepted_at`, `size` (bytes, with its picture), `place` in the journal,
    None where it failed."""

    __slots__ = ("accepted_at", "place", "sequence", "size", "user")

    def __init__(self, entry: dict, size: int, place: int | None):
        self.user = entry["user"]
        self.sequence = entry["sequence"]
        self.accepted_at = entry["accepted_at"]
        self.size = size
        self.place = place

    @property
    def failed(self) -> bool:
        return self.place is None


class Accounts:
    """Messages on disk by ID and by user, and the bytes of each user. Threads may share it."""

    def __init__(self):
        self._lock = threading.Lock()
        self.bytes = Limiter(MAX_BYTES)
        self._kept: dict[str, Kept] = {}
        self._of_user: dict[str | None, dict[str, Kept]] = {}

    def keep(self, entry: dict, size: int, place: int | None) -> None:
        """A message is on disk, or has changed there."""
        with self._lock:
            self.bytes.hold(entry["user"], size)  # before the old size is given back, so that nobody takes it
            self._drop(entry["id"])
            kept = self._kept[entry["id"]] = Kept(entry, size, place)
            self._of_user.setdefault(kept.user, {})[entry["id"]] = kept

    def drop(self, entry_id: str) -> None:
        """A message is not on disk any more."""
        with self._lock:
            self._drop(entry_id)

    def get(self, entry_id: str) -> Kept | None:
        return self._kept.get(entry_id)

    def failed(self, user: str | None) -> list[str]:
        """The IDs of the messages of a user that failed, oldest first."""
        return self._sorted(user, lambda kept: kept.failed)

    def newest(self, user: str | None, count: int) -> list[str]:
        return self._sorted(user, lambda kept: True)[:-count - 1:-1]

    def all(self) -> list[tuple[str, Kept]]:
        """All messages with their IDs, in the order in which they were accepted."""
        with self._lock:
            return sorted(self._kept.items(), key=lambda item: item[1].sequence)

    def _sorted(self, user: str | None, wanted) -> list[str]:
        with self._lock:
            of_user = self._of_user.get(user, {})
            return sorted((entry_id for entry_id, kept in of_user.items() if wanted(kept)),
                          key=lambda entry_id: of_user[entry_id].sequence)

    def _drop(self, entry_id: str) -> None:
        kept = self._kept.pop(entry_id, None)
        if kept:
            self.bytes.give_back(kept.user, kept.size)
            del self._of_user[kept.user][entry_id]
            if not self._of_user[kept.user]:
                del self._of_user[kept.user]


class Upload(io.BufferedRandom):
    """A new file in `folder` for a picture that is arriving. What is written to it is first taken from the account of
    `user` by `take(user, size)`, which may raise; `taken` is how much that is, None once a message has the file."""

    def __init__(self, folder: Path, user: str | None, take):
        self.path = folder / secrets.token_hex(10)
        self.user, self.taken, self._take = user, 0, take
        super().__init__(io.FileIO(self.path, "x+b", opener=lambda path, flags: os.open(path, flags, 0o600)))

    def write(self, data) -> int:
        self.take(len(data))
        return super().write(data)

    def take(self, size: int) -> None:
        """Take room for bytes that arrive and are not written here."""
        self._take(self.user, size)
        self.taken += size
