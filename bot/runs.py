"""Runs of scripts that somebody asked for, in the chat or on the link page: as their owner, the result in the chat.

    runs.json   {ID: {"user": str, "chat_id": int, "name": str}}   those of the page that were taken on and not told of

A run that a restart interrupts is told of, and not repeated. Of those asked for in the chat polling.json knows.
"""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bot import scripts
from bot.outbox import OutboxError
from bot.replies import Replies
from bot.scripts import ScriptsError, checked
from bot.status import short
from common.jsonstore import JsonStore, StoreError
from common.links import Link
from common.markdown import escape
from common.script_output import ContractError, parse_output

log = logging.getLogger("runs")

MAX_RUNS_PER_USER = 2
MAX_PAGE_RUNS = 32
MAX_IMAGE_BYTES = 50 << 20


class RunRefused(Exception):
    """Why a script is not run now, for the person who asked, and the `status` an API answers with."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Runs:
    """Runs scripts. Threads may share it."""

    def __init__(self, scripts_dir: Path, data_dir: Path, replies: Replies):
        self._scripts_dir, self._replies = scripts_dir, replies
        self._store = JsonStore(data_dir / "runs.json", mode=0o600)
        self._lock = threading.Lock()
        self._running: dict[str, set] = {}
        self._of_page = 0

    def running(self, user: str) -> set[str]:
        """The names of those that run now."""
        with self._lock:
            return set(self._running.get(user, ()))

    @contextmanager
    def reserved(self, user: str, name: str):
        """A place for one run, until it ends. Raises RunRefused."""
        with self._lock:
            running = self._running.setdefault(user, set())
            if name in running:
                raise RunRefused(f"{short(name)} is running already.", 409)
            if len(running) >= MAX_RUNS_PER_USER:
                raise RunRefused(f"{len(running)} of your scripts are running already.", 429)
            running.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._running[user].discard(name)
                if not self._running[user]:
                    del self._running[user]

    def run_and_tell(self, link: Link, name: str, tell) -> None:
        """Run a script and say once what came of it: `tell(text, **options)`, as Replies.tell."""
        request = {"do": "run", "name": name}
        shown = escape(name)
        try:
            with scripts.ask(self._scripts_dir, link.user, request, scripts.RUN_SECONDS) as (
                    answer, image):
                if answer.get("ok") is not True and answer.get("stderr"):
                    tell(f"{answer.get('error')}\n\n{answer['stderr']}", parse_mode="")
                    return
                found = parse_output(str(checked(answer).get("output", "")).encode("utf-8", "surrogatepass"))
                if not found.notify:
                    tell(f"{shown} ran and has nothing to report.")
                    return
                with tempfile.TemporaryFile(dir=self._store.path.parent) as file:
                    missing = answer.get("image_error") or _fetch(image, file)
                    text = found.message + (f"\n\n{escape(f'(Its image is missing: {missing})')}" if missing else "")
                    tell(text, title=found.title, picture=file if image and not missing else None, user=link.user,
                         script=name, picture_name=os.path.basename(found.image_path or "image"))
        except ScriptsError as error:
            # What notify-scripts says of a script names it; what is said of the way there does not.
            reason = str(error) if name in str(error) else f"{name} could not be run: {error}"
            tell(f"{reason}.", parse_mode="")
        except ContractError as error:
            tell(f"{shown} ran, and what it printed breaks the contract: {escape(str(error))}.")

    def start(self, link: Link, name: str) -> None:
        """Run a script for the page: written down on return, told of later. Raises RunRefused, StoreError."""
        if self._replies.are_full(link.chat_id):
            raise RunRefused("Answers to what you asked before still wait for Telegram.", 429)
        with ExitStack() as place:
            place.enter_context(self._page_place())
            place.enter_context(self.reserved(link.user, name))
            run_id = secrets.token_hex(10)
            with self._store.update() as runs:
                runs[run_id] = {"user": link.user, "chat_id": link.chat_id, "name": name}
            log.info("%s runs %s from the page", link.user, name)
            threading.Thread(target=self._run, args=(place.pop_all(), run_id, link, name), name="run",
                             daemon=True).start()

    @contextmanager
    def _page_place(self):
        with self._lock:
            if self._of_page >= MAX_PAGE_RUNS:
                raise RunRefused("Too many scripts of others are running now. Try again in a minute.", 503)
            self._of_page += 1
        try:
            yield
        finally:
            with self._lock:
                self._of_page -= 1

    def _run(self, place: ExitStack, run_id: str, link: Link, name: str) -> None:
        with place:
            self.run_and_tell(link, name, lambda text, **options: self._tell(run_id, link.chat_id, text, **options))
            self._forget(run_id)

    def _tell(self, run_id: str, chat_id: int, text: str, **options) -> None:
        try:
            self._replies.tell(f"run:{run_id}", chat_id, text, **options)
        except (OutboxError, OSError) as error:
            log.error("chat %d is not told of a run: %s", chat_id, error)

    def _forget(self, run_id: str) -> None:
        try:
            with self._store.update() as runs:
                runs.pop(run_id, None)
        except StoreError as error:
            log.error("a run may be told of as interrupted after a restart: %s", error)

    def resume(self) -> None:
        """Tell of the runs that a restart interrupted; one that was told of already is not told of again."""
        try:
            for run_id, run in list(self._store.read().items()):
                if isinstance(run, dict) and type(run.get("chat_id")) is int:
                    self._tell(run_id, run["chat_id"], f"The service was restarted while {run.get('name')} ran, so "
                               "what it found is not known. Press Run to run it again.", parse_mode="")
                self._forget(run_id)
        except StoreError as error:
            log.error("%s", error)


def _fetch(image: scripts.Image | None, file) -> str:
    """Copy the picture that follows an answer to a file; why there is none, "" where there is or none was named."""
    if image is None:
        return ""
    if image.size > MAX_IMAGE_BYTES:
        return f"it is over {MAX_IMAGE_BYTES >> 20} MiB"
    if not image.copy_to(file):
        return "it did not arrive in time"
    file.seek(0)
    return ""
