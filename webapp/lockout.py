"""Lockout after wrong codes, so that nobody can find a right one by trying.

    link_guesses.json   {login: [unix seconds of a wrong code, …]}

Five wrong codes in ten minutes lock the login for ten minutes from the fifth, a hundred over all logins lock all
until fewer than that are ten minutes old. A code is counted on disk as wrong before it is judged, and taken back when
it was right: neither many processes at once, nor one that is killed, nor a full disk gives an uncounted attempt.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

from common.jsonstore import JsonStore
from common.problem import Problem

WINDOW_SECONDS = 600
MAX_WRONG = 5
MAX_WRONG_OF_ALL = 100


class Lockout:
    """The wrong codes in a data directory. Every method raises StoreError where the file is unusable."""

    def __init__(self, data_dir: Path):
        self._store = JsonStore(data_dir / "link_guesses.json")

    def begin(self, login: str, now: float | None = None) -> float:
        """Count a code as wrong, before it is judged; the result takes it back. Raises Problem for a locked login."""
        now = time.time() if now is None else now
        with self._store.update() as document:
            wrong = _current(document, now)
            seconds = max(_until_unlocked(wrong.get(login, []), now), _until_all_unlocked(wrong, now))
            if seconds <= 0:
                document[login] = [*wrong.get(login, []), now]
        if seconds > 0:
            minutes = math.ceil(seconds / 60)
            raise Problem(429, f"There were too many wrong codes. Try again in {minutes} "
                               f"minute{'' if minutes == 1 else 's'}.", {"Retry-After": str(math.ceil(seconds))})
        return now

    def take_back(self, login: str, stamp: float) -> None:
        """Uncount a code that was not wrong."""
        with self._store.update() as document:
            if stamp in (stamps := document.get(login, [])):
                stamps.remove(stamp)
            if not stamps:
                document.pop(login, None)


def _current(document: dict, now: float) -> dict[str, list]:
    """The times that still count, by login. The others are removed from the document; foreign fields stay."""
    current = {}
    for login, stamps in list(document.items()):
        if not isinstance(stamps, list):
            continue
        # A time in the future was written before the clock was set back; it counts from now.
        stamps = sorted(min(stamp, now) for stamp in stamps if type(stamp) in (int, float))
        if len(stamps) >= MAX_WRONG:
            stamps = stamps if stamps[-1] > now - WINDOW_SECONDS else []
        else:
            stamps = [stamp for stamp in stamps if stamp > now - WINDOW_SECONDS]
        if stamps:
            document[login] = current[login] = stamps
        else:
            del document[login]
    return current


def _until_unlocked(stamps: list, now: float) -> float:
    return stamps[-1] + WINDOW_SECONDS - now if len(stamps) >= MAX_WRONG else 0


def _until_all_unlocked(wrong: dict[str, list], now: float) -> float:
    recent = sorted(stamp for stamps in wrong.values() for stamp in stamps if stamp > now - WINDOW_SECONDS)
    return recent[-MAX_WRONG_OF_ALL] + WINDOW_SECONDS - now if len(recent) >= MAX_WRONG_OF_ALL else 0
