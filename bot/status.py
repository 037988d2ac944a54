"""The text and keyboard of /status: the scripts, a page at a time, with a button to run each."""

from __future__ import annotations

from bot.scripts import digest, short

PAGE_SCRIPTS = 30  # a keyboard holds about 100 buttons and 10 kB


def status_page(user: str, scripts: list[dict], number: int, now: float) -> tuple[str, list]:
    """The text and the keyboard of a page, counted from 0; `scripts` as `list_scripts` returns them."""
    if not scripts:
        return "You have no scripts yet. Put one into ~/user/notifications/ and it runs every five minutes.", []
    pages = (len(scripts) - 1) // PAGE_SCRIPTS + 1
    number = min(number, pages - 1)
    shown = scripts[number * PAGE_SCRIPTS:(number + 1) * PAGE_SCRIPTS]
    heading = f"{len(scripts)} script{'s' if len(scripts) > 1 else ''} of {user}"
    heading += f", page {number + 1} of {pages}" if pages > 1 else ""
    text = heading + "".join(f"\n\n{_describe(script, now)}" for script in shown)
    buttons = [[button(f"▶ Run {short(script['name'])}", f"run:{digest(script['name'])}")]
               for script in shown if not script["refused"]]
    turn = [button(label, f"page:{page}") for label, page in (("◀ Back", number - 1), ("Next ▶", number + 1))
            if 0 <= page < pages]
    return text, buttons + ([turn] if turn else [])


def button(text: str, data: str) -> dict:
    """An InlineKeyboardButton with callback_data."""
    return {"text": text, "callback_data": data}


def _describe(script: dict, now: float) -> str:
    name, error = short(script["name"]), script["last_error"]
    if script["refused"]:
        return f"⛔ {name}\nis not run: {script['refused']}"
    text = f"{'⚠️' if error else '•'} {name}\nlast run {_ago(script['last_run'], now)}, " \
           f"last sent {_ago(script['last_sent'], now)}, next run {_ahead(script['next_run'], now)}"
    return text + (f"\n{error[:200]}" if error else "")


def _ago(seconds: int | None, now: float) -> str:
    return "never" if seconds is None else f"{_span(max(0, now - seconds))} ago"


def _ahead(seconds: int | None, now: float) -> str:
    if seconds is None:
        return "not scheduled"
    return f"in {_span(seconds - now)}" if seconds > now else "now"


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
