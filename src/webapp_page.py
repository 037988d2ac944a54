"""The page as HTML. Its words and its markup are the parts of webapp_telegram.html; here they are put together.

Every value is escaped where it is filled in, unless it is `Html`, which only `fill` and the QR code make.
"""

from __future__ import annotations

import hashlib
import html
import re
import time
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
STATIC = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
SAID = {"verify": "Your chat is connected.", "unlink": "Disconnected.", "test": "The test message was sent.",
        "run": "The script is running; what it finds arrives in your chat."}


class Html(str):
    """Markup, not text."""

    __slots__ = ()


class Moment(NamedTuple):
    """What has just happened on the page: something to say, an error, a code to confirm, an invite."""

    said: str = ""
    error: str = ""
    code: str = ""
    chat: str = ""
    invite: dict | None = None


def fill(part: str, **values) -> Html:
    """A part of the template with its `{names}` filled in."""
    return Html(_parts()[part].format_map(
        {name: value if isinstance(value, Html) else html.escape(str(value)) for name, value in values.items()}))


def join(pieces) -> Html:
    return Html("".join(pieces))


_PARTS: dict[str, str] = {}


def _parts() -> dict[str, str]:
    if not _PARTS:
        text = (FOLDER / "webapp_telegram.html").read_text(encoding="utf-8")
        for piece in text.split("<!-- part ")[1:]:
            name, _, body = piece.partition(" -->\n")
            _PARTS[name] = body.strip()
    return _PARTS


def static_name(kind: str) -> str:
    """The name of the style or the behaviour, which changes with its content."""
    return f"webapp.{hashlib.sha256(_static_bytes(kind)).hexdigest()[:16]}.{kind}"


def static_file(name: str) -> tuple[str, bytes] | None:
    """Content type and bytes of a file with a name that `static_name` gives; None for any other."""
    kind = name.rpartition(".")[2]
    if kind not in STATIC or name != static_name(kind):
        return None
    return STATIC[kind], _static_bytes(kind)


def _static_bytes(kind: str) -> bytes:
    return (FOLDER / f"webapp_telegram.{kind}").read_bytes()


def page(settings, user: str, card: Html, moment: Moment, embed: bool) -> Html:
    """The whole document around the card."""
    home = settings.site_url if re.match("https?://", settings.site_url) else ""
    top = Html() if embed else fill("home" if home else "no_home", site=settings.site_name, url=home)
    return _document(settings, top, card, moment, embed)


def problem(settings, status: int, message: str) -> Html:
    """The document that says why there is no card."""
    body = fill("problem", title=HTTPStatus(status).phrase, message=message)
    return _document(settings, Html(), body, Moment(), False)


def _document(settings, top: Html, body: Html, moment: Moment, embed: bool) -> Html:
    return fill("page", site=settings.site_name, css=static_name("css"), js=static_name("js"), top=top, body=body,
                said=moment.said, error=moment.error, kind="embedded" if embed else "alone")


def card(settings, user: str, state: dict, moment: Moment, token: str, embed: bool) -> Html:
    """The card: linked or not, as `webapp_actions.state` says."""
    form = Html(f'<input type="hidden" name="token" value="{token}">')
    place = "/telegram?embed" if embed else "/telegram"
    bot = state["bot"] or {}
    shown = {"user": user, "site": settings.site_name, "form": form, "place": place}
    notice = fill("bot_away") if state["bot"] is None else _health(bot)
    if state["linked"]:
        return _linked(shown, state, bot, notice)
    return _unlinked(shown, bot, moment, notice)


def _health(bot: dict) -> Html:
    return fill("telegram_away", reason=bot["health"]) if bot.get("health") else Html()


def _unlinked(shown: dict, bot: dict, moment: Moment, notice: Html) -> Html:
    name = bot.get("bot")
    who = fill("bot_link", bot=name) if name else fill("bot_unknown")
    press = fill("press", **shown) if name else Html()
    invite = moment.invite or {}
    url = invite.get("url", "")
    link = fill("invite", url=url, qr=qr_code(url), until=_moment(invite.get("expires"))) if url else Html()
    return fill("unlinked", **shown, notice=notice, press=press, who=who, code=moment.code, chat=moment.chat,
                asks="" if moment.code else Html("hidden"), typing=Html("hidden") if moment.code else "",
                invite=link)


def _linked(shown: dict, state: dict, bot: dict, notice: Html) -> Html:
    blocked = fill("blocked", reason=state["blocked"]) if state["blocked"] else Html()
    more = Html()
    if state["bot"] is not None:
        more = join([_scripts(shown, bot), _notifications(bot)])
    return fill("linked", **shown, notice=notice, chat=state["chat"] or "your chat", since=_since(state["linked_at"]),
                blocked=blocked, more=more)


def _scripts(shown: dict, bot: dict) -> Html:
    if bot.get("scripts_error"):
        return fill("scripts_unknown", reason=bot["scripts_error"])
    scripts = bot.get("scripts") or []
    if not scripts:
        return fill("no_scripts")
    return fill("scripts", scripts=join(
        fill("script", **shown, name=script["name"], schedule=script.get("schedule") or "",
             last=_moment(script.get("last_run")) or "never", next=_moment(script.get("next_run")) or "not planned",
             problem=fill("script_problem", problem=script["problem"]) if script.get("problem") else Html(),
             busy=Html("disabled") if script.get("running") else "")
        for script in scripts))


def _notifications(bot: dict) -> Html:
    notifications = bot.get("notifications") or []
    if not notifications:
        return fill("no_notifications")
    return fill("notifications", notifications=join(
        fill("notification", at=_moment(item.get("at")), title=item.get("title") or item.get("script") or "Message",
             script=item.get("script") or "", state=item.get("state") or "", reason=item.get("reason") or "")
        for item in notifications))


def _since(iso: str) -> Html | str:
    return Html(f'<time datetime="{html.escape(iso)}">{html.escape(iso[:10])}</time>')


def _moment(seconds) -> Html | str:
    """A time for a person, and for the browser to show in its own zone."""
    if not isinstance(seconds, (int, float)) or not 0 < seconds < 1e11:
        return ""
    when = time.gmtime(seconds)
    return Html(time.strftime('<time datetime="%Y-%m-%dT%H:%M:%SZ">%Y-%m-%d %H:%M UTC</time>', when))


def qr_code(url: str) -> Html:
    return Html()
