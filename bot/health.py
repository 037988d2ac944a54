"""Health of the service: GET /health, the gauges of GET /metrics, and the line that `systemctl status` shows."""

from __future__ import annotations

import time

from common.jsonstore import StoreError
from common.settings import version


class Health:
    """State of the parts of the service, which they report themselves."""

    def __init__(self, outbox, links, delivery, poller, metrics):
        self._outbox, self._links, self._delivery = outbox, links, delivery
        self._poller, self._metrics = poller, metrics

    def problem(self) -> str | None:
        """The reason why nothing is accepted, or Telegram does not take what is."""
        return self._outbox.problem() or self._delivery.problem or self._poller.problem

    def report(self) -> dict:
        """The body of the answer to GET /health."""
        problem = self.problem()
        return {"ok": problem is None, "version": version(), "linked": self._linked(),
                "queued": self._delivery.queued(), "oldest_seconds": round(self._delivery.oldest_age(), 1),
                "last_poll": self._poller.polled_at, "last_delivery": self._delivery.last_delivery,
                **self._metrics.counts(), **({"error": problem} if problem else {})}

    def gauges(self) -> dict[str, tuple[str, float | None]]:
        """`{name: (help, value)}` for GET /metrics."""
        delivery = self._delivery
        return {
            "up": ("1 while messages are accepted and Telegram takes them.", int(self.problem() is None)),
            "linked_users": ("Users with a linked chat.", self._linked()),
            "queued_messages": ("Messages accepted and not delivered.", delivery.queued()),
            "oldest_queued_seconds": ("Age of the oldest of them.", round(delivery.oldest_age(), 3)),
            "last_poll_timestamp_seconds": ("Time of the last successful getUpdates.", self._poller.polled_at),
            "last_delivery_timestamp_seconds": ("Time of the last successful delivery.", delivery.last_delivery),
        }

    def line(self) -> str:
        """The line that `systemctl status` shows."""
        if self._poller.problem:
            polled = self._poller.problem
        elif self._poller.polled_at is None:
            polled = "not polled yet"
        else:
            polled = f"polled {max(0, time.time() - self._poller.polled_at):.0f} s ago"
        linked = self._linked()
        return f"{'?' if linked is None else linked} linked, {self._delivery.queued()} queued, {polled}"

    def _linked(self) -> int | None:
        try:
            return len(self._links.all())
        except StoreError:
            return None
