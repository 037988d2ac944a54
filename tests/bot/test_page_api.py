"""The socket of the link page: what it gives, what it refuses, and that nothing of the send API is on it."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_chat import ScriptsSocket, ask, chat_id, entries, line, press, telegram  # noqa: F401 (fixtures)

from common import http_client
from live import CHECKOUT, ME, PYTHON, TOKEN, Bot, until

NOWHERE = "http://127.0.0.1:9"
SILENT = line(ok=True, output='{"notify": false}')


class PageBot(Bot):
    """A bot that has made the page's socket, too."""

    def __init__(self, folder, api_url, **environment):
        self.web_path = folder / "web.sock"
        super().__init__(folder, api_url, NOTIFY_WEB_SOCKET=str(self.web_path), **environment)

    def answers(self):
        with socket.socket(socket.AF_UNIX) as probe:
            return super().answers() and probe.connect_ex(str(self.web_path)) == 0

    def web(self, path, method="POST", body=None, **fields):
        """`(status, answer)` of a request of the web server's."""
        data = json.dumps(fields).encode() if body is None else body
        status, headers, answer = http_client.request(self.web_path, method, path, data, seconds=30)
        self.retry_after = headers.get("retry-after")
        return status, json.loads(answer)

    def card(self, user="alice"):
        status, card = self.web("/card", user=user)
        assert status == 200, card
        return card

    def notices(self, user="alice"):
        """`(title, state)` of what the card shows."""
        return [(notice["title"], notice["state"]) for notice in self.card(user)["notifications"]]


@pytest.fixture
def bot(tmp_path, telegram):  # noqa: F811
    bot = PageBot(tmp_path, telegram.url)
    bot.start()
    yield bot
    bot.stop()
    assert "Traceback" not in bot.log and TOKEN not in bot.log


@pytest.fixture
def linked(bot, telegram, chat_id):  # noqa: F811
    """A chat that may be written to, linked to alice."""
    ask(telegram, chat_id, "/help")
    bot.users(alice=chat_id)
    return chat_id


@pytest.fixture
def scripts(bot):
    server = ScriptsSocket(bot)
    yield server
    server.close()


def text_arrives(telegram, chat, part):  # noqa: F811
    until(lambda: any(part in text for text in telegram.texts(chat)), what=f"{part!r} in {telegram.texts(chat)}")


def test_card_shows_scripts_as_the_page_wants_them(bot, linked, scripts):
    now = int(time.time())
    scripts.answers.append(line(ok=True, scripts=[
        {"name": "sales.py", "schedule": "OnUnitActiveSec=5min", "last_run": now - 5, "last_sent": now - 9,
         "next_run": now + 5, "last_error": None, "overdue": False, "refused": None},
        {"name": "failing.py", "schedule": None, "last_run": 1, "last_error": "exit status 3"},
        {"name": "late.py", "overdue": True}, {"name": "bad.py", "refused": "others can write it"}]))
    card = bot.card()
    assert (card["ok"], card["health"], card["scripts_error"], card["notifications"]) == (True, None, None, [])
    assert until(lambda: bot.card("bob")["bot"]) == "sandbox_notify_bot"
    sales, *others = card["scripts"]
    assert sales == {"name": "sales.py", "schedule": "OnUnitActiveSec=5min", "last_run": now - 5, "last_sent": now - 9,
                     "next_run": now + 5, "running": False, "can_run": True, "problem": None}
    assert [(script["problem"], script["can_run"]) for script in others] == [
        ("exit status 3", True), ("It has not run when it should have.", True),
        ("It is not run: others can write it", False)]


def test_card_of_somebody_who_cannot_be_asked_for_scripts_says_why(bot, scripts):
    assert "notify-add-analyst" in bot.card("bob")["scripts_error"]
    scripts.answers.append((b"no json\n",))
    assert "There was no answer" in bot.card()["scripts_error"]


def test_owners_account_is_not_trusted_with_what_it_answers(bot, scripts):
    """It answers for the page of its owner only, and even that must stay one."""
    scripts.answers.append(line(ok=True, scripts=[
        {"name": "\udc80.py", "schedule": {"a": 1}, "last_run": "now", "next_run": 1e300, "last_sent": True,
         "last_error": ["x" * 10_000], "overdue": "yes", "refused": 0}, {"name": 5}, "x"]))
    (script,) = bot.card()["scripts"]
    assert len(script.pop("problem")) == 300
    assert script == {"name": "\udc80.py", "schedule": None, "last_run": None, "last_sent": None, "next_run": None,
                      "running": False, "can_run": True}


@pytest.mark.parametrize(("script", "count"), [(b"{}", 600_000), (b"[]", 600_000), (b'""', 900_000)])
def test_owners_account_cannot_fill_the_memory_of_the_bot(bot, scripts, script, count):
    scripts.answers.append((b'{"ok": true, "scripts": [' + b",".join([script] * count) + b"]}\n",))
    assert "There was no answer" in bot.card()["scripts_error"]
    peak = re.search(r"VmHWM:\s+([0-9]+) kB", Path(f"/proc/{bot.process.pid}/status").read_text())
    assert int(peak[1]) < 80 << 10


def test_run_brings_the_result_into_the_chat(bot, telegram, linked, scripts):  # noqa: F811
    scripts.answers += [line(ok=True, scripts=entries("a.py")),
                        line(ok=True, output='{"notify": true, "title": "Sales", "message": "down"}')]
    assert bot.web("/run", user="alice", name="a.py") == (202, {"ok": True})
    text_arrives(telegram, linked, "Sales\ndown")
    assert scripts.requests[-1] == {"do": "run", "name": "a.py"}
    assert "alice runs a.py from the page" in bot.log
    until(lambda: json.loads((bot.state / "runs.json").read_text()) == {})
    scripts.answers += [line(ok=True, scripts=[])] * 50
    (notice,) = until(lambda: bot.card()["notifications"])
    assert (notice["title"], notice["script"], notice["state"], notice["reason"]) == ("Sales", "a.py", "delivered", "")
    assert abs(notice["at"] - time.time()) < 30 and "down" not in json.dumps(notice)


def test_half_a_character_in_an_answer_loses_no_result(bot, telegram, linked, scripts):  # noqa: F811
    half = "\ud83d"
    for answer, told in (({"ok": True, "output": half}, "breaks the contract"),
                         ({"ok": False, "error": "a.py failed", "stderr": half + "x" * 300_000}, "")):
        scripts.answers += [line(ok=True, scripts=entries("a.py")), line(**answer)]
        before = len(telegram.messages(linked))
        assert bot.web("/run", user="alice", name="a.py")[0] == 202
        assert told in telegram.wait_for(linked, before + 1)[-1].get("text", "")
        until(lambda: json.loads((bot.state / "runs.json").read_text()) == {})
    assert "document" in telegram.messages(linked)[-1] and bot.outbox("corrupt") == []


def test_what_cannot_be_run_is_refused_with_the_reason(bot, telegram, linked, scripts):  # noqa: F811
    listed = line(ok=True, scripts=[*entries("a.py"), {"name": "bad.py", "refused": "others can write it"}])
    scripts.answers += [listed] * 2
    assert bot.web("/run", user="bob", name="a.py")[0] == 404
    for name, status in (("b.py", 404), ("bad.py", 409)):
        assert bot.web("/run", user="alice", name=name)[0] == status
    assert bot.web("/run", user="alice")[0] == bot.web("/run", user="alice", name=5)[0] == 400
    scripts.answers.append((b"",))
    status, answer = bot.web("/run", user="alice", name="a.py")
    assert status == 503 and bot.retry_after and "There was no answer" in answer["error"]
    blocked = {"chat_id": linked, "uid": 4711, "blocked": "was blocked"}
    (bot.data / "telegram_users.json").write_text(json.dumps({"alice": blocked}))
    status, answer = bot.web("/run", user="alice", name="a.py")
    assert status == 409 and "was blocked" in answer["error"]
    (bot.data / "telegram_users.json").write_text("{")
    for path in ("/run", "/test"):
        status, answer = bot.web(path, user="alice", name="a.py")
        assert status == 503 and bot.retry_after and str(bot.data) not in answer["error"]
    assert "telegram_users.json is not valid JSON" in bot.log
    assert [request["do"] for request in scripts.requests] == ["list"] * 3


class Neighbour:
    """Answers any number at once on the socket of a user's scripts: lists `names`, and runs until it is let go."""

    def __init__(self, bot, user, names):
        (bot.folder / "scripts").mkdir(exist_ok=True)
        self.path = bot.folder / "scripts" / f"{user}.sock"
        self.names, self.lists, self.go_on = names, threading.Event(), threading.Event()
        self.lists.set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(200)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self):
        while True:
            connection, _ = self._listener.accept()
            self._threads.append(threading.Thread(target=self._answer, args=(connection,)))
            self._threads[-1].start()
            if self.go_on.is_set() and not self.names:
                return

    def _answer(self, connection):
        with connection:
            data = connection.recv(65536)
            if not data:
                return
            wait, answer = ((self.lists, {"scripts": entries(*self.names)}) if json.loads(data)["do"] == "list"
                            else (self.go_on, {"output": '{"notify": false}'}))
            wait.wait(30)
            try:
                connection.sendall(*line(ok=True, **answer))
            except BrokenPipeError:
                return

    def close(self):
        self.lists.set()
        self.go_on.set()
        self.names = ()
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(str(self.path))
        for thread in self._threads:
            thread.join()
        self._listener.close()


@pytest.fixture
def neighbour(bot):
    neighbour = Neighbour(bot, "alice", ["a.py", "b.py", "c.py"])
    yield neighbour
    neighbour.close()


def test_a_script_runs_once_at_a_time_and_two_of_a_user(bot, telegram, linked, neighbour):  # noqa: F811
    assert bot.web("/run", user="alice", name="a.py")[0] == 202
    assert [script["name"] for script in bot.card()["scripts"] if script["running"]] == ["a.py"]
    status, answer = bot.web("/run", user="alice", name="a.py")
    assert status == 409 and answer["error"] == "a.py is running already."
    (shown,) = ask(telegram, linked, "/status")
    press(telegram, shown, "b.py")
    until(lambda: sum(script["running"] for script in bot.card()["scripts"]) == 2)
    assert bot.web("/run", user="alice", name="c.py")[0] == 429 and bot.retry_after
    neighbour.go_on.set()
    until(lambda: sum("nothing to report" in text for text in telegram.texts(linked)) == 2)
    until(lambda: not any(script["running"] for script in bot.card()["scripts"]))


def test_runs_of_the_page_are_bounded_in_all(tmp_path, telegram, chat_id):  # noqa: F811
    bot = PageBot(tmp_path, telegram.url)  # noqa: F811
    bot.users(alice=chat_id, bob=chat_id + 1)
    neighbours = [Neighbour(bot, user, ["a.py"]) for user in ("alice", "bob")]
    try:
        bot.start("from bot import scripts\nscripts.MAX_PAGE_RUNS = 1")
        assert bot.web("/run", user="alice", name="a.py")[0] == 202
        assert bot.web("/run", user="bob", name="a.py")[0] == 503 and bot.retry_after
        neighbours[0].go_on.set()
        until(lambda: bot.web("/run", user="bob", name="a.py")[0] == 202)
    finally:
        for neighbour in neighbours:
            neighbour.close()
        bot.stop()


def test_a_file_that_is_missing_is_answered_and_not_named(tmp_path, telegram, chat_id):  # noqa: F811
    bot = PageBot(tmp_path, telegram.url)  # noqa: F811
    bot.users(alice=chat_id)
    try:
        bot.start("from bot import replies\nfrom pathlib import Path\nreplies.Path = lambda _: Path('/gone/x.py')")
        status, answer = bot.web("/test", user="alice")
        assert status == 503 and bot.retry_after and "cannot read or write its own files" in answer["error"]
        assert "sample_chart" not in answer["error"] and "/gone/sample_chart.png" in bot.log
    finally:
        bot.stop()


def test_a_run_that_a_crash_interrupts_is_told_of_once(bot, telegram, linked, neighbour):  # noqa: F811
    assert bot.web("/run", user="alice", name="a.py")[0] == 202
    (run,) = json.loads((bot.state / "runs.json").read_text()).values()
    assert run == {"user": "alice", "chat_id": linked, "name": "a.py"}
    assert (bot.state / "runs.json").stat().st_mode & 0o777 == 0o600
    bot.kill()
    bot.start()
    text_arrives(telegram, linked, "restarted while a.py ran")
    bot.stop()
    bot.start()
    ask(telegram, linked, "/help")
    assert sum("restarted while a.py ran" in text for text in telegram.texts(linked)) == 1
    assert json.loads((bot.state / "runs.json").read_text()) == {}


def test_a_run_that_was_told_of_is_not_told_of_as_interrupted(bot, telegram, linked, scripts):  # noqa: F811
    """The crash came between the result and the record of it."""
    scripts.answers += [line(ok=True, scripts=entries("a.py")), SILENT]
    scripts.hold.clear()
    assert bot.web("/run", user="alice", name="a.py")[0] == 202
    kept = (bot.state / "runs.json").read_text()
    scripts.hold.set()
    text_arrives(telegram, linked, "nothing to report")
    bot.stop()
    (bot.state / "runs.json").write_text(kept)
    bot.start()
    ask(telegram, linked, "/help")
    assert not any("restarted" in text for text in telegram.texts(linked))
    assert json.loads((bot.state / "runs.json").read_text()) == {}


def test_who_answers_slowly_for_scripts_holds_no_other_page_up(bot, linked, neighbour):
    neighbour.lists.clear()
    held = [threading.Thread(target=bot.web, args=("/card",), kwargs={"user": "alice"}) for _ in range(20)]
    for thread in held:
        thread.start()
    started = time.monotonic()
    until(lambda: "being listed already" in (bot.card()["scripts_error"] or ""))
    assert bot.card("bob")["scripts_error"] and time.monotonic() - started < 5
    neighbour.lists.set()
    for thread in held:
        thread.join()


def test_sample_is_the_one_of_the_chat_and_a_notification(bot, telegram, linked):  # noqa: F811
    (by_chat,) = ask(telegram, linked, "/test")
    status, answer = bot.web("/test", user="alice")
    assert (status, answer["ok"], answer["queued"]) == (200, True, False)
    by_page = telegram.messages(linked)[-1]
    assert (by_page["caption"], by_page["caption_entities"]) == (by_chat["caption"], by_chat["caption_entities"])
    assert by_page["photo"] and answer["id"] in bot.outbox("sent")
    assert until(bot.notices) == [("Sample notification", "delivered")]


def test_sample_that_telegram_takes_slowly_is_queued(bot, telegram, linked):  # noqa: F811
    telegram.control("faults", action="delay", method="sendPhoto", seconds=7, times=1)
    started = time.monotonic()
    status, answer = bot.web("/test", user="alice")
    assert (status, answer["queued"]) == (200, True) and 4.5 < time.monotonic() - started < 6.5
    assert bot.notices() == [("Sample notification", "queued")]
    until(lambda: bot.notices() == [("Sample notification", "delivered")])


def test_who_asks_for_samples_without_end_waits_for_one(bot, telegram, linked):  # noqa: F811
    telegram.control("faults", action="delay", method="sendPhoto", seconds=4, times=1)
    first = threading.Thread(target=bot.web, args=("/test",), kwargs={"user": "alice"})
    first.start()
    until(bot.outbox)
    started = time.monotonic()
    assert bot.web("/test", user="alice")[1]["queued"] is True and time.monotonic() - started < 2
    first.join()
    until(lambda: bot.notices() == [("Sample notification", "delivered")] * 2)


def test_sample_to_nobody_or_a_dead_chat_is_refused(bot, telegram, linked):  # noqa: F811
    assert bot.web("/test", user="bob") == (404, {"ok": False, "error": "User 'bob' has no linked Telegram"})
    telegram.control("block", chat_id=linked)
    for _ in range(2):  # what Telegram says, and what is known from then on
        status, answer = bot.web("/test", user="alice")
        assert status == 409 and "blocked by the user" in answer["error"]
    (notice,) = bot.card()["notifications"]
    assert notice["state"] == "failed" and "blocked by the user" in notice["reason"]


def test_without_telegram_the_page_still_gets_its_answers(tmp_path):
    bot = PageBot(tmp_path, NOWHERE)
    bot.users(**{ME: 1, "bob": 2})
    bot.start()
    try:
        assert bot.card(ME)["bot"] is None
        until(lambda: "cannot be reached" in (bot.card(ME)["health"] or ""))
        assert bot.web("/invite", user=ME)[0] == 503 and bot.retry_after
        for number in range(200):
            assert bot.send(f"secret {number}", title=f"title {number}", wait=0).status_code == 202
        assert bot.web("/test", user=ME)[0] == 429 and bot.retry_after
        newest = [(f"title {number}", "queued") for number in range(199, 189, -1)]
        assert bot.notices(ME) == newest and bot.notices("bob") == []
        dropped = bot.card(ME)["notifications"][0]
        assert "secret" not in json.dumps(bot.card(ME)) and dropped["title"] == "title 199"
        bot.kill()
        bot.start()
        assert bot.notices(ME) == newest
    finally:
        bot.stop()


def test_notifications_are_the_newest_of_the_login_over_a_restart(bot, telegram, linked):  # noqa: F811
    other = linked + 50_000
    telegram.person(other)
    ask(telegram, other, "/help")
    bot.users(**{ME: linked, "bob": other})
    for number in range(12):
        assert bot.send(f"text {number}", title=f"t{number}", script="s.py").status_code == 200
    newest = [(f"t{number}", "delivered") for number in range(11, 1, -1)]
    assert until(lambda: bot.notices(ME) == newest) and bot.notices("bob") == []
    bot.send("one more", title="t12")
    until(lambda: bot.notices(ME)[0] == ("t12", "delivered"))
    telegram.refuses("sendMessage", 400, "Bad Request: no")
    assert bot.send("not wanted", title="t13").status_code == 502
    expected = [("t13", "failed"), ("t12", "delivered"), *newest[:8]]
    for _ in range(2):
        assert bot.notices(ME) == expected
        assert bot.card(ME)["notifications"][0]["reason"] == "Bad Request: no"
        bot.kill()
        bot.start()
    (failed,) = bot.outbox("failed")
    assert bot.post("/queue/retry", json={"id": failed}).status_code == 200
    until(lambda: bot.notices(ME)[0] == ("t13", "delivered"))


def test_what_was_dropped_is_shown_no_more(bot, telegram, linked):  # noqa: F811
    bot.users(**{ME: linked})
    telegram.refuses("sendMessage", 400, "Bad Request: no")
    assert bot.send("x", title="wrong").status_code == 502
    assert bot.notices(ME) == [("wrong", "failed")]
    assert bot.post("/queue/drop", json={"id": bot.outbox("failed")[0]}).status_code == 200
    assert bot.notices(ME) == []


def test_an_outbox_that_cannot_be_read_is_said(bot, linked):
    (bot.state / "outbox/sent").rename(bot.state / "outbox/away")
    status, answer = bot.web("/card", user="alice")
    assert status == 503 and bot.retry_after and "journal" in answer["error"] and "outbox cannot be read" in bot.log
    (bot.state / "outbox/away").rename(bot.state / "outbox/sent")
    assert bot.card()["ok"]


@pytest.mark.parametrize("path", ["/card", "/run", "/test", "/invite"])
@pytest.mark.parametrize("body", [
    b"", b"[]", b"nonsense", b"{}", b'{"user": 5}', b'{"user": ""}', b'{"user": "../alice"}', b'{"user": "a\\u0000b"}',
    b'{"user": "\\ud800"}', '{"user": "аlice"}'.encode(), b'{"user": "al ice"}', b'{"user": "' + b"a" * 33 + b'"}',
    b"[" * 4000])
def test_what_is_no_request_is_refused(bot, path, body):
    status, answer = bot.web(path, body=body)
    assert status == 400 and answer["ok"] is False and answer["error"]


def test_nothing_else_is_there(bot, linked):
    for path in ("/send", "/send_photo", "/health", "/metrics", "/queue", "/queue/retry", "/queue/drop", "/", "/card/"):
        assert bot.web(path, user="alice", text="x")[0] == 404
    for method in ("GET", "PUT", "DELETE"):
        assert bot.web("/card", method, user="alice")[0] == 405
    assert bot.web("/card", body=b"{" + b" " * 5000)[0] == 413
    assert bot.post("/card", json={"user": "alice"}).status_code == 404
    assert bot.outbox() == []


def test_page_takes_no_more_than_its_own_connections(bot):
    opened = [socket.socket(socket.AF_UNIX) for _ in range(80)]
    try:
        for connection in opened:
            connection.settimeout(10)
            connection.connect(str(bot.web_path))
        refused = [connection.recv(1000) for connection in opened[64:]]
        assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in refused)
        assert bot.get("/health").status_code == 200
    finally:
        for connection in opened:
            connection.close()
    until(lambda: bot.card())


def test_what_is_asked_when_the_bot_stops_is_answered(bot, telegram, linked):  # noqa: F811
    telegram.control("faults", action="delay", method="sendPhoto", seconds=3, times=1)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(bot.web("/test", user="alice")))
    idle = http.client.HTTPConnection("localhost")
    with socket.socket(socket.AF_UNIX) as idle.sock:
        idle.sock.settimeout(10)
        idle.sock.connect(str(bot.web_path))
        idle.request("POST", "/card", json.dumps({"user": "bob"}))
        assert idle.getresponse().read()
        asking.start()
        until(bot.outbox)
        started = time.monotonic()
        assert bot.stop(signal.SIGTERM) == 0 and time.monotonic() - started < 8
        assert idle.sock.recv(100) == b""
    asking.join()
    assert answers[0][0] == 200 and answers[0][1]["ok"] is True


def test_a_socket_is_made_for_the_page_only_where_it_is_asked_for(tmp_path):
    bot = Bot(tmp_path, NOWHERE)
    bot.start()
    try:
        assert sorted(path.name for path in tmp_path.glob("*.sock")) == ["bot.sock"]
    finally:
        assert bot.stop() == 0


@pytest.mark.parametrize(("names", "served"), [
    (("send-api", "web"), {"send-api", "web"}), (("web", "send-api"), {"send-api", "web"}),
    (("web",), {"web"}), (("send-api",), {"send-api"}), (("send-api", "other"), None)])
def test_sockets_that_systemd_hands_over_are_known_by_their_names(tmp_path, names, served):
    bot = PageBot(tmp_path, NOWHERE)
    # LISTEN_PID must be the pid of the program itself, so something has to run that then becomes it.
    hand_over = ("import os, sys\ncount = int(sys.argv[1])\n"
                 "kept = [os.dup(int(number)) for number in sys.argv[2:2 + count]]\n"
                 "kept = [os.dup2(number, 50 + place) for place, number in enumerate(kept)]\n"
                 "for place, number in enumerate(kept):\n    os.dup2(number, 3 + place)\n"
                 "os.environ['LISTEN_PID'] = str(os.getpid())\nos.execv(sys.argv[2 + count], sys.argv[2 + count:])")
    listeners = {name: socket.socket(socket.AF_UNIX) for name in names}
    try:
        for name, listener in listeners.items():
            listener.bind(str(tmp_path / name))
            listener.listen()
        numbers = [listener.fileno() for listener in listeners.values()]
        with open(tmp_path / "log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", hand_over, str(len(names)), *map(str, numbers), PYTHON, "-EsS",
                 CHECKOUT / "notify_bot.py"], pass_fds=numbers, stdout=log, stderr=log,
                env={**bot.environment, "LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)})
        if served is None:
            assert process.wait(10) == 78 and "FileDescriptorName=web" in (tmp_path / "log").read_text()
            return
        try:
            for name in served:
                path = "/card" if name == "web" else "/health"
                method, body = ("POST", b'{"user": "alice"}') if name == "web" else ("GET", b"")
                assert http_client.request(tmp_path / name, method, path, body)[0] in (200, 503)
            assert not bot.socket_path.exists() and not bot.web_path.exists()
        finally:
            process.terminate()
            assert process.wait(10) == 0
    finally:
        for listener in listeners.values():
            listener.close()
