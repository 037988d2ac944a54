"""HTTP/1.1 server over AF_UNIX that knows who calls, and bounds connections, bodies and the time of a request.

A connection has a thread for itself, and both are bounded: so many in all, so many for one user, so long for a
request to arrive. A client that trickles its bytes holds its own connection until the deadline and nothing else.
"""

from __future__ import annotations

import errno
import functools
import http.server
import io
import json
import logging
import os
import pwd
import select
import socket
import stat
import struct
import threading
import time
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus

from bot import http_request
from bot.limits import Limiter
from bot.refusals import Refusals
from bot.workers import Workers
from common import bounded_json
from common.problem import Problem

log = logging.getLogger("http")

MAX_CONNECTIONS = 512
MAX_CONNECTIONS_PER_USER = 32
FIRST_CONNECTIONS = 64  # the last of all, for users who have none, root and the service's own account
ROOT_CONNECTIONS = 16  # the last of these, for root and the service's own account
FREE_BODY_BYTES = 64 << 10
MAX_BODIES_PER_USER = 2 << 20
MAX_BODIES = 8 << 20
MAX_JSON_ITEMS = 10_000
HEADER_SECONDS = 10
BODY_SECONDS = 60
IDLE_SECONDS = 60
ANSWER_SECONDS = 10
LINGER_SECONDS = 2
FRESH_SECONDS = 1
ROUND_SECONDS = 0.5
KEPT_THREADS = 8  # for the next connections; the others end with theirs
SO_PEERGROUPS = 59  # <asm-generic/socket.h>; the socket module has no name for it

# JSON may take thirty times its size while it is an object, so few are parsed at a time.
_ENCODER = json.JSONEncoder(ensure_ascii=False)
_PARSING = threading.Semaphore(2)
_NO_ROOM_BODY = b'{"ok": false, "error": "too many connections are open"}\n'
_NO_ROOM = (b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(_NO_ROOM_BODY) + _NO_ROOM_BODY)
_OUR_ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_FRESH, _SERVING, _IDLE = "fresh", "serving", "idle"


@functools.lru_cache(maxsize=1)
def _date(seconds: int) -> str:
    """The Date of an answer (RFC 9110, 5.6.7)."""
    return formatdate(seconds, usegmt=True)


class Peer:
    """The peer of a connection, as the kernel recorded it at connect(2) (unix(7))."""

    __slots__ = ("pid", "uid", "gid", "groups", "_name")

    def __init__(self, connection: socket.socket):
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid, self.uid, self.gid = struct.unpack("3i", credentials)
        self.groups = {self.gid, *_peer_groups(connection)}
        self._name: str | None = None

    def name(self) -> str | None:
        """The login of the uid; None where it has none."""
        if self._name is None:
            with suppress(KeyError):
                self._name = pwd.getpwuid(self.uid).pw_name
        return self._name


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


class _Reader(io.RawIOBase):
    """The bytes of a connection, until a deadline."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._deadline = 0.0

    def expect(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection. A subclass has `routes`: `{path: {method: function(self)}}`, where a function answers
    with `self.answer` or raises Problem, and reads its body with `self.body` or `self.body_chunks`. HEAD is
    answered where GET is. Names in `self.headers` are in lower case; `self.length` is None for a chunked body."""

    protocol_version = "HTTP/1.1"
    routes: dict = {}

    @property
    def service(self):
        """The service behind the API."""
        return self.server.service

    def setup(self):
        self.connection = self.request
        self.peer = self.client_address
        self._reader = _Reader(self.connection)
        self.rfile = io.BufferedReader(self._reader, 16384)
        self.unread, self.command, self.request_version = 0, None, self.protocol_version
        self._reserved = 0

    def finish(self):
        """Close so that a client still sending gets to read its answer: closing at once would reset it."""
        if not self.unread:
            return
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self._reader.expect(LINGER_SECONDS)
            while self._reader.readinto(bytearray(FREE_BODY_BYTES)):
                pass

    def handle(self):
        self.close_connection = False
        try:
            # A connection accepted before the end gets one answer.
            while True:
                self.handle_one_request()
                if self.close_connection or self.server.stopping.is_set():
                    break
        except OSError as error:
            log.debug("connection of uid %d ended: %r", self.peer.uid, error)

    def handle_one_request(self):
        self.close_connection = True  # until a whole request has been understood
        self.unread, self.command = 0, None
        self._reader.expect(IDLE_SECONDS)
        # One empty line may come before a request (RFC 9112, 2.2).
        blank = self.rfile.read(2) if self.rfile.peek(1)[:1] == b"\r" else b""
        if not self.rfile.peek(1):
            return
        self.server.busy(self.connection)
        try:
            self._reader.expect(HEADER_SECONDS)
            if blank not in (b"", b"\r\n"):
                raise Problem(400, "a line does not end with CR and LF", close=True)
            self._serve()
        except Problem as problem:
            self.unread = self.unread or problem.close
            self.problem(problem.status, str(problem), problem.headers, problem.close)
        except TimeoutError:
            self.problem(408, "the request did not arrive in time", close=True)
        finally:
            self.server.idle(self.connection)

    def _serve(self):
        head = http_request.read_head(self.rfile)
        self.command, self.path, self.request_version, self.headers, self.length = head
        connection = {part.strip().lower() for part in self.headers.get("connection", "").split(",")}
        self.close_connection = "close" in connection or (head.version == "HTTP/1.0" and "keep-alive" not in connection)
        self.unread = 1 if head.length is None else head.length
        try:
            self._check_head()
            self._route()(self)
        finally:
            self.release_body()

    def _check_head(self) -> None:
        expected = self.headers.get("expect", "").lower()
        if expected not in ("", "100-continue"):
            raise Problem(417, "nothing but 100-continue can be expected here", close=True)
        self._expects_continue = expected != "" and self.request_version != "HTTP/1.0"
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise Problem(415, "send the body as it is, without a Content-Encoding",
                              {"Accept-Encoding": "identity"}, close=True)

    def _route(self):
        path = self.path.partition("?")[0]
        methods = self.routes.get(path)
        if methods is None:
            raise Problem(404, f"there is no {path[:80]} here, only {', '.join(self.routes)}")
        method = "GET" if self.command == "HEAD" else self.command
        if method not in methods:
            allowed = [*methods, "HEAD"] if "GET" in methods else methods
            raise Problem(405, f"{path} takes {' and '.join(allowed)}", {"Allow": ", ".join(allowed)})
        return methods[method]

    def body(self, limit: int) -> bytearray:
        """The whole body, in memory, which is bounded for each user and in all; 503 where there is no room.

        The room is kept until `release_body`, or the answer."""
        data = bytearray()
        for piece in self.body_chunks(limit):
            data += piece
            if len(data) > FREE_BODY_BYTES and not self._reserved:
                self._reserved = self.server.reserve(self.peer.uid, limit if self.length is None else self.length)
        return data

    def release_body(self) -> None:
        """Give the room of the body back: nothing refers to it, or to what was read from it, any more."""
        self.server.release(self.peer.uid, self._reserved)
        self._reserved = 0

    def body_chunks(self, limit: int):
        """The body in pieces, none of them over 64 KiB; 413 over `limit`, before a byte of it is read where that can
        be known."""
        if self.length is not None and self.length > limit:
            raise Problem(413, f"the body is over {limit} bytes", close=True)
        if self._expects_continue and self.unread:
            self.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._reader.expect(BODY_SECONDS)
        if self.length is None:
            yield from http_request.read_chunks(self.rfile, limit)
        else:
            yield from http_request.read_exactly(self.rfile, self.length)
        self.unread = 0

    def json_object(self, limit: int) -> dict:
        """The JSON object that the body is; 400 where it is none."""
        # What clients say by default, such as curl with --data, is let pass.
        kind = self.headers.get("content-type", "").lower()
        if kind.startswith(("multipart/", "image/")):
            raise Problem(415, f"{self.path[:80]} takes JSON, not {kind.partition(';')[0][:80]}")
        data = self.body(limit)
        try:
            with _PARSING:
                document = bounded_json.loads(data, limit, MAX_JSON_ITEMS)
        except ValueError as error:
            raise Problem(400, f"the body is not JSON: {error}") from None
        if not isinstance(document, dict):
            raise Problem(400, "the body is not a JSON object")
        return document

    def answer(self, status: int, body: dict | bytes, headers: dict | None = None,
               content_type: str = "application/json"):
        """Answer in one write. A body that was not read ends the connection."""
        data = body if isinstance(body, bytes) else _ENCODER.encode(body).encode() + b"\n"
        if self.unread or self.server.stopping.is_set():
            self.close_connection = True
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Date: {_date(int(time.time()))}",
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
        self.server.refusals.note(self.peer.uid, f"{status} {message}")
        self.answer(status, {"ok": False, "error": message}, headers)


class Server:
    """Serves a listening AF_UNIX socket that somebody else made. `service` is for the handlers.

    `beat` is the monotonic time at which the accepting loop last came round.
    """

    max_connections = MAX_CONNECTIONS
    max_connections_per_user = MAX_CONNECTIONS_PER_USER
    first_connections, root_connections = FIRST_CONNECTIONS, ROOT_CONNECTIONS

    def __init__(self, listener: socket.socket, handler: type, service):
        self.service = service
        self.stopping = threading.Event()
        self.beat = time.monotonic()
        self.refusals = Refusals()
        self._listener, self._handler = listener, handler
        self._workers = Workers("http", self._serve, KEPT_THREADS)
        self._wakes, self._has_ended = os.eventfd(0, os.EFD_CLOEXEC), False
        self._changed = threading.Condition()
        self._bodies = Limiter(MAX_BODIES_PER_USER, MAX_BODIES)
        self._connections: dict[socket.socket, list] = {}  # [peer, state]

    def run(self) -> None:
        """Accept connections until `stop_accepting`."""
        ready = select.poll()
        ready.register(self._listener, select.POLLIN)
        ready.register(self._wakes, select.POLLIN)
        while not self.stopping.is_set():
            self.came_round()
            for descriptor, _ in ready.poll(ROUND_SECONDS * 1000):
                if descriptor == self._listener.fileno():
                    self._accept()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def came_round(self) -> None:
        self.beat = time.monotonic()
        self.refusals.flush()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
            peer = Peer(connection)
        except OSError as error:  # no descriptor is left, and one may be in a while
            log.error("no connection can be accepted: %s", error.strerror)
            self.stopping.wait(ROUND_SECONDS)
            return
        with self._changed:
            of_user = sum(1 for other, _ in self._connections.values() if other.uid == peer.uid)
            has_room = self._has_room(peer.uid, of_user)
            if has_room:
                self._connections[connection] = [peer, _FRESH]
        if has_room:
            self._workers.give(connection, len(self._connections))
            return
        self.refusals.note(peer.uid, f"503 {of_user} connections are open")
        with connection, suppress(OSError):
            connection.settimeout(0)
            connection.sendall(_NO_ROOM)

    def _has_room(self, uid: int, of_user: int) -> bool:
        left = self.max_connections - len(self._connections)
        if uid in (0, os.geteuid()):
            return left > 0
        if not of_user:
            return left > self.root_connections
        return of_user < self.max_connections_per_user and left > self.first_connections

    def _serve(self, connection: socket.socket) -> None:
        answered = False
        try:
            self._handler(connection, self._connections[connection][0], self)
            answered = True
        finally:
            if not answered:
                with suppress(OSError):
                    connection.sendall(_OUR_ERROR)
            with self._changed:
                del self._connections[connection]
                self._changed.notify_all()
            connection.close()

    def reserve(self, uid: int, size: int) -> int:
        """Room for a body of `size` bytes until its request is answered; raises Problem where there is none."""
        if not self._bodies.take(uid, size):
            raise Problem(503, "too many large requests are being served", {"Retry-After": "1"}, close=True)
        return size

    def release(self, uid: int, size: int) -> None:
        self._bodies.give_back(uid, size)

    def busy(self, connection: socket.socket) -> None:
        with self._changed:
            self._connections[connection][1] = _SERVING

    def idle(self, connection: socket.socket) -> None:
        with self._changed:
            self._connections[connection][1] = _IDLE
            self._changed.notify_all()

    def stop_accepting(self) -> None:
        """Take no more connections and end those on which nothing is asked. Returns when that is so.

        A new connection gets FRESH_SECONDS to send its request, which the next service could not read."""
        self.stopping.set()
        os.eventfd_write(self._wakes, 1)
        with self._changed:
            self._changed.wait_for(lambda: self._has_ended, FRESH_SECONDS)
            self.refusals.flush(0)
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
