"""A request of HTTP/1.1 (RFC 9110, RFC 9112): its head, and its body by length or in chunks.

Each defect ends the connection with 400: what two readers can read in two ways is how one request becomes two.
"""

from __future__ import annotations

import re
from collections import namedtuple

from common.problem import Problem

MAX_REQUEST_LINE = 8 << 10
MAX_HEAD_BYTES = 64 << 10
MAX_HEADER_LINES = 100
MAX_CHUNK_LINE = 256
PIECE_BYTES = 1 << 16

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([!-~]+) HTTP/([0-9])\.([0-9])\r\n")
_HEADER_LINE = re.compile(rb"(" + _TOKEN + rb"):([\t -~\x80-\xff]*)\r\n")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[\t -~\x80-\xff]*)?\r\n")
_ORIGIN = re.compile("https?://[^/?#]+", re.I)
# Twice, they contradict themselves or say nothing more; the others are lists.
_SINGLE = {"content-encoding", "content-length", "content-type", "expect", "host", "idempotency-key",
           "transfer-encoding"}

Request = namedtuple("Request", "method path version headers length")
Request.__doc__ = """`version` as "HTTP/1.1"; `headers` by name in lower case; `length` of the body, None for chunks."""


def read_head(file) -> Request:
    """The head of a request from a binary file. Raises Problem, after which nothing more can be read."""
    line = file.readline(MAX_REQUEST_LINE + 1)
    if len(line) > MAX_REQUEST_LINE:
        raise Problem(414, f"the request line is over {MAX_REQUEST_LINE} bytes", close=True)
    match = _REQUEST_LINE.fullmatch(line)
    if not match:
        raise _defect("the request line is not METHOD TARGET HTTP/1.1")
    method, target, major, minor = (part.decode("ascii") for part in match.groups())
    if major != "1":
        raise Problem(505, f"HTTP/{major}.{minor} is not spoken here, but HTTP/1.1", close=True)
    headers = _headers(file)
    version = "HTTP/1.0" if minor == "0" else "HTTP/1.1"
    if version == "HTTP/1.1" and "host" not in headers:
        raise _defect("Host is missing")
    return Request(method, _path(target), version, headers, _length(method, version, headers))


def _path(target: str) -> str:
    """The path and query of a target, which may be a whole URL."""
    origin = _ORIGIN.match(target)
    if origin:
        target = target[origin.end():]
        target = target if target.startswith("/") else f"/{target}"
    if not target.startswith("/") or "#" in target:
        raise _defect("the target of the request is neither a path nor a URL")
    return target


def _defect(reason: str) -> Problem:
    return Problem(400, reason, close=True)


def _headers(file) -> dict[str, str]:
    headers: dict[str, str] = {}
    left = MAX_HEAD_BYTES
    for _ in range(MAX_HEADER_LINES + 1):
        line = file.readline(left + 1)
        left -= len(line)
        if left < 0:
            break
        if line == b"\r\n":
            return headers
        match = _HEADER_LINE.fullmatch(line)
        if not match:
            raise _defect("a header line is not NAME: VALUE" if line.endswith(b"\n") else "the head has no end")
        name, value = match[1].decode("ascii").lower(), match[2].strip(b" \t").decode("latin-1")
        if name not in headers:
            headers[name] = value
        elif name in _SINGLE:
            raise _defect(f"{match[1].decode('ascii')} is there twice")
        else:
            headers[name] += f", {value}"
    raise Problem(431, f"the head has over {MAX_HEADER_LINES} lines or {MAX_HEAD_BYTES} bytes", close=True)


def _length(method: str, version: str, headers: dict) -> int | None:
    """RFC 9112, section 6."""
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if coding is not None:
        return _chunked(version, coding, length)
    if length is None:
        if method in ("POST", "PUT", "PATCH"):
            raise Problem(411, "send a Content-Length, or the body in chunks", close=True)
        return 0
    if not re.fullmatch("[0-9]{1,18}", length):
        raise _defect("Content-Length is not a number")
    return int(length)


def _chunked(version: str, coding: str, length: str | None) -> None:
    if length is not None:
        raise _defect("Transfer-Encoding beside Content-Length")
    if version == "HTTP/1.0":
        raise _defect("HTTP/1.0 has no Transfer-Encoding")
    *others, last = (part.strip(" \t").lower() for part in coding.split(","))
    if last != "chunked" or "chunked" in others:
        raise _defect("Transfer-Encoding does not end with chunked, or has it twice")
    if others:
        raise Problem(415, "no transfer coding but chunked is known here", close=True)


def read_exactly(file, length: int):
    """`length` bytes in pieces. Raises ConnectionResetError where they end early."""
    while length:
        data = file.read1(min(length, PIECE_BYTES))
        if not data:
            raise ConnectionResetError("the body ended early")
        length -= len(data)
        yield data


def read_chunks(file, limit: int):
    """A chunked body (RFC 9112, 7.1) in pieces; its trailers are dropped. Raises Problem, 413 over `limit`."""
    too_large = Problem(413, f"the body is over {limit} bytes", close=True)
    framing = limit + MAX_HEAD_BYTES  # the bytes around chunks of a byte each are more than these
    size = 1
    while size:
        line = file.readline(MAX_CHUNK_LINE)
        match = _CHUNK_LINE.fullmatch(line)
        if not match:
            raise _defect("a chunk does not begin with its size")
        size = int(match[1], 16)
        limit, framing = limit - size, framing - len(line) - 2
        if limit < 0 or framing < 0:
            raise too_large
        yield from read_exactly(file, size)
        if size and file.read(2) != b"\r\n":
            raise _defect("a chunk is not as long as it says")
    _headers(file)
