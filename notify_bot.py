#!/usr/bin/python3 -EsS
"""The notification service: takes messages on a unix socket, delivers them to Telegram, answers in the chats.

usage: notify-bot [--verbose]
       notify-bot queue
       notify-bot retry ID|--all
       notify-bot drop ID
       notify-bot links [USER]
       notify-bot link USER CODE
       notify-bot unlink USER
       notify-bot --help | --version

Without a command: the service itself; --verbose logs every request. notify-bot.service starts it. Started by hand it
makes its own sockets, the one for the link page only with NOTIFY_WEB_SOCKET set.

queue lists waiting and failed messages; retry sends failed messages again; drop removes a message. links lists the
linked chats by user; link links an account with the code of a chat; unlink removes a link.

Settings, from the environment: TELEGRAM_BOT_TOKEN or the credential telegram-bot-token, TELEGRAM_API_URL,
NOTIFY_DATA_DIR, NOTIFY_STATE_DIR, NOTIFY_BOT_SOCKET, NOTIFY_WEB_SOCKET, NOTIFY_SCRIPTS_DIR, NOTIFY_WS_SOCKET,
NOTIFY_SITE_NAME, NOTIFY_SITE_URL, NOTIFY_MAX_AGE, NOTIFY_JOIN, NOTIFY_KEEP_SENT, NOTIFY_KEEP_FAILED.
See notify-bot(8).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

from bot import http_server, systemd
from bot.outbox import OutboxError
from bot.service import Service, check_folders
from common.log import set_up_log
from common.problem import Problem
from common.settings import BotSettings, bot_settings, version

log = logging.getLogger("notify-bot")


def _listeners(settings: BotSettings) -> dict:
    """The sockets `send-api` and `web`: those that systemd passed, one of them or both; by hand, new ones."""
    sockets = systemd.listen_sockets()
    if not sockets:
        sockets["send-api"] = http_server.listen(settings.bot_socket)
        if settings.has_own_web_socket:
            sockets["web"] = http_server.listen(settings.web_socket)
    # That for the page has its own name, and the other one may have any.
    others = sorted(sockets.keys() - {"web"})
    if len(others) > 1:
        raise Problem(500, f"systemd passed the sockets {', '.join(others)}; this service takes one, "
                                         "and one for the link page with FileDescriptorName=web")
    return {"web" if name == "web" else "send-api": listener for name, listener in sockets.items()}


def _serve(verbose: bool) -> int:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    settings = bot_settings(os.environ)
    token = systemd.bot_token(os.environ)
    check_folders(settings)
    set_up_log(settings.data_dir / "bot.log", (token,), verbose)
    listeners = _listeners(settings)
    bot = Service(settings, token, listeners)
    bot.start()
    systemd.sd_notify("READY=1")
    log.info("notify-bot %s serves %s", version(),
             ", ".join(sorted(listener.getsockname() for listener in listeners.values())))
    bot.watch(stop)
    systemd.sd_notify("STOPPING=1")
    log.info("stopping; what is queued stays on disk")
    bot.stop()
    return 0


def main(arguments: list[str]) -> int:
    # By hand: argparse would be a tenth of the time the service takes to start.
    if "--help" in arguments or "-h" in arguments:
        print(__doc__.strip())
        return 0
    if "--version" in arguments:
        print(f"notify-bot {version()}")
        return 0
    if arguments and arguments[0] in ("queue", "retry", "drop", "links", "link", "unlink"):
        from bot import commands
        return commands.run(arguments, bot_settings(os.environ).bot_socket)
    if unknown := set(arguments) - {"--verbose"}:
        print(f"notify-bot: {min(unknown)} is neither an option nor a command; see --help", file=sys.stderr)
        return os.EX_USAGE
    set_up_log()
    try:
        return _serve("--verbose" in arguments)
    except OutboxError as error:
        log.critical("%s", error)
        return os.EX_CANTCREAT
    except Problem as problem:
        log.critical("%s", problem)
        return os.EX_CONFIG
    except OSError as error:
        log.critical("cannot start: %s", error)
        return os.EX_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
