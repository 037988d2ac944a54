"""The service: builds its parts, starts and watches them, keeps the watchdog quiet while all go on, stops them."""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from contextlib import suppress

from bot import http_server, page_api, systemd
from bot.chat import Chat
from bot.delivery import Delivery
from bot.desktop import Desktop
from bot.health import Health
from bot.invites import Invites
from bot.metrics import Metrics
from bot.outbox import Outbox, OutboxError
from bot.polling import Poller
from bot.recipients import Recipients
from bot.replies import Replies
from bot.scripts import Overdue, Runs
from bot.send_api import SendHandler
from bot.strangers import Strangers
from bot.telegram import TelegramAPI
from common.jsonstore import StoreError
from common.links import Link, Links
from common.problem import Problem
from common.settings import BotSettings

log = logging.getLogger("service")

TICK_SECONDS = 1.0
MAX_WELCOMES = 10  # a second: the web server's account can write any number of links
EXPIRE_SECONDS = 3600
STOP_SECONDS = 8.0  # of the ten within which the service promises to be gone
API_STUCK_SECONDS = 60


def check_accounts(links: Links, stop: threading.Event) -> None:
    """Look up the accounts of the links, in turns, until `stop`; a directory may be slow, so this takes a thread."""
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
    """Greets the chat of a new link. The web side only writes the file of the links, which is read every second."""

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

    _KINDS = {"send-api": ("the API", http_server.Server, SendHandler),
              "web": ("the page's API", page_api.WebServer, page_api.WebHandler)}

    def __init__(self, name: str, listener, service):
        self.title, server, handler = self._KINDS[name]
        self.server = server(listener, handler, service)
        self.thread = threading.Thread(target=self.server.run, name=name, daemon=True)

    def is_alive(self) -> bool:
        return self.thread.is_alive() and time.monotonic() - self.server.beat < API_STUCK_SECONDS


class Service:
    """The parts of the service, running from `start` to `stop`. The handlers of its APIs use the public ones."""

    def __init__(self, settings: BotSettings, token: str, listeners: dict):
        self.settings = settings
        self._stuck: set[str] = set()
        self._stopping = threading.Event()
        self._housekeeping = [threading.Thread(target=work, name=name, daemon=True) for name, work in (
            ("the look at links", self._look_at_links), ("the outbox's housekeeping", self._keep_outbox),
            ("the look at accounts", lambda: check_accounts(self.links, self._stopping)))]
        self.outbox = Outbox(settings.state_dir / "outbox", settings.keep_sent, settings.keep_failed)
        self.links = Links(settings.data_dir)
        self._api = TelegramAPI(token, settings.api_url)
        self.metrics = Metrics()
        self.recipients = Recipients(self.links, Desktop(settings.ws_socket))
        strangers = Strangers(self.recipients.is_linked)
        self.delivery = Delivery(self.outbox, self._api, self.recipients, self.metrics, settings.max_age, strangers,
                                 settings.join)
        self.replies = Replies(self.outbox, self.delivery)
        self.runs = Runs(settings.scripts_dir, settings.state_dir, self.replies)
        self.invites = Invites(settings.state_dir, self.links)
        self.chat = Chat(settings, self.links, self.invites, self.replies, self.runs, self._api, strangers)
        self._poller = Poller(self._api, settings.state_dir, self.chat, strangers)
        self.health = Health(self.outbox, self.links, self.delivery, self._poller, self.metrics)
        self._welcomer = Welcomer(self.links, self.chat)
        self._overdue = Overdue(self.links, settings.scripts_dir, self.replies.tell)
        self._servers = [_Serving(name, listener, self) for name, listener in listeners.items()]

    def start(self) -> None:
        self.delivery.start()
        self.runs.resume()
        for serving in self._servers:
            serving.thread.start()
        self._poller.start()

    def watch(self, stop: threading.Event) -> None:
        """Run the housekeeping until `stop`, report the state, feed the watchdog while all parts make progress."""
        self._overdue.start(stop)
        for thread in self._housekeeping:
            thread.start()
        watchdog = systemd.watchdog_seconds()
        fed = reported = 0.0
        status = ""
        while not stop.wait(TICK_SECONDS):
            now = time.monotonic()
            if watchdog and now - fed >= min(watchdog, 10) and self.is_alive():
                systemd.sd_notify("WATCHDOG=1")
                fed = now
            if now - reported >= 5 and self.health.line() != status:
                status, reported = self.health.line(), now
                systemd.sd_notify(f"STATUS={status}")

    def _look_at_links(self) -> None:
        """In a thread of its own: other software may hold the lock of the links for long."""
        while not self._stopping.wait(TICK_SECONDS):
            self._welcomer.look()
            self._tell_of_expired()

    def _tell_of_expired(self) -> None:
        """One line for each user whose messages were given up."""
        for user, count in self.recipients.take_expired().items():
            try:
                self.chat.tell_of_expired(self.links.of_user(user), count)
            except (StoreError, OutboxError) as error:
                log.error("%s is not told of %d messages that were given up: %s", user, count, error)

    def _keep_outbox(self) -> None:
        """In a thread of its own: a disk may be slow."""
        expired = -EXPIRE_SECONDS
        while not self._stopping.wait(TICK_SECONDS):
            try:
                self.outbox.sync()
                if time.monotonic() - expired >= EXPIRE_SECONDS:
                    expired = time.monotonic()
                    self.outbox.expire(time.time())
            except OSError as error:
                log.error("outbox: what was kept long enough cannot be removed, or what was sent not be synced: %s",
                          error)

    def stop(self) -> None:
        """Finish the calls in flight, within STOP_SECONDS. The rest of the queue is on disk for the next start."""
        deadline = time.monotonic() + STOP_SECONDS
        self._stopping.set()
        closing = [threading.Thread(target=serving.server.stop_accepting) for serving in self._servers]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()
        self._poller.stop(0)
        self.delivery.stop(STOP_SECONDS / 2)
        for serving in self._servers:
            serving.server.drain(max(0.1, deadline - time.monotonic()))
        self._api.close()
        for thread in self._housekeeping:
            thread.join(max(0.1, deadline - time.monotonic()))
        self.outbox.close()

    def is_alive(self) -> bool:
        alive = {"polling": self._poller.is_alive(), "delivery": self.delivery.is_alive(),
                 **{thread.name: thread.is_alive() for thread in self._housekeeping},
                 **{serving.title: serving.is_alive() for serving in self._servers}}
        stuck = {name for name, is_alive in alive.items() if not is_alive}
        for name in stuck - self._stuck:
            log.critical("%s makes no progress; the watchdog is not fed", name)
        self._stuck = stuck
        return not stuck


def check_folders(settings: BotSettings) -> None:
    """Make the state folder where it is missing. Raises Problem unless it is this account's alone: anybody else who
    could write there could send anything."""
    folder = settings.state_dir
    try:
        os.stat(settings.data_dir)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = os.lstat(folder)
    except OSError as error:
        raise Problem(500, f"{error.filename} cannot be used: {error.strerror}; see systemd-tmpfiles --create "
                           "notify-bot.conf") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise Problem(500, f"{folder} must be a folder of this account (uid {os.geteuid()}) with mode 0700, and "
                           f"is uid {status.st_uid}'s, {stat.filemode(status.st_mode)}")
