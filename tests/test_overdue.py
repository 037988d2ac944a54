"""Scripts whose schedule does not come round."""

import json
import socket
import threading

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


def test_accounts_that_do_not_answer_come_last(tmp_path):
    """They cost those after them their time, and each look once."""
    import links
    users = ("hung", "sound")
    (tmp_path / "telegram_users.json").write_text(json.dumps(
        {user: {"chat_id": number, "uid": 4711} for number, user in enumerate(users)}))
    asked, listening = [], []
    (tmp_path / "scripts").mkdir()
    for user in users:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / f"scripts/{user}.sock"))
        listener.listen()
        listening.append((user, listener))

    def serve(user, listener):
        for _ in range(2):
            connection, _ = listener.accept()
            asked.append(user)
            with connection:
                connection.recv(1 << 16)  # closed before the request is there, it would answer nothing
                if user == "sound":
                    connection.sendall(line(ok=True, scripts=[])[0])

    threads = [threading.Thread(target=serve, args=one) for one in listening]
    for thread in threads:
        thread.start()
    overdue = Overdue(links.Links(tmp_path), tmp_path / "scripts", None)
    for _ in range(2):
        overdue.look()
    for thread in threads:
        thread.join(10)
    for _, listener in listening:
        listener.close()
    assert asked == ["hung", "sound", "sound", "hung"]
