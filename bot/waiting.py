"""Messages that wait for delivery: their age, how many each user has, and receipts for who waits for the outcome."""

from __future__ import annotations

import time
from collections import Counter

from bot.receipt import Outcome, Receipt
from common.clock import EARLIEST, age

LATE_SECONDS = 900  # after which a message says when it was written


class Waiting:
    """Messages by ID. Nothing here locks; counts may be read at any time."""

    def __init__(self):
        self._since: dict[str, tuple[float, str | None]] = {}  # time of acceptance (monotonic), user
        self._of_user: Counter[str] = Counter()
        self._receipts: dict[str, Receipt] = {}

    def __contains__(self, entry_id: str) -> bool:
        return entry_id in self._since

    def add(self, entry: dict) -> None:
        user = None if entry["reply"] else entry["user"]
        # The wall clock is read once: setting it forward by a day must not expire all that waits.
        # The age of a message that was retried by hand counts from the retry.
        since = time.monotonic() - age(entry.get("retried_at", entry["accepted_at"]), time.time())
        self._since[entry["id"]] = since, user
        if user:
            self._of_user[user] += 1

    def count(self, user: str | None = None) -> int:
        """The number of messages, in all or for a user, without the replies to them."""
        return len(self._since) if user is None else self._of_user[user]

    def age(self, entry_id: str) -> float:
        """Seconds since a message was accepted."""
        return time.monotonic() - self._since[entry_id][0]

    def mark_late(self, entry: dict) -> None:
        """Set `late_since` of a notification that has waited long, before any of it was sent."""
        waited = self.age(entry["id"])
        if entry["accepted_at"] >= EARLIEST:
            waited = max(waited, entry.get("retried_at", 0) - entry["accepted_at"])
        if entry["part"] == 0 and not entry["reply"] and waited > LATE_SECONDS:
            entry["late_since"] = time.time() - waited

    def oldest_age(self) -> float:
        """The age of the oldest message; 0 where there is none."""
        oldest = min((since for since, _ in self._since.values()), default=None)
        return 0.0 if oldest is None else time.monotonic() - oldest

    def receipt(self, entry_id: str) -> Receipt:
        """The receipt of a message."""
        return self._receipts.setdefault(entry_id, Receipt())

    def remove(self, entry_id: str, outcome: Outcome) -> None:
        """A message waits no more; its receipt is settled."""
        _, user = self._since.pop(entry_id)
        if user:
            self._of_user[user] -= 1
        receipt = self._receipts.pop(entry_id, None)
        if receipt:
            receipt.settle(outcome)

    def stop(self) -> None:
        """Settle all receipts with None: nothing more will be known of them."""
        receipts, self._receipts = self._receipts, {}
        for receipt in receipts.values():
            receipt.settle(None)
