"""The link page's API, on a socket of its own: POST /card, /run, /test, /invite.

The mode of the socket lets root and the web server connect. The web server alone knows the person who is logged in, so
`user` is believed here, and no request can harm the login it names: list its scripts, run one, send a sample to its own
chat, make an invite for itself. Nothing of the send API is here.
"""

from __future__ import annotations

import json
import logging
import re
import secrets

from bot.http_server import Handler, Server
from bot.keys import identify
from bot.limits import Limiter
from bot.outbox import OutboxError
from bot.scripts import list_scripts
from common.jsonstore import StoreError
from common.links import uid_of
from common.problem import Problem

log = logging.getLogger("page-api")

MAX_REQUEST_BYTES = 4096
MAX_CONNECTIONS = 64
# Some web servers run eight programs at once, so nobody may hold up many of them.
MAX_LISTINGS_PER_USER = 2
MAX_TESTS_PER_USER = 1
PAGE_LIST_SECONDS = 8  # somebody waits for the page
TEST_SECONDS = 5
FILES = ("The service cannot read or write its own files now. Try again in a minute; if it stays so, the administrator "
         "finds the reason in the journal of notify-bot.service.")
_USER = r"[A-Za-z_][A-Za-z0-9._-]{0,31}"


def post_card(handler: Handler) -> None:
    """POST /card `{"user"}`: the card of a login, see docs/telegram_bot.md."""
    user = _user(handler.json_object(MAX_REQUEST_BYTES))
    service = handler.service
    scripts, scripts_error = [], None
    try:
        running = service.runs.running(user)
        scripts = [_script(script, running) for script in _scripts(handler, user)]
    except Problem as problem:
        scripts_error = str(problem)
    notifications = service.outbox.newest(user, uid_of(user))
    _answer(handler, 200, bot=service.chat.username or None, health=service.health.problem(),
            scripts=scripts, scripts_error=scripts_error, notifications=notifications)


def post_run(handler: Handler) -> None:
    """POST /run `{"user", "name"}`: run a script of the login; what comes of it arrives in the chat."""
    fields = handler.json_object(MAX_REQUEST_BYTES)
    user, name = _user(fields), fields.get("name")
    if not isinstance(name, str):
        raise Problem(400, "name must be a string")
    service = handler.service
    link = service.recipients.link_of(user)
    script = next((script for script in _scripts(handler, user) if script["name"] == name), None)
    if script is None:
        raise Problem(404, "This script is not there any more.")
    if script["refused"]:
        raise Problem(409, _script(script, set())["problem"])
    service.runs.start(link, name)
    log.info("%s runs %s from the page", user, name)
    _answer(handler, 202)


def post_test(handler: Handler) -> None:
    """POST /test `{"user"}`: the sample notification, on the way that every notification takes."""
    user = _user(handler.json_object(MAX_REQUEST_BYTES))
    service = handler.service
    link = service.recipients.admit(user, service.delivery.queued(user))
    key = f"test:{secrets.token_hex(10)}"
    receipt = service.replies.sample(key, link, user=user, reply=False)
    service.metrics.count("accepted")
    with handler.server.tests.turn(user) as is_free:
        outcome = receipt.wait(TEST_SECONDS if is_free else 0)
    if outcome and outcome.status != 200:
        raise Problem(outcome.status, outcome.reason)
    _answer(handler, 200, queued=outcome is None, id=identify(key))


def post_invite(handler: Handler) -> None:
    """POST /invite `{"user"}`: a link that opens the bot, which asks there whether to link."""
    user = _user(handler.json_object(MAX_REQUEST_BYTES))
    service = handler.service
    uid = uid_of(user)
    if uid is None:
        raise Problem(404, f"There is no account {user}.")
    if not service.chat.username:
        raise Problem(503, "Telegram has not said yet what the bot is called.", {"Retry-After": "5"})
    payload, expires = service.invites.create(user, uid)
    _answer(handler, 200, url=f"https://t.me/{service.chat.username}?start={payload}", expires=expires)


def _for_a_person(post):
    """The same route, with an answer that names no file: whoever is logged in reads it."""
    def route(handler: Handler) -> None:
        try:
            post(handler)
        except (ConnectionError, TimeoutError):
            raise
        except (StoreError, OutboxError, OSError) as error:
            if isinstance(error, Problem) and error.status != 503:
                raise
            log.error("%s", error)
            raise Problem(503, FILES, {"Retry-After": "30"}) from error
    return route


class WebHandler(Handler):
    """The routes of the web server's socket."""

    server_version = "notify-bot"
    routes = {path: {"POST": _for_a_person(post)} for path, post in (
        ("/card", post_card), ("/run", post_run), ("/test", post_test), ("/invite", post_invite))}


class WebServer(Server):
    """A page makes one connection at a time, and beside these there must be threads for the send API."""

    max_connections = max_connections_per_user = MAX_CONNECTIONS
    first_connections = root_connections = 0

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.tests, self.listings = Limiter(MAX_TESTS_PER_USER), Limiter(MAX_LISTINGS_PER_USER)


def _scripts(handler: Handler, user: str) -> list[dict]:
    """The scripts of a login; its account may answer as slowly as it likes. Raises Problem."""
    with handler.server.listings.turn(user) as is_free:
        if not is_free:
            raise Problem(503, "Your scripts are being listed already, which takes long. Try again in a minute.",
                          {"Retry-After": "30"})
        return list_scripts(handler.service.settings.scripts_dir, user, PAGE_LIST_SECONDS)


def _user(fields: dict) -> str:
    """The login, which becomes part of a path."""
    user = fields.get("user")
    if not isinstance(user, str) or not re.fullmatch(_USER, user):
        raise Problem(400, "user is not the name of a login")
    return user


def _answer(handler: Handler, status: int, **fields) -> None:
    # Escaped: the name of a script may hold what is no character.
    handler.answer(status, json.dumps({"ok": True, **fields}).encode() + b"\n")


def _script(script: dict, running: set) -> dict:
    """The fields of a script that the page shows."""
    problem = f"It is not run: {script['refused']}" if script["refused"] else script["last_error"]
    if not problem and script["overdue"]:
        problem = "It has not run when it should have."
    return {**{field: script[field] for field in ("name", "schedule", "last_run", "last_sent", "next_run")},
            "running": script["name"] in running, "can_run": not script["refused"],
            "problem": problem and problem[:300]}
