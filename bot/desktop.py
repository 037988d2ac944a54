"""Desktop notifications: shows delivered messages on the user's desktop too, where the host has a gateway for that.

Nothing waits for the gateway: at most MAX_QUEUED notifications are queued, and one it does not take is dropped.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
import uuid
from pathlib import Path

from common import http_client

log = logging.getLogger("desktop")

MAX_QUEUED = 100
ANSWER_SECONDS = 3


class Desktop:
    """Posts notifications to the gateway's socket, from a thread of its own."""

    def __init__(self, socket_path: Path):
        self._path = socket_path
        self._queue: queue.Queue = queue.Queue(MAX_QUEUED)
        self._working = True
        self._thread: threading.Thread | None = None

    def show(self, user: str, title: str, message: str, script: str) -> None:
        """Show a notification on the desktop of `user`. Returns at once; does nothing where there is no gateway."""
        if not os.path.exists(self._path):  # Path.exists() raises for a folder without search permission
            return
        timestamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        notification = {"id": str(uuid.uuid4()), "title": title, "message": message, "script": script,
                        "timestamp": timestamp}
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="desktop", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait({"user": user, "notification": notification})
        except queue.Full:
            self._report("it takes them too slowly")

    def _work(self) -> None:
        while True:
            body = json.dumps(self._queue.get()).encode()
            try:
                status, _, _ = http_client.request(self._path, "POST", "/dispatch", body,
                                                   {"Content-Type": "application/json"}, ANSWER_SECONDS)
            except OSError as error:
                self._report(error.strerror or str(error))
                continue
            self._report(None if status < 300 else f"it answers {status}")

    def _report(self, problem: str | None) -> None:
        if problem and self._working:
            log.warning("notifications do not reach the desktop gateway %s: %s", self._path, problem)
        elif not problem and not self._working:
            log.info("the desktop gateway takes notifications again")
        self._working = problem is None
