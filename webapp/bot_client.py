"""Asks the bot, over the socket that it keeps for the web server, for what only the bot knows or may do.

The HTTP is spelt out, one request and one answer a connection: http.client would parse it too, but takes a third of
a request's time to load (docs/link_page.md has the figures).
"""

from __future__ import annotations

import json
import os
import socket
import time

from common import bounded_json

MAX_ANSWER = 1 << 20
MAX_ITEMS = 40_000


class BotUnavailable(Exception):
    """The bot does not answer, or not what it should."""


def ask(socket_path: os.PathLike, path: str, body: dict, seconds: float) -> tuple[int, dict, dict]:
    """What the bot answers to a POST within `seconds`: status, headers (names in lower case), JSON object."""
    data = json.dumps(body).encode()
    head = (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n")
    try:
        return _parse(_exchange(os.fspath(socket_path), head.encode() + data, time.monotonic() + seconds))
    except (OSError, ValueError) as error:
        raise BotUnavailable(f"{socket_path}: {error}") from error


def _exchange(path: str, request: bytes, deadline: float) -> bytes:
    """What the other end says until it closes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(deadline - time.monotonic())
        connection.connect(path)
        connection.sendall(request)
        answer = b""
        while len(answer) <= MAX_ANSWER:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            data = connection.recv(1 << 16)
            if not data:
                return answer
            answer += data
    raise ValueError("the answer is too long")


def _parse(answer: bytes) -> tuple[int, dict, dict]:
    """RFC 9112 as our own server writes it. Raises ValueError."""
    head, _, data = answer.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if not status_line.startswith("HTTP/1.") or str(len(data)) != headers.get("content-length"):
        raise ValueError("the answer is not whole")
    document = bounded_json.loads(data, MAX_ANSWER, MAX_ITEMS)
    if not isinstance(document, dict):
        raise ValueError("the answer is no JSON object")
    return int(status_line.split()[1]), headers, document
