"""Texts that wait for one chat arrive as one message, and each keeps what is its own."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from bot.joined import Joined
from bot.message import MAX_ENTITIES, MAX_TEXT
from live import ME, Bot, png, until
from outbox_files import change_waiting, entry

CHAT = 1


@pytest.fixture
def bot(tmp_path, telegram):
    bot = Bot(tmp_path, telegram.url)
    bot.users(**{ME: CHAT})
    telegram.person(CHAT)
    telegram.types(CHAT, "hi")
    bot.start().settle()
    until(lambda: telegram.messages(CHAT))
    yield bot
    bot.stop()
    assert "Traceback" not in bot.log


def hold(telegram, bot):
    """Telegram wants a second of rest, in which what follows is accepted."""
    telegram.refuses("sendMessage", 429, "Too Many Requests: retry after 1", retry_after=1)


def after(telegram, seconds=10, count=1):
    """The messages after the first one, which answered the person."""
    until(lambda: len(telegram.messages(CHAT)) > count, seconds, f"{count} messages")
    return telegram.messages(CHAT)[1:]


def spans(message, kind="bold"):
    data = message["text"].encode("utf-16-le")
    return [data[2 * at["offset"]:2 * (at["offset"] + at["length"])].decode("utf-16-le")
            for at in message.get("entities", []) if at["type"] == kind]


def test_they_are_one_message_in_order_each_with_its_title_and_formatting(bot, telegram):
    hold(telegram, bot)
    ids = [bot.send(f"*b{number}* \U0001f389 text", title=f"T {number}", wait=0).json()["id"] for number in range(7)]
    (message,) = after(telegram)
    assert message["text"] == "7 notifications\n\n" + "\n\n".join(f"T {number}\nb{number} \U0001f389 text"
                                                                  for number in range(7))
    assert spans(message) == ["7 notifications", *(f"{name}{number}" for number in range(7) for name in ("T ", "b"))]
    until(lambda: not bot.outbox())
    assert [(line["id"], line["message_ids"]) for line in bot.sent()][1:] == [
        (entry_id, [message["message_id"]]) for entry_id in ids]
    assert "notify_bot_delivered_total 8" in bot.get("/metrics").text


def test_what_can_go_out_at_once_is_not_joined(bot, telegram):
    bot.send("a")
    bot.send("b")
    assert telegram.texts(CHAT)[1:] == ["a", "b"] and len(telegram.messages(CHAT)) == 3


def test_who_waits_is_told_of_each(bot, telegram):
    hold(telegram, bot)
    with ThreadPoolExecutor(5) as threads:
        answers = list(threads.map(lambda number: bot.send(f"m {number}", wait=10), range(5)))
    assert [answer.status_code for answer in answers] == [200] * 5
    assert len(telegram.messages(CHAT)) == 2


def test_pictures_buttons_and_those_who_want_it_stay_alone_and_in_their_place(bot, telegram):
    hold(telegram, bot)
    for send in (lambda: bot.send("a", wait=0), lambda: bot.send("b", wait=0),
                 lambda: bot.post("/send_photo", files={"photo": ("a.png", png())}, data={"caption": "c", "wait": "0"}),
                 lambda: bot.send("d", wait=0), lambda: bot.send("e", wait=0, alone=True),
                 lambda: bot.send("f", wait=0), lambda: bot.send("g", wait=0),
                 lambda: bot.send("h", wait=0, buttons=[{"text": "x", "url": "https://x.org"}]),
                 lambda: bot.send("x" * 5000, wait=0), lambda: bot.send("i", wait=0), lambda: bot.send("j", wait=0)):
        assert send().status_code == 202
    until(lambda: not bot.outbox(), 20)
    assert [message.get("text", message.get("caption"))[:25] for message in telegram.messages(CHAT)[1:]] == [
        "2 notifications\n\na\n\nb", "c", "d", "e", "2 notifications\n\nf\n\ng", "h", "x" * 25, "(2/2)\n" + "x" * 19,
        "2 notifications\n\ni\n\nj"]
    assert bot.send("x", alone=1).status_code == 400


def test_one_that_telegram_refuses_harms_no_other(bot, telegram):
    hold(telegram, bot)
    sent = [bot.send(text, parse_mode="HTML", wait=0).json()["id"] for text in ("<b>a</b>", "<b>b", "c < d", "e")]
    until(lambda: not bot.outbox(), 20)
    assert telegram.texts(CHAT)[1:] == ["a", "<b>b", "c < d", "e"]
    assert set(sent) <= set(bot.outbox("sent")) and "4 joined messages go alone" in bot.log


def test_a_message_that_is_refused_alone_fails_alone(bot, telegram):
    hold(telegram, bot)
    ids = [bot.send(f"m {number}", wait=0).json()["id"] for number in range(3)]
    # The joined message, and the first of them alone.
    telegram.control("faults", action="error", method="sendMessage", times=2, status=400, description="Bad Request: no")
    until(lambda: not bot.outbox(), 20)
    assert bot.outbox("failed") == ids[:1] and telegram.texts(CHAT)[1:] == ["m 1", "m 2"]


def test_markups_are_not_mixed(bot, telegram):
    hold(telegram, bot)
    for parse_mode in ("HTML", "HTML", "Markdown", "", "MarkdownV2", "MarkdownV2"):
        bot.send("x", title="T.", parse_mode=parse_mode, wait=0)
    until(lambda: not bot.outbox(), 20)
    assert [message["text"] for message in telegram.messages(CHAT)[1:]] == ["2 notifications\n\nT.\nx\n\nT.\nx"] * 3


def test_none_are_joined_where_the_administrator_says_so(tmp_path, telegram):
    bot = Bot(tmp_path, telegram.url, NOTIFY_JOIN="0")
    bot.users(**{ME: CHAT})
    telegram.person(CHAT)
    telegram.types(CHAT, "hi")
    bot.start().settle()
    try:
        hold(telegram, bot)
        for number in range(3):
            bot.send(f"m {number}", wait=0)
        until(lambda: not bot.outbox(), 20)
        assert [message["text"] for message in telegram.messages(CHAT)[1:]] == ["m 0", "m 1", "m 2"]
    finally:
        bot.stop()


def test_a_blocked_bot_fails_each(bot, telegram):
    hold(telegram, bot)
    ids = [bot.send(f"m {number}", wait=0).json()["id"] for number in range(4)]
    telegram.control("block", chat_id=CHAT)
    until(lambda: not bot.outbox(), 20)
    assert bot.outbox("failed") == sorted(ids)
    assert {bot.get("/queue").json()["messages"][number]["reason"] for number in range(4)} == {
        "Forbidden: bot was blocked by the user"}


def test_those_that_are_late_say_so(bot, telegram):
    telegram.control("faults", action="cut_before")
    ids = [bot.send(f"m {number}", title="T", wait=0).json()["id"] for number in range(3)]
    bot.kill()
    change_waiting(bot.state / "outbox",
                   lambda fields: fields | ({"accepted_at": fields["accepted_at"] - 1000} if fields["id"] in ids[:2]
                                            else {}))
    telegram.control_delete("faults")
    bot.start()
    (message,) = after(telegram)
    assert message["text"].count("T\nDelivered late, written 20") == 2 and message["text"].endswith("T\nm 2")


def test_a_kill_in_flight_sends_at_most_one_copy(bot, telegram):
    hold(telegram, bot)
    texts = [f"m {number}" for number in range(6)]
    for text in texts:
        bot.send(text, wait=0)
    telegram.control("faults", action="delay_answer", method="sendMessage", seconds=5, times=1)
    after(telegram)
    bot.kill()
    bot.start()
    until(lambda: not bot.outbox(), 20)
    assert telegram.texts(CHAT)[1:] == texts * 2


def test_one_in_flight_is_not_dropped(bot, telegram):
    hold(telegram, bot)
    ids = [bot.send(f"m {number}", wait=0).json()["id"] for number in range(3)]
    telegram.control("faults", action="delay", method="sendMessage", seconds=2, times=1)
    until(lambda: telegram.stats()["calls"].get("sendMessage", 0) > 2)
    assert bot.post("/queue/drop", json={"id": ids[2]}).status_code == 404
    assert bot.post("/queue/drop", json={"id": ids[0]}).status_code == 404
    until(lambda: not bot.outbox())
    assert telegram.texts(CHAT)[1:] == ["m 0", "m 1", "m 2"]


def texts_of(*messages):
    joined = Joined()
    return joined, [joined.add(entry(f"{number}", ME, message=message)) for number, message in enumerate(messages)]


def test_a_joined_message_keeps_to_telegram_s_limits():
    joined, added = texts_of(*({"text": "\U0001f389" * 1000} for _ in range(5)))
    assert added == [True] * 4 + [False] and len(joined.step().params["text"]) <= MAX_TEXT
    joined, added = texts_of(*({"text": "*x* " * 30} for _ in range(5)))
    assert added == [True] * 3 + [False] * 2 and len(joined.step().params["entities"]) <= MAX_ENTITIES
    joined, added = texts_of(*({"text": "<b>x</b>" * 30, "parse_mode": "HTML"} for _ in range(3)))
    assert added == [True, False, False]
    joined, added = texts_of(*({"text": "x"} for _ in range(101)))
    assert added == [True] * 100 + [False]
    assert json.dumps(joined.step().params).count("\\n\\nx") == 100
    joined, added = texts_of({"text": " "}, {"title": "T", "text": ""})
    assert joined.step().params["text"] == "2 notifications\n\n(empty message)\n\nT"


@pytest.mark.parametrize("silent", [(True, True), (True, False)])
def test_it_rings_unless_all_are_silent(silent):
    joined, _ = texts_of(*({"text": "x", "silent": is_silent} for is_silent in silent))
    assert joined.step().params.get("disable_notification", False) is all(silent)


def test_a_message_of_another_person_does_not_go_along_to_a_chat_that_is_no_longer_theirs(bot, telegram):
    """Other software may link one chat to two logins."""
    telegram.person(2)
    telegram.types(2, "hi")
    until(lambda: telegram.messages(2))
    bot.users(**{ME: CHAT, "u2": CHAT})
    hold(telegram, bot)
    for user, text in ((ME, "m 0"), (ME, "m 1"), ("u2", "secret"), (ME, "m 2"), (ME, "m 3")):
        assert bot.send(text, user=user, wait=0).status_code == 202
    bot.users(**{ME: CHAT, "u2": 2})
    until(lambda: not bot.outbox(), 20)
    assert telegram.texts(CHAT)[1:] == ["m 0", "m 1", "m 2", "m 3"] and telegram.texts(2)[1:] == ["secret"]


def test_what_waits_follows_its_user_to_another_chat(bot, telegram):
    telegram.person(2)
    telegram.types(2, "hi")
    until(lambda: telegram.messages(2))
    hold(telegram, bot)
    for number in range(5):
        bot.send(f"m {number}", wait=0)
    bot.users(**{ME: 2})
    until(lambda: not bot.outbox(), 20)
    assert telegram.texts(2)[1:] == [f"m {number}" for number in range(5)] and len(telegram.messages(CHAT)) == 1
