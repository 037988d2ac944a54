"""The link page as a WSGI application: which path does what, for the browser and for the JSON API.

    /telegram              the page; its forms post here, so that it works without JavaScript
    /telegram?fragment     the card alone as HTML, for the page's own JavaScript
    /telegram?embed        the card as a page of its own, for an <iframe>
    /telegram/webapp.*     style and behaviour, named by their content
    /api/telegram/*        the same as JSON
"""

from __future__ import annotations

import json
import sys
from http import HTTPStatus

import webapp_actions
import webapp_page
from jsonstore import StoreError
from webapp_login import logged_in
from webapp_request import Problem, Request

PAGE, API = "/telegram", "/api/telegram/"
GUARDS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
POLICY = ("default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
          "form-action 'self'; base-uri 'none'; frame-ancestors ")
FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}


def application(environ: dict, start_response):
    """PEP 3333."""
    request = Request(environ)
    try:
        status, headers, body = _answer(request)
    except Problem as problem:
        status, headers, body = _problem(request, problem)
    except StoreError as error:
        print(f"notify: {error}", file=sys.stderr)
        status, headers, body = _problem(request, Problem(
            503, "The files of the notification service cannot be read or written now. Try again in a minute; if it "
                 "stays so, the administrator finds the reason in the error log of the web server."))
    request.drop_body()
    start_response(f"{status} {HTTPStatus(status).phrase}", list((_usual(request) | headers).items()))
    return [b"" if request.method == "HEAD" else body]


def _usual(request: Request) -> dict:
    return GUARDS | {"Cache-Control": "no-store",
                     "Content-Security-Policy": POLICY + request.settings.frame_ancestors}


def _answer(request: Request) -> tuple[int, dict, bytes]:
    if request.path.startswith(f"{PAGE}/webapp."):
        return _static(request)
    if request.path == PAGE:
        _require_method(request, {"GET", "HEAD", "POST"})
        user = logged_in(request.environ, request.settings)
        return _post_form(request, user) if request.method == "POST" else _get_page(request, user)
    action = request.path.removeprefix(API) if request.path.startswith(API) else ""
    if action == "status":
        _require_method(request, {"GET", "HEAD"})
        user = logged_in(request.environ, request.settings)
        return _json(200, webapp_actions.status(request.settings, user))
    if action in webapp_actions.ACTIONS:
        _require_method(request, {"POST"})
        user = logged_in(request.environ, request.settings)
        request.refuse_other_sites()
        return _json(*webapp_actions.ACTIONS[action](request.settings, user, request.json_body()))
    raise Problem(404, "There is nothing at this address.")


def _require_method(request: Request, methods: set) -> None:
    if request.method not in methods:
        allowed = ", ".join(sorted(methods))
        raise Problem(405, f"This address takes {allowed}.", {"Allow": allowed})


def _static(request: Request) -> tuple[int, dict, bytes]:
    _require_method(request, {"GET", "HEAD"})
    found = webapp_page.static_file(request.path.removeprefix(f"{PAGE}/"))
    if not found:
        raise Problem(404, "There is nothing at this address.")
    content_type, data = found
    return 200, {"Content-Type": content_type, **FOREVER}, data


def _get_page(request: Request, user: str) -> tuple[int, dict, bytes]:
    said = webapp_page.SAID.get(request.query.get("done"), "")
    return _page(request, user, 200, webapp_page.Moment(said=said))


def _page(request: Request, user: str, status: int, moment, headers: dict | None = None) -> tuple[int, dict, bytes]:
    token, cookie = request.form_token()
    shown = webapp_page.Shown(request.settings, user, token, request.is_embedded)
    text = webapp_page.card(shown, webapp_actions.state(request.settings, user), moment)
    if "fragment" not in request.query:
        text = webapp_page.page(request.settings, text, moment, request.is_embedded)
    return _html(status, text, (headers or {}) | cookie)


def _post_form(request: Request, user: str) -> tuple[int, dict, bytes]:
    """What the page's forms ask for, and then the page; what is wrong is said on it."""
    request.refuse_other_sites(form=True)
    fields = request.form_body()
    request.check_form_token(fields.pop("token", ""))
    action = fields.pop("do", "")
    if action not in webapp_actions.ACTIONS:
        raise Problem(400, "The form asks for something that is not known.")
    if "code" in fields:
        fields["code"] = "".join(fields["code"].split())
    try:
        _, answer = webapp_actions.ACTIONS[action](request.settings, user, fields)
    except Problem as problem:
        return _page(request, user, problem.status, webapp_page.Moment(error=str(problem)), problem.headers)
    if action == "check":
        return _page(request, user, 200, webapp_page.Moment(code=fields["code"], chat=answer["chat"]))
    if action == "invite":
        return _page(request, user, 200, webapp_page.Moment(invite=answer))
    place = f"{PAGE}?embed&done={action}" if request.is_embedded else f"{PAGE}?done={action}"
    return 303, {"Location": place, "Content-Length": "0"}, b""


def _problem(request: Request, problem: Problem) -> tuple[int, dict, bytes]:
    if request.wants_html:
        return _html(problem.status, webapp_page.problem(request.settings, problem.status, str(problem)),
                     problem.headers)
    return _json(problem.status, {"error": str(problem)}, problem.headers)


def _html(status: int, text: str, headers: dict) -> tuple[int, dict, bytes]:
    data = text.encode("utf-8", "replace")
    return status, {"Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(data)), **headers}, data


def _json(status: int, document: dict, headers: dict | None = None) -> tuple[int, dict, bytes]:
    data = json.dumps(document).encode() + b"\n"
    return status, {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}, data
