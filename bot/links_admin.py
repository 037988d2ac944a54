"""The administrator's side of the links: POST /links, POST /links/link, POST /links/unlink.

For root and for the account of the service, as the kernel names the caller, and for nobody else.
"""

from __future__ import annotations

import heapq
import json
import os

from bot.http_server import Handler
from common.jsonstore import StoreError
from common.links import Link, LinkError, uid_of
from common.problem import Problem

MAX_REQUEST_BYTES = 4096
LISTED = 200


def post_links(handler: Handler) -> None:
    """POST /links `{"after": USER}`: `links`, the next LISTED by username, used or not; or `{"user"}`: that one."""
    request = _request(handler)
    links = handler.server.context.links.on_disk()
    if "user" in request:
        names = [name for name in (_text(request, "user"),) if name in links]
    else:
        after = _text(request, "after")
        names = heapq.nsmallest(LISTED, (name for name in links if name > after))
    _answer(handler, links=[_shown(links[name]) for name in names])


def post_link(handler: Handler) -> None:
    """POST /links/link `{"user", "code"}`: link an account by the code of its chat; `link`, and `before` it or null."""
    request, links = _request(handler), handler.server.context.links
    user, code = _text(request, "user"), _text(request, "code")
    uid = uid_of(user)
    if uid is None:
        raise Problem(404, f"there is no account {user}")
    before = links.on_disk().get(user)
    try:
        links.redeem(code, user, uid)
    except LinkError as error:
        raise Problem(404, str(error)) from None
    _answer(handler, link=_shown(links.on_disk()[user]), before=before and _shown(before))


def post_unlink(handler: Handler) -> None:
    """POST /links/unlink `{"user"}`: take a link away, used or not; `link` as it was, or null."""
    request, links = _request(handler), handler.server.context.links
    user = _text(request, "user")
    before = links.on_disk().get(user)
    links.unlink(user)
    _answer(handler, link=before and _shown(before))


def _for_the_administrator(post):
    def route(handler: Handler) -> None:
        if handler.peer.uid not in (0, os.geteuid()):
            raise Problem(403, "the links are the administrator's: use sudo")
        try:
            post(handler)
        except StoreError as error:
            raise Problem(503, str(error), {"Retry-After": "30"}) from error
    return route


ROUTES = {path: {"POST": _for_the_administrator(post)} for path, post in (
    ("/links", post_links), ("/links/link", post_link), ("/links/unlink", post_unlink))}


def _request(handler: Handler) -> dict:
    return handler.json_object(MAX_REQUEST_BYTES)


def _answer(handler: Handler, **fields) -> None:
    # Escaped: what other software wrote may hold what is no character.
    handler.answer(200, json.dumps({"ok": True, **fields}).encode() + b"\n")


def _text(request: dict, field: str) -> str:
    value = request.get(field)
    if not isinstance(value, str):
        raise Problem(400, f"{field} must be a string")
    return value


def _shown(link: Link) -> dict:
    return {"user": link.user, "uid": link.uid, "chat_id": link.chat_id, "chat": link.name[:100],
            "linked_at": link.linked_at[:40], "blocked": link.blocked and str(link.blocked)[:300],
            "unused": link.why_unused()}
