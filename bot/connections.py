"""Connections to Telegram, direct or through a proxy, kept open between calls.

urllib's opener decides the way (`https_proxy`, `no_proxy` and the others of urllib.request.getproxies): a handler in
the place of HTTPHandler and HTTPSHandler gives it a connection instead of an answer. It is asked once a connection, as
an opener asked for each call costs up to 1.7 times the CPU of a call. OpenSSL reads `SSL_CERT_FILE`.
"""

from __future__ import annotations

import errno
import http.client
import io
import re
import select
import socket
import ssl
import time
import urllib.request
from http import HTTPStatus

from common.problem import Problem

CONNECT_SECONDS = 10
WRONG_LOGIN = "the proxy wants another user and password: put the right ones into https_proxy or http_proxy"


class Opener(urllib.request.BaseHandler):
    """Makes connections for the requests to one URL. Raises Problem where it, or its proxy, cannot be one."""

    def __init__(self, url: str):
        self._url = url
        scheme = url.partition(":")[0]
        try:
            _host_and_port(urllib.request.urlparse(url).netloc, True)
        except ValueError:
            raise Problem(500, "TELEGRAM_API_URL has no valid host and port") from None
        self._context = ssl.create_default_context() if scheme == "https" else None
        self._director = urllib.request.OpenerDirector()
        try:
            proxies = urllib.request.getproxies()
            if not re.match("https?://|(?!.*://)", proxies.get(scheme, "")):
                raise ValueError
            for handler in (urllib.request.ProxyHandler(proxies), self):
                self._director.add_handler(handler)
            self.connection()
        except ValueError:  # which may quote the password
            raise Problem(500, f"{scheme}_proxy is not the URL of an HTTP proxy, such as "
                               "http://user:password@proxy.example.com:3128") from None

    def connection(self) -> Connection:
        """A new connection, not yet connected."""
        return self._director.open(urllib.request.Request(self._url))

    def http_open(self, request) -> Connection:
        return Connection(request, None)

    def https_open(self, request) -> Connection:
        return Connection(request, self._context)


class Connection:
    """`prefix` and `headers` are what a proxy wants of each request. `timeout` is the time for each byte, `deadline`
    (monotonic) that of the call."""

    def __init__(self, request: urllib.request.Request, context: ssl.SSLContext | None):
        self._address, self._context = _host_and_port(request.host, bool(context)), context
        self._tunnel = request._tunnel_host and _host_and_port(request._tunnel_host, True)
        self.prefix = ""
        self.headers = {name: value for name, value in request.header_items() if name.lower() == "proxy-authorization"}
        if request.has_proxy() and not self._tunnel:
            url = urllib.request.urlparse(request.full_url)
            self.prefix = f"{url.scheme}://{url.netloc.rpartition('@')[2]}"
        self.sock: socket.socket | None = None
        self.timeout = self.deadline = 0.0

    def connect(self) -> None:
        """Connect within CONNECT_SECONDS. Raises OSError, http.client.HTTPException: no request was sent."""
        timeout, deadline = self.timeout, self.deadline
        self.timeout, self.deadline = CONNECT_SECONDS, time.monotonic() + CONNECT_SECONDS
        try:
            self.sock = socket.create_connection(self._address, CONNECT_SECONDS)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tunnel:
                self._open_tunnel(*self._tunnel)
            if self._context:
                self.limit()
                self.sock = self._context.wrap_socket(self.sock, server_hostname=(self._tunnel or self._address)[0])
        finally:
            self.timeout, self.deadline = timeout, deadline

    def close(self) -> None:
        if self.sock:
            self.sock.close()
            self.sock = None

    def is_closed_by_peer(self) -> bool:
        """True for an idle connection with something to read: the other side has closed it."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self.limit()
            rest = rest[self.sock.send(rest):]

    def response(self, method: str) -> http.client.HTTPResponse:
        """The head of the answer to a request that was written."""
        response = http.client.HTTPResponse(_Answer(self), method=method)
        response.begin()
        return response

    def limit(self) -> None:
        """Let the next read or write take no longer than there is time. Raises TimeoutError."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(errno.ETIMEDOUT, "the call took too long")
        self.sock.settimeout(min(self.timeout, left))

    def _open_tunnel(self, host: str, port: int) -> None:
        """CONNECT (RFC 9110, 9.3.6)."""
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}",
                 *(f"{name}: {value}" for name, value in self.headers.items()), "", ""]
        self.write("\r\n".join(lines).encode("latin-1"))
        status = self.response("CONNECT").status
        self.headers = {}  # which are the proxy's alone
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED):  # tinyproxy has the former
            raise OSError(errno.EACCES, WRONG_LOGIN)
        if status != HTTPStatus.OK:
            raise OSError(errno.ECONNREFUSED, f"the proxy answers {status} to CONNECT")


class _Answer(io.RawIOBase):
    """In the socket's place for http.client: each read keeps the deadline of the call."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def makefile(self, *_):
        return io.BufferedReader(self)

    def readable(self):
        return True

    def readinto(self, buffer):
        self._connection.limit()
        return self._connection.sock.recv_into(buffer)


def _host_and_port(netloc: str, is_https: bool) -> tuple[str, int]:
    """Raises ValueError where there is no host or the port is none."""
    parts = urllib.request.urlparse(f"//{netloc}")
    if not parts.hostname:
        raise ValueError("no host")
    return parts.hostname, parts.port or (443 if is_https else 80)
