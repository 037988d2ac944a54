#!/usr/bin/python3 -EsS
"""The notification service: takes messages on a unix socket, delivers them to Telegram, answers in the chats.

usage: notify-bot [--verbose] [--help] [--version]
       notify-bot queue | notify-bot retry ID|--all | notify-bot drop ID
       notify-bot links [USER] | notify-bot link USER CODE | notify-bot unlink USER

queue lists what waits and what failed; retry sends again what failed; drop removes a message. links lists who is linked
to which chat; link links an account by the code of its chat; unlink takes a link away. Without a command it is the
service itself.

Started by notify-bot.service; by hand it makes its sockets itself, that for the link page only where
NOTIFY_WEB_SOCKET is set. --verbose logs every request.
The rest is its environment: TELEGRAM_BOT_TOKEN or the credential telegram-bot-token, TELEGRAM_API_URL,
NOTIFY_DATA_DIR, NOTIFY_STATE_DIR, NOTIFY_BOT_SOCKET, NOTIFY_WEB_SOCKET, NOTIFY_SCRIPTS_DIR, NOTIFY_WS_SOCKET,
NOTIFY_SITE_NAME, NOTIFY_SITE_URL, NOTIFY_MAX_AGE, NOTIFY_KEEP_SENT, NOTIFY_KEEP_FAILED.
See notify-bot(8).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time

import service
import unixhttp
import webapi
from chat import Chat
from delivery import Delivery
from gateway import Gateway
from invites import Invites
from jsonstore import StoreError
from links import Link, Links
from metrics import Metrics
from outbox import Outbox, OutboxError
from overdue import Overdue
from polling import Poller
from receipt import Outcome
from recipients import Recipients
from replies import Replies
from runs import Runs
from sendapi import Context, SendHandler
from strangers import Strangers
from telegram_api import TelegramAPI

log = logging.getLogger("notify-bot")

EX_USAGE, EX_UNAVAILABLE, EX_CANTCREAT, EX_CONFIG = 64, 69, 73, 78
TICK_SECONDS = 1.0
MAX_WELCOMES = 10  # a second: the web server's account can write any number of links
EXPIRE_SECONDS = 3600
STOP_SECONDS = 8.0  # of the ten within which the service promises to be gone
API_STUCK_SECONDS = 60


class People(Recipients):
    """The people behind the chats: their links, their desktops."""

    def __init__(self, links: Links, gateway: Gateway):
        self._links, self._gateway = links, gateway
        self._lock = threading.Lock()
        self._expired: dict[str, int] = {}

    def chat_of(self, entry: dict) -> int | Outcome:
        user, uid = entry["user"], entry.get("uid")
        try:
            link = self._links.of_user(user)
        except StoreError as error:
            log.error("%s; a message goes where it was to go when it was accepted", error)
            return entry["chat_id"]
        if link is not None and uid not in (None, link.uid):
            return Outcome(404, f"it was for uid {uid}, and the account '{user}' has the uid {link.uid} now")
        if link is None:
            return Outcome(404, f"User '{user}' has no linked Telegram any more")
        if link.blocked:
            return Outcome(409, str(link.blocked))
        return link.chat_id

    def is_linked(self, chat_id: int) -> bool:
        try:
            return self._links.of_chat(chat_id) is not None
        except StoreError:
            return False  # which is said where somebody is answered

    def blocked(self, user: str | None, chat_id: int, reason: str) -> None:
        self._change(chat_id, lambda link: self._links.mark_blocked(link, reason))

    def moved(self, user: str | None, chat_id: int, new_chat_id: int) -> None:
        self._change(chat_id, lambda link: self._links.move_chat(link, new_chat_id))

    def delivered(self, entry: dict) -> None:
        if entry["user"]:
            message = entry["message"]
            self._gateway.dispatch(entry["user"], message.get("title") or "", message.get("text") or "",
                                   str(entry.get("script") or ""))

    def expired(self, user: str) -> None:
        with self._lock:
            self._expired[user] = self._expired.get(user, 0) + 1

    def tell_of_expired(self, chat: Chat) -> None:
        """Say to each user in one line how many of their messages were given up."""
        with self._lock:
            expired, self._expired = self._expired, {}
        for user, count in expired.items():
            try:
                chat.tell_of_expired(self._links.of_user(user), count)
            except (StoreError, OutboxError) as error:
                log.error("%s is not told of %d messages that were given up: %s", user, count, error)

    def _change(self, chat_id: int, change) -> None:
        try:
            link = self._links.of_chat(chat_id)
            if link:
                change(link)
        except StoreError as error:
            log.error("%s", error)


def check_accounts(links: Links, stop: threading.Event) -> None:
    """Go on looking up the accounts of the links until `stop`: in a thread of its own, as a directory may be slow."""
    problem = ""
    while not stop.wait(TICK_SECONDS):
        try:
            links.check_accounts()
            problem = ""
        except StoreError as error:
            if str(error) != problem:
                log.error("%s", error)
            problem = str(error)


class Welcomer:
    """Says hello in the chat of a new link. The web side only writes the file, so it is looked at every second."""

    def __init__(self, links: Links, chat: Chat):
        self._links, self._chat = links, chat
        self._seen: dict[str, Link] | None = None
        self._problem = ""

    def look(self) -> None:
        try:
            self._links.restamp(time.time())
            links = self._links.all()
            if links is self._seen:
                return
            new = self._links.to_welcome(time.time())
            for link in new[:MAX_WELCOMES]:
                log.info("%s is linked to chat %d", link.user, link.chat_id)
                self._chat.welcome(link)
                if link.previous is not None:
                    self._chat.tell_of_move(link)
            if new:
                self._links.mark_welcomed(new[:MAX_WELCOMES], time.time())
            self._seen, self._problem = links if len(new) <= MAX_WELCOMES else None, ""
        except (StoreError, OutboxError) as error:
            if str(error) != self._problem:
                log.error("%s", error)
            self._problem = str(error)


class _Serving:
    """One of the sockets, and the thread that serves it."""

    _KINDS = {"send-api": ("the API", unixhttp.Server, SendHandler),
              "web": ("the page's API", webapi.WebServer, webapi.WebHandler)}

    def __init__(self, name: str, listener, context):
        self.title, server, handler = self._KINDS[name]
        self.server = server(listener, handler, context)
        self.thread = threading.Thread(target=self.server.serve_forever, name=name, daemon=True)

    def is_alive(self) -> bool:
        return self.thread.is_alive() and time.monotonic() - self.server.beat < API_STUCK_SECONDS


class Service:
    """Everything that runs, from `start` to `stop`."""

    def __init__(self, settings: service.Settings, token: str, listeners: dict):
        self._stuck: set[str] = set()
        self._stopping = threading.Event()
        self._housekeeping = [threading.Thread(target=work, name=name, daemon=True) for name, work in (
            ("the look at links", self._look_at_links), ("the outbox's housekeeping", self._keep_outbox),
            ("the look at accounts", lambda: check_accounts(self._links, self._stopping)))]
        self._outbox = Outbox(settings.state_dir / "outbox", settings.keep_sent, settings.keep_failed)
        self._links = Links(settings.data_dir)
        self._api = TelegramAPI(token, settings.api_url)
        self._metrics = Metrics()
        self._people = People(self._links, Gateway(settings.ws_socket))
        strangers = Strangers(self._people.is_linked)
        self._delivery = Delivery(self._outbox, self._api, self._people, self._metrics, settings.max_age, strangers)
        replies = Replies(self._outbox, self._delivery)
        self._runs = Runs(settings.scripts_dir, settings.state_dir, replies)
        invites = Invites(settings.state_dir, self._links)
        self._chat = Chat(settings, self._links, invites, replies, self._runs, self._api, strangers)
        self._poller = Poller(self._api, settings.state_dir, self._chat, strangers)
        self._welcomer = Welcomer(self._links, self._chat)
        self._overdue = Overdue(self._links, settings.scripts_dir, replies.tell)
        contexts = {"send-api": Context(self._outbox, self._delivery, self._links, self._metrics, self),
                    "web": webapi.Context(settings, self._links, invites, self._runs, replies, self._outbox,
                                          self._delivery, self._metrics, self._chat, self)}
        self._servers = [_Serving(name, listener, contexts[name]) for name, listener in listeners.items()]

    def start(self) -> None:
        self._delivery.start()
        self._runs.resume()
        for serving in self._servers:
            serving.thread.start()
        self._poller.start()

    def watch(self, stop: threading.Event) -> None:
        """Until `stop`: notice new links, say how things are, keep the watchdog quiet while all goes on."""
        self._overdue.start(stop)
        for thread in self._housekeeping:
            thread.start()
        watchdog = service.watchdog_seconds()
        fed = reported = 0.0
        status = ""
        while not stop.wait(TICK_SECONDS):
            now = time.monotonic()
            if watchdog and now - fed >= min(watchdog, 10) and self.is_alive():
                service.sd_notify("WATCHDOG=1")
                fed = now
            if now - reported >= 5 and self.status() != status:
                status, reported = self.status(), now
                service.sd_notify(f"STATUS={status}")

    def _look_at_links(self) -> None:
        """Apart from the rest: other software may hold the lock of the links for as long as it likes."""
        while not self._stopping.wait(TICK_SECONDS):
            self._welcomer.look()
            self._people.tell_of_expired(self._chat)

    def _keep_outbox(self) -> None:
        """Apart from the rest: a disk may be slow."""
        expired = -EXPIRE_SECONDS
        while not self._stopping.wait(TICK_SECONDS):
            try:
                self._outbox.sync()
                if time.monotonic() - expired >= EXPIRE_SECONDS:
                    expired = time.monotonic()
                    self._outbox.expire(time.time())
            except OSError as error:
                log.error("outbox: what was kept long enough cannot be removed, or what was sent not be synced: %s",
                          error)

    def stop(self) -> None:
        """Finish what is under way, within STOP_SECONDS. What is not delivered is on disk for the next start."""
        deadline = time.monotonic() + STOP_SECONDS
        self._stopping.set()
        closing = [threading.Thread(target=serving.server.stop_accepting) for serving in self._servers]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()
        self._poller.stop(0)
        self._delivery.stop(STOP_SECONDS / 2)
        for serving in self._servers:
            serving.server.drain(max(0.1, deadline - time.monotonic()))
        self._api.close()
        for thread in self._housekeeping:
            thread.join(max(0.1, deadline - time.monotonic()))
        self._outbox.close()

    def is_alive(self) -> bool:
        alive = {"polling": self._poller.is_alive(), "delivery": self._delivery.is_alive(),
                 **{thread.name: thread.is_alive() for thread in self._housekeeping},
                 **{serving.title: serving.is_alive() for serving in self._servers}}
        stuck = {name for name, is_alive in alive.items() if not is_alive}
        for name in stuck - self._stuck:
            log.critical("%s makes no progress; the watchdog is not fed", name)
        self._stuck = stuck
        return not stuck

    def status(self) -> str:
        """The line `systemctl status` shows."""
        if self._poller.problem:
            polled = self._poller.problem
        elif self._poller.polled_at is None:
            polled = "not polled yet"
        else:
            polled = f"polled {max(0, time.time() - self._poller.polled_at):.0f} s ago"
        linked = self._linked()
        return f"{'?' if linked is None else linked} linked, {self._delivery.queued()} queued, {polled}"

    def health(self) -> tuple[int, dict]:
        """The answer to GET /health: 503 where nothing is accepted, or Telegram does not take what is."""
        problem = self._outbox.problem() or self._delivery.problem or self._poller.problem
        report = {"ok": problem is None, "version": service.version(), "linked": self._linked(),
                  "queued": self._delivery.queued(), "oldest_seconds": round(self._delivery.oldest_age(), 1),
                  "last_poll": self._poller.polled_at, "last_delivery": self._delivery.last_delivery,
                  **self._metrics.counts()}
        if problem:
            report["error"] = problem
        return 503 if problem else 200, report

    def gauges(self) -> dict[str, tuple[str, float | None]]:
        """How things are now, for GET /metrics."""
        return {
            "up": ("Whether messages are accepted and Telegram takes them.", int(self.health()[0] == 200)),
            "linked_users": ("Users with a linked chat.", self._linked()),
            "queued_messages": ("Messages accepted and not delivered.", self._delivery.queued()),
            "oldest_queued_seconds": ("Age of the oldest of them.", round(self._delivery.oldest_age(), 3)),
            "last_poll_timestamp_seconds": ("When getUpdates last succeeded.", self._poller.polled_at),
            "last_delivery_timestamp_seconds": ("When a call last succeeded.", self._delivery.last_delivery),
        }

    def _linked(self) -> int | None:
        try:
            return len(self._links.all())
        except StoreError:
            return None


def _listeners(settings: service.Settings) -> dict:
    """The sockets `send-api` and `web`: those that systemd passed, one of them or both; by hand, new ones."""
    sockets = service.listen_sockets()
    if not sockets:
        sockets["send-api"] = unixhttp.listen(settings.bot_socket)
        if settings.has_own_web_socket:
            sockets["web"] = unixhttp.listen(settings.web_socket)
    # That for the page has its own name, and the other one may have any.
    others = sorted(sockets.keys() - {"web"})
    if len(others) > 1:
        raise service.ConfigurationError(f"systemd passed the sockets {', '.join(others)}; this service takes one, "
                                         "and one for the link page with FileDescriptorName=web")
    return {"web" if name == "web" else "send-api": listener for name, listener in sockets.items()}


def _serve(verbose: bool) -> int:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    settings = service.Settings(os.environ)
    token = service.bot_token(os.environ)
    service.check_folders(settings)
    service.setup_logging(settings.data_dir / "bot.log", (token,), verbose)
    listeners = _listeners(settings)
    bot = Service(settings, token, listeners)
    bot.start()
    service.sd_notify("READY=1")
    log.info("notify-bot %s serves %s", service.version(),
             ", ".join(sorted(listener.getsockname() for listener in listeners.values())))
    bot.watch(stop)
    service.sd_notify("STOPPING=1")
    log.info("stopping; what is queued stays on disk")
    bot.stop()
    return 0


def main(arguments: list[str]) -> int:
    # By hand: argparse would be a tenth of the time the service takes to start.
    if "--help" in arguments or "-h" in arguments:
        print(__doc__.strip())
        return 0
    if "--version" in arguments:
        print(f"notify-bot {service.version()}")
        return 0
    if arguments and arguments[0] in ("queue", "retry", "drop"):
        import queue_command
        return queue_command.run(arguments, service.Settings(os.environ).bot_socket)
    if arguments and arguments[0] in ("links", "link", "unlink"):
        import links_command
        return links_command.run(arguments, service.Settings(os.environ).bot_socket)
    if unknown := set(arguments) - {"--verbose"}:
        print(f"notify-bot: {min(unknown)} is neither an option nor a command; see --help", file=sys.stderr)
        return EX_USAGE
    service.setup_logging()
    try:
        return _serve("--verbose" in arguments)
    except service.ConfigurationError as error:
        log.critical("%s", error)
        return EX_CONFIG
    except OutboxError as error:
        log.critical("%s", error)
        return EX_CANTCREAT
    except OSError as error:
        log.critical("cannot start: %s", error)
        return EX_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
