"""The administrator's commands of `notify-bot`: queue, retry, drop, links, link, unlink. Each asks the running service.

Socket activation starts a service that is not running, so there is always one to ask, and never two that write. The
files of the links are shared with the web server's account, so root does not open them.
"""

from __future__ import annotations

import json
import os
import sys
import time

from common import http_client
from common.problem import Problem

USAGE = {
    "queue": "usage: notify-bot queue | notify-bot retry ID|--all | notify-bot drop ID",
    "links": "usage: notify-bot links [USER] | notify-bot link USER CODE | notify-bot unlink USER",
}
ANSWER_SECONDS = 30
MAX_ANSWER = 64 << 20
_EXIT = {400: os.EX_USAGE, 403: os.EX_NOPERM, 404: os.EX_NOINPUT, 503: os.EX_TEMPFAIL, 504: os.EX_UNAVAILABLE}


def run(arguments: list[str], socket_path: os.PathLike) -> int:
    """Do what `arguments` say, print what came of it; the exit status (sysexits(3))."""
    try:
        _do(arguments, socket_path)
    except Problem as problem:
        print(f"notify-bot: {problem}", file=sys.stderr)
        return _EXIT.get(problem.status, os.EX_SOFTWARE)
    return os.EX_OK


def _do(arguments: list[str], socket_path: os.PathLike) -> None:
    def ask(path: str, **fields):
        return _ask(socket_path, "POST", path, fields)

    match arguments:
        case ["queue"]:
            _print_queue(_ask(socket_path, "GET", "/queue")["messages"])
        case ["retry", "--all"]:
            print(f"{len(ask('/queue/retry', all=True)['retried'])} queued again")
        case ["retry", entry_id]:
            ask("/queue/retry", id=entry_id)
            print(f"{entry_id} queued again")
        case ["drop", entry_id]:
            ask("/queue/drop", id=entry_id)
            print(f"{entry_id} dropped")
        case ["links"]:
            _print_all_links(ask)
        case ["links", user]:
            _print_links(ask("/links", user=user)["links"])
        case ["link", user, code]:
            _print_linked(user, **ask("/links/link", user=user, code=code))
        case ["unlink", user]:
            link = ask("/links/unlink", user=user)["link"]
            print(f"{_printable(user)} is not linked any more; it was linked to {_chat(link)}" if link else
                  f"{_printable(user)} was not linked")
        case _:
            raise Problem(400, USAGE["queue" if arguments[0] in ("queue", "retry", "drop") else "links"])


def _ask(socket_path: os.PathLike, method: str, path: str, fields: dict | None = None) -> dict:
    """The answer of the running service to root. Raises Problem."""
    body = json.dumps(fields).encode() if fields else b""
    try:
        status, _, answer = http_client.request(socket_path, method, path, body, seconds=ANSWER_SECONDS,
                                                max_bytes=MAX_ANSWER)
        document = json.loads(answer)
    except PermissionError:
        raise Problem(403, "this is the administrator's: use sudo") from None
    except (OSError, ValueError) as error:
        raise Problem(504, f"the service on {socket_path} does not answer ({error}); see systemctl status "
                           "notify-bot.socket notify-bot.service") from None
    if status != 200:
        raise Problem(500 if status == 504 else status, str(document.get("error", status)))
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


def _print_linked(user: str, link: dict, before: dict | None, **_) -> None:
    print(f"{_printable(user)} is linked to {_chat(link)}")
    if before and before["chat_id"] != link["chat_id"]:
        print(f"it was linked to {_chat(before)} before")


def _print_all_links(ask) -> None:
    after, count = "", 0
    while links := ask("/links", after=after)["links"]:
        _print_links(links)
        after, count = links[-1]["user"], count + len(links)
    print(f"{count} linked")


def _print_links(links: list[dict]) -> None:
    for link in links:
        print(f"{_printable(link['user'])}  {_chat(link)}  since {_printable(link['linked_at']) or 'an unknown day'}")
        if link["unused"]:
            print(f"    not used: {_printable(link['unused'])}")
        if link["blocked"]:
            print(f"    blocked: {_printable(link['blocked'])}")


def _chat(link: dict) -> str:
    return f"chat {link['chat_id']} {_printable(link['chat'])}".rstrip()


def _printable(text: str) -> str:
    """Without control characters, which would steer root's terminal: people choose the names of their chats."""
    return "".join(char if char.isprintable() else "?" for char in text)
