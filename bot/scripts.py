"""Asks notify-scripts, which answers as the owner of the scripts on the socket that systemd keeps for them."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import contextmanager
from pathlib import Path

from common import bounded_json

CONNECT_SECONDS = 10
LIST_SECONDS = 20
RUN_SECONDS = 90  # a script has 60, and its service has to start
MAX_ANSWER_BYTES = 4 << 20  # 1 MiB of output, of which each byte becomes three at most where it is a legal JSON text
MAX_ANSWER_ITEMS = 40_000  # a list has 1001 scripts at the most


class ScriptsError(Exception):
    """There was no answer; the message says why, for the person in the chat."""


class Image:
    """The picture that follows an answer: `size` bytes, until the deadline of the answer."""

    def __init__(self, connection: socket.socket, begun: bytes, size: int, deadline: float):
        self._connection, self._begun, self.size, self._deadline = connection, begun, size, deadline

    def copy_to(self, file) -> bool:
        """Write it to a binary file; False where it did not arrive whole and in time."""
        left = self.size - len(self._begun)
        if left < 0:
            return False
        file.write(self._begun)
        while left:
            try:
                piece = _receive(self._connection, min(left, 1 << 16), self._deadline)
            except OSError:
                return False
            if not piece:
                return False
            file.write(piece)
            left -= len(piece)
        return True


@contextmanager
def ask(directory: Path, user: str, request: dict, seconds: float):
    """Send `request` to the scripts of `user`; yields the answer and the Image that follows it, or None.

    Raises ScriptsError.
    """
    deadline = time.monotonic() + seconds
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        answer, begun = _exchange(connection, directory / f"{user}.sock", request, deadline)
        image = answer.get("image")
        size = image.get("size") if isinstance(image, dict) else None
        yield answer, Image(connection, begun, size, deadline) if type(size) is int and size >= 0 else None


def list_scripts(directory: Path, user: str, seconds: float = LIST_SECONDS) -> list[dict]:
    """The scripts of `user`, as `notify-scripts list` has them. Raises ScriptsError."""
    with ask(directory, user, {"do": "list"}, seconds) as (answer, _):
        scripts = checked(answer).get("scripts")
    if not isinstance(scripts, list):
        raise ScriptsError("the answer is not a list")
    return [script for script in scripts if isinstance(script, dict) and isinstance(script.get("name"), str)]


def checked(answer: dict) -> dict:
    """The answer, if it is one to a request that was carried out. Raises ScriptsError with what it says if not."""
    if answer.get("ok") is not True:
        raise ScriptsError(str(answer.get("error") or "the answer is not understood").rstrip("."))
    return answer


def _exchange(connection: socket.socket, path: Path, request: dict, deadline: float) -> tuple[dict, bytes]:
    try:
        connection.settimeout(CONNECT_SECONDS)
        connection.connect(os.fspath(path))
        connection.sendall(json.dumps(request).encode() + b"\n")
        data, rest = _line(connection, deadline)
        answer = bounded_json.loads(data, MAX_ANSWER_BYTES, MAX_ANSWER_ITEMS)
    except (FileNotFoundError, PermissionError, ConnectionRefusedError):
        raise ScriptsError("scripts cannot be reached from the chat: ask your administrator for "
                           "notify-add-analyst") from None
    except TimeoutError:
        raise ScriptsError("there was no answer in time") from None
    except (OSError, ValueError):
        raise ScriptsError("there was no answer; the journal of notify-scripts@ says why") from None
    if not isinstance(answer, dict):
        raise ScriptsError("the answer is not understood")
    return answer, rest


def _line(connection: socket.socket, deadline: float) -> tuple[bytes, bytes]:
    """One line, and what has come behind it. The deadline is for all of it: whoever answers is not trusted to come
    to an end."""
    data = bytearray()
    while b"\n" not in data[-(1 << 16):] and (piece := _receive(connection, 1 << 16, deadline)):
        data += piece
        if len(data) > MAX_ANSWER_BYTES:
            raise ValueError("the answer is too long")
    line, _, rest = data.partition(b"\n")
    return bytes(line), bytes(rest)


def _receive(connection: socket.socket, most: int, deadline: float) -> bytes:
    """recv(2), which drops the descriptors that somebody sends: merely to close one of a file system that does not
    answer would wait for ever. Raises TimeoutError at the deadline."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)
    return connection.recv(most)
