"""JSON document in a file, shared by processes that do not know one another.

    DIR/NAME            the document; replaced by rename, so a reader sees the old one or the new one
    DIR/.NAME.lock      locked (flock) by a writer from before it reads until after it has renamed
    DIR/.NAME.tmp       the next version, while a writer holds the lock
    DIR/NAME.corrupt-*  a copy of what could not be read, named by its content

A writer holds the lock; a reader needs none. The lock is a sibling because a rename would carry a lock on the
document away with the old inode, and it is flock and not lockf because POSIX locks let a second descriptor of the same
process in. An unreadable document is never read as empty and never overwritten: a person repairs it or puts a backup
in its place. Another account that can write in the folder may put anything there under these names, so no link is
followed and every wait has a bound.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from common import bounded_json
from common.problem import Problem

LOCK_SECONDS = 5
_LOOK_SECONDS = 0.005
# Room for 30,000 links. A text with one character beyond the BMP takes four times its bytes while it is parsed.
MAX_BYTES = 8 << 20
MAX_ITEMS = 400_000
MAX_COPIES = 5


class StoreError(Problem):
    """The document cannot be read or written now; the message names the file and the way out."""

    def __init__(self, message: str):
        super().__init__(503, message, {"Retry-After": "30"})


class CorruptStore(StoreError):
    """The file is there and is not one JSON object."""


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable (fsync(2): syncing a file does not sync its entry)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes, mode: int) -> None:
    """Replace `path` by `data` so that after a crash it is whole, old or new; durable on return.

    `mode` is set whatever the umask, because a group shares these files. One writer a path at a time: callers hold the
    lock or own the name. Raises OSError, and then nothing has changed, unless only the folder could not be synced: then
    the new content is there and may not outlive a power cut.
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
    sync_directory(path.parent)


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileExistsError:
        # Left by a killed writer, perhaps another user of the group, who alone could change its mode.
        os.unlink(path)
        return os.open(path, flags, 0o600)


@contextmanager
def locked(path: Path, mode: int):
    """Hold the exclusive lock on `path`, made if missing. Raises StoreError after LOCK_SECONDS of waiting, and
    OSError."""
    descriptor = _open_regular(path, os.O_RDWR | os.O_CREAT, mode)
    try:
        if os.fstat(descriptor).st_uid == os.geteuid():
            os.fchmod(descriptor, mode)
        _lock(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise StoreError(f"{path} is locked for over {LOCK_SECONDS} s by {_holder(descriptor)}; nothing was "
                                 "changed: try again, or end that process") from None
        time.sleep(_LOOK_SECONDS)


def _holder(descriptor: int) -> str:
    """The process that holds the lock on a file (proc_locks(5)), if this one may see it."""
    status = os.fstat(descriptor)
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with suppress(OSError, ValueError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()  # 1: FLOCK ADVISORY WRITE 708 08:01:12345 0 EOF; "->" before FLOCK of one who waits
            if words[1] == "FLOCK" and words[5] == file:
                with suppress(OSError):
                    return f"process {words[4]} ({Path('/proc', words[4], 'comm').read_text().strip()})"
                return f"process {words[4]}"
    return "another process"


def _open_regular(path: Path, flags: int, mode: int = 0) -> int:
    """open(2) that follows no link and does not block. Raises OSError, also for anything but a regular file."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a link, a socket, a folder
            raise
    raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))


class JsonStore:
    """A JSON object in a file. Raises StoreError for a file that cannot be used, CorruptStore for bad content."""

    def __init__(self, path: Path, mode: int = 0o660):
        self.path = Path(path)
        self.mode = mode
        self._lock_path = self.path.with_name(f".{self.path.name}.lock")
        self._cached: tuple[tuple, dict] | None = None
        self._parsing = threading.Lock()

    def read(self) -> dict:
        """The document, `{}` without a file. Parsed once a version and shared: do not change it."""
        cached = self._cached
        if cached and cached[0] == self.version():
            return cached[1]
        with self._parsing:  # a large document takes memory, so one thread at a time
            cached = self._cached
            if not cached or cached[0] != self.version():
                cached = self._cached = None  # frees the old document first
                version, data = self._load()
                cached = self._cached = (version, self._parse(data) if version else {})
            return cached[1]

    def is_read(self) -> bool:
        """True if `read` would answer from memory."""
        cached = self._cached
        return cached is not None and cached[0] == self.version()

    def version(self) -> tuple:
        """Version of the file, empty without one. Costs one stat(2)."""
        try:
            return _version(os.lstat(self.path))
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read: {error.strerror}") from error

    @contextmanager
    def update(self):
        """Lock, read, yield the object to be changed, write it. An exception inside leaves the file as it was."""
        try:
            with locked(self._lock_path, self.mode):
                version, data = self._load()
                with self._parsing:
                    document = self._parse(data) if version else {}
                yield document
                encoded = _encode(document)
                if encoded != data:
                    write_atomic(self.path, encoded, self.mode)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be written: {error.filename or ''}: {error.strerror or error}"
                             ) from error

    def _load(self) -> tuple[tuple, bytes]:
        try:
            with open(_open_regular(self.path, os.O_RDONLY), "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_size > MAX_BYTES:
                    raise StoreError(f"{self.path} cannot be read: it has {status.st_size} bytes, over {MAX_BYTES}; "
                                     "remove it, or put a backup in its place")
                return _version(status), file.read(MAX_BYTES)
        except FileNotFoundError:
            return (), b""
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read: {error.strerror}") from error

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
            f"{self.path} is not valid JSON ({reason}); nothing was changed. {kept}Repair the file, put a backup in "
            "its place, or remove it to start with none"
        )

    def _keep(self, data: bytes) -> str:
        import hashlib  # rarely needed
        digest = hashlib.sha256(data).hexdigest()[:8]
        with suppress(OSError):
            if os.lstat(self.path).st_nlink > 1:  # perhaps a link to another's file, with fewer readers than the copy
                return ""
        copy = self.path.with_name(f"{self.path.name}.corrupt-{digest}")
        try:
            if not copy.exists():
                if len(list(self.path.parent.glob(f"{self.path.name}.corrupt-*"))) >= MAX_COPIES:
                    return f"{MAX_COPIES} copies of others like it are kept already, and none of this one. "
                write_atomic(copy, data, self.mode)
        except OSError:
            return ""
        return f"A copy is kept as {copy.name}. "


def _encode(document: dict) -> bytes:
    try:
        return json.dumps(document, ensure_ascii=False, indent=1).encode() + b"\n"
    except UnicodeEncodeError:
        # Half of a surrogate pair has no bytes in UTF-8; it can be kept only as an escape.
        return json.dumps(document, indent=1).encode() + b"\n"


def _version(status: os.stat_result) -> tuple:
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
