#!/usr/bin/env python3
"""Tells you when the latest figure of a CSV file leaves the range it should be in.

To use it, copy it to ~/user/notifications/ and change the values below. The latest figure is in the last row.
See what it would send with: notify-runner --dry-run csv_threshold
"""

import csv
import json
import math
from pathlib import Path

FILE = Path.home() / "server" / "sales.csv"
COLUMN = "net_sales"
LOWEST = 80_000  # None: no limit on this side
HIGHEST = None
DELIMITER = ","
COOLDOWN = "4h"


class Problem(Exception):
    """The figure could not be read; the message says why."""


def code(text):
    """Shown as it stands, whatever is in it: inside backticks nothing but a backtick is special."""
    return "`" + str(text).replace("`", "'") + "`"


def last_figures():
    """The figure of the last row, and of the row before it or None."""
    try:
        with open(FILE, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter=DELIMITER)
            columns = reader.fieldnames or []
            rows = [row.get(COLUMN) for row in reader]
    except FileNotFoundError:
        raise Problem(f"{code(FILE)} is not there.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Problem(f"{code(FILE)} cannot be read: {code(error)}") from None
    if COLUMN not in columns:
        raise Problem(f"{code(FILE.name)} has no column {code(COLUMN)}, but {code(', '.join(columns) or 'nothing')}.")
    if not rows:
        raise Problem(f"{code(FILE.name)} has no rows yet.")
    return number(rows[-1], len(rows)), number(rows[-2], len(rows) - 1) if len(rows) > 1 else None


def number(text, row):
    try:
        value = float(text or "")
        if math.isfinite(value):
            return value
        raise ValueError
    except ValueError:
        raise Problem(f"Row {row} of {code(FILE.name)} has {code(text or 'nothing')} as {code(COLUMN)}, "
                      "which is not a number.") from None


def shown(value):
    return f"{value:,.2f}".removesuffix(".00")


def check():
    """Return the text to send, None when all is well, and the figure."""
    try:
        latest, before = last_figures()
    except Problem as problem:
        return str(problem), None
    if LOWEST is not None and latest < LOWEST:
        verdict = f"under the limit of {LOWEST:,}"
    elif HIGHEST is not None and latest > HIGHEST:
        verdict = f"over the limit of {HIGHEST:,}"
    else:
        return None, latest
    change = f"\nThe row before it had {shown(before)}." if before is not None else ""
    return f"{code(COLUMN)} is *{shown(latest)}*, {verdict}.{change}", latest


message, figure = check()
print(json.dumps({
    "notify": message is not None,
    "title": f"{COLUMN} in {FILE.name}",
    "message": message or "",
    "cooldown": COOLDOWN,
    "data": {"figure": figure},
}))
