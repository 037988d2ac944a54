"""HTTP client for unix sockets: one request and its answer on a connection (RFC 9112).

Importing http.client would take a third of the time of a request to the link page.
"""

from __future__ import annotations

import os
import re
import socket
import time
from contextlib import suppress

MAX_BYTES = 1 << 20


def request(socket_path: str | os.PathLike, method: str, path: str, body=b"", headers: dict | None = None,
            seconds: float = 10, max_bytes: int = MAX_BYTES) -> tuple[int, dict[str, str], bytes]:
    """The answer: status, headers with names in lower case, body.

    `body` is bytes, or an iterable of bytes with its Content-Length in `headers`. `seconds` is the time for each write
    and for the whole answer; a small body is written at once, so it is the deadline of the exchange. `max_bytes` limits
    the answer with its head. The body of an answer in chunks stays as it came. Raises OSError (FileNotFoundError,
    TimeoutError, ...) where there is no whole answer, ConnectionError where it is cut off, too long or not HTTP.
    """
    is_bytes = isinstance(body, bytes)
    fields = {"Host": "localhost", "Connection": "close"} | (headers or {})
    if is_bytes:
        fields["Content-Length"] = len(body)
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    head = "\r\n".join(lines).encode("latin-1", "replace")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        connection.connect(os.fspath(socket_path))
        # A server that refuses a large body early has answered and closed.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(head + body if is_bytes else head)
            for piece in () if is_bytes else body:
                connection.sendall(piece)
        return _answer(_received(connection, time.monotonic() + seconds, max_bytes))


def _received(connection: socket.socket, deadline: float, max_bytes: int):
    """The pieces that arrive until the other side closes."""
    size = 0
    while (seconds := deadline - time.monotonic()) > 0:
        connection.settimeout(seconds)
        piece = connection.recv(1 << 16)
        if not piece:
            return
        size += len(piece)
        if size > max_bytes:
            raise ConnectionError(f"the answer is over {max_bytes} bytes")
        yield piece
    raise TimeoutError("timed out")


def _answer(pieces) -> tuple[int, dict[str, str], bytes]:
    """The answer in pieces: a head, and a body of its Content-Length or up to the last piece."""
    data, start, end, chunked = bytearray(), 0, None, False
    for piece in pieces:
        data += piece
        if not start and b"\r\n\r\n" in data:
            start = data.index(b"\r\n\r\n") + 4
            status, headers, length = _head(data[:start - 4].decode("latin-1"))
            end = None if length is None else start + length
            chunked = "transfer-encoding" in headers
        # Our servers write no chunks; of one that does the status is all that is asked for, so they are not decoded.
        if end is not None and len(data) >= end or chunked and data.endswith(b"\n0\r\n\r\n"):
            break
    else:
        if not start or end is not None:
            raise ConnectionError("the answer is cut off")
    if end is not None and len(data) > end:
        raise ConnectionError("the answer is longer than its Content-Length")
    return status, headers, bytes(data[start:])


def _head(text: str) -> tuple[int, dict[str, str], int | None]:
    """Status, headers, and the length of the body, None where the connection's end ends it. Raises ConnectionError."""
    status_line, *lines = text.split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = re.match("HTTP/1[.][0-9] ([0-9]{3})( |$)", status_line)
    length = headers.get("content-length")
    if not status or length is not None and not re.fullmatch("[0-9]{1,18}", length):
        raise ConnectionError(f"the answer is not HTTP: {text[:80]!r}")
    if status[1] == "204":
        length = 0
    return int(status[1]), headers, None if length is None else int(length)
