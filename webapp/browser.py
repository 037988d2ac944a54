"""The link page's side for a browser, each answer a status, headers and a body.

    /telegram              the page; its forms post here, so that it works without JavaScript
    /telegram?fragment     the card alone, for the page's own JavaScript
    /telegram?embed        the card as a page of its own, for an <iframe>
    /telegram/webapp.*     style and behaviour, named by their content
"""

from __future__ import annotations

from common.problem import Problem
from webapp import actions, page
from webapp.login import logged_in
from webapp.page import Moment
from webapp.request import Request

PAGE = "/telegram"
FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}


def answer(request: Request) -> tuple[int, dict, bytes]:
    if request.path != PAGE:
        return _static(request)
    request.require_method("GET", "HEAD", "POST")
    user = logged_in(request.environ, request.settings)
    if request.method == "POST":
        return _post_form(request, user)
    return _page(request, user, 200, Moment(said=page.SAID.get(request.query.get("done"), "")))


def problem(request: Request, refused: Problem) -> tuple[int, dict, bytes]:
    """The page that says why there is no card."""
    return _html(refused.status, page.problem(request.settings, refused.status, str(refused)), refused.headers)


def _static(request: Request) -> tuple[int, dict, bytes]:
    request.require_method("GET", "HEAD")
    found = page.static_file(request.path.removeprefix(f"{PAGE}/"))
    if not found:
        raise Problem(404, "There is nothing at this address.")
    content_type, data = found
    return 200, {"Content-Type": content_type, **FOREVER}, data


def _page(request: Request, user: str, status: int, moment: Moment,
          headers: dict | None = None) -> tuple[int, dict, bytes]:
    token, cookie = request.form_token()
    shown = page.Shown(request.settings, user, token, request.is_embedded)
    text = page.card(shown, actions.state(request.settings, user), moment)
    if "fragment" not in request.query:
        text = page.page(request.settings, text, moment, request.is_embedded)
    return _html(status, text, (headers or {}) | cookie)


def _post_form(request: Request, user: str) -> tuple[int, dict, bytes]:
    """What the page's forms ask for, and then the page; what is wrong is said on it."""
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
    except Problem as refused:
        return _page(request, user, refused.status, Moment(error=str(refused)), refused.headers)
    if action == "check":
        return _page(request, user, 200, Moment(code=fields["code"], chat=done["chat"]))
    if action == "invite":
        return _page(request, user, 200, Moment(invite=done))
    return 303, {"Location": f"{PAGE}?embed&done={action}" if request.is_embedded else f"{PAGE}?done={action}"}, b""


def _html(status: int, text: str, headers: dict) -> tuple[int, dict, bytes]:
    return status, {"Content-Type": "text/html; charset=utf-8"} | headers, text.encode("utf-8", "replace")
