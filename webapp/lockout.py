"""How often a wrong code was tried, so that nobody can find a right one by trying.

    link_guesses.json   {login: [unix seconds of a wrong code, …]}

Five wrong codes in ten minutes lock the login for ten minutes from the fifth, a hundred over all logins lock all
until fewer than that are ten minutes old. A guess is on disk before it is judged, and taken back when it was right:
so neither many processes at once, nor one that is killed, nor a full disk gives a guess for nothing.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

from common.jsonstore import JsonStore

WINDOW_SECONDS = 600
MAX_WRONG = 5
MAX_WRONG_OF_ALL = 100


class TooManyGuesses(Exception):
    """This login may not guess now; `seconds` until it may."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = max(1, math.ceil(seconds))


class Guesses:
    """The guesses in a data directory. Every method raises StoreError where the file is unusable."""

    def __init__(self, data_dir: Path):
        self._store = JsonStore(data_dir / "link_guesses.json")

    def begin(self, login: str, now: float | None = None) -> float:
        """Count a guess; what is returned takes it back. Raises TooManyGuesses, and then nothing may be judged."""
        now = time.time() if now is None else now
        with self._store.update() as document:
            wrong = _current(document, now)
            seconds = max(_until_unlocked(wrong.get(login, []), now), _until_all_unlocked(wrong, now))
            if seconds <= 0:
                document[login] = [*wrong.get(login, []), now]
        if seconds > 0:
            raise TooManyGuesses(seconds)
        return now

    def take_back(self, login: str, guess: float) -> None:
        """The guess was right."""
        with self._store.update() as document:
            if guess in (stamps := document.get(login, [])):
                stamps.remove(guess)
            if not stamps:
                document.pop(login, None)


def _current(document: dict, now: float) -> dict[str, list]:
    """What still counts, by login; the rest is taken out of the document, but for what is not ours."""
    current = {}
    for login, stamps in list(document.items()):
        if not isinstance(stamps, list):
            continue
        # One from the future was made before the clock was set back: from now on it counts a window, and no longer.
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
