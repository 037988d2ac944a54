"""Request to the link page: settings, path, body, and proof that it comes from the page itself.

Sources: RFC 3875 (CGI), PEP 3333 (WSGI), Fetch Metadata (Sec-Fetch-Site), RFC 6454 (Origin).
"""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qs

from common import bounded_json
from common.problem import Problem
from common.settings import page_settings

MAX_BODY = 4096
MAX_ITEMS = 100
MAX_DROPPED = 1 << 20


class Request:
    """One request, from the variables of the web server."""

    def __init__(self, environ: dict):
        self.environ = environ
        self.settings = page_settings(environ)
        self.method = environ.get("REQUEST_METHOD", "GET")
        self._body_is_read = False
        # Together they are the path in the browser, wherever the program is mounted.
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        self.path = re.sub("/+", "/", path).rstrip("/")
        self.query = dict(part.partition("=")[::2] for part in environ.get("QUERY_STRING", "").split("&"))

    @property
    def wants_html(self) -> bool:
        """True if a person looks at the answer: the browser says so, or it is the page's own address."""
        return "text/html" in self.environ.get("HTTP_ACCEPT", "") or not self.path.startswith("/api/")

    @property
    def is_embedded(self) -> bool:
        return "embed" in self.query

    @property
    def is_secure(self) -> bool:
        return self.environ["wsgi.url_scheme"] == "https"

    def require_method(self, *methods: str) -> None:
        if self.method not in methods:
            allowed = ", ".join(methods)
            raise Problem(405, f"This address takes {allowed}.", {"Allow": allowed})

    def refuse_other_sites(self, form: bool = False) -> None:
        """Raise Problem unless the browser says that a page of this very site makes this request.

        A form posted under `Referrer-Policy: no-referrer` has `Origin: null` (Fetch, "append a request Origin
        header"); there Sec-Fetch-Site decides.
        """
        site, origin = self.environ.get("HTTP_SEC_FETCH_SITE", ""), self.environ.get("HTTP_ORIGIN", "")
        if form and origin == "null":
            origin = ""
        if site not in ("", "same-origin") or origin and origin.lower() != self._origin() or not (site or origin):
            raise Problem(403, "This request did not come from this page, so it was refused. "
                               "Open the page itself and try again.")

    def _origin(self) -> str:
        scheme = self.environ["wsgi.url_scheme"]
        host = self.environ.get("HTTP_HOST", "").lower().removesuffix(":443" if scheme == "https" else ":80")
        return f"{scheme}://{host}" if host else "none"

    def json_body(self) -> dict:
        """The JSON object in the body; an empty body is an empty object. Raises Problem."""
        self._require_type("application/json")
        data = self._body()
        try:
            document = bounded_json.loads(data or b"{}", MAX_BODY, MAX_ITEMS)
        except ValueError:
            raise Problem(400, "The body is not JSON.") from None
        if not isinstance(document, dict):
            raise Problem(400, "The body is not a JSON object.")
        return document

    def form_body(self) -> dict[str, str]:
        """The fields of the page's own form, the first of each name. Raises Problem."""
        self._require_type("application/x-www-form-urlencoded")
        try:
            fields = parse_qs(self._body().decode("ascii"), max_num_fields=20, errors="replace")
        except ValueError:
            raise Problem(400, "The form cannot be read.") from None
        return {name: values[0] for name, values in fields.items()}

    def _require_type(self, wanted: str) -> None:
        kind = self.environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
        if kind != wanted:
            raise Problem(415, f"The body must be {wanted}.")

    def _body(self) -> bytes:
        length = self.environ.get("CONTENT_LENGTH") or "0"
        if not (length.isascii() and length.isdigit()):
            raise Problem(400, "The length of the body is not a number.")
        if len(length) > 9 or int(length) > MAX_BODY:
            raise Problem(413, f"The body is over {MAX_BODY} bytes.")
        self._body_is_read = True
        data = self.environ["wsgi.input"].read(int(length))
        if len(data) < int(length):
            raise Problem(400, "The body ended early.")
        return data

    def drop_body(self) -> None:
        """Read an unread body. Apache loses the answer of a program that ends before that.

        mod_cgid uses one socket both ways, and closing a socket with unread data resets it (unix(7)).
        """
        length = self.environ.get("CONTENT_LENGTH") or "0"
        if self._body_is_read or not (length.isascii() and length.isdigit()) or len(length) > 9:
            return
        left = min(int(length), MAX_DROPPED)
        while left and (data := self.environ["wsgi.input"].read(min(left, 1 << 16))):
            left -= len(data)

    # The form's token is a random cookie that a page of another site can neither read nor set: with HTTPS the prefix
    # __Host- keeps even a neighbour below the same domain from setting it.
    @property
    def _cookie_name(self) -> str:
        return "__Host-notify_form" if self.is_secure else "notify_form"

    def form_token(self) -> tuple[str, dict]:
        """The token for this browser's forms, and the headers that give it to a browser that has none."""
        token = self._cookie()
        if token:
            return token, {}
        token = os.urandom(16).hex()
        secure = "; Secure" if self.is_secure else ""
        return token, {"Set-Cookie": f"{self._cookie_name}={token}; Path=/; HttpOnly; SameSite=Strict{secure}"}

    def check_form_token(self, token: str) -> None:
        from hmac import compare_digest  # loads all of OpenSSL's digests
        cookie = self._cookie()
        if not cookie or not compare_digest(cookie.encode(), token.encode("utf-8", "replace")):
            raise Problem(403, "This page was open for too long, or the browser keeps no cookies for it. "
                               "Reload the page and try again.")

    def _cookie(self) -> str:
        """The token in the cookie, empty unless it has the form of ours."""
        for part in self.environ.get("HTTP_COOKIE", "").split(";"):
            name, _, value = part.strip().partition("=")
            if name == self._cookie_name and re.fullmatch("[0-9a-f]{32}", value):
                return value
        return ""
