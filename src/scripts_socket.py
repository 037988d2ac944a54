"""Asks notify-scripts, which answers as the owner of the scripts on the socket that systemd keeps for them."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import contextmanager
from pathlib import Path

import bounded_json

CONNECT_SECONDS = 10
LIST_SECONDS = 20
RUN_SECONDS = 90  # a script has 60, and its service has to start
MAX_ANSWER_BYTES = 4 << 20  # 1 MiB of output, of which each byte becomes three at most where it is a legal JSON text
MAX_ANSWER_ITEMS = 40_000  # a list has 1001 scripts at the most
MAX_DESCRIPTORS = 2


class ScriptsError(Exception):
    """There was no answer; the message says why, for the person in the chat."""


@contextmanager
def ask(directory: Path, user: str, request: dict, seconds: float):
    """Send `request` to the scripts of `user`; yields the answer and the descriptor of its image, or None.

    The descriptor is closed at the end. Raises ScriptsError.
    """
    descriptors: list[int] = []
    try:
        yield _exchange(directory / f"{user}.sock", request, seconds, descriptors), next(iter(descriptors), None)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


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


def _exchange(path: Path, request: dict, seconds: float, descriptors: list[int]) -> dict:
    deadline = time.monotonic() + seconds
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.settimeout(CONNECT_SECONDS)
            connection.connect(os.fspath(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            data = _line(connection, descriptors, deadline)
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
    return answer


def _line(connection: socket.socket, descriptors: list[int], deadline: float) -> bytes:
    """One line. The deadline is for all of it: whoever answers is not trusted to come to an end."""
    data = bytearray()
    while not data.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        # One more than is wanted: descriptors that do not fit would be closed by the kernel, unseen.
        piece, received, _, _ = socket.recv_fds(connection, 1 << 16, 2, socket.MSG_CMSG_CLOEXEC)
        descriptors += received
        if not piece:
            break
        data += piece
        if len(data) > MAX_ANSWER_BYTES or len(descriptors) > MAX_DESCRIPTORS:
            raise ValueError("the answer is too long")
    return bytes(data)
