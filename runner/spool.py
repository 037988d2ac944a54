"""Spool: messages stay on disk until the bot has them.

    UNSENT/ID.json      a message: its Idempotency-Key, its fields, and what it is about; written last
    UNSENT/ID.image     its picture, a copy, so that a script may overwrite its own

IDs grow with time. A message is written here before it is posted and removed after the state of its script
has been written. A runner that dies in between posts it again, under the same key, and the bot sends it once.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import namedtuple
from contextlib import suppress
from pathlib import Path

import notify_scripts
from common import bounded_json
from common.jsonstore import CorruptStore, StoreError, sync_directory, write_atomic
from common.script_output import image_kind
from notify_scripts import ScriptsError, unix_time

log = logging.getLogger("spool")

MAX_PENDING = 200
MAX_FAILURES = 2
POST_SECONDS = 10
MAX_ANSWER = 64 << 10
MAX_ITEMS = 100
LATE_SECONDS = 900
_CHUNK = 64 << 10
_TEXTS = ("key", "stem", "name", "kind", "title", "text", "image")
_ADVICE = {
    404: "send /start to the bot and link this account",
    409: "unblock the bot in Telegram, send it /start and link again",
}

Message = namedtuple("Message", "id key stem name kind title text image created since")
Message.__doc__ = """`kind`: alert, failing or works; `image`: its file name or ""; times in unix seconds.

`id` is "" for a message that could not be kept. `since` is when the script began to fail.
"""


def picture(path: str) -> tuple[int, int]:
    """Open a PNG or JPEG: `(descriptor, size)`. Raises ScriptsError, its message saying why not."""
    descriptor, size = notify_scripts.open_image(path)
    if image_kind(os.pread(descriptor, 16, 0)):
        return descriptor, size
    os.close(descriptor)
    raise ScriptsError(f"{path} is not a PNG or JPEG", os.EX_DATAERR)


class Spool:
    """The messages of one account that are to be posted. `accepted(message)` is called for each that the bot took.

    `pending` has those on disk, oldest first; `sent` counts those the bot took.
    """

    def __init__(self, folder: Path, bot_socket: str, accepted):
        self._folder = folder
        self._bot_socket = bot_socket
        self._accepted = accepted
        self._failures = 0
        self.sent = 0
        self.pending = self._load()

    def post_pending(self) -> None:
        """Post the messages of earlier passes, oldest first."""
        for message in list(self.pending):
            self._post(message)

    def send(self, message: Message, spare_key: str, image_path: str = "") -> None:
        """Keep the message, then post it; under `spare_key` where it cannot be kept."""
        if len(self.pending) >= MAX_PENDING:
            # The older messages were promised; the script will find again what is still true.
            log.error("%s: not kept: %d messages wait for the bot already", message.name, len(self.pending))
            return
        try:
            message = self._keep(message, image_path)
        except OSError as error:  # sent even if the disk is full
            log.error("%s: cannot be kept in %s: %s", message.name, self._folder, error.strerror)
            message = message._replace(key=spare_key)
            if image_path:
                message = _without_image(message, f"no room for a copy: {error.strerror}")
        self._post(message)

    def _load(self) -> list[Message]:
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            log.error("%s cannot be read: %s", self._folder, error.strerror)
            return []
        pending = [self._read(name[:-5]) for name in names if name.endswith(".json") and name[0] != "."]
        pending = [message for message in pending if message]
        known = {message.image for message in pending}
        for name in names:
            if name.endswith(".image") and name not in known:  # of a runner that died before it wrote the message
                self._remove(name)
        return pending

    def _read(self, identity: str) -> Message | None:
        path = self._folder / f"{identity}.json"
        try:
            message = Message(id=identity, **json.loads(path.read_bytes()))
            if not all(isinstance(getattr(message, name), str) for name in _TEXTS):
                raise TypeError("a field is not a string")
            if None in (unix_time(message.created), unix_time(message.since)):
                raise TypeError("a time is no number of seconds")
            return message
        except (OSError, ValueError, TypeError, RecursionError) as error:
            log.error("%s cannot be read and is set aside as *.corrupt: %s", path, error)
            with suppress(OSError):
                path.rename(path.with_suffix(".corrupt"))
            return None

    def _keep(self, message: Message, image_path: str) -> Message:
        self._folder.mkdir(0o700, exist_ok=True)
        last = int(self.pending[-1].id) if self.pending and self.pending[-1].id.isdigit() else 0
        message = message._replace(id=f"{max(time.time_ns(), last + 1):020d}")
        if image_path:
            try:
                message = message._replace(image=self._copy(image_path, f"{message.id}.image"))
            except ScriptsError as error:
                message = _without_image(message, str(error))
        fields = message._asdict()
        del fields["id"]
        write_atomic(self._folder / f"{message.id}.json", json.dumps(fields).encode(), 0o600)
        self.pending.append(message)
        return message

    def _copy(self, path: str, name: str) -> str:
        source, size = picture(path)
        try:
            with open(source, "rb") as file, open(self._folder / name, "wb") as copy:
                while size > 0 and (data := file.read(min(size, _CHUNK))):
                    copy.write(data)
                    size -= len(data)
                copy.flush()
                os.fsync(copy.fileno())
        except OSError:
            (self._folder / name).unlink(missing_ok=True)
            raise
        return name

    def _post(self, message: Message) -> None:
        if self._failures >= MAX_FAILURES:
            return
        from common import http_client  # most passes send nothing and do without

        path, body, headers = _request(message, self._folder)
        headers["Idempotency-Key"] = message.key
        try:
            status, _, answer = http_client.request(self._bot_socket, "POST", path, body, headers, POST_SECONDS)
        except OSError as error:
            away = isinstance(error, (FileNotFoundError, ConnectionRefusedError, PermissionError))
            self._retry_later(message, error.strerror or error, away)
            return
        if 200 <= status < 300:
            self._taken(message)
        elif status in (408, 429) or status >= 500 and status != 502:
            self._retry_later(message, _reason(status, answer), True)
        else:
            advice = f"; {_ADVICE[status]}" if status in _ADVICE else ""
            log.error("%s: not sent: %s%s", message.name, _reason(status, answer), advice)
            self._forget(message)

    def _retry_later(self, message: Message, reason, away: bool) -> None:
        """Leave the message where it is. A bot that is `away` gets no further message in this pass."""
        self._failures = MAX_FAILURES if away else self._failures + 1
        log.warning("%s: the bot on %s did not take it: %s; it is %s", message.name, self._bot_socket, reason,
                    "kept and sent first at the next pass" if message.id else "not kept")

    def _taken(self, message: Message) -> None:
        self.sent += 1
        log.info("%s: sent (%s)", message.name, message.kind)
        try:
            self._accepted(message)
        except CorruptStore as error:
            log.error("%s: %s", message.name, error)
        except StoreError as error:
            # Left on disk it holds its cooldown, and posted again under its key it is not sent again.
            log.error("%s: %s", message.name, error)
            return
        self._forget(message)

    def _forget(self, message: Message) -> None:
        if not message.id:
            return
        self.pending.remove(message)
        for name in (f"{message.id}.json", message.image):
            if name:
                self._remove(name)
        sync_directory(self._folder)

    def _remove(self, name: str) -> None:
        """Remove a file. A failure is logged only: something in its place must not keep messages back."""
        try:
            (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed: %s", self._folder / name, error.strerror)


def _reason(status: int, answer: bytes) -> str:
    try:
        return str(bounded_json.loads(answer, MAX_ANSWER, MAX_ITEMS)["error"])
    except (ValueError, KeyError, TypeError):
        return f"the bot answered with status {status}"


def _without_image(message: Message, reason: str) -> Message:
    from common.markdown import escape
    log.warning("%s: sent without its image: %s", message.name, reason)
    line = escape(f"(The image is missing: {reason})")
    return message._replace(image="", text=f"{message.text}\n\n{line}")


def _text(message: Message) -> str:
    """The text, with the time it was written if that is long ago."""
    if 0 <= time.time() - message.created < LATE_SECONDS:
        return message.text
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime(message.created))
    return f"{message.text}\n\nWritten at {written}, sent now: the notification service could not be reached."


def _request(message: Message, folder: Path) -> tuple:
    """`(path, body, headers)` of the request that posts the message; a picture is read while it is sent."""
    image = None
    if message.image:
        try:
            image = open(folder / message.image, "rb")
        except OSError as error:
            message = _without_image(message, f"its copy cannot be read: {error.strerror}")
    fields = {"title": message.title, "parse_mode": "Markdown", "script": message.name, "wait": 0}
    if image:
        from common import multipart
        kind = "png" if image_kind(image.peek(16)) == "png" else "jpeg"
        return "/send_photo", *multipart.pack(fields | {"caption": _text(message)}, {"photo": (f"image.{kind}", image)})
    body = json.dumps(fields | {"text": _text(message)}, ensure_ascii=False).encode()
    return "/send", body, {"Content-Type": "application/json"}
