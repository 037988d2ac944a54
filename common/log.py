"""The log of a program: to stderr, for the journal or a person, and a bounded copy in a file.

Source: sd-daemon(3) on log priorities.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
import threading
from pathlib import Path

MAX_MESSAGE = 2000
LOG_COPY_BYTES = 4 << 20


class _Format(logging.Formatter):
    """Lines for the journal (`<N>` priorities) or for a person, without the given secrets."""

    _PRIORITY = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}

    def __init__(self, journal: bool, dated: bool, secrets: tuple):
        super().__init__("%(asctime)s %(levelname)s %(message)s" if dated else "%(message)s")
        self._journal = journal
        self._secrets = secrets

    def formatMessage(self, record):
        """Keep names and answers from outside from writing further lines, or long ones."""
        record.message = record.message[:MAX_MESSAGE]
        if not record.message.isprintable():
            record.message = "".join(char if char.isprintable() else repr(char)[1:-1] for char in record.message)
        return super().formatMessage(record)

    def format(self, record):
        text = super().format(record)
        for secret in self._secrets:
            text = text.replace(secret, "<token>")
        if not self._journal:
            return text
        # Without a priority of its own every further line of a traceback would be an entry of default level.
        prefix = f"<{self._PRIORITY.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in text.split("\n"))


def set_up_log(copy: Path | None = None, secrets: tuple = (), verbose: bool = False) -> None:
    """Log to stderr, and a bounded copy to the file `copy` where it can be written.

    `secrets` are replaced in every line, tracebacks included. Exceptions that end a thread are logged too.
    """
    root = logging.getLogger()
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(_Format("JOURNAL_STREAM" in os.environ, False, secrets))
    root.handlers[:] = [stream]
    threading.excepthook = _log_thread_exception
    if copy:
        _add_copy(root, copy, secrets)


class _Copy(logging.FileHandler):
    """Log file in a folder where other accounts may put anything in its place. At LOG_COPY_BYTES it becomes `NAME.1`.

    logging.handlers costs a megabyte, milliseconds of a start, and two stat(2) a line."""

    def __init__(self, path: Path):
        super().__init__(path, encoding="utf-8", errors="backslashreplace")

    def _open(self):
        """Open for the owner and root alone. Raises OSError for anything but a regular file of this account."""
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
                             | os.O_NONBLOCK, 0o600)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink > 1:
            os.close(descriptor)
            raise OSError(errno.EPERM, "it is no regular file of this account's; it is left alone", self.baseFilename)
        os.fchmod(descriptor, 0o600)
        return open(descriptor, "a", encoding=self.encoding, errors=self.errors)

    def emit(self, record):
        super().emit(record)
        try:
            if self.stream.buffer.tell() >= LOG_COPY_BYTES:
                self._turn_over()
        except OSError:
            self.handleError(record)

    def _turn_over(self) -> None:
        try:
            os.replace(self.baseFilename, f"{self.baseFilename}.1")
            new = self._open()
        except OSError:
            os.ftruncate(self.stream.fileno(), 0)  # something is in the way, and the file must not grow
        else:
            self.stream.close()
            self.stream = new

    def handleError(self, record):
        """A full disk must not fill the journal with tracebacks of the copy that could not be written."""


def _add_copy(root: logging.Logger, path: Path, secrets: tuple) -> None:
    try:
        handler = _Copy(path)
    except OSError as error:
        root.warning("no copy of the log in %s: %s", path, error.strerror)
        return
    handler.setFormatter(_Format(False, True, secrets))
    root.addHandler(handler)


def _log_thread_exception(arguments) -> None:
    if arguments.exc_type is SystemExit:
        return
    logging.getLogger("log").critical(
        "thread %s died", arguments.thread.name if arguments.thread else "?",
        exc_info=(arguments.exc_type, arguments.exc_value, arguments.exc_traceback))
