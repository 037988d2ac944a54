#!/usr/bin/python3 -EsS
"""A stand-in for Telegram: the Bot API a bot talks to, and a chat page in the browser to play the person.

    tests/telegram [--port N] [--token T] [--limits telegram|off] [--ready-file F]

The bot's side is `/bot<token>/METHOD`, as on api.telegram.org; `GET /` is the chat page. The rest is for the page
and for tests. It takes JSON or a query, and answers `{"ok": true, …}` or `{"ok": false, "error": "…"}`:

POST /sandbox/chats {"id", "first_name", "username", "type"}
    makes a chat, or renames it: `private` (where the person has not written yet), `group`, `supergroup`
GET /sandbox/chats
    `chats` with their `state`, the `bot` and its `commands`
POST /sandbox/messages {"chat_id", "text"}
    the person writes (in a group `from` is who); a private chat that does not exist is made; gives `message`
GET /sandbox/messages?chat_id=&after=&wait=
    what is new since the `seq` in `after`: `messages` as they stand, `deleted`, `answers` to presses, `actions`,
    and the `seq` to ask with next. Waits up to `wait` seconds for news. Without `chat_id`: in all chats
POST /sandbox/press {"chat_id", "message_id", "data" or "text"}
    presses a button; gives `callback_query_id`
GET /sandbox/files/ID
    the bytes of a photo or document
POST /sandbox/block {"chat_id", "state"}, POST /sandbox/unblock {"chat_id"}
    the bot may not write: `blocked` (when left out), `deactivated`, `kicked`, `new`; it may again
POST /sandbox/migrate {"chat_id", "to"}
    the group becomes the supergroup `to`
POST /sandbox/faults, DELETE /sandbox/faults
    adds a rule (faults.py has the fields), removes all rules
GET /sandbox/stats
    `calls` by method, `refusals` by method and code, `faults` by action, `sent` messages, and `duplicates`: what a
    chat got more than once
POST /sandbox/clock {"advance"}
    puts the clock of the limits and of expiry forward, in seconds
POST /sandbox/revoke
    the token is no longer valid

It listens on the loopback interface only, and neither prints nor logs the token.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import sys
import threading
from pathlib import Path

from telegram.control import Control
from telegram.faults import Faults
from telegram.methods import Methods
from telegram.server import TOKEN, Handler, Server
from telegram.state import State

DEFAULT_TOKEN = "123456789:sandbox-token-which-is-no-secret-00"
EX_USAGE, EX_UNAVAILABLE = 64, 69


class Sandbox:
    """A sandbox in this process: `with Sandbox() as sandbox: … sandbox.url`, or `start()` and `stop()`.

    `limits`: whether the pace is Telegram's. Raises ValueError for an address that is not of the loopback interface,
    OSError where it cannot listen.
    """

    def __init__(self, token: str = DEFAULT_TOKEN, limits: bool = False, port: int = 0, host: str = "127.0.0.1"):
        if not ipaddress.ip_address(host).is_loopback:
            raise ValueError("the sandbox listens on the loopback interface only")
        if not TOKEN.fullmatch(token):
            raise ValueError("a token is <digits>:<letters, digits, _ and ->")
        self.state = State(token)
        self.methods = Methods(self.state, limits)
        self.faults = Faults()
        self.control = Control(self.state, self.faults)
        self.stopping = threading.Event()
        self._server = Server((host, port), Handler)
        self._server.sandbox = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="sandbox")

    @property
    def url(self) -> str:
        """The base URL: TELEGRAM_API_URL for the bot, the chat page for a browser."""
        host, port = self._server.server_address[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End every connection and thread; what is under way is cut off."""
        self.stopping.set()
        self.state.close()
        self._server.shutdown()
        self._thread.join()
        self._server.cut_connections()
        self._server.server_close()

    def __enter__(self) -> Sandbox:
        self.start()
        return self

    def __exit__(self, *exception) -> None:
        self.stop()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(EX_USAGE, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")


def _arguments() -> argparse.Namespace:
    parser = _Parser(prog="tests/telegram", description="A stand-in for Telegram: the Bot API and a chat page.")
    version = Path(__file__).parents[2].joinpath("VERSION").read_text(encoding="ascii").strip()
    parser.add_argument("--version", action="version", version=f"%(prog)s {version}")
    parser.add_argument("--port", type=int, default=0, help="TCP port to listen on (default: a free one)")
    parser.add_argument("--host", default="127.0.0.1", help="loopback address to listen on (default: %(default)s)")
    parser.add_argument("--token", default=os.environ.get("TELEGRAM_BOT_TOKEN", DEFAULT_TOKEN),
                        help=f"the bot's token (default: TELEGRAM_BOT_TOKEN of the environment, else {DEFAULT_TOKEN})")
    parser.add_argument("--limits", choices=("telegram", "off"), default="off",
                        help="keep Telegram's pace: 1 a second in a chat, 30 in all (default: %(default)s)")
    parser.add_argument("--ready-file", type=Path, metavar="F", help="write the base URL there when listening")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # Before any thread, so that all inherit it.
    try:
        sandbox = Sandbox(arguments.token, arguments.limits == "telegram", arguments.port, arguments.host)
    except ValueError as error:
        print(f"tests/telegram: {error}", file=sys.stderr)
        return EX_USAGE
    except (OSError, OverflowError) as error:
        print(f"tests/telegram: cannot listen on port {arguments.port}: {error}", file=sys.stderr)
        return EX_UNAVAILABLE
    with sandbox:
        print(sandbox.url, flush=True)
        if arguments.ready_file:
            partial = arguments.ready_file.with_name(arguments.ready_file.name + ".part")
            partial.write_text(sandbox.url + "\n", encoding="ascii")
            partial.replace(arguments.ready_file)
        signal.sigwait(signals)
    return 0


if __name__ == "__main__":
    sys.exit(main())
