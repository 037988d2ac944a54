"""Threads that take turns at one queue of work: as many as are wanted, and another for each that an error has ended."""

from __future__ import annotations

import logging
import queue
import threading

log = logging.getLogger("delivery")


class Workers:
    """`work(item)` does one piece and returns the next for the same thread, or None. Threads may share it."""

    def __init__(self, work):
        self._work = work
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._wanted = 0

    def give(self, item, wanted: int) -> None:
        """Have an item worked on, by `wanted` threads at the most."""
        self._queue.put(item)
        with self._lock:
            self._wanted = max(self._wanted, wanted)
            if len(self._threads) < wanted:
                self._hire()

    def _hire(self) -> None:
        worker = threading.Thread(target=self._run, name=f"delivery-{len(self._threads)}", daemon=True)
        try:
            worker.start()
        except RuntimeError as error:  # no thread can be had now; the next item asks again
            log.error("delivery: %s; %d work", error, len(self._threads))
        else:
            self._threads.add(worker)

    def _run(self) -> None:
        item = None
        try:
            while True:
                item = self._work(item or self._queue.get())
        finally:
            with self._lock:  # an error of ours has ended this worker, and is logged
                self._threads.discard(threading.current_thread())
                if len(self._threads) < self._wanted:
                    self._hire()
