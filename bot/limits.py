"""Limits by key, so that one user, chat or login leaves room for the others."""

from __future__ import annotations

import threading
from contextlib import contextmanager


class Limiter:
    """Amounts in use by key: at most `of_key` for each, `in_all` together. Thread-safe."""

    def __init__(self, of_key: int, in_all: float = float("inf")):
        self.of_key, self.in_all = of_key, in_all
        self._lock = threading.Lock()
        self._used: dict = {}
        self._sum = 0

    def used(self, key) -> int:
        """The amount in use for a key."""
        return self._used.get(key, 0)

    def take(self, key, amount: int = 1) -> bool:
        """Take an amount; False, and nothing is taken, where that is over a limit."""
        with self._lock:
            has_room = self.used(key) + amount <= self.of_key and self._sum + amount <= self.in_all
            if has_room:
                self._add(key, amount)
            return has_room

    def hold(self, key, amount: int = 1) -> None:
        """Take an amount in any case."""
        with self._lock:
            self._add(key, amount)

    def give_back(self, key, amount: int = 1) -> None:
        with self._lock:
            self._add(key, -amount)

    @contextmanager
    def turn(self, key):
        """Take one for the block; yields False where that is over a limit."""
        is_taken = self.take(key)
        try:
            yield is_taken
        finally:
            if is_taken:
                self.give_back(key)

    def _add(self, key, amount: int) -> None:
        self._sum += amount
        used = self._used.pop(key, 0) + amount
        if used:
            self._used[key] = used
