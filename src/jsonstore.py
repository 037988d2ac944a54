"""One JSON document in one file, shared by processes that do not know one another.

    DIR/NAME            the document; replaced by rename, so a reader sees the old one or the new one
    DIR/.NAME.lock      locked (flock) by a writer from before it reads until after it has renamed
    DIR/.NAME.tmp       the next version, while a writer holds the lock
    DIR/NAME.corrupt-*  a copy of what could not be read, named by its content

Whoever writes holds the lock; whoever only reads needs none. The lock is a sibling because a rename would
carry a lock on the document away with the old inode, and it is flock and not lockf because POSIX locks let a
second descriptor of the same process in. A document that cannot be understood is never read as empty and
never overwritten: repairing it, or putting a backup in its place, is left to a person.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path

import bounded_json

# 100,000 links, with three times the fields that we write.
MAX_BYTES = 32 << 20
MAX_ITEMS = 2_000_000


class StoreError(Exception):
    """The document cannot be read or written now; the message names the file and the way out."""


class CorruptStore(StoreError):
    """The file is there and is not one JSON object."""


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable (fsync(2): syncing a file does not sync its entry)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes, mode: int, sync=sync_directory) -> None:
    """Replace `path` by `data` so that after a crash it is whole, old or new; durable on return.

    `mode` is set as it is, whatever the umask, because a group shares these files. One writer a path at a
    time: callers hold the lock or own the name. `sync(folder)` makes its names durable. Raises OSError, and then
    nothing has changed, unless it was only the folder that could not be synced: then the new content is there and may
    not outlive a power cut.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = _create(temporary)
    try:
        try:
            if mode != 0o600:
                os.fchmod(descriptor, mode)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest):]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    sync(path.parent)


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileExistsError:
        # A writer that was killed left it, and it may belong to another user of the group: it can be unlinked,
        # which is not so of changing its mode.
        os.unlink(path)
        return os.open(path, flags, 0o600)


@contextmanager
def locked(path: Path, mode: int):
    """Hold the exclusive lock on `path`, made if it is not there. Waits for whoever holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        if os.fstat(descriptor).st_uid == os.geteuid():
            os.fchmod(descriptor, mode)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class JsonStore:
    """A JSON object in a file. Raises StoreError where the file cannot be used, CorruptStore where it is bad."""

    def __init__(self, path: Path, mode: int = 0o660):
        self.path = Path(path)
        self.mode = mode
        self._lock_path = self.path.with_name(f".{self.path.name}.lock")
        self._cached: tuple[tuple, dict] | None = None

    def read(self) -> dict:
        """The document, `{}` where there is no file. Parsed once a version: it is shared, do not change it."""
        cached = self._cached
        if cached and cached[0] == self.version():
            return cached[1]
        version, data = self._load()
        document = self._parse(data) if version else {}
        self._cached = (version, document)
        return document

    def version(self) -> tuple:
        """What changes whenever the file does; empty where there is none. Costs one stat(2)."""
        try:
            return _version(os.stat(self.path))
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read: {error.strerror}") from error

    @contextmanager
    def update(self):
        """Lock, read, let the caller change the object, write it. An exception inside leaves the file as it was."""
        try:
            with locked(self._lock_path, self.mode):
                version, data = self._load()
                document = self._parse(data) if version else {}
                yield document
                encoded = _encode(document)
                if encoded != data:
                    write_atomic(self.path, encoded, self.mode)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def _load(self) -> tuple[tuple, bytes]:
        try:
            with open(self.path, "rb") as file:
                version, data = _version(os.fstat(file.fileno())), file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return (), b""
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read: {error.strerror}") from error
        if len(data) > MAX_BYTES:
            raise CorruptStore(f"{self.path} is over {MAX_BYTES} bytes; nothing was changed: put a backup in its place")
        return version, data

    def _parse(self, data: bytes) -> dict:
        try:
            document = bounded_json.loads(data, MAX_BYTES, MAX_ITEMS)
            if isinstance(document, dict):
                return document
            reason = f"it holds a {type(document).__name__}, not an object"
        except ValueError as error:
            reason = str(error) if data else "it is empty"
        kept = self._keep(data)
        raise CorruptStore(
            f"{self.path} is not valid JSON ({reason}); nothing was changed. A copy is kept as {kept}: "
            f"repair the file, put a backup in its place, or remove it to start with none"
        )

    def _keep(self, data: bytes) -> str:
        import hashlib  # a runner that finds nothing wrong need not load it
        digest = hashlib.sha256(data).hexdigest()[:8]
        copy = self.path.with_name(f"{self.path.name}.corrupt-{digest}")
        with suppress(OSError):
            if not copy.exists():
                write_atomic(copy, data, self.mode)
        return copy.name


def _encode(document: dict) -> bytes:
    try:
        return json.dumps(document, ensure_ascii=False, indent=1).encode() + b"\n"
    except UnicodeEncodeError:
        # Half of a surrogate pair is a legal JSON escape and no character: only as an escape can it be kept.
        return json.dumps(document, indent=1).encode() + b"\n"


def _version(status: os.stat_result) -> tuple:
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
