"""Ages of stored times, on hosts whose clock may have been wrong."""

from __future__ import annotations

EARLIEST = 1735689600  # 2025-01-01: nothing of this service is older


def age(since: float, now: float) -> float:
    """Seconds since a stored time; 0 for an impossible one, before EARLIEST or in the future."""
    return now - since if EARLIEST <= since <= now else 0.0
