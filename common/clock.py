"""Ages of what was written down at a time of day, on hosts whose clock may not have been set at that time."""

from __future__ import annotations

EARLIEST = 1735689600  # 2025-01-01: nothing of this service is older


def age(since: float, now: float) -> float:
    """Seconds since a stored time. One that cannot be true, before EARLIEST or in the future, counts from `now`."""
    return now - since if EARLIEST <= since <= now else 0.0
