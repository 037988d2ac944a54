"""The desktop gateway: what was delivered to Telegram is shown on the person's desktop too, if there is a gateway.

Nothing waits for it: at most MAX_QUEUED notifications are kept for it, and one it does not take is gone.
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

log = logging.getLogger("gateway")

MAX_QUEUED = 100
ANSWER_SECONDS = 3


class Gateway:
    """Hands notifications to the gateway's socket, from a thread of its own."""

    def __init__(self, socket_path: Path):
        self._path = socket_path
        self._queue: queue.Queue = queue.Queue(MAX_QUEUED)
        self._working = True
        self._thread: threading.Thread | None = None

    def dispatch(self, user: str, title: str, message: str, script: str) -> None:
        """Show a notification on the desktop of `user`. Returns at once; nothing where there is no gateway."""
        if not os.path.exists(self._path):  # where Path.exists() raises for a folder that may not be entered
            return
        timestamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        notification = {"id": str(uuid.uuid4()), "title": title, "message": message, "script": script,
                        "timestamp": timestamp}
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="gateway", daemon=True)
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
