"""The link page as a WSGI application: its routes, and the headers of all its answers.

    /telegram, /telegram/webapp.*   for a browser, see page.py
    /api/telegram/*                 the same as JSON
"""

from __future__ import annotations

import json
import sys
from http import HTTPStatus

from common.jsonstore import StoreError
from common.problem import Problem
from webapp import actions
from webapp.login import logged_in
from webapp.request import Request

PAGE, API = "/telegram", "/api/telegram/"
POLICY = ("default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
          "form-action 'self'; base-uri 'none'; frame-ancestors ")


def application(environ: dict, start_response):
    """PEP 3333."""
    request = Request(environ)
    try:
        status, headers, body = _answer(request)
    except StoreError as error:  # its own sentence names a file, and is for the administrator
        print(f"notify: {error}", file=sys.stderr)
        status, headers, body = _problem(request, Problem(
            503, "The files of the notification service cannot be read or written now. Try again in a minute; if it "
                 "stays so, the administrator finds the reason in the error log of the web server."))
    except Problem as problem:
        status, headers, body = _problem(request, problem)
    request.drop_body()
    headers = _guards(request) | {"Content-Length": str(len(body))} | headers
    start_response(f"{status} {HTTPStatus(status).phrase}", list(headers.items()))
    return [b"" if request.method == "HEAD" else body]


def _guards(request: Request) -> dict:
    return {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
            "Content-Security-Policy": POLICY + request.settings.frame_ancestors}


def _answer(request: Request) -> tuple[int, dict, bytes]:
    if request.path == PAGE or request.path.startswith(f"{PAGE}/webapp."):
        from webapp import page  # a page that waits asks the API every few seconds
        return page.answer(request)
    action = request.path.removeprefix(API) if request.path.startswith(API) else ""
    if action == "status":
        request.require_method("GET", "HEAD")
        return _json(200, actions.status(request.settings, logged_in(request.environ, request.settings)))
    if action in actions.ACTIONS:
        request.require_method("POST")
        user = logged_in(request.environ, request.settings)
        request.refuse_other_sites()
        return _json(*actions.ACTIONS[action](request.settings, user, request.json_body()))
    raise Problem(404, "There is nothing at this address.")


def _problem(request: Request, problem: Problem) -> tuple[int, dict, bytes]:
    if request.wants_html:
        from webapp import page
        return page.problem(request, problem)
    return _json(problem.status, {"error": str(problem)}, problem.headers)


def _json(status: int, document: dict, headers: dict | None = None) -> tuple[int, dict, bytes]:
    return status, {"Content-Type": "application/json"} | (headers or {}), json.dumps(document).encode() + b"\n"
