"""What a person can do on the link page, whether the API or a form asks for it.

An action takes the settings, the account of who is logged in and what was sent, and returns a status and a document
for the API. Raises Problem for what is refused, StoreError where a file is unusable.
"""

from __future__ import annotations

import re
import sys
from contextlib import suppress

from common.jsonstore import StoreError
from common.links import LinkError, Links, uid_of
from common.problem import Problem
from common.settings import PageSettings
from webapp.lockout import Guesses, TooManyGuesses

AWAY = "The notification service is not answering just now. Try again in a minute."
AWAY_SECONDS = "10"
CARD_SECONDS, RUN_SECONDS, TEST_SECONDS, INVITE_SECONDS = 12, 15, 15, 5  # the bot gives up before


def status(settings: PageSettings, user: str) -> dict:
    link = Links(settings.data_dir).of_user(user)
    if link is None:
        return {"linked": False}
    return {"linked": True, "linked_at": link.linked_at, "chat": link.name, "blocked": link.blocked}


def state(settings: PageSettings, user: str) -> dict:
    """What the card shows: `status`, and `bot` as it answers on its socket, None while it does not."""
    try:
        _, answer = _ask(settings, "/card", {"user": user}, CARD_SECONDS)
    except Problem:
        answer = None
    return status(settings, user) | {"bot": answer}


def check(settings: PageSettings, user: str, sent: dict) -> tuple[int, dict]:
    links = Links(settings.data_dir)
    entry = _guess(settings, user, sent, links.peek)
    return 200, {"chat": _name(entry.get("chat_name"))}


def verify(settings: PageSettings, user: str, sent: dict) -> tuple[int, dict]:
    links, uid = Links(settings.data_dir), uid_of(user)
    if uid is None:  # it was there when the login was checked, a moment ago
        raise Problem(503, "Your account cannot be looked up just now. Try again in a minute.",
                      {"Retry-After": AWAY_SECONDS})
    _guess(settings, user, sent, lambda code: links.redeem(code, user, uid))
    link = links.of_user(user)
    return 200, {"ok": True, "message": f"Linked to {_name(link and link.name)}."}


def _name(chat_name) -> str:
    return str(chat_name or "") or "a chat without a name"


def _guess(settings: PageSettings, user: str, sent: dict, judge):
    """What `judge` makes of the code that was sent. A wrong one is counted; what cannot be one is no guess."""
    code = sent.get("code")
    if not isinstance(code, str) or not re.fullmatch("[0-9]{6}", code):
        raise Problem(400, "A code has six digits. Send /start to the bot for one.")
    guesses = Guesses(settings.data_dir)
    try:
        guess = guesses.begin(user)
    except TooManyGuesses as error:
        minutes = -(-error.seconds // 60)
        raise Problem(429, f"There were too many wrong codes. Try again in {minutes} "
                           f"minute{'' if minutes == 1 else 's'}.", {"Retry-After": str(error.seconds)}) from None
    wrong = False
    try:
        return judge(code)
    except LinkError as error:
        wrong = True
        raise Problem(400, str(error)) from None
    finally:
        if not wrong:
            with suppress(StoreError):  # it was right, whether or not that can be written down
                guesses.take_back(user, guess)


def unlink(settings: PageSettings, user: str, sent: dict) -> tuple[int, dict]:
    had_one = Links(settings.data_dir).unlink(user)
    return 200, {"ok": True, "message": "Disconnected." if had_one else "Nothing was linked."}


def test(settings: PageSettings, user: str, sent: dict) -> tuple[int, dict]:
    status, answer = _ask(settings, "/test", {"user": user}, TEST_SECONDS)
    queued = answer.get("queued") is True
    return status, {"ok": True, "queued": queued, "message": TEST_SAID[queued]}


TEST_SAID = {False: "The test message is in your chat.",
             True: "The test message is on its way; Telegram is slow just now."}


def run(settings: PageSettings, user: str, sent: dict) -> tuple[int, dict]:
    name = sent.get("name")
    if not isinstance(name, str) or not name:
        raise Problem(400, "The name of the script is missing.")
    status, _ = _ask(settings, "/run", {"user": user, "name": name}, RUN_SECONDS)
    return status, {"ok": True, "message": f"{name} is running; what it finds arrives in your chat."}


def invite(settings: PageSettings, user: str, sent: dict) -> tuple[int, dict]:
    status, answer = _ask(settings, "/invite", {"user": user}, INVITE_SECONDS)
    url, expires = answer.get("url"), answer.get("expires")
    if not isinstance(url, str) or not url.startswith("https://t.me/"):
        raise _away("the bot's invite has no link")
    from webapp.qr import qr_svg  # loads a library, for this alone
    return status, {"url": url, "expires": expires, "qr": qr_svg(url)}


ACTIONS = {"verify": verify, "check": check, "unlink": unlink, "invite": invite, "test": test, "run": run}


def _ask(settings: PageSettings, path: str, body: dict, seconds: float) -> tuple[int, dict]:
    """What the bot answers. Raises Problem with the bot's own status and sentence, 503 where it does not answer."""
    from webapp import bot_client  # not needed to link by a code
    try:
        status, headers, answer = bot_client.ask(settings.web_socket, path, body, seconds)
    except bot_client.BotUnavailable as error:
        raise _away(error) from None
    if status < 400:
        return status, answer
    if status not in (404, 409, 429, 502, 503):
        raise _away(f"the bot answers {path} with {status}: {answer.get('error')}")
    kept = {"Retry-After": headers["retry-after"]} if "retry-after" in headers else {}
    raise Problem(status, str(answer.get("error", "")), kept)


def _away(reason) -> Problem:
    print(f"notify: {reason}", file=sys.stderr)
    return Problem(503, AWAY, {"Retry-After": AWAY_SECONDS})
