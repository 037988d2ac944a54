"""Messages that were accepted: each is a file that moves from the queue to what was sent or what failed.

    outbox/.lock            held by the one process that may change anything here
    outbox/queue/ID.json    accepted and not delivered; written, fsynced and renamed before the answer
    outbox/queue/ID.photo   its picture, durable before ID.json is there
    outbox/queue/.upload-*  a picture that is still arriving
    outbox/sent/DAY/ID.json delivered on that day (UTC); kept SENT_DAYS
    outbox/failed/ID.json   refused for good, with `reason`; its picture beside it; kept FAILED_DAYS
    outbox/corrupt/         what could not be read, as it was

The ID of a message with an Idempotency-Key comes from the key, so the same key finds the same file, wherever it
has moved to. The order in which messages were accepted is in `sequence`, which never goes back.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import NoneType

from jsonstore import sync_directory, write_atomic
from receipt import Receipt

log = logging.getLogger("outbox")

SENT_DAYS = 3
FAILED_DAYS = 30
KEY_SECONDS = 86400
MODE = 0o600


class OutboxError(Exception):
    """The outbox cannot be used now; the message says why. Nothing was accepted or changed."""


class CorruptEntry(Exception):
    """An entry that is not what this module wrote."""


class Outbox:
    """The files of accepted messages. Threads may share it. An entry is a dict:

    `id`, `sequence` (int), `accepted_at` (unix seconds), `user` (or None), `chat_id`, `reply` (bool: an answer of
    the bot's own), `message` (see notification.py), `part` (how many calls of it are done), `late_since`.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._queue, self._sent = directory / "queue", directory / "sent"
        self._failed, self._corrupt = directory / "failed", directory / "corrupt"
        self._lock = threading.Lock()
        self._sequence = 0
        self._released = threading.Condition()
        self._claimed: set[str] = set()
        try:
            for path in (directory, self._queue, self._sent, self._failed, self._corrupt):
                path.mkdir(mode=0o700, exist_ok=True)
            self._lock_descriptor = _lock_once(directory / ".lock")
            self._queue_names = _Names(self._queue)
        except OSError as error:
            raise OutboxError(f"{error.filename or directory} cannot be used: {error.strerror}") from error

    def close(self) -> None:
        self._queue_names.close()
        os.close(self._lock_descriptor)

    def load(self) -> list[dict]:
        """What was accepted and not delivered by an earlier run, in order. What cannot be read is set aside."""
        entries = []
        for path in self._queue.glob("*.json"):
            try:
                entries.append(self.read(path.stem))
            except CorruptEntry as error:
                self.set_aside(path.stem, str(error))
            except OSError as error:
                log.error("outbox: %s cannot be read now and waits for the next start: %s", path, error.strerror)
        entries.sort(key=lambda entry: entry["sequence"])
        self._sequence = entries[-1]["sequence"] if entries else 0
        self._sweep()
        return entries

    def _sweep(self) -> None:
        """Pictures whose message was never accepted, and halves of writes that a crash left."""
        for path in self._queue.iterdir():
            if path.name.startswith(".") or (path.suffix == ".photo" and not self._path(path.stem).exists()):
                path.unlink()

    def identify(self, key: str | None) -> str:
        """The ID for a message: always the same for the same key, else a new one."""
        return hashlib.sha256(key.encode()).hexdigest()[:20] if key is not None else secrets.token_hex(10)

    def find(self, entry_id: str, now: float) -> tuple[str, dict] | None:
        """`("queued" | "sent" | "failed", entry)` for what was accepted within a day under this ID, else None."""
        places = [("queued", self._queue)]
        places += [("sent", self._sent / _day(now - days * 86400)) for days in (-1, 0, 1, 2)]
        places += [("failed", self._failed)]
        for state, directory in places:
            with suppress(CorruptEntry):
                entry = _read(directory / f"{entry_id}.json", entry_id)
                if abs(now - entry["accepted_at"]) < KEY_SECONDS:
                    return state, entry
        return None

    @contextmanager
    def claim(self, entry_id: str):
        """Hold an ID while looking whether it was accepted before, which is what is yielded (see `find`), and
        while accepting it if not. A second request with the same key waits, and then finds the first one's."""
        with self._released:
            self._released.wait_for(lambda: entry_id not in self._claimed)
            self._claimed.add(entry_id)
        try:
            yield self.find(entry_id, time.time())
        finally:
            with self._released:
                self._claimed.discard(entry_id)
                self._released.notify_all()

    @contextmanager
    def upload(self):
        """A new binary file for a picture that is arriving, and its path. It is gone at the end unless `add` took
        it over. Raises OSError."""
        with tempfile.NamedTemporaryFile(prefix=".upload-", dir=self._queue, delete=False) as file:
            path = Path(file.name)
            try:
                yield file, path
            finally:
                path.unlink(missing_ok=True)

    def add(self, entry_id: str, fields: dict, photo: Path | None = None) -> dict:
        """Accept a message: durable on return. `photo` is a synced file of `upload`'s, and is taken over.

        Raises OutboxError, and then nothing was accepted.
        """
        entry = {"id": entry_id, "sequence": self._next_sequence(), "accepted_at": time.time(), "user": None,
                 "reply": False, "part": 0, "late_since": None, **fields}
        picture = self._photo_path(entry_id)
        try:
            if photo:
                os.rename(photo, picture)
            write_atomic(self._path(entry_id), _encode(entry), MODE, self._queue_names.sync)
        except OSError as error:
            # Where only the folder could not be synced the entry is there, and the next start would deliver it.
            for path in (self._path(entry_id), picture):
                with suppress(OSError):
                    path.unlink()
            raise OutboxError(f"the message could not be written: {error.strerror}") from error
        return entry

    def read(self, entry_id: str) -> dict:
        """An entry of the queue. Raises CorruptEntry."""
        return _read(self._path(entry_id), entry_id)

    def photo(self, entry_id: str) -> Path:
        """The file with the picture of an entry of the queue. Raises CorruptEntry where there is none."""
        path = self._photo_path(entry_id)
        if not path.is_file():
            raise CorruptEntry("its picture is missing")
        return path

    def save(self, entry: dict) -> None:
        """Keep the progress of an entry of the queue. Raises OSError."""
        write_atomic(self._path(entry["id"]), _encode(entry), MODE, self._queue_names.sync)

    def delivered(self, entry: dict) -> None:
        """Move an entry to what was sent. Raises OSError; calling it again is harmless."""
        day = self._sent / _day(time.time())
        if not day.is_dir():
            day.mkdir(mode=0o700, exist_ok=True)
            sync_directory(self._sent)
        self._move(entry["id"], day)
        if entry["message"].get("photo"):
            self._photo_path(entry["id"]).unlink(missing_ok=True)

    def failed(self, entry: dict, code: int, reason: str) -> None:
        """Move an entry to what was refused for good. Raises OSError; calling it again is harmless."""
        entry["reason"], entry["code"] = reason, code
        self.save(entry)
        with suppress(FileNotFoundError):
            os.rename(self._photo_path(entry["id"]), self._failed / f"{entry['id']}.photo")
        self._move(entry["id"], self._failed)

    def listing(self) -> list[tuple[str, dict]]:
        """`("queued" | "failed", entry)` for all that is not delivered, oldest first. Raises OSError."""
        found = []
        for state, directory in (("queued", self._queue), ("failed", self._failed)):
            for path in directory.glob("*.json"):
                with suppress(CorruptEntry):
                    found.append((state, _read(path, path.stem)))
        return sorted(found, key=lambda item: item[1]["sequence"])

    def requeue(self, entry_id: str) -> dict:
        """Move what failed back to the queue, behind what is there. Raises CorruptEntry when there is none, OSError."""
        entry = _read(self._failed / f"{entry_id}.json", entry_id)
        with suppress(FileNotFoundError):
            os.rename(self._failed / f"{entry_id}.photo", self._photo_path(entry_id))
        os.rename(self._failed / f"{entry_id}.json", self._path(entry_id))
        entry.pop("reason", None)
        entry.pop("code", None)
        entry |= {"sequence": self._next_sequence(), "retried_at": time.time()}
        self.save(entry)
        return entry

    def discard(self, entry_id: str) -> bool:
        """Remove what is queued or failed, and its picture; False when there is none. Raises OSError."""
        found = False
        for directory in (self._queue, self._failed):
            for suffix in ("json", "photo"):
                with suppress(FileNotFoundError):
                    os.unlink(directory / f"{entry_id}.{suffix}")
                    found = True
            sync_directory(directory)
        return found

    def set_aside(self, entry_id: str, reason: str) -> None:
        """Take an entry that cannot be read out of the way, as it is."""
        log.error("outbox: %s is set aside in %s: %s", entry_id, self._corrupt, reason)
        for path in (self._path(entry_id), self._photo_path(entry_id)):
            with suppress(FileNotFoundError):
                os.rename(path, self._corrupt / path.name)
        sync_directory(self._queue)

    def expire(self, now: float) -> None:
        """Remove what was kept long enough: sent by days, failed by age."""
        for day in self._sent.iterdir():
            if day.name < _day(now - SENT_DAYS * 86400):
                shutil.rmtree(day)
        for path in self._failed.iterdir():
            if now - path.stat().st_ctime > FAILED_DAYS * 86400:
                path.unlink()

    def _move(self, entry_id: str, directory: Path) -> None:
        with suppress(FileNotFoundError):
            os.rename(self._path(entry_id), directory / f"{entry_id}.json")
        # A journaling file system has both ends of a rename in one transaction, so one of them is enough.
        self._queue_names.sync()

    def _next_sequence(self) -> int:
        """Microseconds of the clock, but that it never stands still or goes back."""
        with self._lock:
            self._sequence = max(self._sequence + 1, time.time_ns() // 1000)
            return self._sequence

    def _path(self, entry_id: str) -> Path:
        return self._queue / f"{entry_id}.json"

    def _photo_path(self, entry_id: str) -> Path:
        return self._queue / f"{entry_id}.photo"


class _Names:
    """The names in a folder, made durable for many threads: who comes while that goes on shares the next time."""

    def __init__(self, folder: Path):
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._syncing, self._joining = threading.Lock(), threading.Lock()
        self._next: Receipt | None = None

    def close(self) -> None:
        os.close(self._descriptor)

    def sync(self, _folder: Path | None = None) -> None:
        """What was named before the call is durable on return. Raises OSError, to all who share it: after one that
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


def _lock_once(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.EWOULDBLOCK:
            raise OutboxError(f"another notify-bot is running on {path.parent}") from None
        raise
    return descriptor


def _encode(entry: dict) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


_SHAPE = {"sequence": int, "accepted_at": (int, float), "chat_id": int, "message": dict, "part": int,
          "user": (str, NoneType), "reply": bool, "late_since": (int, float, NoneType)}


def _read(path: Path, entry_id: str) -> dict:
    try:
        entry = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError) as error:
        raise CorruptEntry(f"{path.name}: {error}") from error
    if not isinstance(entry, dict) or entry.get("id") != entry_id:
        raise CorruptEntry(f"{path.name} is not an entry of that name")
    for field, kind in _SHAPE.items():
        if not isinstance(entry.get(field), kind):
            raise CorruptEntry(f"{path.name}: {field} is missing or of the wrong type")
    return entry


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
