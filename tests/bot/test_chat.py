"""The conversation: commands, buttons, groups, new links, restarts; with the sandbox as Telegram."""

import contextlib
import itertools
import json
import re
import signal
import socket
import subprocess
import threading
import time

import pytest

import notify_scripts
from bot import scripts as bot_scripts
from bot.chat import MAX_IN_PROGRESS_PER_CHAT
from bot.polling import MAX_HANDLERS
from bot.replies import MAX_REPLIES_PER_CHAT
from bot.scripts import ask as ask_scripts
from common import links
from common.problem import Problem
from live import CHECKOUT, TOKEN, Bot, Telegram, png, until

CHATS = itertools.count(777)


@pytest.fixture(scope="module")
def telegram(tmp_path_factory):
    telegram = Telegram(tmp_path_factory.mktemp("sandbox"))
    yield telegram
    assert telegram.stop() == 0


@pytest.fixture
def chat_id(telegram):
    number = next(CHATS)
    telegram.person(number, "Jana", f"jana{number}")
    return number


@pytest.fixture
def bot(tmp_path, telegram):
    bot = Bot(tmp_path, telegram.url)
    bot.start()
    yield bot
    bot.stop()
    assert "Traceback" not in bot.log
    assert TOKEN not in bot.log and TOKEN not in (bot.data / "bot.log").read_text()
    assert (bot.data / "bot.log").stat().st_mode & 0o777 == 0o600


@pytest.fixture
def linked(bot, chat_id):
    bot.users(alice=chat_id)
    return chat_id


def ask(telegram, chat_id, text, count=1):
    """What the bot answers to a text."""
    before = len(telegram.messages(chat_id))
    telegram.types(chat_id, text)
    return telegram.wait_for(chat_id, before + count)[before:]


def press(telegram, message, label):
    for row in message["reply_markup"]["inline_keyboard"]:
        for button in row:
            if label in button["text"]:
                return telegram.control("press", chat_id=message["chat"]["id"], message_id=message["message_id"],
                                        data=button["callback_data"])
    raise AssertionError(f"no button {label} in {message['reply_markup']}")


def code_in(message):
    return re.search(r"\b\d{6}\b", message["text"])[0]


def test_from_start_to_a_link_and_back(bot, telegram, chat_id):
    (answer,) = ask(telegram, chat_id, "/start")
    assert [e["type"] for e in answer["entities"]] == ["code"]
    before = len(telegram.messages(chat_id))
    started = time.monotonic()
    links.Links(bot.data).redeem(code_in(answer), "alice", 4711)
    welcome = telegram.wait_for(chat_id, before + 1)[-1]
    assert time.monotonic() - started < 2
    assert "linked to alice on testhost" in welcome["text"]
    assert "already linked as alice" in ask(telegram, chat_id, "/start")[0]["text"]
    assert "You are alice on testhost, linked since 20" in ask(telegram, chat_id, "/whoami")[0]["text"]
    (question,) = ask(telegram, chat_id, "/stop")
    press(telegram, question, "No")
    until(lambda: "Nothing was changed." in telegram.texts(chat_id))
    assert links.Links(bot.data).of_user("alice")
    press(telegram, ask(telegram, chat_id, "/stop")[0], "Yes")
    until(lambda: any(text.startswith("Unlinked.") for text in telegram.texts(chat_id)))
    assert links.Links(bot.data).of_user("alice") is None
    assert "Use /start to link" in ask(telegram, chat_id, "/stop")[0]["text"]


def test_a_chat_that_loses_its_login_to_another_is_told(bot, telegram, chat_id):
    links.Links(bot.data).redeem(code_in(ask(telegram, chat_id, "/start")[0]), "alice", 4711)
    until(lambda: any("now linked" in text for text in telegram.texts(chat_id)))
    other = next(CHATS)
    telegram.person(other, "Mallory", "mallory")
    links.Links(bot.data).redeem(code_in(ask(telegram, other, "/start")[0]), "alice", 4711)
    until(lambda: any("Notifications for alice" in text and "now go to Mallory (@mallory)" in text
                      for text in telegram.texts(chat_id)))
    bot.settle()
    assert not any("no longer here" in text for text in telegram.texts(other))


def test_a_link_is_welcomed_once_even_over_a_restart(bot, telegram, chat_id):
    code = code_in(ask(telegram, chat_id, "/start")[0])
    bot.stop()
    links.Links(bot.data).redeem(code, "alice", 4711)
    bot.start()
    until(lambda: any("now linked" in text for text in telegram.texts(chat_id)))
    until(lambda: json.loads((bot.data / "telegram_users.json").read_text())["alice"].get("welcomed_at"))
    bot.stop()
    bot.start()
    ask(telegram, chat_id, "/whoami")
    assert len([text for text in telegram.texts(chat_id) if "now linked" in text]) == 1


def test_who_asks_faster_than_a_chat_may_be_answered_gets_silence(bot, telegram, linked):
    for _ in range(120):
        telegram.types(linked, "/test")
    pending = bot.state / "polling.json"
    until(lambda: pending.exists() and not json.loads(pending.read_text()).get("pending")
          and len(bot.outbox()) >= MAX_REPLIES_PER_CHAT - 1)
    assert len(bot.outbox()) <= MAX_REPLIES_PER_CHAT + MAX_HANDLERS


def test_a_link_with_half_a_character_in_its_name_ends_no_thread(bot, telegram, chat_id):
    ask(telegram, chat_id, "/help")
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    (bot.data / "telegram_users.json").write_text(json.dumps(
        {"a\ud83d": {"chat_id": 5, "linked_at": now, "uid": 5}, "alice": {"chat_id": chat_id, "linked_at": now,
                                                                     "uid": 4711}}))
    until(lambda: any("now linked" in text for text in telegram.texts(chat_id)))


def test_a_new_code_voids_the_older_one(bot, telegram, chat_id):
    old, new = (code_in(ask(telegram, chat_id, "/start")[0]) for _ in range(2))
    store = links.Links(bot.data)
    with pytest.raises(links.LinkError):
        store.peek(old)
    assert store.peek(new)["chat_name"] == f"Jana (@jana{chat_id})"


@pytest.mark.parametrize(("name", "shown"), [
    ("Jana (@jana)", "Jana (jana)"), ("Jana (\uff20jana)", "Jana (jana)"), ("\u202e)anaj@( anaJ\u2069", ")anaj( anaJ"),
    ("@\u202e", "chat {}"), ("\u05d9\u05e0\u05d4 👩\u200d🔬", "\u05d9\u05e0\u05d4 👩\u200d🔬")])
def test_a_name_does_not_pass_for_somebody_s_username(bot, telegram, chat_id, name, shown):
    telegram.person(chat_id, name)
    code = code_in(ask(telegram, chat_id, "/start")[0])
    assert links.Links(bot.data).peek(code)["chat_name"] == shown.format(chat_id)


@pytest.mark.parametrize("text", ["hello", "start", "/unknown", "/", "/ start", "/start@SomeOtherBot", "😀" * 100])
def test_anything_else_is_pointed_at_start(bot, telegram, chat_id, text):
    assert ask(telegram, chat_id, text)[0]["text"] == "Use /start to link your account."


def test_a_linked_chat_is_pointed_at_help(bot, telegram, linked):
    assert "/help" in ask(telegram, linked, "hello")[0]["text"]
    assert "/status - your scripts" in ask(telegram, linked, "/help")[0]["text"]


def test_a_command_may_name_the_bot(bot, telegram, chat_id):
    until(lambda: "this bot is @" in bot.log)
    name = re.search(r"this bot is @(\w+)", bot.log)[1]
    assert "Your code is" in ask(telegram, chat_id, f"/START@{name.upper()}")[0]["text"]
    assert "not valid any more" in ask(telegram, chat_id, f"/START@{name.upper()} payload")[0]["text"]


def test_a_group_is_told_that_only_private_chats_are_linked(bot, telegram):
    telegram.control("chats", id=-500, first_name="Room", type="group")
    telegram.types(-500, "just talk")
    assert "private chats only" in ask(telegram, -500, "/start")[0]["text"]
    assert len(telegram.messages(-500)) == 1
    assert not (bot.data / "pending_codes.json").exists()


def test_commands_are_registered(bot, telegram, chat_id):
    ask(telegram, chat_id, "/help")
    assert telegram.stats()["calls"]["setMyCommands"] >= 1


def test_the_sample_notification_has_a_picture(bot, telegram, linked):
    (message,) = ask(telegram, linked, "/test")
    assert message["photo"] and message["caption"].startswith("Sample notification\n")
    assert "bold" in [entity["type"] for entity in message["caption_entities"]]


def test_status_without_a_socket_says_whom_to_ask(bot, telegram, linked):
    assert "notify-add-analyst" in ask(telegram, linked, "/status")[0]["text"]
    assert "Use /start" in ask(telegram, 60_000, "/status")[0]["text"]


class ScriptsSocket:
    """A neighbour on the socket of notify-scripts that answers what it is told to, for what a broken or hostile
    one could say. The real one is spoken to on the booted machine."""

    def __init__(self, bot, user="alice"):
        (bot.folder / "scripts").mkdir(exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(bot.folder / "scripts" / f"{user}.sock"))
        self._listener.listen()
        self.answers, self.requests, self.held = [], [], ("run",)
        self.hold, self.running = threading.Event(), threading.Event()
        self.hold.set()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        while True:
            connection, _ = self._listener.accept()
            with connection:
                request = connection.recv(65536)
                if not request:
                    return
                self.requests.append(json.loads(request))
                if self.requests[-1]["do"] in self.held:
                    self.running.set()
                    self.hold.wait(20)
                answer, *rest = self.answers.pop(0)
                with contextlib.suppress(BrokenPipeError):
                    connection.sendall(b"".join([answer, *rest]))

    def close(self):
        self.hold.set()
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self._listener.getsockname())
        self._thread.join()
        self._listener.close()


@pytest.fixture
def scripts(bot):
    server = ScriptsSocket(bot)
    yield server
    server.close()


def line(**fields):
    return (json.dumps(fields).encode() + b"\n",)


def entries(*names):
    return [{"name": name, "stem": name[:-3], "last_run": None, "last_sent": None, "next_run": None} for name in names]


def test_status_shows_the_scripts_and_run_brings_what_they_find(bot, telegram, linked, scripts):
    now = time.time()
    listed = line(ok=True, scripts=[
        {"name": "sales.py", "last_run": now - 200, "last_sent": now - 90_000, "next_run": now + 100,
         "last_error": "exit 1"},
        {"name": "bad.py", "refused": "others can write it"}])
    found = {"notify": True, "title": "Sales", "message": "*down* 12 %", "image_path": "/x/chart.png"}
    scripts.answers += [listed, listed]
    (status,) = ask(telegram, linked, "/status")
    assert re.search(r"⚠️ sales\.py\nlast run 3 min ago, last sent 1 d ago, next run in 2 min\nexit 1", status["text"])
    assert "⛔ bad.py\nis not run: others can write it" in status["text"]
    assert len(status["reply_markup"]["inline_keyboard"]) == 1
    image = {"name": "chart.png", "size": len(png())}
    scripts.answers.append((*line(ok=True, output=json.dumps(found), image=image), png()))
    press(telegram, status, "Run sales.py")
    until(lambda: any(message.get("caption") == "Sales\ndown 12 %" for message in telegram.messages(linked)))
    assert scripts.requests[-1] == {"do": "run", "name": "sales.py"}
    assert "alice runs sales.py from the chat" in bot.log


@pytest.mark.parametrize(("answer", "said"), [
    (line(ok=True, output='{"notify": false}'), "has nothing to report"),
    (line(ok=True, output="[1]"), "breaks the contract"),
    (line(ok=True, output='{"notify": true}'), "breaks the contract: message"),
    (line(ok=False, error="exit status 3", stderr="Traceback: *no*\n_x"),
     "exit status 3.\nTraceback: *no*\n_x\n\nTo see what it does: notify-runner --dry-run a.py"),
    (line(ok=False, error="it is gone"), "a.py could not be run: it is gone."),
    (line(ok=False, error="no script a.py"), "no script a.py."),
    ((b"no json\n",), "no answer"), ((b"[]\n",), "not understood"), ((b"",), "no answer"),
    ((b"[" * 100_000 + b"\n",), "no answer")])
def test_every_answer_of_a_run_is_told(bot, telegram, linked, scripts, answer, said):
    scripts.answers += [line(ok=True, scripts=entries("a.py")), line(ok=True, scripts=entries("a.py")), answer]
    (status,) = ask(telegram, linked, "/status")
    press(telegram, status, "Run a.py")
    until(lambda: any(said in text for text in telegram.texts(linked)), what=telegram.texts(linked))


@pytest.mark.parametrize(("size", "sent", "said"), [
    (11, b"secret text", "(Its image is not a PNG"),
    (100, b"half", "(Its image is missing: it did not arrive in time)"),
    (1, b"more", "it did not arrive in time"), (51 << 20, b"", "it is over 50 MiB"), (-1, b"", ""), ("x", b"x", "")])
def test_an_image_that_is_none_is_left_out(bot, telegram, linked, scripts, size, sent, said):
    output = json.dumps({"notify": True, "message": "look", "image_path": "/x/y.png"})
    scripts.answers += [line(ok=True, scripts=entries("a.py"))] * 2
    (status,) = ask(telegram, linked, "/status")
    scripts.answers.append((*line(ok=True, output=output, image={"size": size}), sent))
    press(telegram, status, "Run")
    until(lambda: any(text.startswith("look") and said in text for text in telegram.texts(linked)))


def test_more_than_thirty_scripts_have_pages(bot, telegram, linked, scripts):
    many = line(ok=True, scripts=entries(*(f"script_{number:02}.py" for number in range(65))))
    scripts.answers += [many] * 3
    (status,) = ask(telegram, linked, "/status")
    keyboard = status["reply_markup"]["inline_keyboard"]
    assert (len(keyboard), [button["text"] for button in keyboard[-1]]) == (31, ["Next ▶"])
    press(telegram, status, "Next")
    def shown():
        return [m for m in telegram.messages(linked) if m["message_id"] == status["message_id"]][0]
    page = until(lambda: "page 2 of 3" in shown()["text"] and shown())
    press(telegram, page, "Next")
    page = until(lambda: "page 3 of 3" in shown()["text"] and shown())
    assert [len(row) for row in page["reply_markup"]["inline_keyboard"]] == [1] * 6
    assert "script_64.py" in page["text"]


def test_a_run_holds_nothing_else_up_and_is_not_repeated_by_a_restart(bot, telegram, linked, scripts):
    scripts.answers += [line(ok=True, scripts=entries("slow.py"))] * 2 + [line(ok=True, output='{"notify": false}')]
    (status,) = ask(telegram, linked, "/status")
    scripts.hold.clear()
    press(telegram, status, "Run")
    assert scripts.running.wait(10)
    assert "/help" in ask(telegram, linked, "still there?")[0]["text"]
    scripts.answers.insert(0, line(ok=True, scripts=entries("slow.py")))
    bot.kill()
    scripts.hold.set()
    bot.start()
    until(lambda: any("was restarted while slow.py ran" in text for text in telegram.texts(linked)))
    ask(telegram, linked, "/whoami")
    assert [request["do"] for request in scripts.requests].count("run") == 1


def test_commands_sent_while_the_bot_is_away_are_answered_once(bot, telegram, chat_id):
    ask(telegram, chat_id, "/help")
    bot.kill()
    telegram.types(chat_id, "/whoami")
    telegram.types(chat_id, "/start")
    bot.start()
    until(lambda: len(telegram.messages(chat_id)) == 3)
    bot.stop(signal.SIGTERM)
    bot.start()
    ask(telegram, chat_id, "/help")
    assert len(telegram.messages(chat_id)) == 4


def test_an_unreadable_store_is_told_to_the_person(bot, telegram, chat_id):
    (bot.data / "pending_codes.json").write_text("{")
    assert "administrator" in ask(telegram, chat_id, "/start")[0]["text"]
    assert "pending_codes.json is not valid JSON" in bot.log
    assert subprocess.run(["grep", "-c", "Traceback", bot.folder / "notify_bot.py.log"]).returncode == 1




def test_who_asks_too_much_at_once_holds_nobody_up(bot, telegram, linked, scripts):
    """Whoever answers for the scripts may take all the time there is."""
    scripts.answers += [line(ok=True, scripts=entries("a.py"))] * 12
    scripts.hold.clear()
    scripts.held = ("list", "run")
    for _ in range(12):
        telegram.types(linked, "/status")
    until(lambda: telegram.texts(linked).count(
        "Still working on your earlier requests; please wait.") == 12 - MAX_IN_PROGRESS_PER_CHAT)
    other = next(CHATS)
    telegram.person(other)
    assert "linked to nobody" in ask(telegram, other, "/whoami")[0]["text"]
    scripts.hold.set()
    until(lambda: sum("a.py" in text for text in telegram.texts(linked)) == MAX_IN_PROGRESS_PER_CHAT, 20)


def test_a_press_that_is_handled_again_runs_nothing_again(tmp_path):
    """The crash came after the result, and before the update left polling.json."""
    class Replies:
        told = {}
        has = told.__contains__

        def are_full(self, chat_id):
            return False

        def tell(self, key, chat_id, text, **options):
            self.told.setdefault(key, []).append(text)

    runs = bot_scripts.Runs(tmp_path, tmp_path, Replies())
    link = links.Link("alice", {"chat_id": 1, "uid": 4711})
    for _ in range(2):
        runs.start(link, "a.py", "update:7")
        until(lambda: not runs.running("alice"))
    ((key, (text,)),) = Replies.told.items()
    assert key == "run:update:7" and text.startswith("a.py could not be run. Your scripts cannot be reached")
    assert json.loads((tmp_path / "runs.json").read_text()) == {}


def test_a_run_is_waited_for_as_long_as_it_may_take():
    """The bot may not import notify_scripts, so its limit is held here: the service starts, then the script runs."""
    unit = (CHECKOUT / "units/system/notify-scripts@.service").read_text()
    start_seconds = int(re.search(r"^TimeoutStartSec=(\d+)s$", unit, re.MULTILINE)[1])
    assert start_seconds + notify_scripts.RUN_SECONDS <= bot_scripts.RUN_ANSWER_SECONDS


def test_an_answer_that_trickles_in_ends_at_the_deadline(tmp_path):
    path = tmp_path / "alice.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        stop = threading.Event()

        def trickle():
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                while not stop.wait(0.1):
                    connection.sendall(b" ")

        thread = threading.Thread(target=trickle)
        thread.start()
        started = time.monotonic()
        try:
            with pytest.raises(Problem, match="in time"), ask_scripts(tmp_path, "alice", {"do": "list"}, 1):
                pass
            assert time.monotonic() - started < 2
        finally:
            stop.set()
            thread.join()
