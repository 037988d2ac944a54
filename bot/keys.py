"""Idempotency keys: the ID of a message comes from its key, which one request at a time looks up."""

from __future__ import annotations

import hashlib
import threading
from contextlib import contextmanager


def identify(key: str) -> str:
    """The ID for a key that has never been used."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:20]


class Claims:
    """Keys that are being looked up."""

    def __init__(self):
        self._released = threading.Condition()
        self._claimed: set[str] = set()

    @contextmanager
    def hold(self, key: str):
        """Hold a key; who else wants it waits."""
        with self._released:
            self._released.wait_for(lambda: key not in self._claimed)
            self._claimed.add(key)
        try:
            yield
        finally:
            with self._released:
                self._claimed.discard(key)
                self._released.notify_all()
