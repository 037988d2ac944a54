"""Whether one more message for a login may be accepted: the answers 404, 409, 429 and 503 of both sockets."""

from __future__ import annotations

from jsonstore import StoreError
from links import Link, Links
from unixhttp import HTTPProblem

MAX_QUEUED = 200
MAX_QUEUED_BYTES = 500 << 20  # of pictures: one user alone is not to fill the disk of all


def linked(links: Links, user: str) -> Link:
    """The link of a login whose chat can be written to. Raises HTTPProblem."""
    try:
        link = links.of_user(user)
    except StoreError as error:
        raise unavailable(str(error)) from error
    if link is None:
        raise HTTPProblem(404, f"User '{user}' has no linked Telegram")
    if link.blocked:
        raise HTTPProblem(409, f"Telegram delivers nothing to the chat of '{user}': {link.blocked}. "
                               "It takes a new /start there")
    return link


def with_room(links: Links, delivery, user: str) -> Link:
    """The same, where the login has room in the queue, too. Raises HTTPProblem."""
    link = linked(links, user)
    if delivery.queued(user) >= MAX_QUEUED:
        raise HTTPProblem(429, f"{MAX_QUEUED} messages for '{user}' are queued", {"Retry-After": "60"})
    if delivery.queued_bytes(user) >= MAX_QUEUED_BYTES:
        raise HTTPProblem(429, f"{MAX_QUEUED_BYTES >> 20} MiB of pictures for '{user}' are queued",
                          {"Retry-After": "60"})
    return link


def unavailable(reason: str) -> HTTPProblem:
    """What was asked cannot be done now, and nothing was done."""
    return HTTPProblem(503, reason, {"Retry-After": "30"})
