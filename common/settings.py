"""Settings of the programs, checked, and their defaults, such as the days that messages are kept; from the environment.

A dataclass would do as well, and takes longer to load than the runner takes to find nothing wrong.
"""

from __future__ import annotations

import functools
import os
import re
from collections import namedtuple
from pathlib import Path

from common.problem import Problem

BOT_SOCKET = "/run/notify-bot/bot.sock"
WEB_SOCKET = "/run/notify-bot/web.sock"
DATA_DIR = "/data/notifications"

BotSettings = namedtuple("BotSettings", "api_url data_dir state_dir bot_socket web_socket has_own_web_socket "
                                        "scripts_dir ws_socket site_name site_url max_age join keep_sent keep_failed")
BotSettings.__doc__ = """The service's: paths; `max_age` in seconds, `join` a bool, the rest in days."""

PageSettings = namedtuple("PageSettings", "data_dir web_socket usernames domains group site_name site_url "
                                          "frame_ancestors")
PageSettings.__doc__ = """The link page's, as the web server sets them; `domains` is a set in lower case."""


def bot_settings(environment) -> BotSettings:
    """Raises Problem for a value that cannot be one."""
    settings = BotSettings(
        api_url=environment.get("TELEGRAM_API_URL", "").rstrip("/") or "https://api.telegram.org",
        data_dir=Path(environment.get("NOTIFY_DATA_DIR") or DATA_DIR),
        state_dir=Path(environment.get("NOTIFY_STATE_DIR") or "/data/notify-bot"),
        bot_socket=Path(environment.get("NOTIFY_BOT_SOCKET") or BOT_SOCKET),
        web_socket=Path(environment.get("NOTIFY_WEB_SOCKET") or WEB_SOCKET),
        has_own_web_socket=bool(environment.get("NOTIFY_WEB_SOCKET")),
        scripts_dir=Path(environment.get("NOTIFY_SCRIPTS_DIR") or "/run/notify-scripts"),
        ws_socket=Path(environment.get("NOTIFY_WS_SOCKET") or "/run/ws-gateway/ws.sock"),
        site_name=environment.get("NOTIFY_SITE_NAME") or os.uname().nodename,
        site_url=environment.get("NOTIFY_SITE_URL", ""),
        max_age=_positive(environment, "NOTIFY_MAX_AGE", "seconds", 86400),
        join=_switch(environment, "NOTIFY_JOIN", True),
        keep_sent=_positive(environment, "NOTIFY_KEEP_SENT", "days", 3),
        keep_failed=_positive(environment, "NOTIFY_KEEP_FAILED", "days", 30))
    if not re.match(r"https?://[^/\s]+", settings.api_url):
        raise Problem(500, "TELEGRAM_API_URL must be an http or https URL without a path")
    return settings


def page_settings(environment) -> PageSettings:
    """From what the web server's configuration sets; names that begin with HTTP_ are never looked at."""
    return PageSettings(
        data_dir=Path(environment.get("NOTIFY_DATA_DIR") or DATA_DIR),
        web_socket=environment.get("NOTIFY_WEB_SOCKET") or WEB_SOCKET,
        usernames=Path(environment.get("NOTIFY_USERNAMES") or "/etc/notify-bot/usernames.json"),
        domains=frozenset(re.split(r"[\s,]+", without_case(environment.get("NOTIFY_SSO_DOMAINS", "")))) - {""},
        group=environment.get("NOTIFY_ANALYST_GROUP") or "dataread",
        site_name=environment.get("NOTIFY_SITE_NAME") or os.uname().nodename,
        site_url=environment.get("NOTIFY_SITE_URL", ""),
        frame_ancestors=environment.get("NOTIFY_FRAME_ANCESTORS") or "'self'")


def runner_socket(environment) -> str:
    """The path of the send API, as the runner finds it."""
    return environment.get("NOTIFY_BOT_SOCKET") or BOT_SOCKET


@functools.cache
def version() -> str:
    """The version of what is installed, as `--version` prints it."""
    return Path(__file__).parents[1].joinpath("VERSION").read_text().strip()


def without_case(text: str) -> str:
    """The text with A to Z as a to z and all else as it is: str.lower makes a plain k of the Kelvin sign."""
    return text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


def _switch(environment, name: str, default: bool) -> bool:
    value = environment.get(name) or str(int(default))
    if value not in ("0", "1"):
        raise Problem(500, f"{name} must be 0 or 1")
    return value == "1"


def _positive(environment, name: str, unit: str, default: int) -> int:
    value = environment.get(name) or str(default)
    if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) > 0):
        raise Problem(500, f"{name} must be a whole number of {unit} over 0")
    return int(value)
