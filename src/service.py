"""What systemd hands a process: settings, sockets, credentials, readiness, a place for the log.

Sources: sd_listen_fds(3), sd_notify(3), systemd.exec(5) on credentials, sd-daemon(3) on log priorities.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import socket
import stat
import sys
import threading
from contextlib import suppress
from pathlib import Path

LISTEN_FDS_START = 3
MAX_MESSAGE = 2000
LOG_COPY_BYTES = 4 << 20


class ConfigurationError(Exception):
    """A setting is missing or wrong; the message says what to do. `main` exits 78 (EX_CONFIG)."""


class Settings:
    """The settings of the service, read once from the environment."""

    def __init__(self, environment):
        self.api_url = environment.get("TELEGRAM_API_URL", "").rstrip("/") or "https://api.telegram.org"
        self.data_dir = Path(environment.get("NOTIFY_DATA_DIR") or "/data/notifications")
        self.state_dir = Path(environment.get("NOTIFY_STATE_DIR") or "/data/notify-bot")
        self.bot_socket = Path(environment.get("NOTIFY_BOT_SOCKET") or "/run/notify-bot/bot.sock")
        self.web_socket = Path(environment.get("NOTIFY_WEB_SOCKET") or "/run/notify-bot/web.sock")
        self.has_own_web_socket = bool(environment.get("NOTIFY_WEB_SOCKET"))
        self.scripts_dir = Path(environment.get("NOTIFY_SCRIPTS_DIR") or "/run/notify-scripts")
        self.ws_socket = Path(environment.get("NOTIFY_WS_SOCKET") or "/run/ws-gateway/ws.sock")
        self.site_name = environment.get("NOTIFY_SITE_NAME") or socket.gethostname()
        self.site_url = environment.get("NOTIFY_SITE_URL", "")
        self.max_age = _positive(environment, "NOTIFY_MAX_AGE", "seconds", 86400)
        self.keep_sent = _positive(environment, "NOTIFY_KEEP_SENT", "days", 3)
        self.keep_failed = _positive(environment, "NOTIFY_KEEP_FAILED", "days", 30)
        if not re.match(r"https?://[^/\s]+", self.api_url):
            raise ConfigurationError("TELEGRAM_API_URL must be an http or https URL without a path")


def _positive(environment, name: str, unit: str, default: int) -> int:
    value = environment.get(name) or str(default)
    if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) > 0):
        raise ConfigurationError(f"{name} must be a whole number of {unit} over 0")
    return int(value)


def check_folders(settings: Settings) -> None:
    """The state folder is this account's alone, and is made where it is missing: whoever else could change what is in
    it could have anything sent. Raises ConfigurationError."""
    folder = settings.state_dir
    try:
        os.stat(settings.data_dir)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = os.lstat(folder)
    except OSError as error:
        raise ConfigurationError(f"{error.filename} cannot be used: {error.strerror}; see systemd-tmpfiles --create "
                                 "notify-bot.conf") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise ConfigurationError(f"{folder} must be a folder of this account (uid {os.geteuid()}) with mode 0700, and "
                                 f"is uid {status.st_uid}'s, {stat.filemode(status.st_mode)}")


@functools.cache
def version() -> str:
    """The version of what is installed, as `--version` prints it."""
    return Path(__file__).with_name("VERSION").read_text().strip()


def bot_token(environment) -> str:
    """The token: the credential `telegram-bot-token` first, then TELEGRAM_BOT_TOKEN.

    It is taken out of the environment, so that no child inherits it. Raises ConfigurationError where there is
    none or it cannot be one; the message never holds it.
    """
    from_environment = environment.pop("TELEGRAM_BOT_TOKEN", "")
    # The unit's credential is blank where its file is missing.
    token = (credential("telegram-bot-token", environment) or "").strip() or from_environment.strip()
    if not token:
        raise ConfigurationError(
            "no bot token: put the token that @BotFather gave you into /etc/notify-bot/telegram-bot-token "
            "(mode 0600), or set TELEGRAM_BOT_TOKEN in /etc/notify-bot/notify-bot.env; "
            "then: systemctl restart notify-bot.service"
        )
    if not re.fullmatch(r"[0-9]{1,20}:[A-Za-z0-9_-]{1,200}", token):
        raise ConfigurationError("the bot token is not of the form 123456:ABC-… that @BotFather gives")
    return token


def credential(name: str, environment=os.environ) -> str | None:
    """The text of a systemd credential, None where the unit has none of that name."""
    directory = environment.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return None
    try:
        return Path(directory, name).read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the credential {name} cannot be read: {error}") from None


def listen_sockets() -> dict[str, socket.socket]:
    """The listening sockets systemd passed to this process, by FileDescriptorName; empty when there are none."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    sockets = {}
    for index in range(int(count)):
        descriptor = LISTEN_FDS_START + index
        os.set_inheritable(descriptor, False)
        name = names[index] if index < len(names) and names[index] else f"socket{index}"
        sockets[name] = socket.socket(fileno=descriptor)
    return sockets


def sd_notify(state: str) -> None:
    """Tell the manager `state` (`READY=1`, `STATUS=…`, several joined by newlines); nothing without one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        try:
            manager.sendto(state.encode(), address)
        except OSError as error:
            logging.getLogger("service").warning("systemd cannot be notified: %s", error)


def watchdog_seconds() -> float | None:
    """Half the interval within which the manager wants WATCHDOG=1, None when it does not watch."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 2_000_000


class _Format(logging.Formatter):
    """Lines for the journal (`<N>` priorities) or for a person, without the secrets it was told of."""

    _PRIORITY = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}

    def __init__(self, journal: bool, dated: bool, secrets: tuple):
        super().__init__("%(asctime)s %(levelname)s %(message)s" if dated else "%(message)s")
        self._journal = journal
        self._secrets = secrets

    def formatMessage(self, record):
        """A name or an answer from outside must not be able to write lines of its own, or long ones."""
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


def setup_logging(copy: Path | None = None, secrets: tuple = (), verbose: bool = False) -> None:
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
    """A file of this account's, in a folder where others may put anything in its place; and beside it, as `NAME.1`, the
    one before it, once that had LOG_COPY_BYTES.

    logging.handlers has one too, which takes a megabyte, milliseconds of a start, and two stat(2) for each line."""

    def __init__(self, path: Path):
        super().__init__(path, encoding="utf-8", errors="backslashreplace")

    def _open(self):
        """For its owner and root alone. Raises OSError for what is no regular file of this account's."""
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
            os.ftruncate(self.stream.fileno(), 0)  # somebody stands in the way, and it is to grow no more
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
    logging.getLogger("service").critical(
        "thread %s died", arguments.thread.name if arguments.thread else "?",
        exc_info=(arguments.exc_type, arguments.exc_value, arguments.exc_traceback))
