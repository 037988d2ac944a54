"""HTTP client for unix sockets: one request and its answer on a connection (RFC 9112).

Importing http.client would take a third of the time of a request to the link page. The requests are HTTP/1.0, which
no server may answer in chunks or with an interim answer.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

MAX_BYTES = 1 << 20


def request(socket_path: str | os.PathLike, method: str, path: str, body=b"", headers: dict | None = None,
            seconds: float = 10, max_bytes: int = MAX_BYTES) -> tuple[int, dict[str, str], bytes]:
    """The answer: status, headers with names in lower case, body.

    `body` is bytes, or an iterable of bytes with its Content-Length in `headers`. `seconds` is the time for each write
    and for the whole answer; a small body is written at once, so it is the deadline of the exchange. `max_bytes` limits
    the answer with its head. Raises OSError (FileNotFoundError, TimeoutError, ...) where there is no whole answer,
    ConnectionError where it is cut off, too long or not HTTP.
    """
    is_bytes = isinstance(body, bytes)
    fields = {"Host": "localhost"} | ({"Content-Length": len(body)} if is_bytes else {}) | (headers or {})
    lines = [f"{method} {path} HTTP/1.0", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    head = "\r\n".join(lines).encode("latin-1", "replace")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        connection.connect(os.fspath(socket_path))
        # A server that refuses a large body early has answered and closed.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(head + body if is_bytes else head)
            for piece in () if is_bytes else body:
                connection.sendall(piece)
        return _Answer(connection, time.monotonic() + seconds, max_bytes).read()


class _Answer:
    """An answer as it arrives: `data` is what was received so far."""

    def __init__(self, connection: socket.socket, deadline: float, max_bytes: int):
        self._connection, self._deadline, self._max_bytes = connection, deadline, max_bytes
        self._data = bytearray()

    def read(self) -> tuple[int, dict[str, str], bytes]:
        """Read a head, and a body of its Content-Length or up to the end of the connection."""
        while b"\r\n\r\n" not in self._data:
            self._receive(required=True)
        start = self._data.index(b"\r\n\r\n") + 4
        status, headers = _head(self._data[:start - 4].decode("latin-1"))
        length = headers.get("content-length")
        if length is None:
            while self._receive():
                pass
            return status, headers, bytes(self._data[start:])
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise ConnectionError(f"the answer has a Content-Length of {length[:40]!r}")
        end = start + int(length)
        while len(self._data) < end:
            self._receive(required=True)
        return status, headers, bytes(self._data[start:end])

    def _receive(self, required: bool = False) -> bool:
        """Wait for more data; False at the end of the connection, ConnectionError where more is `required`."""
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("timed out")
        self._connection.settimeout(seconds)
        piece = self._connection.recv(1 << 16)
        if required and not piece:
            raise ConnectionError("the answer is cut off")
        self._data += piece
        if len(self._data) > self._max_bytes:
            raise ConnectionError(f"the answer is over {self._max_bytes} bytes")
        return bool(piece)


def _head(text: str) -> tuple[int, dict[str, str]]:
    """The status and the headers of an answer. Raises ConnectionError."""
    status_line, *lines = text.split("\r\n")
    words = status_line.split(" ", 2)
    if not status_line.startswith("HTTP/1.") or len(words) < 2 or not (words[1].isascii() and words[1].isdigit()):
        raise ConnectionError(f"the answer is not HTTP: {status_line[:40]!r}")
    fields = (line.partition(":") for line in lines)
    return int(words[1]), {name.strip().lower(): value.strip() for name, _, value in fields}
