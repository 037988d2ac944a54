"""How many things at once are worked on for one who asks: the service is there for the others, too."""

from __future__ import annotations

import threading
from contextlib import contextmanager


class Turns:
    """At most `most` at once for each key. Threads may share it."""

    def __init__(self, most: int):
        self._most = most
        self._lock = threading.Lock()
        self._at_work: dict = {}

    @contextmanager
    def take(self, key):
        """Yields whether there is room for one more; it is given back at the end."""
        with self._lock:
            at_work = self._at_work.get(key, 0)
            self._at_work[key] = at_work + 1
        try:
            yield at_work < self._most
        finally:
            with self._lock:
                self._at_work[key] -= 1
                if not self._at_work[key]:
                    del self._at_work[key]
