"""List of sent messages, a line each in the file of the day (UTC), and how long an Idempotency-Key holds.

    sent/2026-11-24.jsonl   {"id", "accepted_at", "user", "uid", "chat_id", "script", "title", "delivered_at",
                             "message_ids"}

A line has no text and no picture. It is appended in one write(2), and durable after the next `sync`, which the service
calls every second: a power cut repeats what was delivered since, and no more. An index in memory has the ID and the
time of what was accepted within a day, which is how long an Idempotency-Key holds.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import threading
import time
from array import array
from bisect import bisect_left
from pathlib import Path

from common.clock import EARLIEST
from common.jsonstore import sync_directory

log = logging.getLogger("history")

KEY_SECONDS = 86400
MAX_CHARACTERS = 200  # of a title or a script's name
MAX_LINE_BYTES = 64 << 10
MAX_READ_BYTES = 8 << 20  # for one list: some 40,000 messages
_BLOCK_BYTES = 256 << 10
# Both fields that the index needs come first: to parse a million lines as JSON would take seconds.
_HEAD = re.compile(rb'\{"id":"([0-9a-f]{1,20})","accepted_at":([0-9]+(?:\.[0-9]+)?),.*\}\n')


class History:
    """The lines in a folder. Threads may share it. Every method raises OSError where a file is unusable."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._day = ""
        self._is_synced = True
        self._index = _Index()

    def load(self, waiting: dict[str, float], now: float) -> set[str]:
        """Make the index. The IDs of `waiting` (`accepted_at` by ID) that were sent already."""
        sent = set()
        for path in self._recent_files(now):
            damaged = 0
            with open(path, "rb") as file:
                while line := file.readline(MAX_LINE_BYTES):
                    match = _HEAD.fullmatch(line)
                    if match is None:
                        damaged += line.endswith(b"\n")  # without it the line was cut by a crash
                        continue
                    entry_id, accepted_at = match[1].decode(), float(match[2])
                    if abs(now - accepted_at) < KEY_SECONDS or accepted_at < EARLIEST:
                        self._index.add(entry_id, accepted_at)
                    # The key of a message that was sent may have been used again a day later.
                    if waiting.get(entry_id) == accepted_at:
                        sent.add(entry_id)
            if damaged:
                log.warning("%s: %d damaged lines are skipped", path, damaged)
        return sent

    def has(self, entry_id: str, now: float) -> bool:
        """True for a message with this ID that was accepted within a day, and sent."""
        with self._lock:
            accepted_at = self._index.get(entry_id)
        return accepted_at is not None and (abs(now - accepted_at) < KEY_SECONDS or accepted_at < EARLIEST)

    def append(self, entry: dict, message_ids: list[int]) -> None:
        """Write down that a message was sent: where it raises OSError, that is only known until the service ends."""
        now = time.time()
        user = entry["user"] and shown(entry["user"])
        fields = {"id": entry["id"], "accepted_at": entry["accepted_at"], "user": user,
                  "uid": entry.get("uid"), "chat_id": entry["chat_id"], "script": shown(entry.get("script")),
                  "title": shown(entry["message"].get("title")), "delivered_at": round(now, 3),
                  "message_ids": message_ids}
        line = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._index.add(entry["id"], entry["accepted_at"])  # its key holds on a full disk, too
            self._open(_day(now))
            written = os.write(self._descriptor, line)
            if written < len(line):
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._is_synced = False

    def sync(self) -> None:
        """Make the lines appended before the call durable."""
        with self._lock:
            if self._is_synced:
                return
            self._is_synced = True
            descriptor = os.dup(self._descriptor)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def newest(self, user: str, uid: int | None, count: int) -> list[dict]:
        """The lines of the newest messages to a user, newest first, of the last MAX_READ_BYTES; see `is_of`."""
        wanted, found = b',"user":%b,' % json.dumps(user).encode(), []
        for line in self._backwards():
            if wanted in line and (fields := _parse(line)) and fields.get("user") == user and is_of(fields, uid):
                found.append(fields)
                if len(found) == count:
                    break
        return found

    def expire(self, now: float, days: int) -> None:
        """Remove the files of more than `days` ago, and what is too old for a key from the index."""
        for path in self._files():
            day = path.stem
            if day < _day(EARLIEST) <= _day(now):
                if path.stat().st_mtime < EARLIEST:
                    os.utime(path)  # the clock was not set: its time begins now
                day = _day(path.stat().st_mtime)
            if day < _day(now - days * 86400):
                path.unlink()
        with self._lock:
            self._index.expire(now)

    def close(self) -> None:
        self.sync()
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _recent_files(self, now: float) -> list[Path]:
        """Those of yesterday and today; the newest, and any of before EARLIEST, for a clock that was wrong, or is."""
        files = self._files()
        days = {_day(now + days * 86400) for days in (-1, 0, 1)}
        return [path for path in files if path.stem in days or path in files[-2:] or path.stem < _day(EARLIEST)]

    def _files(self) -> list[Path]:
        """Oldest first."""
        return [self._folder / name for name in sorted(os.listdir(self._folder)) if name.endswith(".jsonl")]

    def _open(self, day: str) -> None:
        if self._descriptor is not None and self._day == day:
            return
        path = self._folder / f"{day}.jsonl"
        is_new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            _cut_half_line(descriptor)
            if is_new:
                sync_directory(self._folder)
            if self._descriptor is not None:
                os.fdatasync(self._descriptor)
                os.close(self._descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor, self._day = descriptor, day

    def _backwards(self):
        """Lines, the last one first."""
        left = MAX_READ_BYTES
        for path in reversed(self._files()):
            with open(path, "rb") as file:
                end, half = file.seek(0, os.SEEK_END), b""
                while end > 0 and left > 0:
                    start = max(0, end - _BLOCK_BYTES)
                    left -= end - start
                    file.seek(start)
                    lines = (file.read(end - start) + half).split(b"\n")
                    half = lines.pop(0) if start else b""
                    yield from reversed(lines)
                    end = start


class _Index:
    """Times (unix seconds) by ID, 12 bytes a message: sorted arrays in buckets, so that inserting moves little."""

    def __init__(self):
        self._buckets: dict[int, tuple[array, array]] = {}

    def add(self, entry_id: str, when: float) -> None:
        number, ids, times = self._bucket(entry_id)
        place = bisect_left(ids, number)
        when = min(max(0, int(when)), 0xFFFFFFFF)
        if place < len(ids) and ids[place] == number:
            times[place] = when
        else:
            ids.insert(place, number)
            times.insert(place, when)

    def get(self, entry_id: str) -> int | None:
        number, ids, times = self._bucket(entry_id)
        place = bisect_left(ids, number)
        return times[place] if place < len(ids) and ids[place] == number else None

    def expire(self, now: float) -> None:
        for name, (ids, times) in self._buckets.items():
            for place, when in enumerate(times):
                if when < EARLIEST <= now:
                    times[place] = int(now)  # the clock was not set: its time begins now
            kept = [place for place, when in enumerate(times) if abs(now - when) < KEY_SECONDS]
            if len(kept) < len(ids):
                self._buckets[name] = array("Q", map(ids.__getitem__, kept)), array("I", map(times.__getitem__, kept))

    def _bucket(self, entry_id: str) -> tuple[int, array, array]:
        number = int(entry_id[:16], 16)
        bucket = self._buckets.get(number >> 54)
        if bucket is None:
            bucket = self._buckets[number >> 54] = array("Q"), array("I")
        return number, *bucket


def is_of(entry: dict, uid: int | None) -> bool:
    """True for a message to the account with this uid, and not to an earlier one of its name."""
    return uid is None or entry.get("uid") in (uid, None)


def shown(value) -> str:
    """The start of a text that a list shows; empty for what is no text."""
    return value[:MAX_CHARACTERS] if isinstance(value, str) else ""


def notice(entry: dict, title, state: str) -> dict:
    """A line of a list of notifications: of what was sent, or of an entry of the outbox."""
    return {"at": float(entry["accepted_at"]), "title": shown(title), "script": shown(entry.get("script")),
            "state": state, "reason": shown(entry.get("reason"))}


def _cut_half_line(descriptor: int) -> None:
    """A crash may have left one, which the next line must not become part of."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, MAX_LINE_BYTES, max(0, size - MAX_LINE_BYTES))
    half = len(tail) - (tail.rfind(b"\n") + 1)
    if half:
        os.ftruncate(descriptor, size - half)


def _parse(line: bytes) -> dict | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_whole = isinstance(fields, dict) and type(fields.get("accepted_at")) in (int, float)
    return fields if is_whole else None


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
