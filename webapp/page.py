"""The page for a browser: answers to its requests, and the HTML, put together from the parts of page.html.

    /telegram              the page; its forms post here, so that it works without JavaScript
    /telegram?fragment     the card alone, for the page's own JavaScript
    /telegram?embed        the card as a page of its own, for an <iframe>
    /telegram/webapp.*     style and behaviour, named by their content

Every value is escaped where it is filled in, unless it is `Html`, which only this module and the QR code make.
"""

from __future__ import annotations

import hashlib
import html
import re
import time
from http import HTTPStatus
from pathlib import Path

from common.jsonstore import StoreError
from common.problem import Problem
from common.settings import PageSettings
from webapp import actions
from webapp.login import logged_in
from webapp.request import Request

PAGE = "/telegram"
FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}
FOLDER = Path(__file__).parent
STATIC = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
SAID = {"verify": "Your chat is connected.", "unlink": "Disconnected.", "test": "The test message was sent.",
        "run": "The script is running; what it finds arrives in your chat."}
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")
NOT_SENT = {"queued": "waiting to be delivered", "failed": "not delivered"}


class Html(str):
    """Markup, not text."""

    __slots__ = ()


class Moment:
    """The news that the page shows: something to say, an error, a code to confirm, an invite."""

    def __init__(self, said: str = "", error: str = "", code: str = "", chat: str = "", invite: dict | None = None):
        self.said, self.error, self.code, self.chat, self.invite = said, error, code, chat, invite


class Shown:
    """The values that every part of the card may need: the person, the site, the form's token, the time."""

    def __init__(self, request: Request, user: str, token: str):
        self.user, self.site, self.token = user, request.settings.site_name, token
        self.place = f"{PAGE}?embed" if request.is_embedded else PAGE
        self.now = time.time()

    def form(self, action: str, fields: Html, number: str = "") -> Html:
        """A form that asks for an action; its fields and its button are `fields`."""
        return fill("form", place=self.place, token=self.token, action=action, id=f"{action}-form{number}",
                    fields=fields)

    def time(self, seconds) -> Html | str:
        """A time as a person says it; empty where there is none."""
        if type(seconds) not in (int, float) or not 0 < seconds < 1e11:
            return ""
        when = time.gmtime(seconds)
        return fill("time", iso=time.strftime("%Y-%m-%dT%H:%M:%SZ", when), words=_words(seconds - self.now),
                    exact=time.strftime("%Y-%m-%d %H:%M UTC", when))


def answer(request: Request) -> tuple[int, dict, bytes]:
    """Status, headers and body for a browser. Raises Problem, StoreError."""
    if request.path != PAGE:
        return _static(request)
    request.require_method("GET", "HEAD", "POST")
    user = logged_in(request.environ, request.settings)
    if request.method == "POST":
        return _post_form(request, user)
    return _page(request, user, 200, Moment(said=SAID.get(request.query.get("done"), "")))


def problem(request: Request, refused: Problem) -> tuple[int, dict, bytes]:
    """A page with the reason why there is no card."""
    body = fill("problem", title=HTTPStatus(refused.status).phrase, message=refused)
    return _html(refused.status, _document(request.settings, Html(), body, Moment(), False), refused.headers)


def _static(request: Request) -> tuple[int, dict, bytes]:
    request.require_method("GET", "HEAD")
    name = request.path.removeprefix(f"{PAGE}/")
    kind = name.rpartition(".")[2]
    if kind not in STATIC or name != _static_name(kind):
        raise Problem(404, "There is nothing at this address.")
    return 200, {"Content-Type": STATIC[kind], **FOREVER}, _static_bytes(kind)


def _static_name(kind: str) -> str:
    """The name of the style or the behaviour, which changes with its content."""
    return f"webapp.{hashlib.sha256(_static_bytes(kind)).hexdigest()[:16]}.{kind}"


def _static_bytes(kind: str) -> bytes:
    return (FOLDER / f"page.{kind}").read_bytes()


def _page(request: Request, user: str, status: int, moment: Moment,
          headers: dict | None = None) -> tuple[int, dict, bytes]:
    token, cookie = request.form_token()
    text = _card(Shown(request, user, token), actions.state(request.settings, user), moment)
    if "fragment" not in request.query:
        settings, embed = request.settings, request.is_embedded
        home = settings.site_url if re.match("https?://", settings.site_url) else ""
        top = Html() if embed else fill("home" if home else "no_home", site=settings.site_name, url=home)
        text = _document(settings, top, text, moment, embed)
    return _html(status, text, (headers or {}) | cookie)


def _post_form(request: Request, user: str) -> tuple[int, dict, bytes]:
    """Do the action of a form of the page; the answer is the page again, with the refusal if there is one."""
    request.refuse_other_sites(form=True)
    fields = request.form_body()
    request.check_form_token(fields.pop("token", ""))
    action = fields.pop("do", "")
    if action not in actions.ACTIONS:
        raise Problem(400, "The form asks for something that is not known.")
    if "code" in fields:
        fields["code"] = "".join(fields["code"].split())
    try:
        _, done = actions.ACTIONS[action](request.settings, user, fields)
    except StoreError:
        raise  # no card can be shown either
    except Problem as refused:
        return _page(request, user, refused.status, Moment(error=str(refused)), refused.headers)
    if action == "check":
        return _page(request, user, 200, Moment(code=fields["code"], chat=done["chat"]))
    if action == "invite":
        return _page(request, user, 200, Moment(invite=done))
    return 303, {"Location": f"{PAGE}?embed&done={action}" if request.is_embedded else f"{PAGE}?done={action}"}, b""


def _html(status: int, text: str, headers: dict) -> tuple[int, dict, bytes]:
    return status, {"Content-Type": "text/html; charset=utf-8"} | headers, text.encode("utf-8", "replace")


_PARTS: dict[str, str] = {}


def fill(part: str, **values) -> Html:
    """A part of the template with its `{names}` filled in."""
    if not _PARTS:
        _PARTS.update(_read_parts())
    return Html(_PARTS[part].format_map(
        {name: value if isinstance(value, Html) else html.escape(str(value)) for name, value in values.items()}))


def _read_parts() -> dict[str, str]:
    text = (FOLDER / "page.html").read_text(encoding="utf-8")
    pieces = (piece.partition(" -->\n") for piece in text.split("<!-- part ")[1:])
    return {name: body.strip() for name, _, body in pieces}


def join(pieces, between: str = "") -> Html:
    """Pieces of markup and of text, one after the other, without the empty ones."""
    return Html(between.join(piece if isinstance(piece, Html) else html.escape(piece) for piece in pieces if piece))


def _document(settings: PageSettings, top: Html, body: Html, moment: Moment, embed: bool) -> Html:
    return fill("page", site=settings.site_name, css=_static_name("css"), js=_static_name("js"), top=top, body=body,
                said=moment.said, error=moment.error, kind="embedded" if embed else "alone")


def _card(shown: Shown, state: dict, moment: Moment) -> Html:
    """The card of a login, linked or not; `state` as `actions.state` gives it."""
    bot = state["bot"]
    if bot is None:
        notice = fill("bot_away")
    else:
        notice = fill("telegram_away", reason=bot["health"]) if bot.get("health") else Html()
    foot = fill("foot", user=shown.user, site=shown.site)
    if state["linked"]:
        return _linked(shown, state, notice, foot)
    return _unlinked(shown, bot or {}, moment, notice, foot)


def _who(bot: dict) -> Html:
    return fill("bot_link", bot=bot["bot"]) if bot.get("bot") else fill("bot_unknown")


def _unlinked(shown: Shown, bot: dict, moment: Moment, notice: Html, foot: Html) -> Html:
    press = Html()
    if bot.get("bot") and not moment.invite:
        press = fill("press", invite_form=shown.form("invite", fill("press_button")))
    code_form = fill("code_form", who=_who(bot), form=shown.form("check", fill("code_fields")))
    return fill("unlinked", user=shown.user, place=shown.place, notice=notice, foot=foot, press=press,
                invite=_invite(shown, moment.invite) if moment.invite else Html(),
                invite_part=_invite(shown, {"url": "", "qr": None}), code_form=code_form, chat=moment.chat,
                verify_form=shown.form("verify", fill("verify_fields", code=moment.code)),
                typing=Html("hidden" if moment.code else ""), asking=Html("" if moment.code else "hidden"))


def _invite(shown: Shown, invite: dict) -> Html:
    return fill("invite", url=invite["url"], qr=Html(invite["qr"] or ""), place=shown.place,
                without=Html("" if invite["qr"] else "hidden"))


def _linked(shown: Shown, state: dict, notice: Html, foot: Html) -> Html:
    bot, blocked = state["bot"] or {}, state["blocked"]
    known = state["bot"] is not None
    return fill("linked", user=shown.user, notice=notice, foot=foot, chat=state["chat"] or "your chat",
                how="Linked, but silent:" if blocked else "Connected to", dot="off" if blocked else "on",
                since=_since(state["linked_at"]),
                blocked=fill("blocked", reason=blocked, who=_who(bot)) if blocked else Html(),
                test_form=shown.form("test", fill("test_button")),
                unlink_form=shown.form("unlink", fill("unlink_button")),
                scripts=_scripts(shown, bot) if known else Html(),
                notifications=_notifications(shown, bot) if known else Html())


def _since(linked_at: str) -> str:
    """The day of an ISO time in words; other software may have written anything."""
    found = re.match("([0-9]{4})-(0[1-9]|1[0-2])-([0-3][0-9])", linked_at)
    return f"since {int(found[3])} {MONTHS[int(found[2]) - 1]} {found[1]}" if found else ""


def _scripts(shown: Shown, bot: dict) -> Html:
    if bot.get("scripts_error"):
        return fill("scripts_unknown", reason=bot["scripts_error"])
    scripts = bot.get("scripts")
    if not scripts:
        return fill("no_scripts")
    return fill("scripts", scripts=join(_script(shown, script, number) for number, script in enumerate(scripts)))


def _schedule(setting: str) -> str:
    """The setting of a timer's unit as systemd normalises it, in words where there are plain ones."""
    calendar = setting.removeprefix("OnCalendar=")
    if found := re.fullmatch(r"\*-\*-\* \*:00/([0-9]+):00", calendar):
        return f"every {int(found[1])} minutes"
    if found := re.fullmatch(r"\*-\*-\* ([0-9]{2}:[0-9]{2}):00", calendar):
        return f"every day at {found[1]}"
    return {"*-*-* *:00:00": "every hour"}.get(calendar, calendar)


def _script(shown: Shown, script: dict, number: int) -> Html:
    last, coming = shown.time(script.get("last_run")), shown.time(script.get("next_run"))
    due = coming and script["next_run"] <= shown.now
    facts = join([_schedule(script.get("schedule") or ""), join(["ran ", last]) if last else "has not run yet",
                  "due now" if due else join(["next ", coming]) if coming else ""], " · ")
    running, can_run = script.get("running"), script.get("can_run", True)
    run = fill("run_fields", name=script["name"], id=f"run-{number}")
    return fill("script", name=script["name"], facts=facts, running=Html("data-running" if running else ""),
                run_form=fill("running") if running else shown.form("run", run, f"-{number}") if can_run else Html(),
                problem=fill("script_problem", problem=script["problem"]) if script.get("problem") else Html())


def _notifications(shown: Shown, bot: dict) -> Html:
    notifications = bot.get("notifications")
    if not notifications:
        return fill("no_notifications")
    return fill("notifications", notifications=join(_notification(shown, item) for item in notifications))


def _notification(shown: Shown, item: dict) -> Html:
    script = item.get("script") or ""
    problem = NOT_SENT.get(item.get("state"), "")
    if problem and item.get("reason"):
        problem = f"{problem}: {item['reason']}"
    return fill("notification", title=item.get("title") or script or "Message",
                facts=join([script if item.get("title") else "", shown.time(item.get("at"))], " · "),
                problem=fill("script_problem", problem=problem) if problem else Html())


def _words(seconds: float) -> str:
    """Distance of a time in words: `in 5 minutes`, `2 hours ago`."""
    distance = abs(seconds)
    if distance < 45:
        return "just now" if seconds <= 0 else "in a moment"
    size, unit = next((size, unit) for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute"))
                      if distance >= size * 0.75)
    count = max(1, round(distance / size))
    words = f"{count} {unit}{'' if count == 1 else 's'}"
    return f"in {words}" if seconds > 0 else f"{words} ago"
