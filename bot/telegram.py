"""The Telegram Bot API over HTTPS, on connections that are kept open.

Every call ends in a result or in one of two errors: TelegramError is Telegram's own answer, TelegramUnreachable
says that there was none, and whether the request may have been carried out all the same. The token is part of
each URL, so no URL and no exception that holds one leaves this module.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
import urllib.parse
from contextlib import suppress

from bot.connections import WRONG_LOGIN, Opener
from common import bounded_json, multipart

ANSWER_SECONDS = 30  # without a byte
CALL_SECONDS, FLOOR_BYTES = 60, 32 << 10  # the deadline of a call: so long, and a second more for so many bytes
LONGEST_REST_SECONDS = 86400
IDLE_SECONDS = 50
MAX_ANSWER_BYTES, MAX_ANSWER_ITEMS = 1 << 20, 50_000  # a message with 100 entities, and one it replies to, are 64 KiB
# 100 updates, each with 100 entities, and as many in what it replies to, take 200,000.
MAX_UPDATES_BYTES, MAX_UPDATES_ITEMS = 16 << 20, 500_000
# All of a description: in others Telegram quotes what a user has sent, such as the URL of a button.
_TOO_MANY = re.compile(r'(?:Bad Request: (?:failed to send message #\d+ with the error message ")?)?'
                       r'Too Many Requests: retry after (\d{1,9})"?')


class TelegramError(Exception):
    """Telegram answered and said no. `code` is its error_code; `retry_after` (seconds) and `migrate_to` (chat id)
    are from ResponseParameters, or None."""

    def __init__(self, code: int, description: str, retry_after: int | None = None, migrate_to: int | None = None):
        super().__init__(f"{code} {description}")
        self.code = code
        self.description = description
        self.retry_after = retry_after
        self.migrate_to = migrate_to


class TelegramUnreachable(Exception):
    """There was no answer of Telegram's. `unknown`: the request may have been carried out."""

    def __init__(self, reason: str, unknown: bool):
        super().__init__(reason)
        self.unknown = unknown


def call_seconds(size: int) -> float:
    """Seconds that a call may take whose request has `size` bytes."""
    return CALL_SECONDS + size / FLOOR_BYTES


class TelegramAPI:
    """Calls methods for one bot. Thread-safe; a call has a connection to itself while it lasts. Raises Problem for an
    address, or a proxy of the environment, that cannot be one."""

    def __init__(self, token: str, base_url: str):
        url = urllib.parse.urlsplit(base_url)
        host = url.netloc.rpartition("@")[2]
        self._host = host if host.isascii() else host.encode("idna").decode()
        self._path = f"{url.path}/bot{token}/"
        self._opener = Opener(f"{url.scheme}://{self._host}/")
        self._lock = threading.Lock()
        self._idle: list[tuple] = []  # since when (monotonic), the connection
        self._in_use: set = set()
        self._closed = False
        self.succeeded_at = float("-inf")  # monotonic, the latest of all calls

    def call(self, method: str, params: dict | None = None, files: dict | None = None,
             timeout: float | None = None):
        """The `result` of a Bot API method. `files` is `{parameter: (filename, bytes or open file)}`. Without a
        `timeout` each byte is waited for ANSWER_SECONDS. The whole call has a deadline by its size, see `call_seconds`,
        and fails at it, however steadily the bytes trickle.

        Raises OSError where a file cannot be read."""
        if files:
            body, headers = multipart.pack(params or {}, files)
        else:
            body = json.dumps(params or {}).encode()
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        connection = self._take(ANSWER_SECONDS if timeout is None else timeout)
        connection.deadline = time.monotonic() + (timeout or 0) + call_seconds(int(headers["Content-Length"]))
        try:
            status, headers, data = self._exchange(connection, method, body, headers)
        except BaseException:
            self._drop(connection)
            raise
        self._give_back(connection)
        result = _result(status, headers, data, *_bounds(method))
        self.succeeded_at = time.monotonic()
        return result

    def close(self) -> None:
        """End every connection; calls in flight fail with TelegramUnreachable, later ones too."""
        with self._lock:
            self._closed = True
            connections = [connection for _, connection in self._idle] + list(self._in_use)
            self._idle.clear()
        for connection in connections:
            sock = connection.sock
            if sock is not None:
                with suppress(OSError):
                    sock.shutdown(2)

    def _exchange(self, connection, method: str, body, headers: dict) -> tuple:
        try:
            if connection.sock is None:
                connection.connect()
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            raise TelegramUnreachable(f"cannot connect: {_reason(error)}", unknown=False) from None
        try:
            written = False
            # A front end that refuses a large body answers and closes while it is still being written.
            with suppress(BrokenPipeError, ConnectionResetError):
                self._write(connection, method, body, headers)
                written = True
            response = connection.response("POST")
            data = response.read(_bounds(method)[0])
            if response.length or (response.chunked and not response.isclosed()):
                raise http.client.IncompleteRead(b"")
            # A proxy of HTTP may close without saying so, and whatever comes later would have an unknown fate.
            if response.will_close or not written or connection.prefix:
                connection.close()
            return response.status, response.headers, data
        except (OSError, http.client.HTTPException) as error:
            raise TelegramUnreachable(f"no answer to {method}: {_reason(error)}", unknown=True) from None

    def _write(self, connection, method: str, body, headers: dict) -> None:
        """The request; one without a file in one write, where http.client has one for the head and one for the body."""
        lines = [f"POST {connection.prefix}{self._path}{method} HTTP/1.1", f"Host: {self._host}",
                 *(f"{name}: {value}" for name, value in (headers | connection.headers).items())]
        head = "\r\n".join(lines).encode("ascii") + b"\r\n\r\n"
        if isinstance(body, bytes):
            connection.write(head + body)
            return
        connection.write(head)
        for chunk in body:
            connection.write(chunk)

    def _take(self, timeout: float):
        with self._lock:
            if self._closed:
                raise TelegramUnreachable("shutting down", unknown=False)
            while self._idle:
                since, connection = self._idle.pop()
                if time.monotonic() - since < IDLE_SECONDS and not connection.is_closed_by_peer():
                    break
                connection.close()
            else:
                connection = self._opener.connection()
            self._in_use.add(connection)
        connection.timeout = timeout
        return connection

    def _give_back(self, connection) -> None:
        with self._lock:
            self._in_use.discard(connection)
            if connection.sock is not None and not self._closed:
                self._idle.append((time.monotonic(), connection))
                return
        connection.close()

    def _drop(self, connection) -> None:
        with self._lock:
            self._in_use.discard(connection)
        connection.close()


def _reason(error: BaseException) -> str:
    # Only the kind and the system's own text: an HTTPException may quote the request line.
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return type(error).__name__


def _bounds(method: str) -> tuple[int, int]:
    """Bytes and items of an answer. One poll is in flight at a time, other calls are many."""
    return (MAX_UPDATES_BYTES, MAX_UPDATES_ITEMS) if method == "getUpdates" else (MAX_ANSWER_BYTES, MAX_ANSWER_ITEMS)


def _result(status: int, headers, data: bytes, most_bytes: int = MAX_ANSWER_BYTES, most_items: int = MAX_ANSWER_ITEMS):
    try:
        answer = bounded_json.loads(data, most_bytes, most_items)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("ok"), bool):
        if status == 407:
            raise TelegramUnreachable(WRONG_LOGIN, unknown=False)
        if status == 413:
            raise TelegramError(413, "Request Entity Too Large")
        # A front end spoke, not the Bot API; whether the request got past it cannot be known (RFC 9110, 15.6).
        raise TelegramUnreachable(f"HTTP {status} that is not of the Bot API", unknown=True)
    if answer["ok"]:
        return answer.get("result")
    raise _error(status, headers, answer)


def _error(status: int, headers, answer: dict) -> Exception:
    code, parameters = answer.get("error_code"), answer.get("parameters")
    code = code if type(code) is int else status
    description = str(answer.get("description", ""))
    if code >= 500:
        return TelegramUnreachable(f"{code} {description}", unknown=True)
    parameters = parameters if isinstance(parameters, dict) else {}
    retry_after = _whole(parameters.get("retry_after")) or _whole(headers.get("Retry-After"))
    if retry_after is None and (words := _TOO_MANY.fullmatch(description)):
        retry_after = int(words[1])  # a limit met by a single upload comes as 400 with the words of a 429
    if code == 429 or retry_after is not None:
        retry_after = min(max(retry_after or 1, 1), LONGEST_REST_SECONDS)
    return TelegramError(code, description, retry_after, _whole(parameters.get("migrate_to_chat_id")))


def _whole(value) -> int | None:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < 1 << 63 else None
