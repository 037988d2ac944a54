"""One-press links: asked for on the page's socket, confirmed in the chat; with the sandbox as Telegram."""

import json
import re
import signal
import threading
from pathlib import Path

import pytest
from test_chat import CHATS, ask, chat_id, press, telegram  # noqa: F401 (fixtures)
from test_page_api import PageBot, bot, text_arrives  # noqa: F401 (a fixture)

from live import uid_of, until

# games and news are accounts of every Debian; an invite is of an account.
GONE = "This link is not valid any more"
# The bot, stopped as by a power cut's bad luck: the link is on disk, the invite is about to be removed.
STOPS_BETWEEN = """
import os, signal
from common import jsonstore
write = jsonstore.write_atomic
def stop_before_the_invite_goes(path, data, *rest, **options):
    if path.name == "invites.json" and data.strip() == b"{}":
        os.kill(os.getpid(), signal.SIGSTOP)
    return write(path, data, *rest, **options)
jsonstore.write_atomic = stop_before_the_invite_goes
"""


def payload_for(bot, user):  # noqa: F811
    """The payload of a new invite."""
    def invited():
        status, answer = bot.web("/invite", user=user)
        return answer if status == 200 else None
    url = until(invited, what="the bot knows its name")["url"]
    return re.fullmatch(r"https://t\.me/sandbox_notify_bot\?start=([A-Za-z0-9_-]{1,64})", url)[1]


def opens(telegram, chat, payload):  # noqa: F811
    """What the bot answers in a chat that was opened by the link."""
    return ask(telegram, chat, f"/start {payload}")[0]


def linked_chats(bot):  # noqa: F811
    path = bot.data / "telegram_users.json"
    return {user: record["chat_id"] for user, record in json.loads(path.read_text()).items()} if path.exists() else {}


def invites(bot):  # noqa: F811
    return json.loads((bot.state / "invites.json").read_text())


def text_of(telegram, message):  # noqa: F811
    """The text of a message now, after what was edited."""
    return next(now["text"] for now in telegram.messages(message["chat"]["id"])
                if now["message_id"] == message["message_id"])


def becomes(telegram, message, part):  # noqa: F811
    until(lambda: part in text_of(telegram, message), what=f"{text_of(telegram, message)!r} becomes {part!r}")


def new_chat(telegram, name="Petr"):  # noqa: F811
    chat = next(CHATS)
    telegram.person(chat, name, f"{name.lower()}{chat}")
    return chat


def test_one_press_links_the_chat_and_names_the_login(bot, telegram, chat_id):  # noqa: F811
    payload = payload_for(bot, "games")
    question = opens(telegram, chat_id, payload)
    assert question["text"] == "Link this chat to the login games on testhost?"
    assert [button["text"] for button in question["reply_markup"]["inline_keyboard"][0]] == ["Yes, link", "No"]
    assert linked_chats(bot) == {}
    press(telegram, question, "Yes")
    until(lambda: any("now linked to games on testhost" in text for text in telegram.texts(chat_id)))
    assert linked_chats(bot) == {"games": chat_id}
    assert json.loads((bot.data / "telegram_users.json").read_text())["games"]["chat_name"] == f"Jana (@jana{chat_id})"
    assert text_of(telegram, question) == "Linked to games." and invites(bot) == {}


def test_no_changes_nothing_and_the_invite_still_links(bot, telegram, chat_id):  # noqa: F811
    payload = payload_for(bot, "games")
    question = opens(telegram, chat_id, payload)
    press(telegram, question, "No")
    becomes(telegram, question, "Nothing was changed.")
    assert linked_chats(bot) == {}
    press(telegram, opens(telegram, chat_id, payload), "Yes")
    until(lambda: linked_chats(bot) == {"games": chat_id})


def test_an_invite_is_used_once_and_ends_with_a_way_out(bot, telegram, chat_id):  # noqa: F811
    payload = payload_for(bot, "games")
    press(telegram, opens(telegram, chat_id, payload), "Yes")
    until(lambda: linked_chats(bot))
    other = new_chat(telegram)
    answer = opens(telegram, other, payload)["text"]
    assert answer.startswith(GONE) and "/start for a code" in answer
    assert linked_chats(bot) == {"games": chat_id}


def test_an_invite_expires_also_between_question_and_answer(bot, telegram, chat_id):  # noqa: F811
    payload = payload_for(bot, "games")
    question = opens(telegram, chat_id, payload)
    path = bot.state / "invites.json"
    path.write_text(path.read_text().replace(str(invites(bot)[payload]["created_at"]),
                                             str(invites(bot)[payload]["created_at"] - 600)))
    press(telegram, question, "Yes")
    becomes(telegram, question, GONE)
    assert opens(telegram, chat_id, payload)["text"].startswith(GONE)
    assert linked_chats(bot) == {}
    payload_for(bot, "news")
    assert payload not in invites(bot)


def test_a_new_invite_voids_the_older_one_of_the_login_and_no_other(bot, telegram, chat_id):  # noqa: F811
    old, of_bob = payload_for(bot, "games"), payload_for(bot, "news")
    new = payload_for(bot, "games")
    assert opens(telegram, chat_id, old)["text"].startswith(GONE)
    assert "login games" in opens(telegram, chat_id, new)["text"]
    assert "login news" in opens(telegram, chat_id, of_bob)["text"]


def test_the_bot_alone_reads_invites_and_they_survive_its_restart(bot, telegram, chat_id):  # noqa: F811
    payload = payload_for(bot, "games")
    assert [(bot.state / name).stat().st_mode & 0o777 for name in ("invites.json", ".invites.json.lock")] == [0o600] * 2
    bot.kill()
    bot.start()
    press(telegram, opens(telegram, chat_id, payload), "Yes")
    until(lambda: linked_chats(bot) == {"games": chat_id})


def test_what_a_link_replaces_is_said_and_replaced(bot, telegram, chat_id):  # noqa: F811
    """The chat is another login's, and the login has another chat."""
    elsewhere = new_chat(telegram, "Eva")
    bot.users(news=chat_id, games=elsewhere, carol=new_chat(telegram))
    question = opens(telegram, chat_id, payload_for(bot, "games"))
    assert "login games" in question["text"] and "It is linked to news now, and that link ends." in question["text"]
    assert "games is linked to another chat now" in question["text"]
    press(telegram, question, "Yes")
    until(lambda: linked_chats(bot).get("games") == chat_id)
    assert linked_chats(bot).keys() == {"games", "carol"}
    assert "You are games" in until(lambda: [text for text in (ask(telegram, chat_id, "/whoami")[-1]["text"],)
                                             if "You are" in text])[0]
    assert "linked to nobody" in ask(telegram, elsewhere, "/whoami")[0]["text"]


def test_who_is_linked_already_is_told_so(bot, telegram, chat_id):  # noqa: F811
    bot.users(games=chat_id)
    answer = opens(telegram, chat_id, payload_for(bot, "games"))
    assert answer["text"] == "This chat is already linked as games." and "reply_markup" not in answer


def test_groups_are_refused(bot, telegram):  # noqa: F811
    telegram.control("chats", id=-501, first_name="Room", type="group")
    payload = payload_for(bot, "games")
    assert "private chats only" in opens(telegram, -501, payload)["text"]
    assert payload in invites(bot) and linked_chats(bot) == {}


@pytest.mark.parametrize("junk", [
    "x", "no", "A" * 32, "A" * 64, "A" * 300, "../../invites.json", "123456", "login games", "💥", "{}", "'--", "%00"])
def test_a_payload_of_somebodys_own_links_nothing(bot, telegram, chat_id, junk):  # noqa: F811
    payload_for(bot, "games")
    assert opens(telegram, chat_id, junk)["text"].startswith(GONE)
    assert linked_chats(bot) == {} and not (bot.data / "pending_codes.json").exists()


@pytest.mark.parametrize("forged", ["invite:", "invite:yes", "invite:" + "A" * 32, "invite:games:games", "invite::"])
def test_a_press_of_somebodys_own_links_nothing(bot, telegram, chat_id, forged):  # noqa: F811
    """A client of Telegram's that somebody has changed may press what is not there; the sandbox's does not."""
    question = opens(telegram, chat_id, payload_for(bot, "games"))
    bot.settle()
    bot.stop()
    path = bot.state / "polling.json"
    update = {"update_id": 1, "callback_query": {"id": "1", "data": forged, "message": question}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pending": {"1": {"update": update}}}))
    bot.start()
    becomes(telegram, question, GONE)
    assert linked_chats(bot) == {}


def test_a_link_that_is_there_already_is_no_news(bot, telegram, chat_id):  # noqa: F811
    """The code was typed while the question stood in the chat."""
    question = opens(telegram, chat_id, payload_for(bot, "games"))
    path = bot.data / "telegram_users.json"
    path.write_text(json.dumps({"games": {"chat_id": chat_id, "linked_at": "2026-01-31T12:00:00Z", "quiet": [22, 7],
                                          "uid": uid_of("games")}}))
    before = path.read_text()
    press(telegram, question, "Yes")
    becomes(telegram, question, "Linked to games.")
    assert json.loads(path.read_text()) == json.loads(before) and invites(bot) == {}


def test_what_other_software_keeps_with_a_login_stays(bot, telegram, chat_id):  # noqa: F811
    path = bot.data / "telegram_users.json"
    path.write_text(json.dumps({"games": {"chat_id": 1, "quiet": [22, 7], "blocked": "gone", "welcomed_at": "x"}}))
    press(telegram, opens(telegram, chat_id, payload_for(bot, "games")), "Yes")
    text_arrives(telegram, chat_id, "now linked to games")
    record = json.loads(path.read_text())["games"]
    assert (record["chat_id"], record["quiet"], "blocked" in record) == (chat_id, [22, 7], False)


def at_once(*calls):
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_two_presses_at_once_link_once(bot, telegram, chat_id):  # noqa: F811
    question = opens(telegram, chat_id, payload_for(bot, "games"))
    bot.settle()
    bot.stop()
    for _ in range(3):  # which it then gets at once, and works on at once
        press(telegram, question, "Yes")
    bot.start()
    becomes(telegram, question, "Linked to games.")
    until(lambda: "welcomed_at" in json.loads((bot.data / "telegram_users.json").read_text())["games"])
    bot.settle()
    assert text_of(telegram, question) == "Linked to games."
    assert sum("now linked" in text for text in telegram.texts(chat_id)) == 1


def test_of_two_chats_at_once_one_is_linked(bot, telegram):  # noqa: F811
    for _ in range(5):
        payload = payload_for(bot, "games")
        chats = [new_chat(telegram) for _ in range(2)]
        questions = [opens(telegram, chat, payload) for chat in chats]
        at_once(*[lambda question=question: press(telegram, question, "Yes") for question in questions])
        until(lambda: all(not text_of(telegram, question).startswith("Link this") for question in questions))  # noqa: B023
        said = sorted(text_of(telegram, question) for question in questions)
        assert said[0] == "Linked to games." and said[1].startswith(GONE)
        assert linked_chats(bot)["games"] in chats and set(linked_chats(bot)) == {"games"}
        (bot.data / "telegram_users.json").unlink()


def test_a_crash_between_link_and_invite_leaves_the_link_made(tmp_path, telegram, chat_id):  # noqa: F811
    bot = PageBot(tmp_path, telegram.url)  # noqa: F811
    try:
        bot.start(STOPS_BETWEEN)
        payload = payload_for(bot, "games")
        question = opens(telegram, chat_id, payload)
        press(telegram, question, "Yes")
        stat = Path(f"/proc/{bot.process.pid}/stat")
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", what="it stops in between")
        assert linked_chats(bot) == {"games": chat_id} and payload in invites(bot)
        assert bot.kill() == -signal.SIGKILL
        bot.start()
        becomes(telegram, question, "Linked to games.")
        until(lambda: invites(bot) == {})
        until(lambda: "welcomed_at" in json.loads((bot.data / "telegram_users.json").read_text())["games"])
        bot.settle()
        assert linked_chats(bot) == {"games": chat_id}
        assert sum("now linked" in text for text in telegram.texts(chat_id)) == 1
    finally:
        bot.stop()


def test_an_unreadable_store_is_told_to_page_and_person(bot, telegram, chat_id):  # noqa: F811
    payload_for(bot, "games")
    (bot.state / "invites.json").write_text("{")
    status, answer = bot.web("/invite", user="games")
    assert status == 503 and "journal" in answer["error"] and "json" not in answer["error"].lower()
    assert "invites.json is not valid JSON" in bot.log
    assert "administrator" in opens(telegram, chat_id, "A" * 32)["text"]
    assert (bot.state / "invites.json").read_text() == "{"
