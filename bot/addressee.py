"""Admission of one more message for a login: the answers 404, 409, 429 and 503 of both sockets."""

from __future__ import annotations

from bot.outbox import AccountFull, OutboxError
from common.jsonstore import StoreError
from common.links import Link, Links
from common.problem import Problem

MAX_QUEUED = 200


def linked(links: Links, user: str) -> Link:
    """The link of a login whose chat can be written to. Raises Problem."""
    try:
        link = links.of_user(user)
    except StoreError as error:
        raise unavailable(str(error)) from error
    if link is None:
        raise Problem(404, f"User '{user}' has no linked Telegram")
    if link.blocked:
        raise Problem(409, f"Telegram delivers nothing to the chat of '{user}': {link.blocked}. "
                               "It takes a new /start there")
    return link


def with_room(links: Links, delivery, user: str) -> Link:
    """The same, where the login has room in the queue, too. Raises Problem."""
    link = linked(links, user)
    if delivery.queued(user) >= MAX_QUEUED:
        raise Problem(429, f"{MAX_QUEUED} messages for '{user}' are queued", {"Retry-After": "60"})
    return link


def not_accepted(error: OutboxError) -> Problem:
    """The answer to a message that the outbox did not take."""
    if isinstance(error, AccountFull):
        return Problem(429, str(error), {"Retry-After": "60"})
    return unavailable(str(error))


def unavailable(reason: str) -> Problem:
    """What was asked cannot be done now, and nothing was done."""
    return Problem(503, reason, {"Retry-After": "30"})
