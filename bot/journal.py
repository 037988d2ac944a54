"""Journal of accepted messages: lines in files of a fixed size, made durable together for all who wait.

    journal/00000001.jsonl    a segment: SEGMENT_BYTES, allocated before its first line, so that an append changes no
                              metadata; behind the last line are line feeds

A line is a JSON object that begins with `"open":1`. When its message leaves the queue, that 1 becomes a 0 in place: one
byte, so a crash leaves either. A segment goes when no line of it is open. Each run of the service begins segments of
its own, so nothing follows a line that a crash cut short.
"""

from __future__ import annotations

import fcntl
import io
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

from bot.receipt import Receipt
from common.jsonstore import sync_directory

log = logging.getLogger("outbox")

SEGMENT_BYTES = 4 << 20
OPEN, CLOSED = b'{"open":1,', b'{"open":0,'
_READ_BYTES = 4096
_SHIFT = 32  # of the number of a segment in a place
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


def as_line(data: bytes) -> bytes:
    """A JSON object as an open line."""
    return OPEN + data[1:]


def lock(path: Path) -> int:
    """A descriptor that holds the lock on `path`. Raises BlockingIOError while another process does, and OSError."""
    descriptor = os.open(path, _FLAGS | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class _Segment:
    """A file of the journal: its `size`, the `end` of its lines, the number of those that are `open`."""

    __slots__ = ("descriptor", "end", "open", "path", "size")

    def __init__(self, path: Path, flags: int = _FLAGS):
        self.path, self.descriptor = path, os.open(path, flags, 0o600)
        self.size = self.end = self.open = 0

    def allocate(self, size: int) -> None:
        _write(self.descriptor, b"\n" * size, 0)
        os.fsync(self.descriptor)
        sync_directory(self.path.parent)
        self.size = size


class Journal:
    """The lines in a folder. A place (int) says where a line is. Threads may share it. Raises OSError."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._lock = threading.Lock()
        self._segments: dict[int, _Segment] = {}
        self._last = 0
        self._current: int | None = None
        self._appended: set[int] = set()  # segments with something that is not durable yet
        self._closed: set[int] = set()
        self._broken: dict[int, OSError] = {}  # segments of which something was lost
        self.unreadable: list[Path] = []
        self._syncing, self._joining = threading.Lock(), threading.Lock()
        self._next: Receipt | None = None

    def load(self):
        """`(place, line)` of each line that is not closed, in order; one that a crash has cut is in pieces, which are
        no JSON objects."""
        for path in sorted(path for path in self._folder.glob("*.jsonl") if path.stem.isdecimal()):
            number = self._last = int(path.stem)
            try:
                segment, data = _Segment(path), path.read_bytes()
            except OSError as error:
                log.error("outbox: %s waits for the next start: %s", path, error)
                self.unreadable.append(path)
                continue
            self._segments[number] = segment
            lines, start = io.BytesIO(data.rstrip(b"\n") + b"\n"), 0
            for line in lines:
                if line != b"\n" and not line.startswith(CLOSED):
                    segment.open += 1
                    yield number << _SHIFT | start, line
                start += len(line)

    def append(self, line: bytes) -> int:
        """Write a line, which `sync` makes durable; its place. Where it raises, nothing of the line stays."""
        with self._lock:
            segment = self._with_room(len(line))
            try:
                _write(segment.descriptor, line, segment.end)
            except OSError:
                self._current = None  # nothing may follow half a line
                with suppress(OSError):
                    _write(segment.descriptor, b"\n" * len(line), segment.end)
                raise
            number, place = self._current, self._current << _SHIFT | segment.end
            segment.end += len(line)
            segment.open += 1
            self._appended.add(number)
            return place

    def _with_room(self, size: int) -> _Segment:
        segment = self._segments.get(self._current)
        if segment is None or segment.end + size > segment.size:
            number = self._last + 1
            segment = _Segment(self._folder / f"{number:08}.jsonl", _FLAGS | os.O_CREAT | os.O_TRUNC)
            try:
                segment.allocate(max(size, SEGMENT_BYTES))
            except OSError:
                os.close(segment.descriptor)
                with suppress(OSError):
                    segment.path.unlink()
                raise
            self._segments[number] = segment
            self._current = self._last = number
        return segment

    def sync(self, place: int) -> None:
        """Make the line at a place durable: calls that come meanwhile share the next fdatasync(2). Raises OSError where
        something of its segment was lost: the kernel reports that once, to whoever asks first (fsync(2))."""
        with self._joining:
            shared, is_first = self._next, self._next is None
            if is_first:
                shared = self._next = Receipt()
        if is_first:
            with self._syncing:
                with self._joining:
                    self._next = None
                try:
                    self._sync(self._appended)
                finally:
                    shared.settle(None)
        shared.wait()
        if error := self._broken.get(place >> _SHIFT):
            raise OSError(*error.args)

    def _sync(self, segments: set[int]) -> OSError | None:
        """Make the segments of a set, which is empty on return, durable. The caller holds `_syncing`."""
        with self._lock:
            numbers = set(segments)
            segments.clear()
        error = None
        for number in numbers:
            try:
                os.fdatasync(self._segments[number].descriptor)
            except OSError as found:
                error = found
                with self._lock:
                    self._broken[number] = found
                    if self._current == number:
                        self._current = None
                    if segments is self._closed:
                        segments.add(number)
        return error

    def read(self, place: int) -> bytes:
        """The line at a place. Raises FileNotFoundError where its segment is gone."""
        number, start = divmod(place, 1 << _SHIFT)
        descriptor = os.open(self._folder / f"{number:08}.jsonl", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            line = os.pread(descriptor, _READ_BYTES, start)
            while b"\n" not in line and (more := os.pread(descriptor, len(line), start + len(line))):
                line += more
        finally:
            os.close(descriptor)
        return line[:line.index(b"\n") + 1] if b"\n" in line else line

    def close_line(self, place: int) -> None:
        """The message of a line has left the queue, which `remove_closed` makes durable. Closed again it stays so."""
        self._overwrite(place, OPEN, CLOSED)

    def clear_line(self, place: int, line: bytes) -> None:
        """Overwrite what is no whole line, or was never accepted."""
        whole = line.rstrip(b"\n")
        self._overwrite(place, whole, b"\n" * len(whole))

    def _overwrite(self, place: int, before: bytes, after: bytes) -> None:
        number, start = divmod(place, 1 << _SHIFT)
        with self._lock:
            segment = self._segments.get(number)
            if segment and os.pread(segment.descriptor, len(before), start) == before:
                _write(segment.descriptor, after, start)
                segment.open -= 1
                self._closed.add(number)

    def remove_closed(self, begin_anew: bool = False) -> None:
        """Make it durable which lines are closed, and remove the segments without an open one. The next line begins a
        segment if it is to `begin_anew`: the text of a message is on disk as long as its segment."""
        with self._syncing:  # also against another call of this
            with self._lock:
                if begin_anew:
                    self._current = None
                empty = [number for number, segment in self._segments.items()
                         if not segment.open and number != self._current]
            if error := self._sync(self._closed):
                raise error
            self._remove(empty)

    def _remove(self, numbers: list[int]) -> None:
        with self._lock:
            for number in numbers:
                with suppress(FileNotFoundError):
                    os.unlink(self._segments[number].path)
                os.close(self._segments.pop(number).descriptor)

    def close(self) -> None:
        for segment in self._segments.values():
            os.close(segment.descriptor)


def _write(descriptor: int, data: bytes, start: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, start)
        rest, start = rest[written:], start + written
