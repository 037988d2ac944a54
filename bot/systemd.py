"""Interface to systemd: sockets, credentials, readiness, the watchdog.

Sources: sd_listen_fds(3), sd_notify(3), systemd.exec(5) on credentials.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from pathlib import Path

from common.problem import Problem

LISTEN_FDS_START = 3


def bot_token(environment) -> str:
    """The token: the credential `telegram-bot-token` first, then TELEGRAM_BOT_TOKEN.

    It is taken out of the environment, so that no child inherits it. Raises Problem where there is
    none or it cannot be one; the message never holds it.
    """
    from_environment = environment.pop("TELEGRAM_BOT_TOKEN", "")
    # The unit's credential is blank where its file is missing.
    token = (credential("telegram-bot-token", environment) or "").strip() or from_environment.strip()
    if not token:
        raise Problem(
            500, "no bot token: put the token that @BotFather gave you into /etc/notify-bot/telegram-bot-token "
            "(mode 0600), or set TELEGRAM_BOT_TOKEN in /etc/notify-bot/notify-bot.env; "
            "then: systemctl restart notify-bot.service"
        )
    if not re.fullmatch(r"[0-9]{1,20}:[A-Za-z0-9_-]{1,200}", token):
        raise Problem(500, "the bot token is not of the form 123456:ABC-… that @BotFather gives")
    return token


def credential(name: str, environment=os.environ) -> str | None:
    """The text of a systemd credential, None where the unit has none of that name."""
    directory = environment.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return None
    try:
        return Path(directory, name).read_text()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(500, f"the credential {name} cannot be read: {error}") from None


def listen_sockets() -> dict[str, socket.socket]:
    """The listening sockets systemd passed to this process, by FileDescriptorName; empty when there are none."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    sockets = {}
    for index in range(int(count)):
        descriptor = LISTEN_FDS_START + index
        os.set_inheritable(descriptor, False)
        name = names[index] if index < len(names) and names[index] else f"socket{index}"
        sockets[name] = socket.socket(fileno=descriptor)
    return sockets


def sd_notify(state: str) -> None:
    """Tell the manager `state` (`READY=1`, `STATUS=…`, several joined by newlines); nothing without one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        try:
            manager.sendto(state.encode(), address)
        except OSError as error:
            logging.getLogger("service").warning("systemd cannot be notified: %s", error)


def watchdog_seconds() -> float | None:
    """Half the interval within which the manager wants WATCHDOG=1, None when it does not watch."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 2_000_000
