"""What the link page needs of the bot, on a socket of its own: POST /card, /run, /test, /invite.

Who may connect is what the socket's mode says: root and the web server. Who is logged in there the web server alone
knows, so `user` is believed here, and for that reason nothing can be asked for that would harm the login it names:
to see its own scripts, to run one, a sample to its own chat, an invite for itself. Nothing of the send API is here.
"""

from __future__ import annotations

import json
import logging
import re
import secrets

from bot.addressee import linked, not_accepted, unavailable, with_room
from bot.http_server import Handler, Server
from bot.invites import Invites
from bot.outbox import Outbox, OutboxError
from bot.replies import Replies
from bot.scripts import Runs, list_scripts
from bot.turns import Turns
from common.jsonstore import StoreError
from common.links import Link, Links, uid_of
from common.problem import Problem

log = logging.getLogger("webapi")

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


class Context:
    """What the handlers need; of `service` its `health()`, of `chat` its `username`."""

    def __init__(self, settings, links: Links, invites: Invites, runs: Runs, replies: Replies, outbox: Outbox,
                 delivery, metrics, chat, service):
        self.scripts_dir = settings.scripts_dir
        self.links, self.invites, self.runs, self.replies, self.outbox = links, invites, runs, replies, outbox
        self.delivery, self.metrics, self.chat, self.service = delivery, metrics, chat, service
        self.tests = Turns(MAX_TESTS_PER_USER)
        self._listings = Turns(MAX_LISTINGS_PER_USER)

    def scripts(self, user: str) -> list[dict]:
        """The scripts of a login; its account may answer as slowly as it likes. Raises Problem."""
        with self._listings.take(user) as is_free:
            if not is_free:
                raise unavailable("Your scripts are being listed already, which takes long. Try again in a minute.")
            return list_scripts(self.scripts_dir, user, PAGE_LIST_SECONDS)


def post_card(handler: Handler) -> None:
    """POST /card `{"user"}`: what the page shows of a login, see docs/telegram_bot.md."""
    user = _user(handler.json_object(MAX_REQUEST_BYTES))
    context: Context = handler.server.context
    scripts, scripts_error = [], None
    try:
        running = context.runs.running(user)
        scripts = [_script(script, running) for script in context.scripts(user)]
    except Problem as problem:
        scripts_error = str(problem)
    try:
        notifications = context.outbox.newest(user, uid_of(user))
    except OSError as error:
        raise unavailable(f"the outbox cannot be read: {error.strerror}") from error
    _answer(handler, 200, bot=context.chat.username or None, health=context.service.health()[1].get("error"),
            scripts=scripts, scripts_error=scripts_error, notifications=notifications)


def post_run(handler: Handler) -> None:
    """POST /run `{"user", "name"}`: run a script of the login; what comes of it arrives in the chat."""
    fields = handler.json_object(MAX_REQUEST_BYTES)
    user, name = _user(fields), fields.get("name")
    if not isinstance(name, str):
        raise Problem(400, "name must be a string")
    context: Context = handler.server.context
    link = linked(context.links, user)
    script = next((script for script in context.scripts(user) if script["name"] == name), None)
    if script is None:
        raise Problem(404, "This script is not there any more.")
    if script["refused"]:
        raise Problem(409, _script(script, set())["problem"])
    try:
        context.runs.start(link, name)
    except StoreError as error:
        raise unavailable(str(error)) from error
    log.info("%s runs %s from the page", user, name)
    _answer(handler, 202)


def post_test(handler: Handler) -> None:
    """POST /test `{"user"}`: the sample notification, on the way that every notification takes."""
    user = _user(handler.json_object(MAX_REQUEST_BYTES))
    context: Context = handler.server.context
    link = with_room(context.links, context.delivery, user)
    key = f"test:{secrets.token_hex(10)}"
    with context.tests.take(user) as is_free:
        outcome = _send_sample(context, link, key, TEST_SECONDS if is_free else 0)
    if outcome and outcome.status != 200:
        raise Problem(outcome.status, outcome.reason)
    _answer(handler, 200, queued=outcome is None, id=context.replies.identify(key))


def _send_sample(context: Context, link: Link, key: str, seconds: float):
    """What has become of the sample after `seconds`; None when it is queued."""
    try:
        receipt = context.replies.sample(key, link, user=link.user, reply=False)
    except OutboxError as error:
        raise not_accepted(error) from error
    except OSError as error:
        raise unavailable(f"the picture could not be written: {error.strerror}") from error
    context.metrics.count("accepted")
    return receipt.wait(seconds)


def post_invite(handler: Handler) -> None:
    """POST /invite `{"user"}`: a link that opens the bot, which asks there whether to link."""
    user = _user(handler.json_object(MAX_REQUEST_BYTES))
    context: Context = handler.server.context
    uid = uid_of(user)
    if uid is None:
        raise Problem(404, f"There is no account {user}.")
    if not context.chat.username:
        raise Problem(503, "Telegram has not said yet what the bot is called.", {"Retry-After": "5"})
    try:
        payload, expires = context.invites.create(user, uid)
    except StoreError as error:
        raise unavailable(str(error)) from error
    _answer(handler, 200, url=f"https://t.me/{context.chat.username}?start={payload}", expires=expires)


def _for_a_person(post):
    """The same route, with an answer that names no file: it is shown to whoever is logged in."""
    def route(handler: Handler) -> None:
        try:
            post(handler)
        except Problem as problem:
            if not isinstance(problem.__cause__, (StoreError, OutboxError, OSError)):
                raise
            log.error("%s", problem)
            raise Problem(problem.status, FILES, problem.headers) from problem
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
