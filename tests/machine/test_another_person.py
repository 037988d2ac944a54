"""A name is not a person: links of an account with another uid, links without one, and what the administrator sees."""

import json
import os
import pwd
import subprocess
import time

import pytest
from test_chat import ask, chat_id, telegram  # noqa: F401 (fixtures)

from common.http_client import request as ask_web
from live import CHECKOUT, ME, PYTHON, Bot, until
from outbox_files import change_waiting

AWAY = "directory"  # no account of this machine: as with one whose directory is away


@pytest.fixture
def bot(tmp_path, telegram):  # noqa: F811
    bot = Bot(tmp_path, telegram.url).start()
    yield bot
    bot.stop()
    assert "Traceback" not in bot.log


def write(bot, **records):
    """Links as other software writes them."""
    path = bot.data / "telegram_users.json"
    replacement = path.with_suffix(".new")
    usual = {"linked_at": "2026-01-31T12:00:00Z", "chat_name": "Jana"}
    replacement.write_text(json.dumps({user: usual | record for user, record in records.items()}))
    replacement.rename(path)


def records(bot):
    return json.loads((bot.data / "telegram_users.json").read_text())


def command(bot, *arguments, status=0):
    done = subprocess.run([PYTHON, "-EsS", CHECKOUT / "notify_bot.py", *arguments], capture_output=True, text=True,
                          timeout=60, env={"NOTIFY_BOT_SOCKET": str(bot.socket_path)})
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_link_of_another_uid_is_none_and_the_journal_says_so_once(bot, telegram, chat_id):  # noqa: F811
    write(bot, **{ME: {"chat_id": chat_id, "uid": os.getuid() + 1}})
    for _ in range(3):
        answer = bot.send("for somebody else")
        assert (answer.status_code, answer.json()["error"]) == (404, f"User '{ME}' has no linked Telegram")
    assert "is linked to nobody" in ask(telegram, chat_id, "/whoami")[0]["text"]
    assert "Use /start" in ask(telegram, chat_id, "/status")[0]["text"]
    until(lambda: bot.get("/health").json()["linked"] == 0)
    said = f"the link of {ME} to chat {chat_id} is not used: the account {ME} has the uid {os.getuid()}"
    assert bot.log.count(said) == 1
    assert records(bot)[ME]["uid"] == os.getuid() + 1
    # It is the same person again.
    write(bot, **{ME: {"chat_id": chat_id, "uid": os.getuid()}})
    assert bot.send("for me", wait=10).status_code == 200


def test_what_waits_for_one_person_is_not_delivered_to_the_next(bot, telegram, chat_id):  # noqa: F811
    telegram.control("faults", action="error", method="sendMessage", status=500, description="away", times=1000)
    write(bot, **{ME: {"chat_id": chat_id, "uid": os.getuid()}})
    assert bot.send("of the one before", wait=0).status_code == 202
    bot.stop()
    # As after the account was deleted, made again with this uid, and linked anew.
    change_waiting(bot.state / "outbox", lambda fields: fields | ({"uid": os.getuid() + 1} if fields["user"] else {}))
    write(bot, **{ME: {"chat_id": chat_id + 1, "uid": os.getuid()}})
    telegram.person(chat_id + 1)
    telegram.types(chat_id + 1, "/help")
    telegram.control_delete("faults")
    bot.start()
    until(lambda: bot.outbox("failed"))
    assert f"it was for uid {os.getuid() + 1}" in bot.log
    telegram.wait_for(chat_id + 1)
    assert not [text for chat in (chat_id, chat_id + 1) for text in telegram.texts(chat) if "one before" in text]


def test_a_link_without_a_uid_gets_that_of_its_account(bot, telegram, chat_id):  # noqa: F811
    write(bot, **{ME: {"chat_id": chat_id, "quiet": [22, 7]}, AWAY: {"chat_id": 9}, "daemon": {"chat_id": "x"}})
    until(lambda: records(bot)[ME].get("uid") == os.getuid())
    assert records(bot)[ME]["quiet"] == [22, 7]
    until(lambda: f"the link of {AWAY} to chat 9 is not used: there is no account {AWAY}" in bot.log)
    assert "uid" not in records(bot)[AWAY] and "uid" not in records(bot)["daemon"]
    assert bot.send("for a name without an account", user=AWAY).status_code == 404
    assert bot.send("for me", wait=10).status_code == 200


def test_an_account_that_cannot_be_looked_up_keeps_its_link(bot, telegram, chat_id):  # noqa: F811
    write(bot, **{AWAY: {"chat_id": chat_id, "uid": 4711}})
    assert f"You are {AWAY}" in ask(telegram, chat_id, "/whoami")[0]["text"]
    assert command(bot, "links", AWAY) == f"{AWAY}  chat {chat_id} Jana  since 2026-01-31T12:00:00Z\n"


def test_the_administrator_lists_links_and_takes_them_away(bot, telegram, chat_id):  # noqa: F811
    code = ask(telegram, chat_id, "/start")[0]["text"].split()[3].strip("`")
    wrong = "000000" if code != "000000" else "000001"
    assert "not valid" in command(bot, "link", ME, wrong, status=os.EX_NOINPUT)
    assert "there is no account" in command(bot, "link", AWAY, code, status=os.EX_NOINPUT)
    assert command(bot, "link", ME, code) == f"{ME} is linked to chat {chat_id} Jana (@jana{chat_id})\n"
    assert records(bot)[ME]["uid"] == os.getuid()
    until(lambda: "welcomed_at" in records(bot)[ME])
    other = chat_id + 500_000
    telegram.person(other, "Pe\x1b[31mtr")
    code = ask(telegram, other, "/start")[0]["text"].split()[3].strip("`")
    words = command(bot, "link", ME, code)
    assert f"it was linked to chat {chat_id} Jana (@jana{chat_id}) before" in words and "\x1b" not in words
    write(bot, **{ME: {"chat_id": other, "uid": os.getuid() + 1},
                  AWAY: {"chat_id": 9, "uid": 1, "blocked": "was blocked"},
                  **{f"user{number:04d}": {"chat_id": 10 + number, "uid": 2} for number in range(450)}})
    words = command(bot, "links").splitlines()
    assert words[-1] == "452 linked" and len(words) == 455
    assert f"    not used: the account {ME} has the uid {os.getuid()}, the link is of {os.getuid() + 1}" in words
    assert words[:2] == [f"{AWAY}  chat 9 Jana  since 2026-01-31T12:00:00Z", "    blocked: was blocked"]
    assert command(bot, "unlink", ME) == f"{ME} is not linked any more; it was linked to chat {other} Jana\n"
    assert command(bot, "unlink", ME) == f"{ME} was not linked\n"
    assert ME not in records(bot)
    command(bot, "unlink", status=os.EX_USAGE)


@pytest.mark.root
def test_links_are_the_administrators(bot):
    bot.socket_path.chmod(0o666)
    for folder in (bot.folder, *bot.folder.parents):
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    for place, body in (("/links", '{"after": ""}'), ("/links/link", '{"user": "root", "code": "000000"}'),
                        ("/links/unlink", '{"user": "root"}')):
        done = subprocess.run(["curl", "--silent", "--unix-socket", bot.socket_path, "--json", body,
                               f"http://localhost{place}"], capture_output=True, text=True, timeout=30,
                              user=pwd.getpwnam("nobody").pw_uid)
        assert "this is the administrator's" in done.stdout


def test_the_page_shows_a_person_nothing_of_an_earlier_one(bot, telegram, chat_id):  # noqa: F811
    ask(telegram, chat_id, "/start")
    write(bot, **{ME: {"chat_id": chat_id, "uid": os.getuid()}})
    assert bot.send("mine", title="mine", wait=10).status_code == 200
    bot.stop()
    sent, = (bot.state / "outbox/sent").iterdir()
    line = json.loads(sent.read_text().splitlines()[-1])
    other = line | {"id": "ab" * 10, "uid": os.getuid() + 1, "title": "an earlier person's"}
    sent.write_text(json.dumps(other, separators=(",", ":")) + "\n" + json.dumps(line, separators=(",", ":")) + "\n")
    bot.environment["NOTIFY_WEB_SOCKET"] = str(bot.folder / "web.sock")
    bot.start()
    answer = ask_web(bot.folder / "web.sock", "POST", "/card", json.dumps({"user": ME}).encode())[2]
    assert [notice["title"] for notice in json.loads(answer)["notifications"]] == ["mine"]


def test_any_number_of_new_links_is_welcomed_some_at_a_time(bot, telegram, chat_id):  # noqa: F811
    """The web server's account writes them, and each welcome is a message and a new version of the file."""
    write(bot, **{f"user{number}": {"chat_id": 9000 + number, "uid": 4711,
                                    "linked_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
                  for number in range(35)})
    path = bot.data / "telegram_users.json"
    versions = []

    def welcomed():
        count = sum("welcomed_at" in record for record in json.loads(path.read_text()).values())
        if count not in versions:
            versions.append(count)
        return count == 35

    until(welcomed, 20)
    assert versions[-1] == 35 and set(versions) <= {0, 10, 20, 30, 35}
