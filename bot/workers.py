"""A pool of threads that grows on demand; an unexpected error ends a thread, and another replaces it."""

from __future__ import annotations

import logging
import queue
import threading

log = logging.getLogger("workers")


class Workers:
    """Runs `work(item)`, which returns the next item for the same thread, or None. Of the threads with nothing to do,
    those beyond `kept` end. Thread-safe."""

    def __init__(self, name: str, work, kept: float = float("inf")):
        self._name, self._work, self._kept = name, work, kept
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._wanted = 0

    def give(self, item, wanted: int) -> None:
        """Queue an item, for at most `wanted` threads."""
        with self._lock:
            self._queue.put(item)
            self._wanted = max(self._wanted, wanted)
            if len(self._threads) < wanted:
                self._hire()

    def _hire(self) -> None:
        worker = threading.Thread(target=self._run, name=f"{self._name}-{len(self._threads)}", daemon=True)
        try:
            worker.start()
        except RuntimeError as error:  # cannot start a thread; the next item retries
            log.error("%s: %s; %d threads work", self._name, error, len(self._threads))
        else:
            self._threads.add(worker)

    def _run(self) -> None:
        item = None
        try:
            while item or not self._is_dismissed():
                item = self._work(item or self._queue.get())
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())
                if len(self._threads) < min(self._wanted, self._kept):
                    self._hire()

    def _is_dismissed(self) -> bool:
        """True for a thread that is not kept; it counts no more from then on, so that the next item hires another."""
        with self._lock:
            is_dismissed = self._queue.empty() and len(self._threads) > self._kept
            if is_dismissed:
                self._threads.remove(threading.current_thread())
            return is_dismissed
