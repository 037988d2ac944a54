"""The administrator's side of the queue: GET /queue, POST /queue/retry, POST /queue/drop.

For root and for the account of the service, as the kernel names the caller, and for nobody else. What a message
says is not shown.
"""

from __future__ import annotations

import os
import re

from bot.entries import CorruptEntry
from bot.history import shown
from bot.http_server import Handler
from common.problem import Problem

MAX_REQUEST_BYTES = 4096


def get_queue(handler: Handler) -> None:
    """GET /queue: `messages`, each with `id`, `state` (queued, failed), `user`, `script`, `accepted_at`, `reason`."""
    _check(handler)
    try:
        messages = [{"id": entry["id"], "state": state, "user": entry["user"], "chat_id": entry["chat_id"],
                     "script": shown(entry.get("script")), "accepted_at": entry["accepted_at"],
                     "reason": shown(entry.get("reason"))} for state, entry in handler.server.context.outbox.listing()]
    except OSError as error:
        raise Problem(503, f"the outbox cannot be read: {error.strerror}", {"Retry-After": "30"}) from error
    handler.answer(200, {"ok": True, "messages": messages})


def post_retry(handler: Handler) -> None:
    """POST /queue/retry `{"id"}` or `{"all": true}`: what failed is queued again; `retried` has the IDs."""
    _check(handler)
    request, context = handler.json_object(MAX_REQUEST_BYTES), handler.server.context
    wanted = context.outbox.failed_ids() if request.get("all") is True else [_id(request)]
    for entry_id in wanted:
        try:
            context.delivery.submit(context.outbox.requeue(entry_id))
        except CorruptEntry:
            raise Problem(404, f"no failed message has the ID {entry_id}; see notify-bot queue") from None
        except FileExistsError:
            raise Problem(409, f"{entry_id} is the ID of a message that waits, too: retry it when that one is "
                                   "delivered") from None
        except OSError as error:
            raise Problem(503, f"{entry_id} could not be moved: {error.strerror}", {"Retry-After": "30"}) from error
    handler.answer(200, {"ok": True, "retried": wanted})


def post_drop(handler: Handler) -> None:
    """POST /queue/drop `{"id"}`: a queued or failed message is removed."""
    _check(handler)
    context, entry_id = handler.server.context, _id(handler.json_object(MAX_REQUEST_BYTES))
    try:
        dropped = _drop(context, entry_id)
    except OSError as error:
        raise Problem(503, f"{entry_id} could not be removed: {error.strerror}", {"Retry-After": "30"}) from error
    if not dropped:
        raise Problem(404, f"no message that waits or failed has the ID {entry_id}, or it is being sent right now; "
                               "see notify-bot queue")
    handler.answer(200, {"ok": True, "dropped": [entry_id]})


ROUTES = {"/queue": {"GET": get_queue}, "/queue/retry": {"POST": post_retry}, "/queue/drop": {"POST": post_drop}}


def _drop(context, entry_id: str) -> bool:
    try:
        entry = context.outbox.read(entry_id)
    except CorruptEntry:
        return context.outbox.discard(entry_id)
    return context.delivery.drop(entry)


def _check(handler: Handler) -> None:
    if handler.peer.uid not in (0, os.geteuid()):
        raise Problem(403, "the queue is the administrator's: use sudo")


def _id(request: dict) -> str:
    """The ID, which becomes a file name."""
    entry_id = request.get("id")
    if not isinstance(entry_id, str) or not re.fullmatch(r"[0-9a-f]{20}", entry_id):
        raise Problem(400, "id is not one of a message: 20 hexadecimal digits")
    return entry_id
