"""The administrator's part of the send API: the queue (list, retry, drop) and the links (list, link, unlink).

For root and for the account of the service, as the kernel names the caller, and for nobody else. The text of a message
is not shown. commands.py is the other end.
"""

from __future__ import annotations

import heapq
import json
import os
import re

from bot.entries import CorruptEntry
from bot.history import shown
from bot.http_server import Handler
from common.links import Link, uid_of
from common.problem import Problem

MAX_REQUEST_BYTES = 4096
LISTED = 200


def get_queue(handler: Handler) -> None:
    """GET /queue: `messages`, each with `id`, `state` (queued, failed), `user`, `script`, `accepted_at`, `reason`."""
    _answer(handler, messages=[
        {"id": entry["id"], "state": state, "user": entry["user"], "chat_id": entry["chat_id"],
         "script": shown(entry.get("script")), "accepted_at": entry["accepted_at"],
         "reason": shown(entry.get("reason"))} for state, entry in handler.service.outbox.listing()])


def post_retry(handler: Handler) -> None:
    """POST /queue/retry `{"id"}` or `{"all": true}`: what failed is queued again; `retried` has the IDs."""
    request, service = _request(handler), handler.service
    wanted = service.outbox.failed_ids() if request.get("all") is True else [_id(request)]
    for entry_id in wanted:
        try:
            service.delivery.submit(service.outbox.requeue(entry_id))
        except CorruptEntry:
            raise Problem(404, f"no failed message has the ID {entry_id}; see notify-bot queue") from None
    _answer(handler, retried=wanted)


def post_drop(handler: Handler) -> None:
    """POST /queue/drop `{"id"}`: a queued or failed message is removed."""
    service, entry_id = handler.service, _id(_request(handler))
    try:
        dropped = service.delivery.drop(service.outbox.read(entry_id))
    except CorruptEntry:
        dropped = entry_id in service.outbox.failed_ids() and service.outbox.discard(entry_id)
    if not dropped:
        raise Problem(404, f"no message that waits or failed has the ID {entry_id}, or it is being sent right now; "
                           "see notify-bot queue")
    _answer(handler, dropped=[entry_id])


def post_links(handler: Handler) -> None:
    """POST /links `{"after": USER}`: `links`, the next LISTED by username, used or not; or `{"user"}`: that one."""
    request, links = _request(handler), handler.service.links.on_disk()
    if "user" in request:
        names = [name for name in (_text(request, "user"),) if name in links]
    else:
        after = _text(request, "after")
        names = heapq.nsmallest(LISTED, (name for name in links if name > after))
    _answer(handler, links=[_shown(links[name]) for name in names])


def post_link(handler: Handler) -> None:
    """POST /links/link `{"user", "code"}`: link an account by the code of its chat; `link`, and `before` it or null."""
    request, links = _request(handler), handler.service.links
    user, code = _text(request, "user"), _text(request, "code")
    uid = uid_of(user)
    if uid is None:
        raise Problem(404, f"there is no account {user}")
    before = links.on_disk().get(user)
    links.redeem(code, user, uid)
    _answer(handler, link=_shown(links.on_disk()[user]), before=before and _shown(before))


def post_unlink(handler: Handler) -> None:
    """POST /links/unlink `{"user"}`: take a link away, used or not; `link` as it was, or null."""
    request, links = _request(handler), handler.service.links
    user = _text(request, "user")
    before = links.on_disk().get(user)
    links.unlink(user)
    _answer(handler, link=before and _shown(before))


def _for_the_administrator(answer):
    def route(handler: Handler) -> None:
        if handler.peer.uid not in (0, os.geteuid()):
            raise Problem(403, "this is the administrator's: use sudo")
        try:
            answer(handler)
        except (ConnectionError, TimeoutError):
            raise
        except OSError as error:
            raise Problem(503, f"the outbox cannot be changed now: {error.strerror}", {"Retry-After": "30"}) from error
    return route


ROUTES = {path: {method: _for_the_administrator(answer)} for path, method, answer in (
    ("/queue", "GET", get_queue), ("/queue/retry", "POST", post_retry), ("/queue/drop", "POST", post_drop),
    ("/links", "POST", post_links), ("/links/link", "POST", post_link), ("/links/unlink", "POST", post_unlink))}


def _request(handler: Handler) -> dict:
    return handler.json_object(MAX_REQUEST_BYTES)


def _answer(handler: Handler, **fields) -> None:
    # Escaped: what other software wrote may hold what is no character.
    handler.answer(200, json.dumps({"ok": True, **fields}).encode() + b"\n")


def _id(request: dict) -> str:
    """The ID, which becomes a file name."""
    entry_id = request.get("id")
    if not isinstance(entry_id, str) or not re.fullmatch(r"[0-9a-f]{20}", entry_id):
        raise Problem(400, "id is not one of a message: 20 hexadecimal digits")
    return entry_id


def _text(request: dict, field: str) -> str:
    value = request.get(field)
    if not isinstance(value, str):
        raise Problem(400, f"{field} must be a string")
    return value


def _shown(link: Link) -> dict:
    return {"user": link.user, "uid": link.uid, "chat_id": link.chat_id, "chat": link.name[:100],
            "linked_at": link.linked_at[:40], "blocked": link.blocked and str(link.blocked)[:300],
            "unused": link.why_unused()}
