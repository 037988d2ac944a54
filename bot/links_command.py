"""`notify-bot links [USER]`, `notify-bot link USER CODE`, `notify-bot unlink USER`: asks the running service.

Its side is linksapi.py. The files of the links are shared with the web server's account, so root does not open them.
"""

from __future__ import annotations

import os

from bot.queue_command import CommandError, ask, report

USAGE = "usage: notify-bot links [USER] | notify-bot link USER CODE | notify-bot unlink USER"


def run(arguments: list[str], socket_path: os.PathLike) -> int:
    """Do what `arguments` say; the exit status."""
    return report(_do, arguments, socket_path)


def _do(arguments: list[str], socket_path: os.PathLike) -> None:
    match arguments:
        case ["links"]:
            _print_all(socket_path)
        case ["links", user]:
            _print(ask(socket_path, "POST", "/links", {"user": user})["links"])
        case ["link", user, code]:
            _link(socket_path, user, code)
        case ["unlink", user]:
            link = ask(socket_path, "POST", "/links/unlink", {"user": user})["link"]
            print(f"{_printable(user)} is not linked any more; it was linked to {_chat(link)}" if link else
                  f"{_printable(user)} was not linked")
        case _:
            raise CommandError(USAGE, os.EX_USAGE)


def _link(socket_path: os.PathLike, user: str, code: str) -> None:
    answer = ask(socket_path, "POST", "/links/link", {"user": user, "code": code})
    print(f"{_printable(user)} is linked to {_chat(answer['link'])}")
    before = answer["before"]
    if before and before["chat_id"] != answer["link"]["chat_id"]:
        print(f"it was linked to {_chat(before)} before")


def _print_all(socket_path: os.PathLike) -> None:
    after, count = "", 0
    while links := ask(socket_path, "POST", "/links", {"after": after})["links"]:
        _print(links)
        after, count = links[-1]["user"], count + len(links)
    print(f"{count} linked")


def _print(links: list[dict]) -> None:
    for link in links:
        print(f"{_printable(link['user'])}  {_chat(link)}  since {_printable(link['linked_at']) or 'an unknown day'}")
        if link["unused"]:
            print(f"    not used: {_printable(link['unused'])}")
        if link["blocked"]:
            print(f"    blocked: {_printable(link['blocked'])}")


def _chat(link: dict) -> str:
    return f"chat {link['chat_id']} {_printable(link['chat'])}".rstrip()


def _printable(text: str) -> str:
    """Without what would steer root's terminal: people choose the names of their chats themselves."""
    return "".join(char if char.isprintable() else "?" for char in text)
