"""The newest notifications of a login, for the link page: when, what title, what became of it; never the text.

The outbox is what is true; this is a view of it in memory, made when it is first asked for and bounded: SHOWN for a
login, MAX_USERS logins. What is delivered afterwards delivery tells of; the queue and what failed are looked at again
with each question, new files only.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import OrderedDict
from pathlib import Path

log = logging.getLogger("recent")

SHOWN = 10
MAX_USERS = 2000
MAX_SCANNED = 10_000
MAX_SHOWN_CHARACTERS = 200


class Recent:
    """Threads may share it."""

    def __init__(self, outbox: Path):
        self._sent = outbox / "sent"
        self._waiting = {"queued": outbox / "queue", "failed": outbox / "failed"}
        self._looked_at = dict.fromkeys(self._waiting, frozenset())
        self._looking = threading.Lock()
        self._lock = threading.Lock()
        self._of_user: OrderedDict[str, dict[str, dict]] | None = None

    def delivered(self, entry: dict) -> None:
        """A message is in the chat. Costs nothing until somebody has asked."""
        self._put(entry, "delivered")

    def of_user(self, user: str) -> list[dict]:
        """The newest notifications, newest first: `at` (unix seconds), `title`, `script`, `state` (delivered, queued,
        failed), `reason`. Raises OSError."""
        with self._looking:
            if self._of_user is None:
                self._begin()
            for state, folder in self._waiting.items():
                self._look(state, folder)
        with self._lock:
            notices = list(self._of_user.get(user, {}).items())
        return [notice for entry_id, notice in sorted(notices, key=lambda item: -item[1]["at"])
                if self._is_there(entry_id, notice)]

    def _begin(self) -> None:
        with self._lock:
            self._of_user = OrderedDict()  # from here on delivery tells; a message told twice is there once
        try:
            left = MAX_SCANNED
            for day in sorted(self._sent.iterdir(), reverse=True):
                paths = _newest(day, os.listdir(day))[:left]
                left -= len(paths)
                for path in paths:
                    self._read(path, "delivered")
        except OSError:
            with self._lock:
                self._of_user = None
            raise

    def _look(self, state: str, folder: Path) -> None:
        names = frozenset(name for name in os.listdir(folder) if name.endswith(".json"))
        for path in _newest(folder, names - self._looked_at[state])[:MAX_SCANNED]:
            self._read(path, state)
        self._looked_at[state] = names

    def _read(self, path: Path, state: str) -> None:
        try:
            entry = json.loads(path.read_bytes())
            self._put(entry, state)
        except FileNotFoundError:  # it has moved on meanwhile
            return
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is left out of what a page shows: %r", path, error)

    def _put(self, entry: dict, state: str) -> None:
        user = entry["user"]
        if not isinstance(user, str):  # an answer of the bot's own
            return
        notice = {"at": float(entry["accepted_at"]), "title": _shown(entry["message"].get("title")),
                  "script": _shown(entry.get("script")), "state": state, "reason": _shown(entry.get("reason"))}
        with self._lock:
            if self._of_user is None:
                return
            notices = self._of_user.setdefault(user, {})
            if state == "delivered" or notices.get(entry["id"], notice)["state"] != "delivered":
                notices[entry["id"]] = notice
            if len(notices) > SHOWN:
                del notices[min(notices, key=lambda entry_id: notices[entry_id]["at"])]
            self._of_user.move_to_end(user)
            if len(self._of_user) > MAX_USERS:
                self._of_user.popitem(last=False)

    def _is_there(self, entry_id: str, notice: dict) -> bool:
        """The administrator may have dropped what waited, and what failed is not kept for ever."""
        folder = self._waiting.get(notice["state"])
        return folder is None or (folder / f"{entry_id}.json").exists()


def _newest(folder: Path, names) -> list[Path]:
    """The files of these names, the one that came into the folder last first."""
    found = []
    for name in names:
        path = folder / name
        try:
            found.append((path.stat().st_ctime_ns, path))
        except FileNotFoundError:
            continue
    return [path for _, path in sorted(found, reverse=True)]


def _shown(value) -> str:
    return value[:MAX_SHOWN_CHARACTERS] if isinstance(value, str) else ""
