"""The send API and its fields: POST /send, POST /send_photo, GET /health, GET /metrics.

The kernel says who calls (SO_PEERCRED, unix(7)), never the body. The answer comes when a message is on disk (202) or in
the chat (200); after either the caller need not send it again.
"""

from __future__ import annotations

import errno
import grp
import os
import stat
import tempfile
from contextlib import suppress

from bot import admin_api
from bot.accounts import Upload
from bot.entries import CorruptEntry
from bot.http_server import MAX_JSON_ITEMS, Handler
from bot.message import PARSE_MODES, photo_name, whole
from bot.receipt import Outcome, Receipt
from common import bounded_json, multipart
from common.problem import Problem

MAX_JSON_BYTES = 1 << 20
MAX_PHOTO_BYTES = 50 << 20
MAX_FORM_BYTES = MAX_PHOTO_BYTES + MAX_JSON_BYTES
MAX_WAIT_SECONDS = 60
DEFAULT_WAIT_SECONDS = 20
MAX_BUTTONS = 100
MAX_KEY = 200
TRUSTED_GROUP = "data-ops"


def post_send(handler: Handler) -> None:
    """POST /send, JSON."""
    _tell(handler, *_take_text(handler))


def post_send_photo(handler: Handler) -> None:
    """POST /send_photo: JSON with `photo_path`, or multipart/form-data with the bytes in the part `photo`."""
    _tell(handler, *_take_photo(handler))


def _take_text(handler: Handler) -> tuple:
    """Accept a message; see `_accept`. Nothing of it is in memory while the caller waits."""
    fields = handler.json_object(MAX_JSON_BYTES)
    user, message, options = _recipient(handler.peer, fields), _message(fields, "text"), _options(fields)
    del fields  # whatever else was in it would stay in memory while it is written
    if not message["text"] and not message.get("title"):
        raise Problem(400, "text is missing")
    return _accept(handler, user, message, options)


def _take_photo(handler: Handler) -> tuple:
    """The same with a picture, whose bytes are the recipient's as they arrive, or the caller's who may send to all."""
    service, account = handler.service, _recipient(handler.peer, {})
    if not _is_trusted(handler.peer):
        if found := _found(handler, account):
            return *found, DEFAULT_WAIT_SECONDS
        service.recipients.admit(account, service.delivery.queued(account))
    service.outbox.check_room(account, handler.length or 0)
    with service.outbox.upload(account) as file:
        if multipart.is_form(handler.headers.get("content-type", "")):
            fields, name = _form(handler, file)
        else:
            fields = handler.json_object(MAX_JSON_BYTES)
            name = _copy_photo(handler.peer, fields, file)
        user, message, options = _recipient(handler.peer, fields), _message(fields, "caption"), _options(fields)
        message["photo"], message["photo_size"] = _picture(file, name)
        file.flush()
        os.fsync(file.fileno())
        return _accept(handler, user, message, options, file)


def get_health(handler: Handler) -> None:
    """GET /health: 200, or 503 with what is wrong."""
    report = handler.service.health.report()
    handler.answer(200 if report["ok"] else 503, report)


def get_metrics(handler: Handler) -> None:
    """GET /metrics, for Prometheus."""
    page = handler.service.metrics.render(handler.service.health.gauges())
    handler.answer(200, page, content_type="text/plain; version=0.0.4; charset=utf-8")


class SendHandler(Handler):
    """The routes of the send API."""

    server_version = "notify-bot"
    routes = {"/send": {"POST": post_send}, "/send_photo": {"POST": post_send_photo},
              "/health": {"GET": get_health}, "/metrics": {"GET": get_metrics}, **admin_api.ROUTES}


def _accept(handler: Handler, user: str, message: dict, options: tuple, photo: Upload | None = None) -> tuple:
    """The ID, the receipt while it is queued (None once it was sent or failed), and the seconds to wait for it."""
    wait, script = options
    service = handler.service
    with service.outbox.claim(_key(handler, user)) as (entry_id, found):
        if found is None:
            return entry_id, service.delivery.submit(_add(service, entry_id, user, message, script, photo)), wait
        return entry_id, service.delivery.watch(entry_id), wait


def _found(handler: Handler, user: str) -> tuple | None:
    """The ID and the receipt of a message accepted before with the same key, whatever its body."""
    with handler.service.outbox.claim(_key(handler, user)) as (entry_id, found):
        return (entry_id, handler.service.delivery.watch(entry_id)) if found else None


def _key(handler: Handler, user: str) -> str | None:
    """A key is the caller's own, and for one recipient: two users may well both number their messages."""
    key = handler.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= MAX_KEY:
        raise Problem(400, f"Idempotency-Key must have 1 to {MAX_KEY} characters")
    return None if key is None else f"{handler.peer.uid}\0{user}\0{key}"


def _tell(handler: Handler, entry_id: str, receipt: Receipt | None, wait: float) -> None:
    """Answer with the outcome of a message within `wait` seconds. Raises Problem where it failed."""
    handler.release_body()
    outcome = receipt.wait(wait) if receipt else _settled(handler.service.outbox, entry_id)
    if outcome is None:
        handler.answer(202, {"ok": True, "queued": True, "id": entry_id})
    elif outcome.status == 200:
        handler.answer(200, {"ok": True, "id": entry_id})
    else:
        raise Problem(outcome.status, outcome.reason)


def _add(service, entry_id: str, user: str, message: dict, script: str, photo: Upload | None) -> dict:
    """Accept a message: on disk on return. Raises Problem, and then nothing was accepted."""
    link = service.recipients.admit(user, service.delivery.queued(user))
    fields = {"user": user, "uid": link.uid, "chat_id": link.chat_id, "message": message, "script": script}
    entry = service.outbox.add(entry_id, fields, photo)
    service.metrics.count("accepted")
    return entry


def _settled(outbox, entry_id: str) -> Outcome | None:
    """The outcome of a message that was accepted earlier and is not queued any more."""
    state = outbox.find(entry_id)
    try:
        if state == "failed":
            return Outcome(*outbox.failure(entry_id))
    except CorruptEntry:
        return Outcome(502, "the stored message is damaged")
    return Outcome(200) if state == "sent" else None


def _recipient(peer, fields: dict) -> str:
    """The user a message is for: the caller, unless root or a member of data-ops says otherwise."""
    caller = peer.name()
    user = _text(fields, "user") or caller
    if user is None:
        raise Problem(403, f"uid {peer.uid} has no name on this host")
    if user != caller and not _is_trusted(peer):
        raise Problem(403, f"you are {caller or peer.uid} and cannot send as '{user}'; leave user out")
    return user


def _is_trusted(peer) -> bool:
    return peer.uid == 0 or _trusted_gid() in peer.groups


def _trusted_gid() -> int | None:
    try:
        return grp.getgrnam(TRUSTED_GROUP).gr_gid
    except KeyError:
        return None


def _form(handler: Handler, file) -> tuple[dict, str]:
    """The fields of a form and the name of its picture, whose bytes go to `file`."""
    with tempfile.TemporaryFile(dir=os.path.dirname(file.name)) as spool:
        for chunk in handler.body_chunks(MAX_FORM_BYTES):
            file.take(len(chunk))
            spool.write(chunk)
        fields, name = multipart.unpack(handler.headers["content-type"], spool, file, MAX_JSON_BYTES)
    if name is None:
        raise Problem(400, "photo is missing")
    if file.tell() > MAX_PHOTO_BYTES:
        raise Problem(413, f"the photo is over {MAX_PHOTO_BYTES} bytes")
    for field in ("silent", "alone", "wait", "buttons"):
        with suppress(ValueError, KeyError):
            fields[field] = bounded_json.loads(fields[field].encode(), MAX_JSON_BYTES, MAX_JSON_ITEMS)
    return fields, name


def _message(fields: dict, body_name: str) -> dict:
    """The message of a request, see message.py; raises Problem naming the field that is wrong."""
    parse_mode = "Markdown" if fields.get("parse_mode") is None else fields["parse_mode"]
    if parse_mode not in PARSE_MODES:
        raise Problem(400, f"parse_mode must be one of {', '.join(repr(mode) for mode in PARSE_MODES)}")
    body = _text(fields, body_name)
    if body_name == "caption" and body is None:
        body = _text(fields, "text")
    message = {"title": _text(fields, "title") or "", "text": body or "", "parse_mode": parse_mode}
    for name in ("silent", "alone"):
        if fields.get(name) is not None:
            if not isinstance(fields[name], bool):
                raise Problem(400, f"{name} must be true or false")
            message[name] = fields[name]
    if fields.get("buttons"):
        message["buttons"] = _buttons(fields["buttons"])
    return message


def _options(fields: dict) -> tuple[float, str]:
    wait = DEFAULT_WAIT_SECONDS if fields.get("wait") is None else fields["wait"]
    if isinstance(wait, bool) or not isinstance(wait, (int, float)) or not 0 <= wait < 1e9:
        raise Problem(400, "wait must be a number of seconds")
    return min(wait, MAX_WAIT_SECONDS), _text(fields, "script") or ""


def _text(fields: dict, name: str) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise Problem(400, f"{name} must be a string")
    return whole(value)


def _buttons(rows) -> list:
    """Rows of buttons that open a URL; callback data is the bot's own. A flat list is one button a row."""
    if not isinstance(rows, list):
        raise Problem(400, "buttons must be a list of rows of {text, url}")
    rows = [row if isinstance(row, list) else [row] for row in rows if row != []]
    for button in [button for row in rows for button in row]:
        if not (isinstance(button, dict) and button.keys() == {"text", "url"} and _text(button, "text")
                and (_text(button, "url") or "").startswith(("https://", "http://", "tg://"))):
            raise Problem(400, "each of buttons must have a text and an http, https or tg url, and no more")
    if sum(map(len, rows)) > MAX_BUTTONS:
        raise Problem(400, f"buttons must be at most {MAX_BUTTONS}")
    return rows


def _copy_photo(peer, fields: dict, file) -> str:
    """Copy the caller's own file into the upload, through the descriptor that was checked; its name."""
    path = _text(fields, "photo_path")
    if not path or not path.startswith("/") or "\0" in path:
        raise Problem(400, "photo_path must be an absolute path")
    try:
        descriptor = _open_without_links(path)
    except OSError as error:
        raise Problem(400, f"photo_path cannot be opened: {_explain(error)}. "
                               "Send the bytes as multipart/form-data instead") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != peer.uid:
        os.close(descriptor)
        raise Problem(400, "photo_path is not a regular file of yours")
    with open(descriptor, "rb") as photo:
        left = MAX_PHOTO_BYTES + 1
        while left > 0 and (data := photo.read(min(left, 1 << 16))):
            left -= len(data)
            file.write(data)
    if left <= 0:
        raise Problem(413, f"the photo is over {MAX_PHOTO_BYTES} bytes")
    return os.path.basename(path)


def _open_without_links(path: str) -> int:
    """open(2) with O_NOFOLLOW for every component, where the flag alone only covers the last."""
    *directories, name = [part for part in path.split("/") if part not in ("", ".")] or ["."]
    current = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in directories:
            child = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            os.close(current)
            current = child
        # O_NONBLOCK, so that a pipe without a writer does not hold the caller's connection for ever.
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=current)
    finally:
        os.close(current)


def _explain(error: OSError) -> str:
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return "it goes through a symbolic link or something that is no directory"
    return error.strerror or "it is not there"


def _picture(file, name: str) -> tuple[str, int]:
    """The file name Telegram gets and the size; raises Problem where the bytes are no PNG or JPEG."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    picture = photo_name(file.read(8), name)
    if picture is None:
        raise Problem(400, "the photo is not a PNG or JPEG")
    return picture, size
