"""Messages that were accepted: each is a file in the queue until it is sent, or refused for good.

    outbox/.lock            held by the one process that may change anything here
    outbox/queue/ID.json    accepted and not delivered; written, fsynced and renamed before the answer
    outbox/queue/ID.photo   its picture, durable before ID.json is there
    outbox/queue/.upload-*  a picture that is still arriving
    outbox/failed/ID.json   refused for good, with `reason`; its picture beside it
    outbox/sent/DAY.jsonl   a line for each message that was delivered on that day (history.py)
    outbox/corrupt/         what could not be read, as it was

An entry with a `reason` belongs in `failed`, one without in `queue`, and `load` moves what a crash left elsewhere.
The ID of a message with an Idempotency-Key comes from the key, and is used for no other message while this one is
here. The order in which messages were accepted is in `sequence`, which never goes back.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import secrets
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from bot.accounts import MAX_FAILED, Accounts, Upload
from bot.entries import CorruptEntry, Names, encode, is_over, open_own, read_entry
from bot.history import KEY_SECONDS, History, is_of, shown
from common.clock import EARLIEST
from common.jsonstore import write_atomic
from common.problem import Problem

log = logging.getLogger("outbox")

SENT_DAYS = 3
FAILED_DAYS = 30
SHOWN = 10
# Under the lesser of both nothing more is accepted, so that what is queued can go on.
FREE_SHARE, FREE_BYTES = 0.05, 200 << 20
MODE = 0o600
_LOST_PICTURE = "Its picture was not kept"
# Fields of an entry that the queue in memory is made of; the rest is read when the message is sent.
_HEAD = ("id", "sequence", "accepted_at", "user", "chat_id", "reply", "retried_at", "refused_at", "retry_after")


class OutboxError(Problem):
    """The outbox cannot be used now (503), or a user has too much on disk (429). Nothing was accepted or changed."""

    def __init__(self, message: str, status: int = 503):
        super().__init__(status, message, {"Retry-After": "30" if status == 503 else "60"})


class Outbox:
    """The files of accepted messages. Threads may share it. An entry is a dict:

    `id`, `sequence` (int), `accepted_at` (unix seconds), `user` (or None), `chat_id`, `reply` (bool: an answer of
    the bot's own), `message` (see message.py), `part` (how many calls of it are done), `message_ids` (Telegram's,
    of these), `late_since`; `reason` and `code` where it failed.
    """

    def __init__(self, directory: Path, sent_days: int = SENT_DAYS, failed_days: int = FAILED_DAYS):
        self.directory = directory
        self._sent_days, self._failed_days = sent_days, failed_days
        self._queue, self._failed = directory / "queue", directory / "failed"
        self._corrupt, sent = directory / "corrupt", directory / "sent"
        self._lock, self._reading, self._retrying = threading.Lock(), threading.Lock(), threading.Lock()
        self._sequence = 0
        self._released = threading.Condition()
        self._claimed: set[str] = set()
        self._accounts = Accounts()
        self._history = History(sent)
        try:
            for path in (directory, self._queue, sent, self._failed, self._corrupt):
                path.mkdir(mode=0o700, exist_ok=True)
            self._lock_descriptor = _lock_once(directory / ".lock")
            self._queue_names, self._failed_names = Names(self._queue), Names(self._failed)
        except OSError as error:
            raise OutboxError(f"{error.filename or directory} cannot be used: {error.strerror}") from error

    def close(self) -> None:
        try:
            self._history.close()
        except OSError as error:
            log.error("outbox: what was sent last may be sent again after a power cut: %s", error.strerror)
        for names in (self._queue_names, self._failed_names):
            names.close()
        os.close(self._lock_descriptor)

    def load(self) -> list[dict]:
        """The queue of an earlier run, in order, without the messages themselves. What
        cannot be read is set aside."""
        queued = {}
        for folder in (self._failed, self._queue):
            for path in sorted(folder.glob("*.json")):
                entry = self._load(path)
                if entry and "reason" not in entry:
                    queued[entry["id"]] = {name: entry[name] for name in _HEAD if name in entry}
        self._sweep()
        try:
            waiting = {entry_id: entry["accepted_at"] for entry_id, entry in queued.items()}
            for entry_id in self._history.load(waiting, time.time()):
                log.info("outbox: %s was sent before the service ended", entry_id)
                del queued[entry_id]
                self.discard(entry_id)
        except OSError as error:
            raise OutboxError(f"{error.filename or self.directory} cannot be used: {error.strerror}") from error
        entries = sorted(queued.values(), key=lambda entry: entry["sequence"])
        self._sequence = entries[-1]["sequence"] if entries else 0
        return entries

    def _load(self, path: Path) -> dict | None:
        """An entry, which is in the folder where it belongs on return; None where it cannot be read."""
        try:
            entry = read_entry(path, path.stem)
            place = self._failed if "reason" in entry else self._queue
            if path.parent != place:
                self._move(entry, place)
            self._keep(entry, place)
            return entry
        except CorruptEntry as error:
            self.set_aside(path.stem, str(error), path.parent)
        except OSError as error:
            log.error("outbox: %s cannot be read now and waits for the next start: %s", path, error)
        return None

    def _sweep(self) -> None:
        """Pictures whose message was never accepted, and halves of writes that a crash left."""
        for folder in (self._queue, self._failed):
            for path in folder.iterdir():
                if path.name.startswith(".") or (path.suffix == ".photo" and not path.with_suffix(".json").exists()):
                    path.unlink()

    def problem(self) -> str | None:
        """The reason why nothing is accepted now, None where there is none."""
        try:
            disk = os.statvfs(self.directory)
        except OSError as error:
            return f"the disk cannot be used ({error.strerror}): nothing new is accepted"
        free = disk.f_bavail * disk.f_frsize
        if free < min(FREE_SHARE * disk.f_blocks * disk.f_frsize, FREE_BYTES):
            return f"the disk is nearly full ({free >> 20} MiB are free on {self.directory}): nothing new is accepted"
        return None

    def identify(self, key: str) -> str:
        """The ID for a key that has never been used."""
        return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:20]

    def find(self, entry_id: str) -> str | None:
        """`queued`, `failed` or `sent`, for what was accepted within a day under this ID; else None."""
        now, kept = time.time(), self._accounts.get(entry_id)
        # What waits has no other time than the clock's, which may not have been set.
        if kept and (abs(now - kept.accepted_at) < KEY_SECONDS or kept.accepted_at < EARLIEST and not kept.failed):
            return "failed" if kept.failed else "queued"
        return "sent" if self._history.has(entry_id, now) else None

    def failure(self, entry_id: str) -> tuple[int, str]:
        """The status and the reason of what failed. Raises CorruptEntry, OutboxError."""
        entry = self._read_kept(entry_id, True)
        return entry.get("code", 502), str(entry.get("reason", "refused"))

    @contextmanager
    def claim(self, key: str | None):
        """Hold a key while it is looked up, and while its message is accepted. Yields the ID and what `find` says.
        A second request with the same key waits, and then finds the first one's."""
        if key is None:
            yield secrets.token_hex(10), None
            return
        with self._released:
            self._released.wait_for(lambda: key not in self._claimed)
            self._claimed.add(key)
        try:
            yield self._look_up(key)
        finally:
            with self._released:
                self._claimed.discard(key)
                self._released.notify_all()

    def _look_up(self, key: str) -> tuple[str, str | None]:
        entry_id = self.identify(key)
        # A message of an earlier day that has failed, or still waits, keeps its ID.
        while not (found := self.find(entry_id)) and self._accounts.get(entry_id):
            entry_id = self.identify(f"{key}\0{entry_id}")
        return entry_id, found

    def make_room(self, user: str | None, size: int) -> None:
        """Take `size` bytes from the account of a user, whose oldest failed messages go where it is full. Raises
        OutboxError."""
        if problem := self.problem():
            raise OutboxError(problem)
        while not self._accounts.bytes.take(user, size):
            failed = self._accounts.failed(user)
            if not failed:
                used, most = self._accounts.bytes.used(user), self._accounts.bytes.of_key
                raise OutboxError(f"{used >> 20} MiB are kept for '{user}', of {most >> 20}: try again when some of it "
                                  "is delivered", 429)
            self._give_up_failed(failed[0])

    def check_room(self, user: str | None, size: int) -> None:
        """Raise OutboxError where `size` bytes would not be accepted now."""
        self.make_room(user, size)
        self._accounts.bytes.give_back(user, size)

    def _give_up_failed(self, entry_id: str) -> None:
        log.info("outbox: %s, which had failed, is removed for what came later", entry_id)
        try:
            self.discard(entry_id)
        except OSError as error:
            raise OutboxError(f"{entry_id} cannot be removed: {error.strerror}") from error

    @contextmanager
    def upload(self, user: str | None):
        """A new binary file for a picture that is arriving, whose bytes are taken from the account of `user` (see
        make_room). It is gone at the end unless `add` took it over. Raises OutboxError."""
        try:
            with Upload(self._queue, user, self.make_room) as upload:
                try:
                    yield upload
                finally:
                    upload.path.unlink(missing_ok=True)
                    self._accounts.bytes.give_back(user, upload.taken)
        except (ConnectionError, TimeoutError):  # of the connection that it comes from
            raise
        except OSError as error:
            raise OutboxError(f"the picture could not be written: {error.strerror}") from error

    def add(self, entry_id: str, fields: dict, photo: Upload | None = None) -> dict:
        """Accept a message: durable on return. `photo` is of `upload`'s and synced, and is taken over.

        Raises OutboxError, and then nothing was accepted.
        """
        entry = {"id": entry_id, "sequence": self._next_sequence(), "accepted_at": time.time(), "user": None,
                 "reply": False, "part": 0, "late_since": None, **fields}
        picture, data = self._photo_path(entry_id), encode(entry)
        size = len(data)
        try:
            if photo:
                size += photo.path.stat().st_size
                self._accounts.bytes.give_back(photo.user, photo.taken)
                photo.taken = 0
            self.make_room(entry["user"], size)
            try:
                if photo:
                    os.rename(photo.path, picture)
                write_atomic(self._path(entry_id), data, MODE, self._queue_names.sync)
                self._accounts.keep(entry, size)
            finally:
                self._accounts.bytes.give_back(entry["user"], size)
        except OSError as error:
            # Where only the folder could not be synced the entry is there, and the next start would deliver it.
            for path in (self._path(entry_id), picture):
                with suppress(OSError):
                    path.unlink()
            raise OutboxError(f"the message could not be written: {error.strerror}") from error
        return entry

    def read(self, entry_id: str) -> dict:
        """An entry of the queue. Raises CorruptEntry."""
        return read_entry(self._path(entry_id), entry_id)

    def photo(self, entry_id: str):
        """The open binary file with the picture of an entry of the queue. Raises CorruptEntry where there is none."""
        try:
            return open_own(self._photo_path(entry_id))
        except FileNotFoundError:
            raise CorruptEntry("its picture is missing") from None

    def save(self, entry: dict) -> None:
        """Keep the progress of an entry of the queue. Raises OSError."""
        write_atomic(self._path(entry["id"]), encode(entry), MODE, self._queue_names.sync)

    def delivered(self, entry: dict, message_ids: list[int]) -> None:
        """Write down that an entry was sent, and remove it. Raises OSError, and may be called again then."""
        try:
            self._history.append(entry, message_ids)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # On a full disk the list of what was sent gives way: nothing is to be sent twice.
            log.error("outbox: %s was sent, and cannot be added to the list of what was sent: %s", entry["id"],
                      error.strerror)
        self._unlink(self._queue, entry["id"], ("json", "photo") if entry["message"].get("photo") else ("json",))
        self._accounts.drop(entry["id"])

    def failed(self, entry: dict, code: int, reason: str) -> None:
        """Move an entry to what was refused for good; without its picture where the chat is gone (404, 409). Raises
        OSError; calling it again is harmless."""
        entry["reason"], entry["code"] = reason, code
        if code in (404, 409) and entry["message"].pop("photo", None):
            text = entry["message"].get("text")
            entry["message"]["text"] = f"{text}\n\n{_LOST_PICTURE}" if text else _LOST_PICTURE
        self.save(entry)
        self._move(entry, self._failed)
        self._keep(entry, self._failed)
        for oldest in self._accounts.failed(entry["user"])[:-MAX_FAILED]:
            self._give_up_failed(oldest)

    def listing(self):
        """`("queued" | "failed", entry)` for all that is not delivered, oldest first, read one at a time. Raises
        OutboxError."""
        for entry_id, kept in self._accounts.all():
            with suppress(CorruptEntry):
                yield "failed" if kept.failed else "queued", self._read_kept(entry_id, kept.failed)

    def failed_ids(self) -> list[str]:
        return [entry_id for entry_id, kept in self._accounts.all() if kept.failed]

    def newest(self, user: str, uid: int | None) -> list[dict]:
        """The SHOWN newest notifications of an account, newest first: `at` (unix seconds), `title`, `script`, `state`
        (delivered, queued, failed), `reason`. Raises OutboxError."""
        try:
            sent = self._history.newest(user, uid, SHOWN)
        except OSError as error:
            raise OutboxError(f"the outbox cannot be read: {error.strerror}") from error
        notices = [_notice(line, line.get("title"), "delivered") for line in sent]
        for entry_id in self._accounts.newest(user, SHOWN):
            with suppress(CorruptEntry):
                kept = self._accounts.get(entry_id)
                if kept:
                    entry = self._read_kept(entry_id, kept.failed)
                    state = "failed" if kept.failed else "queued"
                    notices += [_notice(entry, entry["message"].get("title"), state)] if is_of(entry, uid) else []
        return sorted(notices, key=lambda notice: -notice["at"])[:SHOWN]

    def requeue(self, entry_id: str) -> dict:
        """Move what failed back to the queue, behind what is there. Raises CorruptEntry when there is none,
        FileExistsError where another message with its ID waits, OSError."""
        with self._retrying:  # of two at once the second finds none
            return self._requeue(self._failed / f"{entry_id}.json", entry_id)

    def _requeue(self, path: Path, entry_id: str) -> dict:
        entry = read_entry(path, entry_id)
        if self._path(entry_id).exists():
            raise FileExistsError(errno.EEXIST, "another message has its ID", str(self._path(entry_id)))
        entry.pop("reason", None)
        entry.pop("code", None)
        entry |= {"sequence": self._next_sequence(), "retried_at": time.time()}
        write_atomic(path, encode(entry), MODE, self._failed_names.sync)
        self._move(entry, self._queue)
        self._keep(entry, self._queue)
        return entry

    def discard(self, entry_id: str) -> bool:
        """Remove what is queued or failed, and its picture; False when there is none. Raises OSError."""
        found = False
        for folder, names in ((self._queue, self._queue_names), (self._failed, self._failed_names)):
            if self._unlink(folder, entry_id):
                found = True
                names.sync()
        self._accounts.drop(entry_id)
        return found

    def set_aside(self, entry_id: str, reason: str, folder: Path | None = None) -> None:
        """Take an entry that cannot be read out of the way, as it is."""
        folder = folder or self._queue
        log.error("outbox: %s is set aside in %s: %s", entry_id, self._corrupt, reason)
        for suffix in ("json", "photo"):
            with suppress(FileNotFoundError):
                os.rename(folder / f"{entry_id}.{suffix}", self._corrupt / f"{entry_id}.{suffix}")
        self._queue_names.sync()
        self._accounts.drop(entry_id)

    def sync(self) -> None:
        """Make the list of what was delivered durable, so that nothing of it is sent again. Raises OSError."""
        self._history.sync()

    def expire(self, now: float) -> None:
        """Remove what was kept long enough: sent by days, failed by age. Raises OSError."""
        self._history.expire(now, self._sent_days)
        for entry_id in self.failed_ids():
            if is_over(self._failed / f"{entry_id}.json", now, self._failed_days):
                self.discard(entry_id)
        for path in self._corrupt.iterdir():
            if is_over(path, now, self._failed_days):
                path.unlink()

    def _read_kept(self, entry_id: str, failed: bool) -> dict:
        """An entry to show; one whole message is in memory at a time. Raises CorruptEntry, OutboxError."""
        try:
            with self._reading:
                return read_entry((self._failed if failed else self._queue) / f"{entry_id}.json", entry_id)
        except OSError as error:
            raise OutboxError(f"the outbox cannot be read: {error.strerror}") from error

    def _move(self, entry: dict, folder: Path) -> None:
        """Move an entry whose file says already that it belongs in `folder` from the other one: the picture first, so
        that its message is never without it where `load` looks. Raises OSError."""
        other = self._queue if folder == self._failed else self._failed
        source, target = (place / f"{entry['id']}.json" for place in (other, folder))
        if target.exists() and read_entry(target, entry["id"])["accepted_at"] != entry["accepted_at"]:
            raise FileExistsError(errno.EEXIST, "another message has its ID", str(target))
        picture = source.with_suffix(".photo")
        with suppress(FileNotFoundError):
            if entry["message"].get("photo"):
                os.rename(picture, target.with_suffix(".photo"))
            else:
                picture.unlink()
        with suppress(FileNotFoundError):
            os.rename(source, target)
        # A journaling file system has both ends of a rename in one transaction, so one of them is enough.
        self._queue_names.sync()

    def _keep(self, entry: dict, folder: Path) -> None:
        size = 0
        for suffix in ("json", "photo"):
            with suppress(FileNotFoundError):
                size += (folder / f"{entry['id']}.{suffix}").stat().st_size
        self._accounts.keep(entry, size)

    @staticmethod
    def _unlink(folder: Path, entry_id: str, suffixes: tuple = ("json", "photo")) -> bool:
        """Remove a message and its picture, the message first: a picture alone is swept up."""
        found = False
        for suffix in suffixes:
            with suppress(FileNotFoundError):
                os.unlink(folder / f"{entry_id}.{suffix}")
                found = True
        return found

    def _next_sequence(self) -> int:
        """Microseconds of the clock, but that it never stands still or goes back."""
        with self._lock:
            self._sequence = max(self._sequence + 1, time.time_ns() // 1000)
            return self._sequence

    def _path(self, entry_id: str) -> Path:
        return self._queue / f"{entry_id}.json"

    def _photo_path(self, entry_id: str) -> Path:
        return self._queue / f"{entry_id}.photo"


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


def _notice(entry: dict, title, state: str) -> dict:
    return {"at": float(entry["accepted_at"]), "title": shown(title), "script": shown(entry.get("script")),
            "state": state, "reason": shown(entry.get("reason"))}
