"""Accepted messages: queued, failed, kept for so many days or until there is no room; lines of the journal till sent.

    outbox/.lock            held by the one process that may change anything here
    outbox/journal/         accepted and not delivered; durable before the answer (journal.py)
    outbox/pictures/        their pictures, and those of failed messages: durable before their messages
    outbox/failed/ID.json   refused for good, with `reason`
    outbox/sent/DAY.jsonl   a line for each message that was delivered on that day (history.py)
    outbox/corrupt/         what could not be read, as it was

Where a crash leaves a message in two of them, the later one counts. The ID of a message with an Idempotency-Key comes
from the key, and is used for no other while this one is here. `sequence`, the order of messages, never goes back.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from bot.accounts import MAX_FAILED, Accounts, Kept, Upload, disk_problem
from bot.entries import CorruptEntry, SetAside, decode, encode, is_over, open_own, read_entry
from bot.history import KEY_SECONDS, History, is_of, notice
from bot.journal import OPEN, Journal, as_line, lock
from bot.keys import Claims, identify
from common.clock import EARLIEST
from common.jsonstore import sync_directory, write_atomic
from common.problem import Problem

log = logging.getLogger("outbox")

SHOWN = 10
MODE = 0o600
_LOST_PICTURE = "Its picture was not kept"
# Fields of an entry that the queue in memory is made of; the rest is read when the message is sent.
_HEAD = ("id", "sequence", "accepted_at", "user", "chat_id", "reply", "picture", "retried_at", "refused_at",
         "retry_after")


class OutboxError(Problem):
    """The outbox cannot be used now (503), or a user has too much on disk (429). Nothing was accepted or changed."""

    def __init__(self, message: str, status: int = 503):
        super().__init__(status, message, {"Retry-After": "30" if status == 503 else "60"})


class Outbox:
    """The accepted messages. Threads may share it. An entry is a dict:

    `id`, `sequence` (int), `accepted_at` (unix seconds), `user` (or None), `chat_id`, `reply` (bool: an answer of
    the bot's own), `message` (see message.py), `picture` (the name of its file), `part` (how many calls of it are
    done), `message_ids` (Telegram's, of these), `late_since`; `reason` and `code` where it failed.
    """

    def __init__(self, directory: Path, sent_days: int, failed_days: int):
        self.directory = directory
        self._sent_days, self._failed_days = sent_days, failed_days
        self._pictures, self._failed = directory / "pictures", directory / "failed"
        corrupt, journal, sent = directory / "corrupt", directory / "journal", directory / "sent"
        self._corrupt = SetAside(corrupt)
        self._lock, self._reading, self._retrying = threading.Lock(), threading.Lock(), threading.Lock()
        self._sequence = 0
        self._claims, self._accounts = Claims(), Accounts()
        self._history, self._journal = History(sent), Journal(journal)
        self._unused: list[str] = []  # pictures, until it is durable that nothing refers to them
        try:
            for path in (directory, journal, sent, self._pictures, self._failed, corrupt):
                path.mkdir(mode=0o700, exist_ok=True)
            self._lock_descriptor = lock(directory / ".lock")
        except BlockingIOError:
            raise OutboxError(f"another notify-bot is running on {directory}") from None
        except OSError as error:
            raise OutboxError(f"{error.filename or directory} cannot be used: {error.strerror}") from error

    def close(self) -> None:
        try:
            self.sync()
            self._history.close()
        except OSError as error:
            log.error("outbox: what was sent last may be sent again after a power cut: %s", error.strerror)
        self._journal.close()
        os.close(self._lock_descriptor)

    def load(self) -> list[dict]:
        """The queue of an earlier run, in order, without the messages themselves. What cannot be read is set aside."""
        try:
            pictures = self._load_failed()
            queued = self._load_journal()
            for entry_id in self._history.load({entry_id: head["accepted_at"] for entry_id, head in queued.items()},
                                               time.time()):
                log.info("outbox: %s was sent before the service ended", entry_id)
                self._forget(entry_id, self._accounts.get(entry_id))
                del queued[entry_id]
            pictures.update(head["picture"] for head in queued.values())
            for path in self._pictures.iterdir():
                if path.name not in pictures and not self._journal.unreadable:
                    path.unlink()
            self._journal.remove_closed()
        except OSError as error:
            raise OutboxError(f"{error.filename or self.directory} cannot be used: {error.strerror}") from error
        entries = sorted(queued.values(), key=lambda entry: entry["sequence"])
        self._sequence = max((kept.sequence for _, kept in self._accounts.all()), default=0)
        return entries

    def _load_failed(self) -> set[str | None]:
        """Read what failed. The names of its pictures."""
        pictures = set()
        for path in self._failed.glob(".*"):
            path.unlink()  # half of a write
        for path in self._failed.iterdir():
            try:
                entry = read_entry(path, path.stem)
                self._keep(entry, path.stat().st_size, None)
                pictures.add(entry["picture"])
            except CorruptEntry as error:
                self._corrupt.keep(path.name, str(error), path)
            except OSError as error:
                log.error("outbox: %s waits for the next start: %s", path, error)
                self._journal.unreadable.append(path)
        return pictures

    def _load_journal(self) -> dict[str, dict]:
        """The heads of what is queued, by ID. Of two lines of a message the later one counts."""
        queued: dict[str, dict] = {}
        for place, line in self._journal.load():
            try:
                entry = decode(line if line.startswith(OPEN) else b"")
            except CorruptEntry as error:
                if self._corrupt.keep(f"{place:x}-{time.time():.0f}.json", str(error), line):
                    self._journal.clear_line(place, line)
                continue
            kept = self._accounts.get(entry["id"])
            if kept and kept.sequence >= entry["sequence"] and kept.failed:
                self._journal.close_line(place)
                continue
            if kept and kept.failed:
                (self._failed / f"{entry['id']}.json").unlink(missing_ok=True)
            self._keep(entry, len(line), place)
            queued[entry["id"]] = {name: entry[name] for name in _HEAD if name in entry}
        return queued

    def problem(self) -> str | None:
        """The reason why nothing is accepted now, None where there is none."""
        return disk_problem(self.directory)

    def find(self, entry_id: str) -> str | None:
        """`queued`, `failed` or `sent`, for what was accepted within a day under this ID; else None."""
        now, kept = time.time(), self._accounts.get(entry_id)
        # What waits has no other time than the clock's, which may not have been set.
        if kept and (abs(now - kept.accepted_at) < KEY_SECONDS or kept.accepted_at < EARLIEST and not kept.failed):
            return "failed" if kept.failed else "queued"
        return "sent" if self._history.has(entry_id, now) else None

    def failure(self, entry_id: str) -> tuple[int, str]:
        """The status and the reason of what failed. Raises CorruptEntry, OutboxError."""
        kept = self._accounts.get(entry_id)
        if kept is None or not kept.failed:
            raise CorruptEntry(f"{entry_id} has not failed")
        entry = self._read_kept(entry_id, kept)
        return entry.get("code", 502), str(entry.get("reason", "refused"))

    @contextmanager
    def claim(self, key: str | None):
        """Hold a key while it is looked up, and while its message is accepted. Yields the ID and what `find` says.
        A second request with the same key waits, and then finds the first one's."""
        if key is None:
            yield secrets.token_hex(10), None
            return
        with self._claims.hold(key):
            entry_id = identify(key)
            # A message of an earlier day that has failed, or still waits, keeps its ID.
            while not (found := self.find(entry_id)) and self._accounts.get(entry_id):
                entry_id = identify(f"{key}\0{entry_id}")
            yield entry_id, found

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
            with Upload(self._pictures, user, self.make_room) as upload:
                try:
                    yield upload
                finally:
                    if upload.taken is not None:
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
                 "reply": False, "picture": photo and photo.path.name, "part": 0, "late_since": None, **fields}
        line = as_line(encode(entry))
        size = len(line)
        try:
            if photo:
                size += photo.path.stat().st_size
                self._accounts.bytes.give_back(photo.user, photo.taken)
                photo.taken = 0
                sync_directory(self._pictures)
            self.make_room(entry["user"], size)
            try:
                self._accounts.keep(entry, size, self._append(line))
            finally:
                self._accounts.bytes.give_back(entry["user"], size)
        except OSError as error:
            raise OutboxError(f"the message could not be written: {error.strerror}") from error
        if photo:
            photo.taken = None
        return entry

    def _append(self, line: bytes) -> int:
        """The place of a line, which is durable on return. Raises OSError, and then nothing of it stays."""
        place = self._journal.append(line)
        try:
            self._journal.sync(place)
        except OSError:
            # It may be there, and the next start would deliver it.
            with suppress(OSError):
                self._journal.clear_line(place, line)
            raise
        return place

    def read(self, entry_id: str) -> dict:
        """An entry of the queue. Raises CorruptEntry, OSError."""
        kept = self._accounts.get(entry_id)
        if kept is None or kept.failed:
            raise CorruptEntry(f"no message with the ID {entry_id} waits")
        return self._read(entry_id, kept)

    def _read(self, entry_id: str, kept: Kept) -> dict:
        if kept.failed:
            return read_entry(self._failed / f"{entry_id}.json", entry_id)
        try:
            return decode(self._journal.read(kept.place), entry_id)
        except FileNotFoundError as error:
            raise CorruptEntry(f"{error.filename} is gone") from None

    def photo(self, entry: dict):
        """The open binary file with the picture of an entry. Raises CorruptEntry where there is none."""
        try:
            return open_own(self._pictures / str(entry["picture"]))
        except FileNotFoundError:
            raise CorruptEntry("its picture is missing") from None

    def save(self, entry: dict) -> None:
        """Keep the progress of an entry of the queue. Raises OSError."""
        line = as_line(encode(entry))
        self._keep(entry, len(line), self._append(line))

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
        self._forget(entry["id"], self._accounts.get(entry["id"]), entry["picture"])

    def failed(self, entry: dict, code: int, reason: str) -> None:
        """Move an entry to what was refused for good; without its picture where the chat is gone (404, 409). Raises
        OSError; calling it again is harmless."""
        entry["reason"], entry["code"] = reason, code
        unused = None
        if code in (404, 409) and entry["message"].pop("photo", None):
            unused, entry["picture"] = entry["picture"], None
            text = entry["message"].get("text")
            entry["message"]["text"] = f"{text}\n\n{_LOST_PICTURE}" if text else _LOST_PICTURE
        data = encode(entry)
        write_atomic(self._failed / f"{entry['id']}.json", data, MODE)
        self._keep(entry, len(data), None)
        if unused:
            self._unused.append(unused)
        for oldest in self._accounts.failed(entry["user"])[:-MAX_FAILED]:
            with suppress(OutboxError):  # it is one more
                self._give_up_failed(oldest)

    def listing(self):
        """`("queued" | "failed", entry)` for all that is not delivered, oldest first, read one at a time. Raises
        OutboxError."""
        for entry_id, kept in self._accounts.all():
            with suppress(CorruptEntry):
                yield "failed" if kept.failed else "queued", self._read_kept(entry_id, kept)

    def failed_ids(self) -> list[str]:
        return [entry_id for entry_id, kept in self._accounts.all() if kept.failed]

    def newest(self, user: str, uid: int | None) -> list[dict]:
        """The SHOWN newest notifications of an account, newest first: `at` (unix seconds), `title`, `script`, `state`
        (delivered, queued, failed), `reason`. Raises OutboxError."""
        try:
            sent = self._history.newest(user, uid, SHOWN)
        except OSError as error:
            raise OutboxError(f"the outbox cannot be read: {error.strerror}") from error
        notices = [notice(line, line.get("title"), "delivered") for line in sent]
        for entry_id in self._accounts.newest(user, SHOWN):
            with suppress(CorruptEntry):
                kept = self._accounts.get(entry_id)
                if kept:
                    entry = self._read_kept(entry_id, kept)
                    state = "failed" if kept.failed else "queued"
                    notices += [notice(entry, entry["message"].get("title"), state)] if is_of(entry, uid) else []
        return sorted(notices, key=lambda notice: -notice["at"])[:SHOWN]

    def requeue(self, entry_id: str) -> dict:
        """Move what failed back to the queue, behind what is there. Raises CorruptEntry when there is none, OSError."""
        with self._retrying:  # of two at once the second finds none
            path = self._failed / f"{entry_id}.json"
            entry = read_entry(path, entry_id)
            entry.pop("reason", None)
            entry.pop("code", None)
            entry |= {"sequence": self._next_sequence(), "retried_at": time.time()}
            line = as_line(encode(entry))
            self._keep(entry, len(line), self._append(line))
            try:
                path.unlink()
                sync_directory(self._failed)
            except OSError as error:  # the next start removes it: the line was written later
                log.error("outbox: %s waits again, and its file in %s stays: %s", entry_id, self._failed, error)
            return entry

    def discard(self, entry_id: str) -> bool:
        """Remove what is queued or failed, and its picture; False when there is none. Raises OSError."""
        with self._retrying:
            kept = self._accounts.get(entry_id)
            if kept is None:
                return False
            picture = None
            with suppress(CorruptEntry):
                picture = self._read(entry_id, kept)["picture"]
            if kept.failed:
                self._journal.remove_closed()  # also its line, which would be queued again
                (self._failed / f"{entry_id}.json").unlink(missing_ok=True)
                sync_directory(self._failed)
            self._forget(entry_id, kept, picture)
            if not kept.failed:
                try:
                    self._journal.remove_closed()
                except OSError as error:
                    log.error("outbox: %s may come back after a power cut: %s", entry_id, error)
            return True

    def set_aside(self, entry_id: str, reason: str) -> None:
        """Take an entry of the queue that cannot be sent out of the way, as it is."""
        kept = self._accounts.get(entry_id)
        if kept is None or kept.failed:
            return
        with suppress(FileNotFoundError, CorruptEntry):
            line = self._journal.read(kept.place)
            if not self._corrupt.keep(f"{entry_id}.json", reason, line):
                self._accounts.drop(entry_id)
                return
            if picture := decode(line)["picture"]:
                self._corrupt.keep(picture, reason, self._pictures / picture)
        self._forget(entry_id, kept)

    def sync(self) -> None:
        """Make it durable what has left the queue, so that nothing of it is sent again. Raises OSError."""
        unused = list(self._unused)
        self._history.sync()
        self._journal.remove_closed()
        for picture in unused:
            (self._pictures / picture).unlink(missing_ok=True)
            self._unused.remove(picture)

    def expire(self, now: float) -> None:
        """Remove what was kept long enough: sent by days, failed by age, and the text of what was sent. Raises
        OSError."""
        self._journal.remove_closed(begin_anew=True)
        self._history.expire(now, self._sent_days)
        for entry_id in self.failed_ids():
            if is_over(self._failed / f"{entry_id}.json", now, self._failed_days):
                self.discard(entry_id)
        self._corrupt.expire(now, self._failed_days)

    def _read_kept(self, entry_id: str, kept: Kept) -> dict:
        """An entry to show; one whole message is in memory at a time. Raises CorruptEntry, OutboxError."""
        try:
            with self._reading:
                return self._read(entry_id, kept)
        except OSError as error:
            raise OutboxError(f"the outbox cannot be read: {error.strerror}") from error

    def _keep(self, entry: dict, size: int, place: int | None) -> None:
        """A message is there now, and no more where it was; it is counted with its picture."""
        before = self._accounts.get(entry["id"])
        if entry["picture"]:
            with suppress(FileNotFoundError):
                size += (self._pictures / entry["picture"]).stat().st_size
        self._accounts.keep(entry, size, place)
        if before and not before.failed:
            try:
                self._journal.close_line(before.place)
            except OSError as error:  # of two places of a message the later one counts
                log.error("outbox: the earlier line of %s stays open: %s", entry["id"], error)

    def _forget(self, entry_id: str, kept: Kept | None, picture: str | None = None) -> None:
        """A message is not where it was; its picture, where nothing refers to it any more, goes with the next sync."""
        if kept is None:  # it was dropped
            return
        if not kept.failed:
            self._journal.close_line(kept.place)
        self._accounts.drop(entry_id)
        if picture:
            self._unused.append(picture)

    def _next_sequence(self) -> int:
        """Microseconds of the clock, but that it never stands still or goes back."""
        with self._lock:
            self._sequence = max(self._sequence + 1, time.time_ns() // 1000)
            return self._sequence
