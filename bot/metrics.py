"""Counters since the start of the service, and GET /metrics in Prometheus' text exposition format 0.0.4."""

from __future__ import annotations

import threading

COUNTERS = {
    "accepted": "Messages written to the outbox.",
    "delivered": "Messages delivered whole.",
    "refused": "Messages that Telegram refused for good.",
    "expired": "Messages given up because they were too old.",
    "unknown": "Calls without an answer, which may have succeeded and were repeated.",
    "rate_limited": "Calls that Telegram refused for their rate.",
}
# Seconds from the acceptance of a message to its delivery.
BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)


class Metrics:
    """Counters and the histogram of delivery times. Thread-safe."""

    def __init__(self):
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(COUNTERS, 0)
        self._buckets = [0] * len(BUCKETS)
        self._seconds = 0.0
        self._observed = 0

    def count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    def observe(self, seconds: float) -> None:
        """Record a delivery, `seconds` after the message was accepted."""
        with self._lock:
            self._seconds += seconds
            self._observed += 1
            for index, bound in enumerate(BUCKETS):
                self._buckets[index] += seconds <= bound

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)

    def render(self, gauges: dict[str, tuple[str, float | None]]) -> bytes:
        """The page. `gauges` is `{name: (help, value)}`; one without a value is left out."""
        lines = []
        for name, value in self.counts().items():
            lines += _metric(f"notify_bot_{name}_total", COUNTERS[name], "counter", value)
        for name, (text, value) in gauges.items():
            if value is not None:
                lines += _metric(f"notify_bot_{name}", text, "gauge", value)
        return "\n".join([*lines, *self._histogram(), ""]).encode()

    def _histogram(self) -> list[str]:
        name = "notify_bot_delivery_seconds"
        with self._lock:
            buckets = [f'{name}_bucket{{le="{bound}"}} {count}'
                       for bound, count in zip(BUCKETS, self._buckets, strict=True)]
            total = [f'{name}_bucket{{le="+Inf"}} {self._observed}', f"{name}_sum {self._seconds:.3f}",
                     f"{name}_count {self._observed}"]
        heading = [f"# HELP {name} Seconds from acceptance to delivery.", f"# TYPE {name} histogram"]
        return heading + buckets + total


def _metric(name: str, text: str, kind: str, value: float) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name} {value}"]
