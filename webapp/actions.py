"""Actions of the link page, asked for by the API or by a form.

An action takes the settings, the account that is logged in and the fields of the request, and returns a status and a
document for the API. Raises Problem for a refusal, StoreError where a file is unusable.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import suppress

from common import bounded_json
from common.jsonstore import StoreError
from common.links import LinkError, Links
from common.problem import Problem
from common.settings import PageSettings
from webapp.lockout import Lockout
from webapp.login import uid_of_login

AWAY = "The notification service is not answering just now. Try again in a minute."
AWAY_SECONDS = "10"
CARD_SECONDS, RUN_SECONDS, TEST_SECONDS, INVITE_SECONDS = 12, 15, 15, 5  # the bot gives up before
MAX_ANSWER, MAX_ITEMS = 1 << 20, 40_000


def status(settings: PageSettings, user: str) -> dict:
    link = Links(settings.data_dir).of_user(user)
    if link is None:
        return {"linked": False}
    return {"linked": True, "linked_at": link.linked_at, "chat": link.name, "blocked": link.blocked}


def state(settings: PageSettings, user: str) -> dict:
    """The content of the card: `status`, and `bot` as it answers on its socket, None while it does not."""
    try:
        _, answer = _ask(settings, "/card", {"user": user}, CARD_SECONDS)
    except Problem:
        answer = None
    return status(settings, user) | {"bot": answer}


def check(settings: PageSettings, user: str, sent: dict) -> tuple[int, dict]:
    links = Links(settings.data_dir)
    entry = _judged(settings, user, sent, links.peek)
    return 200, {"chat": _name(entry.get("chat_name"))}


def verify(settings: PageSettings, user: str, sent: dict) -> tuple[int, dict]:
    links, uid = Links(settings.data_dir), uid_of_login(user)
    _judged(settings, user, sent, lambda code: links.redeem(code, user, uid))
    link = links.of_user(user)
    return 200, {"ok": True, "message": f"Linked to {_name(link and link.name)}."}


def _name(chat_name) -> str:
    return str(chat_name or "") or "a chat without a name"


def _judged(settings: PageSettings, user: str, sent: dict, judge):
    """The result of `judge(code)`. A wrong code counts for the lockout; text that cannot be a code does not."""
    code = sent.get("code")
    if not isinstance(code, str) or not re.fullmatch("[0-9]{6}", code):
        raise Problem(400, "A code has six digits. Send /start to the bot for one.")
    lockout = Lockout(settings.data_dir)
    stamp = lockout.begin(user)
    is_wrong = False
    try:
        return judge(code)
    except LinkError as error:
        is_wrong = True
        raise Problem(400, str(error)) from None
    finally:
        if not is_wrong:
            with suppress(StoreError):  # the code has done its work already
                lockout.take_back(user, stamp)


def unlink(settings: PageSettings, user: str, sent: dict) -> tuple[int, dict]:
    had_one = Links(settings.data_dir).unlink(user)
    return 200, {"ok": True, "message": "Disconnected." if had_one else "Nothing was linked."}


def test(settings: PageSettings, user: str, sent: dict) -> tuple[int, dict]:
    status, answer = _ask(settings, "/test", {"user": user}, TEST_SECONDS)
    queued = answer.get("queued") is True
    message = "on its way; Telegram is slow just now" if queued else "in your chat"
    return status, {"ok": True, "queued": queued, "message": f"The test message is {message}."}


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
    return status, {"url": url, "expires": expires, "qr": _qr_svg(url)}


def _qr_svg(url: str) -> str | None:
    """The QR code of a link as an SVG element, black on white in any theme; None without segno (python3-segno)."""
    import importlib  # for this action alone
    import site

    # Programs of ours see nothing but the standard library; it stays first.
    sys.path.extend(folder for folder in site.getsitepackages() if folder not in sys.path)
    try:
        segno = importlib.import_module("segno")
    except ImportError:
        return None
    svg = segno.make_qr(url, error="m").svg_inline(border=4, omitsize=True, dark="#000", light="#fff", svgclass=None,
                                                   lineclass=None, title="QR code of the link above")
    return svg.replace("<svg ", '<svg role="img" ', 1)


ACTIONS = {"verify": verify, "check": check, "unlink": unlink, "invite": invite, "test": test, "run": run}


def _ask(settings: PageSettings, path: str, fields: dict, seconds: float) -> tuple[int, dict]:
    """The bot's answer. Raises Problem with the bot's own status and sentence, 503 where it does not answer."""
    from common import http_client  # not needed to link by a code
    try:
        status, headers, data = http_client.request(
            settings.web_socket, "POST", path, json.dumps(fields).encode(), {"Content-Type": "application/json"},
            seconds, MAX_ANSWER)
        if "content-length" not in headers:
            raise ValueError("the answer may be cut off, as it has no Content-Length")
        answer = bounded_json.loads(data, MAX_ANSWER, MAX_ITEMS)
    except (OSError, ValueError) as error:
        raise _away(f"{settings.web_socket}: {error}") from None
    if not isinstance(answer, dict):
        raise _away(f"{settings.web_socket}: the answer is no JSON object")
    if status < 400:
        return status, answer
    if status not in (404, 409, 429, 502, 503):
        raise _away(f"the bot answers {path} with {status}: {answer.get('error')}")
    kept = {"Retry-After": headers["retry-after"]} if "retry-after" in headers else {}
    raise Problem(status, str(answer.get("error", "")), kept)


def _away(reason) -> Problem:
    print(f"notify: {reason}", file=sys.stderr)
    return Problem(503, AWAY, {"Retry-After": AWAY_SECONDS})
