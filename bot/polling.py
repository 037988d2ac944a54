"""getUpdates: updates from Telegram, handled once each, concurrently.

    polling.json   {"offset": int, "pending": {update_id: {"update": {…}}}}

Updates of strangers (strangers.py) are handled one at a time, apart from the others; those without a place are dropped
before they are recorded.

An update is on disk before it is acknowledged to Telegram by the next call's `offset`, and leaves the file when it has
been handled. After a crash it is handled again.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from bot.failures import backoff
from bot.strangers import STRANGER_SECONDS, Strangers
from bot.telegram import TelegramAPI, TelegramError, TelegramUnreachable
from bot.workers import Workers
from common.jsonstore import JsonStore, StoreError

log = logging.getLogger("polling")

POLL_SECONDS = 50  # the longest wait of getUpdates
POLL_ANSWER_SECONDS = POLL_SECONDS + 15
STUCK_SECONDS = POLL_ANSWER_SECONDS + 120  # beyond the deadline of a call, with its connects
EMPTY_POLL_SECONDS = 0.5  # the least for a poll without updates
INTRODUCE_SECONDS = 5, 600  # between two attempts: the first pause, doubled up to the second
MAX_HANDLERS = 64
ALLOWED_UPDATES = ["message", "callback_query"]


class Poller:
    """Polls from `start` until `stop`. `handler` has `handle(update)`, `stranger(update)`, the chat of an update of a
    stranger, else None, and `introduce()`, which is repeated while it raises the errors of the API."""

    def __init__(self, api: TelegramAPI, data_dir: Path, handler, strangers: Strangers | None = None):
        self._api = api
        self._handler = handler
        self._strangers = strangers or Strangers()
        self._stranger_worker = Workers("strangers", self._handle_stranger)
        self._offset: int | None = None
        self._store = JsonStore(data_dir / "polling.json", mode=0o600)
        self._stopping = threading.Event()
        self._slots = threading.BoundedSemaphore(MAX_HANDLERS)
        self._thread = threading.Thread(target=self._run, name="polling", daemon=True)
        self._in_progress: set[str] = set()
        self._resumed = False
        self._failures = 0
        self._problem_kind: str | None = None
        self.problem: str | None = None
        self.polled_at: float | None = None
        self.beat = time.monotonic()

    def start(self) -> None:
        self._thread.start()
        threading.Thread(target=self._introduce, name="introduction", daemon=True).start()

    def stop(self, seconds: float) -> bool:
        """Take no more updates and wait for those being handled; False if `seconds` were too few.

        The caller ends the poll in flight by closing the API."""
        self._stopping.set()
        deadline = time.monotonic() + seconds
        return all(self._slots.acquire(timeout=max(0.0, deadline - time.monotonic())) for _ in range(MAX_HANDLERS))

    def is_alive(self) -> bool:
        return self._thread.is_alive() and time.monotonic() - self.beat < STUCK_SECONDS

    def _introduce(self) -> None:
        """Introduce the bot, in parallel to the polls."""
        pause, longest = INTRODUCE_SECONDS
        said = False
        while not self._stopping.is_set():
            try:
                self._handler.introduce()
                return
            except (TelegramError, TelegramUnreachable) as error:
                if not said and not self._stopping.is_set():
                    log.warning("Telegram does not take this bot's list of commands: %s; tried again later", error)
                said = True
            self._stopping.wait(pause)
            pause = min(2 * pause, longest)

    def _run(self, failed: bool = False) -> None:
        try:
            if failed:
                self._fail("error", "polling was interrupted by an error of the service's own; it goes on")
            while not self._stopping.is_set():
                self._go_round()
        finally:
            if not self._stopping.is_set():
                # An unexpected error has ended this thread, and is logged. Another replaces it and resumes the updates
                # that were fetched and are not in progress.
                self._resumed = False
                another = threading.Thread(target=self._run, args=(True,), name="polling", daemon=True)
                another.start()
                self._thread = another

    def _go_round(self) -> None:
        self.beat = time.monotonic()
        try:
            if not self._resumed:
                self._resume()
                self._resumed = True
            self._poll_once()
        except TelegramUnreachable as error:
            if not self._stopping.is_set():
                self._fail("unreachable", f"Telegram cannot be reached: {error}")
        except TelegramError as error:
            self._fail(*_meaning(error), seconds=error.retry_after)
        except StoreError as error:
            self._fail("store", str(error))

    def _resume(self) -> None:
        in_progress = set(self._in_progress)  # first: an update that ends meanwhile leaves the file
        for key, entry in self._pending(self._store.read()).items():
            if key not in in_progress:
                self._dispatch(entry["update"])

    def _poll_once(self) -> None:
        if self._offset is None:
            offset = self._store.read().get("offset")
            self._offset = offset if type(offset) is int else 0
        polled, offset = time.monotonic(), self._offset
        # The first poll, and one after a problem, returns at once to show that polling works.
        wait = POLL_SECONDS if self.polled_at and not self.problem else 0
        updates = self._api.call("getUpdates", {
            "offset": offset, "timeout": wait,
            "allowed_updates": ALLOWED_UPDATES}, timeout=POLL_ANSWER_SECONDS)
        updates = [update for update in updates if isinstance(update, dict)
                   and type(update.get("update_id")) is int] if isinstance(updates, list) else []
        admitted = [update for update in updates if self._is_admitted(update)]
        self._strangers.report(time.monotonic())
        following = max((update["update_id"] + 1 for update in updates), default=offset)
        if admitted:
            self._keep(admitted, following)
        self._offset = following
        self._recovered()
        for update in admitted:
            self._dispatch(update)
        if following == offset:
            self._stopping.wait(polled + EMPTY_POLL_SECONDS - time.monotonic())

    def _is_admitted(self, update: dict) -> bool:
        chat_id = self._handler.stranger(update)
        return chat_id is None or self._strangers.admit(str(update["update_id"]), chat_id)

    def _recovered(self) -> None:
        if self.problem:
            log.info("Telegram is polled again")
        self.problem, self._problem_kind, self._failures = None, None, 0
        self.polled_at = time.time()

    def _fail(self, kind: str, message: str, seconds: int | None = None) -> None:
        """Log each change of state once; then wait, longer each time."""
        if kind != self._problem_kind:
            (log.critical if kind == "token" else log.warning)("%s", message)
        self.problem, self._problem_kind = message, kind
        self._failures += 1
        self._wait(max(backoff(self._failures + 1), seconds or 0))

    def _wait(self, seconds: float) -> None:
        """Wait in pieces, so that the watchdog does not take a `retry_after` of hours for a hang."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self._stopping.wait(min(left, 10)):
            self.beat = time.monotonic()

    def _keep(self, updates: list, offset: int) -> None:
        with self._store.update() as state:
            state["offset"] = offset
            pending = state["pending"] = self._pending(state)
            for update in updates:
                pending[str(update["update_id"])] = {"update": update}

    @staticmethod
    def _pending(state: dict) -> dict:
        pending = state.get("pending")
        if not isinstance(pending, dict):
            return {}
        return {key: entry for key, entry in pending.items()
                if isinstance(entry, dict) and isinstance(entry.get("update"), dict)}

    def _dispatch(self, update: dict) -> None:
        chat_id = self._handler.stranger(update)
        if chat_id is None:
            self._spawn(update)
            return
        self._strangers.hold(str(update.get("update_id")), chat_id)
        self._in_progress.add(str(update.get("update_id")))
        self._stranger_worker.give(update, 1)

    def _handle_stranger(self, update: dict) -> None:
        if not self._stopping.is_set():
            self._handle(update)
            self._stopping.wait(STRANGER_SECONDS)

    def _spawn(self, update: dict) -> None:
        while not self._slots.acquire(timeout=1):
            self.beat = time.monotonic()  # every handler has a deadline, so a slot becomes free
        key = str(update.get("update_id"))
        try:
            self._in_progress.add(key)
            threading.Thread(target=self._handle_in_slot, args=(update,), name="update", daemon=True).start()
        except BaseException:
            self._in_progress.discard(key)
            self._slots.release()
            raise

    def _handle_in_slot(self, update: dict) -> None:
        try:
            self._handle(update)
        finally:
            self._slots.release()

    def _handle(self, update: dict) -> None:
        try:
            self._handler.handle(update)
        except StoreError as error:
            log.error("update %s was not handled: %s", update.get("update_id"), error)
        finally:
            self._forget(update)
            self._in_progress.discard(str(update.get("update_id")))
            self._strangers.leave(str(update.get("update_id")))

    def _forget(self, update: dict) -> None:
        try:
            with self._store.update() as state:
                if isinstance(state.get("pending"), dict):
                    state["pending"].pop(str(update.get("update_id")), None)
        except StoreError as error:
            log.error("update %s may be handled again after a restart: %s", update.get("update_id"), error)


def _meaning(error: TelegramError) -> tuple[str, str]:
    """The kind of a refusal of getUpdates, and a sentence about it."""
    if error.code in (401, 404):
        return "token", (f"Telegram refuses the bot token ({error.description}): put the right one in place, then "
                         "systemctl restart notify-bot.service")
    if error.code == 409 and "webhook" in error.description:
        return "webhook", ("a webhook is set for this bot, so it cannot be polled: stop what uses it, or remove it "
                           "with the Bot API method deleteWebhook")
    if error.code == 409:
        return "conflict", ("something else polls with the same token, and takes messages from this service: "
                            "stop it, or give it a token of its own")
    return f"refused {error.code}", f"Telegram refuses to be polled: {error}"
