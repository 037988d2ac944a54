"""The text and keyboard of /status: the scripts, a page at a time, with a button to run each."""

from __future__ import annotations

from bot.scripts import digest, short

PAGE_SCRIPTS = 30  # a keyboard holds about 100 buttons and 10 kB


def status_page(user: str, scripts: list[dict], number: int, now: float) -> tuple[str, list]:
    """The text and the keyboard of a page, counted from 0; `scripts` as `notify-scripts list` has them."""
    if not scripts:
        return "You have no scripts yet. Put one into ~/user/notifications/ and it runs every five minutes.", []
    pages = (len(scripts) - 1) // PAGE_SCRIPTS + 1
    number = min(number, pages - 1)
    shown = scripts[number * PAGE_SCRIPTS:(number + 1) * PAGE_SCRIPTS]
    heading = f"{len(scripts)} script{'s' if len(scripts) > 1 else ''} of {user}"
    heading += f", page {number + 1} of {pages}" if pages > 1 else ""
    text = heading + "".join(f"\n\n{_describe(script, now)}" for script in shown)
    buttons = [[button(f"▶ Run {short(script['name'])}", f"run:{digest(script['name'])}")]
               for script in shown if not script.get("refused")]
    turn = [button(label, f"page:{page}") for label, page in (("◀ Back", number - 1), ("Next ▶", number + 1))
            if 0 <= page < pages]
    return text, buttons + ([turn] if turn else [])


def button(text: str, data: str) -> dict:
    """An InlineKeyboardButton with callback_data."""
    return {"text": text, "callback_data": data}


def _describe(script: dict, now: float) -> str:
    if script.get("refused"):
        return f"⛔ {short(script['name'])}\nis not run: {script['refused']}"
    mark = "⚠️" if script.get("last_error") else "•"
    text = f"{mark} {short(script['name'])}\nlast run {_ago(script.get('last_run'), now)}, " \
           f"last sent {_ago(script.get('last_sent'), now)}, next run {_ahead(script.get('next_run'), now)}"
    return text + (f"\n{str(script['last_error'])[:200]}" if script.get("last_error") else "")


def _ago(seconds, now: float) -> str:
    return f"{_span(max(0, now - seconds))} ago" if type(seconds) in (int, float) else "never"


def _ahead(seconds, now: float) -> str:
    if type(seconds) not in (int, float):
        return "not scheduled"
    return f"in {_span(seconds - now)}" if seconds > now else "now"


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
