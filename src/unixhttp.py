"""HTTP/1.1 over AF_UNIX: a server that knows who is calling, and a client.

A connection has a thread of its own, and both are bounded: so many in all, so many for one user, so long for a
request to arrive. A client that trickles its bytes holds its own connection until the deadline and nothing else.
"""

from __future__ import annotations

import errno
import http.client
import http.server
import io
import json
import logging
import os
import socket
import socketserver
import stat
import struct
import threading
import time
from contextlib import suppress
from http import HTTPStatus

import bounded_json

log = logging.getLogger("http")

MAX_CONNECTIONS = 512
MAX_CONNECTIONS_PER_USER = 256
MAX_HEADER_BYTES = 64 << 10
MAX_REQUEST_LINE = 8 << 10
FREE_BODY_BYTES = 64 << 10
MAX_BODIES_PER_USER = 4 << 20
MAX_BODIES = 16 << 20
MAX_JSON_ITEMS = 10_000
HEADER_SECONDS = 10
BODY_SECONDS = 60
IDLE_SECONDS = 60
ANSWER_SECONDS = 10
LINGER_SECONDS = 2
FRESH_SECONDS = 1
SO_PEERGROUPS = 59  # <asm-generic/socket.h>; the socket module has no name for it

# JSON may take thirty times its size while it is an object, so few are parsed at a time.
_PARSING = threading.Semaphore(2)
_FRESH, _SERVING, _IDLE = "fresh", "serving", "idle"


class Peer:
    """Who is at the other end of a connection, as the kernel recorded it at connect(2) (unix(7))."""

    __slots__ = ("pid", "uid", "gid", "groups")

    def __init__(self, connection: socket.socket):
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid, self.uid, self.gid = struct.unpack("3i", credentials)
        self.groups = {self.gid, *_peer_groups(connection)}


def _peer_groups(connection: socket.socket) -> tuple:
    size = 256
    while size <= 1 << 18:
        try:
            raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, size)
            return struct.unpack(f"{len(raw) // 4}I", raw)
        except OSError as error:
            if error.errno != errno.ERANGE:
                return ()
            size *= 4
    return ()


class HTTPProblem(Exception):
    """An answer that is not a success: status, a sentence for the caller, and headers. The body is not read on."""

    def __init__(self, status: int, message: str, headers: dict | None = None, close: bool = False):
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.close = close


class _TooLarge(Exception):
    pass


class _Reader(io.RawIOBase):
    """The bytes of a connection, until a deadline and up to a number of bytes."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._deadline = 0.0
        self._budget = 0

    def expect(self, seconds: float, size: int) -> None:
        self._deadline = time.monotonic() + seconds
        self._budget = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if self._budget <= 0:
            raise _TooLarge
        self._connection.settimeout(left)
        count = self._connection.recv_into(buffer)
        self._budget -= count
        return count


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection. A subclass has `routes`: `{path: {method: function(self)}}`, where a function answers
    with `self.answer` or raises HTTPProblem, and reads its body with `self.body` or from `self.rfile`."""

    protocol_version = "HTTP/1.1"
    routes: dict = {}

    def setup(self):
        self.connection = self.request
        self.peer = Peer(self.connection)
        self._reader = _Reader(self.connection)
        self.rfile = io.BufferedReader(self._reader, 16384)
        self.unread, self.command, self.request_version = 0, None, self.protocol_version
        self._reserved = 0

    def finish(self):
        """Close so that a client still sending gets to read its answer: closing at once would reset it."""
        if not self.unread:
            return
        with suppress(OSError, _TooLarge):
            self.connection.shutdown(socket.SHUT_WR)
            self._reader.expect(LINGER_SECONDS, 256 << 20)
            while self._reader.readinto(bytearray(1 << 20)):
                pass

    def handle(self):
        self.close_connection = False
        try:
            # One request is served however late it is: whoever was let in before the end was let in.
            while True:
                self.handle_one_request()
                if self.close_connection or self.server.stopping.is_set():
                    break
        except (OSError, _TooLarge) as error:
            log.debug("connection of uid %d ended: %r", self.peer.uid, error)

    def handle_one_request(self):
        self.close_connection = True  # until a whole request has been understood
        self._reader.expect(IDLE_SECONDS, MAX_HEADER_BYTES)
        if not self.rfile.peek(1):
            return
        self.server.busy(self.connection)
        try:
            self._reader.expect(HEADER_SECONDS, MAX_HEADER_BYTES)
            self._serve()
        except TimeoutError:
            self.problem(408, "the request did not arrive in time", close=True)
        except _TooLarge:
            self.unread = 1
            self.problem(431, f"the header is over {MAX_HEADER_BYTES} bytes", close=True)
        finally:
            self.server.idle(self.connection)

    def _serve(self):
        self.unread, self._expects_continue, self.command = 0, False, None
        self.raw_requestline = self.rfile.readline(MAX_REQUEST_LINE + 1)
        if len(self.raw_requestline) > MAX_REQUEST_LINE:
            self.send_error(414)
            return
        if not self.raw_requestline or not self._parse():
            return
        try:
            self.unread = self._body_length()
            self._route()(self)
        except HTTPProblem as problem:
            self.problem(problem.status, str(problem), problem.headers, problem.close)
        finally:
            self.server.release(self.peer.uid, self._reserved)
            self._reserved = 0

    def _parse(self) -> bool:
        try:
            return self.parse_request()
        except ValueError:  # the parser of headers decodes some parameters at once, and cannot always
            self.send_error(400, "a header cannot be decoded")
            return False

    def _route(self):
        path = self.path.partition("?")[0]
        methods = self.routes.get(path)
        if methods is None:
            raise HTTPProblem(404, f"there is no {path[:80]} here, only {', '.join(self.routes)}")
        if self.command not in methods:
            raise HTTPProblem(405, f"{path} takes {' and '.join(methods)}", {"Allow": ", ".join(methods)})
        return methods[self.command]

    def _body_length(self) -> int:
        """RFC 9112, section 6: one length, or none; anything doubtful ends the connection."""
        lengths = self.headers.get_all("Content-Length", [])
        if self.headers.get("Transfer-Encoding") is not None:
            self.unread = 1
            if lengths:
                raise HTTPProblem(400, "Transfer-Encoding beside Content-Length", close=True)
            raise HTTPProblem(411, "send a Content-Length; chunked bodies are not taken", close=True)
        if not lengths:
            if self.command in ("POST", "PUT", "PATCH"):
                raise HTTPProblem(411, "a Content-Length is needed", close=True)
            return 0
        if len(lengths) > 1 or not (lengths[0].isascii() and lengths[0].isdigit()) or len(lengths[0]) > 18:
            self.unread = 1
            raise HTTPProblem(400, "the Content-Length is not a number", close=True)
        return int(lengths[0])

    def limit_body(self, limit: int) -> int:
        """The length of the body; 413 over `limit`, before a byte of it is read."""
        if self.unread > limit:
            raise HTTPProblem(413, f"the body is over {limit} bytes", close=True)
        return self.unread

    def body(self, limit: int) -> bytes:
        """The whole body, in memory, which is bounded for each user and in all; 503 where there is no room."""
        length = self.limit_body(limit)
        if length > FREE_BODY_BYTES:
            self._reserved = self.server.reserve(self.peer.uid, length)
        return b"".join(self.body_chunks(limit))

    def body_chunks(self, limit: int):
        """The body in pieces, none of them over 64 KiB."""
        length = self.limit_body(limit)
        if self._expects_continue:
            self.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._reader.expect(BODY_SECONDS, length)
        while self.unread:
            data = self.rfile.read1(min(self.unread, 1 << 16))
            if not data:
                raise ConnectionResetError("the body ended early")
            self.unread -= len(data)
            yield data

    def json_object(self, limit: int) -> dict:
        """The JSON object that the body is; 400 where it is none."""
        data = self.body(limit)
        try:
            with _PARSING:
                document = bounded_json.loads(data, limit, MAX_JSON_ITEMS)
        except ValueError as error:
            raise HTTPProblem(400, f"the body is not JSON: {error}") from None
        if not isinstance(document, dict):
            raise HTTPProblem(400, "the body is not a JSON object")
        return document

    def handle_expect_100(self):
        self._expects_continue = True  # said when the body is read, so not before a refusal
        return True

    def answer(self, status: int, body: dict | bytes, headers: dict | None = None,
               content_type: str = "application/json"):
        """Answer in one write. A body that was not read ends the connection."""
        data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode() + b"\n"
        if self.unread or self.server.stopping.is_set():
            self.close_connection = True
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Date: {self.date_time_string()}",
                 f"Content-Type: {content_type}", f"Content-Length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if self.close_connection:
            lines.append("Connection: close")
        elif self.request_version == "HTTP/1.0":
            lines.append("Connection: keep-alive")
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        self.connection.settimeout(ANSWER_SECONDS)
        self.connection.sendall(head if self.command == "HEAD" else head + data)

    def problem(self, status: int, message: str, headers: dict | None = None, close: bool = False):
        if close:
            self.close_connection = True
        # Who is told to come back later does, and may do so many times a second.
        level = logging.DEBUG if status == 429 else logging.INFO
        log.log(level, "refused uid %d: %d %s", self.peer.uid, status, message)
        self.answer(status, {"ok": False, "error": message}, headers)

    def send_error(self, code, message=None, explain=None):
        """What http.server itself finds wrong in a request line or a header."""
        self.unread = 1
        self.problem(code, message or HTTPStatus(code).phrase, close=True)

    def address_string(self):
        return f"uid {self.peer.uid}"

    def log_message(self, format, *arguments):
        log.debug("%s: " + format, self.address_string(), *arguments)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Serves a listening AF_UNIX socket that somebody else made. `context` is for the handlers.

    `beat` is the monotonic time at which the accepting loop last came round.
    """

    daemon_threads = True
    block_on_close = False
    max_connections = MAX_CONNECTIONS
    max_connections_per_user = MAX_CONNECTIONS_PER_USER

    def __init__(self, listener: socket.socket, handler: type, context):
        socketserver.BaseServer.__init__(self, listener.getsockname(), handler)
        self.socket = listener
        self.context = context
        self.stopping = threading.Event()
        self.beat = time.monotonic()
        self._changed = threading.Condition()
        self._bodies: dict[int, int] = {}
        self._connections: dict[socket.socket, list] = {}  # [uid, state]

    def service_actions(self):
        self.beat = time.monotonic()

    def verify_request(self, request, client_address):
        uid = Peer(request).uid
        with self._changed:
            of_user = sum(1 for owner, _ in self._connections.values() if owner == uid)
            if of_user < self.max_connections_per_user and len(self._connections) < self.max_connections:
                self._connections[request] = [uid, _FRESH]
                return True
        log.warning("refused uid %d: %d connections are open", uid, of_user)
        with suppress(OSError):
            request.settimeout(0)
            request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n"
                            b"Content-Length: 0\r\nConnection: close\r\n\r\n")
        return False

    def reserve(self, uid: int, size: int) -> int:
        """Room for a body of `size` bytes until its request is answered; raises HTTPProblem where there is none."""
        with self._changed:
            of_user, in_all = self._bodies.get(uid, 0), sum(self._bodies.values())
            if of_user + size > MAX_BODIES_PER_USER or in_all + size > MAX_BODIES:
                raise HTTPProblem(503, "too many large requests are being served", {"Retry-After": "1"}, close=True)
            self._bodies[uid] = of_user + size
        return size

    def release(self, uid: int, size: int) -> None:
        if size:
            with self._changed:
                self._bodies[uid] -= size
                if not self._bodies[uid]:
                    del self._bodies[uid]

    def shutdown_request(self, request):
        with self._changed:
            self._connections.pop(request, None)
            self._changed.notify_all()
        request.close()

    def busy(self, connection):
        with self._changed:
            self._connections[connection][1] = _SERVING

    def idle(self, connection):
        with self._changed:
            self._connections[connection][1] = _IDLE
            self._changed.notify_all()

    def handle_error(self, request, client_address):
        log.exception("a request ended in an error of ours")
        with suppress(OSError):
            request.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def stop_accepting(self) -> None:
        """Take no more connections and end those on which nothing is asked. Returns when that is so.

        Who was let in a moment ago has FRESH_SECONDS to say what for; the next service could not hear it."""
        self.stopping.set()
        self.shutdown()
        with self._changed:
            self._changed.wait_for(lambda: _FRESH not in (state for _, state in self._connections.values()),
                                   FRESH_SECONDS)
            for connection, (_, state) in self._connections.items():
                if state != _SERVING:
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_RD)

    def drain(self, seconds: float) -> bool:
        """Wait until the requests that have begun are answered; False if `seconds` were too few."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._connections, seconds)


def listen(path: os.PathLike) -> socket.socket:
    """A listening socket at `path`, for a service started by hand.

    A socket that is left over is replaced; one on which somebody answers raises OSError (EADDRINUSE).
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(2)
            probe.connect(os.fspath(path))
        listener.close()
        raise OSError(errno.EADDRINUSE, "another process answers on the socket", os.fspath(path))
    except FileNotFoundError:
        pass
    except ConnectionRefusedError:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            listener.close()
            raise OSError(errno.ENOTSOCK, "something that is no socket is there", os.fspath(path)) from None
        os.unlink(path)
    listener.bind(os.fspath(path))
    os.chmod(path, 0o660)
    # A client with a timeout does not wait for room in the backlog: its connect(2) fails at once with EAGAIN.
    listener.listen(4096)
    return listener


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: os.PathLike, timeout: float):
        super().__init__("localhost", timeout=timeout)
        self._path = os.fspath(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(self._path)
        except BaseException:
            self.sock.close()
            raise


def request(socket_path: os.PathLike, method: str, path: str, body: bytes = b"", headers: dict | None = None,
            timeout: float = 10) -> tuple:
    """One request: `(status, headers, body)`. Raises OSError where there was no whole answer."""
    connection = _Connection(socket_path, timeout)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    except http.client.HTTPException as error:
        raise ConnectionError(f"no HTTP answer on {socket_path}: {error!r}") from error
    finally:
        connection.close()
