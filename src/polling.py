"""getUpdates: what people write to the bot, each handled once, and never one after the other.

    polling.json   {"offset": int, "pending": {update_id: {"update": {…}, "started": bool}}}

An update is on disk before Telegram is told that it was received (the next call's `offset` does that), and leaves
the file when it has been handled. What a crash interrupts is handled again by the next start, but for work that
must not be repeated: that is marked as started before it begins, and is then only spoken of.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from pathlib import Path

from jsonstore import JsonStore, StoreError
from telegram_api import TelegramAPI, TelegramError, TelegramUnreachable

log = logging.getLogger("polling")

POLL_SECONDS = 50  # the longest that getUpdates waits
POLL_ANSWER_SECONDS = POLL_SECONDS + 15
STUCK_SECONDS = POLL_ANSWER_SECONDS + 60
MAX_BACKOFF_SECONDS = 60
MAX_HANDLERS = 32
ALLOWED_UPDATES = ["message", "callback_query"]


class Poller:
    """Polls from `start` until `stop`. `handler` has `handle(update, begin)`, `interrupted(update)` and
    `introduce()`, which is called once before the first poll and may raise what the API raises."""

    def __init__(self, api: TelegramAPI, data_dir: Path, handler):
        self._api = api
        self._handler = handler
        self._store = JsonStore(data_dir / "polling.json", mode=0o600)
        self._stopping = threading.Event()
        self._slots = threading.BoundedSemaphore(MAX_HANDLERS)
        self._thread = threading.Thread(target=self._run, name="polling", daemon=True)
        self._at_work: set[str] = set()
        self._introduced = self._resumed = False
        self._failures = 0
        self._problem_kind: str | None = None
        self.problem: str | None = None
        self.polled_at: float | None = None
        self.beat = time.monotonic()

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Take no more updates and wait for those being handled; False if `seconds` were too few.

        The poll under way is ended by closing the API, which is the caller's to do."""
        self._stopping.set()
        deadline = time.monotonic() + seconds
        return all(self._slots.acquire(timeout=max(0.0, deadline - time.monotonic())) for _ in range(MAX_HANDLERS))

    def is_alive(self) -> bool:
        return self._thread.is_alive() and time.monotonic() - self.beat < STUCK_SECONDS

    def _run(self, failed: bool = False) -> None:
        try:
            if failed:
                self._fail("error", "polling was ended by an error of the service's own; it goes on")
            while not self._stopping.is_set():
                self._go_round()
        finally:
            if not self._stopping.is_set():
                # An error of ours has ended this thread, and is logged; another takes its place, and takes up, too,
                # what was fetched and is not being handled.
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
        at_work = set(self._at_work)  # asked first: what ends meanwhile is in the file no more
        for key, entry in self._pending(self._store.read()).items():
            if key not in at_work:
                self._spawn(entry["update"], entry.get("started") is True)

    def _poll_once(self) -> None:
        if not self._introduced:
            self._handler.introduce()
            self._introduced = True
        offset = self._store.read().get("offset")
        # The first poll, and one after a problem, is to say at once whether it works.
        patience = POLL_SECONDS if self.polled_at and not self.problem else 0
        updates = self._api.call("getUpdates", {
            "offset": offset if type(offset) is int else 0, "timeout": patience,
            "allowed_updates": ALLOWED_UPDATES}, timeout=POLL_ANSWER_SECONDS)
        updates = [update for update in updates if isinstance(update, dict)
                   and type(update.get("update_id")) is int] if isinstance(updates, list) else []
        if updates:
            self._keep(updates)
        self._recovered()
        for update in updates:
            self._spawn(update, False)

    def _recovered(self) -> None:
        if self.problem:
            log.info("Telegram is polled again")
        self.problem, self._problem_kind, self._failures = None, None, 0
        self.polled_at = time.time()

    def _fail(self, kind: str, message: str, seconds: int | None = None) -> None:
        """One line for each change of state; then wait, longer each time."""
        if kind != self._problem_kind:
            (log.critical if kind == "token" else log.warning)("%s", message)
        self.problem, self._problem_kind = message, kind
        self._failures += 1
        backoff = min(MAX_BACKOFF_SECONDS, 2 ** min(self._failures, 10)) * random.uniform(0.5, 1)
        self._wait(max(backoff, seconds or 0))

    def _wait(self, seconds: float) -> None:
        """Wait in pieces, so that a `retry_after` of hours does not look like a loop that is stuck."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self._stopping.wait(min(left, 10)):
            self.beat = time.monotonic()

    def _keep(self, updates: list) -> None:
        with self._store.update() as state:
            state["offset"] = max(update["update_id"] for update in updates) + 1
            pending = state["pending"] = self._pending(state)
            for update in updates:
                pending[str(update["update_id"])] = {"update": update, "started": False}

    @staticmethod
    def _pending(state: dict) -> dict:
        pending = state.get("pending")
        if not isinstance(pending, dict):
            return {}
        return {key: entry for key, entry in pending.items()
                if isinstance(entry, dict) and isinstance(entry.get("update"), dict)}

    def _begin(self, update: dict) -> None:
        with self._store.update() as state:
            entry = self._pending(state).get(str(update["update_id"]))
            if entry is not None:
                entry["started"] = True

    def _spawn(self, update: dict, interrupted: bool) -> None:
        while not self._slots.acquire(timeout=1):
            self.beat = time.monotonic()  # each handler comes to an end, and a slot becomes free
        key = str(update.get("update_id"))
        try:
            self._at_work.add(key)
            threading.Thread(target=self._handle, args=(update, interrupted), name="update", daemon=True).start()
        except BaseException:
            self._leave(key)
            raise

    def _handle(self, update: dict, interrupted: bool) -> None:
        try:
            if interrupted:
                self._handler.interrupted(update)
            else:
                self._handler.handle(update, lambda: self._begin(update))
        except StoreError as error:
            log.error("update %s was not handled: %s", update.get("update_id"), error)
        finally:
            self._forget(update)
            self._leave(str(update.get("update_id")))

    def _leave(self, key: str) -> None:
        self._at_work.discard(key)
        self._slots.release()

    def _forget(self, update: dict) -> None:
        try:
            with self._store.update() as state:
                if isinstance(state.get("pending"), dict):
                    state["pending"].pop(str(update.get("update_id")), None)
        except StoreError as error:
            log.error("update %s may be handled again after a restart: %s", update.get("update_id"), error)


def _meaning(error: TelegramError) -> tuple[str, str]:
    """The kind of a refusal of getUpdates, and what to say of it."""
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
