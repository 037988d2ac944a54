#!/usr/bin/env python3
"""Tells you when data stops arriving: the newest file below a folder is older than it should be.

To use it, copy it to ~/user/notifications/ and change the three values below. WATCHED may be one file, too.
See what it would send with: notify-runner --dry-run data_freshness
"""

import json
import os
import time
from pathlib import Path

WATCHED = Path.home() / "server"
MAX_AGE_HOURS = 26  # a day, and two hours for an export that is late
COOLDOWN = "6h"  # while it stays stale, remind me this often


def newest_file(path):
    """The path and the time of the newest file, (None, 0.0) where there is none."""
    if path.is_file():
        return path, path.stat().st_mtime
    newest, newest_time = None, 0.0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                changed = os.stat(os.path.join(folder, name)).st_mtime
            except OSError:
                continue  # it was removed just now, or it is a link to nothing
            if changed > newest_time:
                newest, newest_time = Path(folder, name), changed
    return newest, newest_time


def code(text):
    """Shown as it stands, whatever is in it: inside backticks nothing but a backtick is special."""
    return "`" + str(text).replace("`", "'") + "`"


def check():
    if not WATCHED.exists():
        return f"{code(WATCHED)} is not there. Has it moved, or is it not mounted?"
    newest, changed = newest_file(WATCHED)
    if newest is None:
        return f"There is no file in {code(WATCHED)}."
    hours = (time.time() - changed) / 3600
    if hours <= MAX_AGE_HOURS:
        return None
    when = time.strftime("%a %d %b, %H:%M", time.localtime(changed))
    return f"Nothing new in {code(WATCHED)} for *{hours:.0f} hours*.\nThe newest file is {code(newest.name)} of {when}."


problem = check()
print(json.dumps({
    "notify": problem is not None,
    "title": "Data is stale",
    "message": problem or "",
    "cooldown": COOLDOWN,
}))
