"""`notify-bot queue`, `notify-bot retry ID|--all`, `notify-bot drop ID`: asks the running service (queueapi.py).

Socket activation starts a service that is not running, so there is always one to ask, and never two that write.
"""

from __future__ import annotations

import json
import os
import sys
import time

from common import http_client

USAGE = "usage: notify-bot queue | notify-bot retry ID|--all | notify-bot drop ID"
ANSWER_SECONDS = 30
MAX_ANSWER = 64 << 20
_EXIT = {400: os.EX_USAGE, 403: os.EX_NOPERM, 404: os.EX_NOINPUT, 503: os.EX_TEMPFAIL}


class CommandError(Exception):
    """The message for the administrator, and the exit status (sysexits(3))."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def run(arguments: list[str], socket_path: os.PathLike) -> int:
    """Do what `arguments` say; the exit status."""
    return report(_do, arguments, socket_path)


def report(command, arguments: list[str], socket_path: os.PathLike) -> int:
    """Call `command(arguments, socket_path)` and print the CommandError it raises; the exit status."""
    try:
        command(arguments, socket_path)
    except CommandError as error:
        print(f"notify-bot: {error}", file=sys.stderr)
        return error.status
    return os.EX_OK


def _do(arguments: list[str], socket_path: os.PathLike) -> None:
    match arguments:
        case ["queue"]:
            _print_queue(ask(socket_path, "GET", "/queue")["messages"])
        case ["retry", "--all"]:
            print(f"{len(ask(socket_path, 'POST', '/queue/retry', {'all': True})['retried'])} queued again")
        case ["retry", entry_id]:
            ask(socket_path, "POST", "/queue/retry", {"id": entry_id})
            print(f"{entry_id} queued again")
        case ["drop", entry_id]:
            ask(socket_path, "POST", "/queue/drop", {"id": entry_id})
            print(f"{entry_id} dropped")
        case _:
            raise CommandError(USAGE, os.EX_USAGE)


def ask(socket_path: os.PathLike, method: str, path: str, fields: dict | None = None) -> dict:
    """The answer of the running service to root. Raises CommandError."""
    body = json.dumps(fields).encode() if fields else b""
    try:
        status, _, answer = http_client.request(socket_path, method, path, body, seconds=ANSWER_SECONDS,
                                                max_bytes=MAX_ANSWER)
        document = json.loads(answer)
    except PermissionError:
        raise CommandError("this is the administrator's: use sudo", os.EX_NOPERM) from None
    except (OSError, ValueError) as error:
        raise CommandError(f"the service on {socket_path} does not answer ({error}); see systemctl status "
                           "notify-bot.socket notify-bot.service", os.EX_UNAVAILABLE) from None
    if status != 200:
        raise CommandError(str(document.get("error", status)), _EXIT.get(status, os.EX_SOFTWARE))
    return document


def _print_queue(messages: list[dict]) -> None:
    for message in messages:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(message["accepted_at"]))
        whom = message["user"] or f"chat {message['chat_id']}"
        print(f"{message['id']}  {when}  {message['state']}  {whom}  {message['script']}".rstrip())
        if message["reason"]:
            print(f"    {message['reason']}")
    failed = sum(message["state"] == "failed" for message in messages)
    print(f"{len(messages) - failed} queued, {failed} failed")
