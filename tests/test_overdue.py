"""Scripts whose schedule does not come round."""

import json

from live import until
from overdue import Overdue
from test_chat import ScriptsSocket, ask, bot, chat_id, line, linked, scripts, telegram  # noqa: F401 (fixtures)


def test_owners_are_asked_and_told(bot, telegram, linked, scripts):  # noqa: F811
    import links
    told = []
    scripts.answers += [
        line(ok=True, scripts=[{"name": f"s_{n}.py", "last_run": 5, "overdue": True} for n in range(12)]),
        line(ok=True, scripts=[{"name": "fine.py", "overdue": False}, {"name": "odd.py", "overdue": "x"}]),
        line(ok=False, error="no")]
    users = {"alice": {"chat_id": linked, "uid": 4711}, "nosocket": {"chat_id": 9, "uid": 4712}}
    (bot.data / "telegram_users.json").write_text(json.dumps(users))
    overdue = Overdue(links.Links(bot.data), bot.folder / "scripts", lambda *message: told.append(message))
    for _ in range(3):
        overdue.look()
    ((key, chat, text),) = told
    assert chat == linked and key.startswith("overdue:alice:")
    assert text.count("•") == 10 and "s\\_0.py" in text and "… and 2 more" in text
    until(lambda: len(scripts.requests) == 3)
