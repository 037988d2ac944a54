"""Scripts whose schedule does not come round."""

import json

import pytest

from live import until
from overdue import Overdue, is_overdue
from test_chat import ScriptsSocket, ask, bot, chat_id, line, linked, scripts, telegram  # noqa: F401 (fixtures)

NOW = 1_800_000_000


@pytest.mark.parametrize(("last_run", "next_run", "overdue"), [
    (NOW - 100, NOW + 200, False),  # all is well
    (NOW - 86_000, NOW + 200, False),  # once a day
    (NOW - 5000, NOW - 100, False),  # just about to run
    (NOW - 5000, NOW - 1000, True),  # the time came and nothing ran
    (NOW - 5000, None, True),  # the timer is off
    (NOW - 100, None, False),  # run from the chat a moment ago
    (None, None, True), (None, NOW + 100, False), ("x", [], True)])
def test_when_a_script_is_overdue(last_run, next_run, overdue):
    assert is_overdue({"name": "a.py", "last_run": last_run, "next_run": next_run}, NOW) is overdue
    assert not is_overdue({"name": "a.py", "last_run": last_run, "next_run": next_run, "refused": "why"}, NOW)


def test_owners_are_asked_and_told(bot, telegram, linked, scripts):  # noqa: F811
    import links
    told = []
    scripts.answers += [
        line(ok=True, scripts=[{"name": f"s_{n}.py", "last_run": NOW - 5000, "next_run": None} for n in range(12)]),
        line(ok=True, scripts=[{"name": "fine.py", "last_run": NOW - 60, "next_run": NOW + 60}]),
        line(ok=False, error="no")]
    users = {"alice": {"chat_id": linked}, "nosocket": {"chat_id": 9}}
    (bot.data / "telegram_users.json").write_text(json.dumps(users))
    overdue = Overdue(links.Links(bot.data), bot.folder / "scripts", lambda *message: told.append(message))
    for _ in range(3):
        overdue.look(NOW)
    ((key, chat, text),) = told
    assert chat == linked and key.startswith("overdue:alice:")
    assert text.count("•") == 10 and "s\\_0.py" in text and "… and 2 more" in text
    until(lambda: len(scripts.requests) == 3)
