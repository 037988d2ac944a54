"""The sandbox's HTTP server: the bot's calls, the person's calls, the chat page, and the faults that were ordered."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import sys
import threading
import urllib.parse
from contextlib import suppress
from http.client import responses
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from telegram.control import ControlError
from telegram.form import read_form
from telegram.limits import too_many_requests
from telegram.state import ApiError

MAX_BODY_BYTES = (50 << 20) + (64 << 10)
MAX_LINE_BYTES = 1024
IDLE_SECONDS = 300
TOKEN = re.compile(r"[0-9]+:[A-Za-z0-9_-]+")
_BOT_PATH = re.compile(r"/bot([^/]+)/([A-Za-z]+)/?")
_LOCAL_HOST = re.compile(r"(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?", re.IGNORECASE)
_FRONT_END_PAGE = ("<html>\r\n<head><title>{0} {1}</title></head>\r\n<body>\r\n<center><h1>{0} {1}</h1></center>\r\n"
                   "<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n")


class Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close() then waits for the threads, which cut_connections() has ended.
    request_queue_size = 512

    def __init__(self, address: tuple, handler: type):
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self._connections = set()
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # HTTPServer's own looks up the host name, which can take seconds.
        socket.socket.setsockopt(self.socket, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request, client_address) -> None:
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def cut_connections(self) -> None:
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is no news; anything else is a bug, told without the request line."""
        if not isinstance(sys.exc_info()[1], OSError):
            import traceback
            traceback.print_exc()


class _Refused(Exception):
    """The request is not one that can be answered otherwise; the connection ends with a front end's page."""

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = IDLE_SECONDS
    wbufsize = 0

    def do_POST(self) -> None:
        try:
            self._route(self._body())
        except _Refused as refused:
            self.close_connection = True
            self._front_end(refused.status)

    do_GET = do_DELETE = do_POST

    def log_message(self, format, *args) -> None:
        """No log line per request: its path has the token in it."""

    def _route(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        if path.startswith("/bot"):
            self._bot_call(path, query, body)
        elif not _LOCAL_HOST.fullmatch(self.headers.get("Host", "")):
            # A page elsewhere could otherwise reach us by a name that it lets point here.
            raise _Refused(403)
        elif path == "/" and self.command == "GET":
            self._page()
        elif path.startswith("/sandbox/"):
            self._control_call(path.removeprefix("/sandbox/"), query, body)
        elif path == "/favicon.ico":
            self.wfile.write(b"HTTP/1.1 204 No Content\r\nServer: notify-sandbox\r\n\r\n")
        else:
            raise _Refused(404)

    # The body.

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return self._chunks()
        try:
            length = int(self.headers.get("Content-Length", 0))
        except ValueError:
            raise _Refused(400) from None
        if not 0 <= length <= MAX_BODY_BYTES:
            raise _Refused(413 if length > 0 else 400)
        return self._read(length)

    def _read(self, length: int) -> bytes:
        data = self.rfile.read(length)
        if len(data) < length:
            raise _Refused(400)
        return data

    def _chunks(self) -> bytes:
        body = b""
        while True:
            try:
                size = int(self.rfile.readline(MAX_LINE_BYTES).partition(b";")[0], 16)
            except ValueError:
                raise _Refused(400) from None
            if not 0 <= size <= MAX_BODY_BYTES - len(body):
                raise _Refused(413)
            body += self._read(size)
            if not size:
                while self.rfile.readline(MAX_LINE_BYTES).strip():
                    pass
                return body
            self._read(2)

    # The bot's side.

    def _bot_call(self, path: str, query: str, body: bytes) -> None:
        sandbox = self.server.sandbox
        target = _BOT_PATH.fullmatch(path)
        token = urllib.parse.unquote(target[1]) if target else ""
        if not TOKEN.fullmatch(token):
            return self._refuse("", ApiError(404, "Not Found"))
        if token != sandbox.state.token or sandbox.control.revoked:
            return self._refuse("", ApiError(401, "Unauthorized"))
        args = read_form(query, self.headers.get("Content-Type", ""), body)
        method = target[2].lower()
        name = sandbox.methods.name_of(method)
        sandbox.control.count_call(name)
        fault = sandbox.faults.strike(method, args.text("chat_id"))
        if fault is None:
            self._write(*self._result(name, method, args))
        else:
            self._faulty_call(fault, name, method, args)
        return None

    def _faulty_call(self, fault: dict, name: str, method: str, args) -> None:
        action = fault["action"]
        if action == "delay":
            self.server.sandbox.stopping.wait(fault.get("seconds", 1))
        if action == "error":
            self._refuse(name, _ordered_error(fault))
        elif action == "html":
            self._front_end(fault.get("status", 502))
        elif action == "cut_before":
            self.close_connection = True
        else:
            answer = self._result(name, method, args)
            if action == "delay_answer":
                self.server.sandbox.stopping.wait(fault.get("seconds", 1))
            self._write_faulty(action, *answer)

    def _write_faulty(self, action: str, status: int, body: bytes, headers: str) -> None:
        if action in ("cut_within", "cut_after"):
            self.close_connection = True
        if action == "cut_within":
            body, length = body[:len(body) // 2], len(body)
            self.wfile.write(_head(status, length, headers) + body)
        elif action != "cut_after":
            self._write(status, body, headers)

    def _result(self, name: str, method: str, args) -> tuple[int, bytes, str]:
        """Answer of the Bot API: status, body and further headers."""
        try:
            result = self.server.sandbox.methods.call(method, args)
        except ApiError as error:
            return self._refusal(name, error)
        return 200, b'{"ok":true,"result":' + json.dumps(result).encode() + b"}", ""

    def _refusal(self, name: str, error: ApiError) -> tuple[int, bytes, str]:
        self.server.sandbox.control.count_refusal(name or "(no method)", error.code)
        answer = {"ok": False, "error_code": error.code, "description": error.description}
        headers = ""
        if error.parameters:
            answer["parameters"] = error.parameters
            if "retry_after" in error.parameters:
                headers = f"Retry-After: {error.parameters['retry_after']}\r\n"
        return error.code, json.dumps(answer).encode(), headers

    def _refuse(self, name: str, error: ApiError) -> None:
        self._write(*self._refusal(name, error))

    # The person's side.

    def _control_call(self, name: str, query: str, body: bytes) -> None:
        control = self.server.sandbox.control
        try:
            if name.startswith("files/"):
                self._file(*control.file(name.removeprefix("files/")))
                return
            answer, status = control.call(self.command, name, self._values(query, body)), 200
        except ControlError as error:
            answer, status = {"ok": False, "error": str(error)}, error.status
        self._write(status, json.dumps(answer).encode(), "Cache-Control: no-store\r\n")

    def _values(self, query: str, body: bytes) -> dict:
        if self.command != "POST":
            return dict(urllib.parse.parse_qsl(query))
        # A page elsewhere can make a browser post a form, but not JSON.
        if not self.headers.get("Content-Type", "").lower().startswith("application/json"):
            raise ControlError(415, "the body must be JSON, with Content-Type: application/json")
        try:
            values = json.loads(body)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise ControlError(400, "the body must be a JSON object")
        return values

    def _file(self, filename: str, mime_type: str, content: bytes) -> None:
        # Only pictures are shown; anything else could be a page with scripts of its own.
        shown = "inline" if mime_type in ("image/png", "image/jpeg") else "attachment"
        self._write(200, content, f"Content-Disposition: {shown}; filename*=UTF-8''{urllib.parse.quote(filename)}\r\n"
                                  "Cache-Control: private, max-age=3600\r\n", mime_type)

    def _page(self) -> None:
        page = Path(__file__).with_name("sandbox.html").read_bytes()
        self._write(200, page, f"Content-Security-Policy: {_page_policy(page)}\r\nReferrer-Policy: no-referrer\r\n",
                    "text/html; charset=utf-8")

    # Answers: each is one write.

    def _front_end(self, status: int) -> None:
        page = _FRONT_END_PAGE.format(status, responses.get(status, ""))
        self._write(status, page.encode(), "Connection: close\r\n" if self.close_connection else "", "text/html")

    def _write(self, status: int, body: bytes, headers: str = "", mime_type: str = "application/json") -> None:
        self.wfile.write(_head(status, len(body), headers, mime_type) + body)


def _head(status: int, length: int, headers: str, mime_type: str = "application/json") -> bytes:
    return (f"HTTP/1.1 {status} {responses.get(status, 'Unknown')}\r\nServer: notify-sandbox\r\n"
            f"Content-Type: {mime_type}\r\nContent-Length: {length}\r\nX-Content-Type-Options: nosniff\r\n"
            f"{headers}\r\n").encode("latin-1", "replace")


def _ordered_error(fault: dict) -> ApiError:
    status = fault.get("status", 429 if "retry_after" in fault else 500)
    if status == 429:
        error = too_many_requests(fault.get("retry_after", 1))
        return ApiError(429, fault.get("description", error.description), error.parameters)
    parameters = {name: fault[name] for name in ("migrate_to_chat_id",) if name in fault}
    return ApiError(status, fault.get("description", "Internal Server Error"), parameters)


def _page_policy(page: bytes) -> str:
    """The page may run its own script and style and nothing else, and ask this server and nobody else."""
    sources = {}
    for kind in (b"script", b"style"):
        content = re.search(b"<%s>(.*?)</%s>" % (kind, kind), page, re.DOTALL)[1]
        sources[kind] = f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"
    return (f"default-src 'none'; script-src {sources[b'script']}; style-src {sources[b'style']}; img-src 'self'; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
