"""One message that Telegram cannot take, among others that it takes."""

import time

import pytest

from bot.failures import HOPELESS_SECONDS, Failures, is_gone
from bot.pacing import ChatQueues
from bot.telegram import TelegramError
from common.clock import age
from live import ME, Bot, png, until


def test_one_chat_is_hopeless_beside_polls_and_no_sign_of_telegram():
    failures, now = Failures(), 0.0
    while not failures.is_hopeless("a", now):
        now += 50
        assert not failures.failed("a", 1, now, answered_at=now - 1)
        assert now <= HOPELESS_SECONDS + 100
    assert now >= HOPELESS_SECONDS


def test_several_chats_are_a_sign_of_telegram_and_no_message_is_given_up_for_it():
    failures = Failures()
    assert not failures.failed("a", 1, 1.0, 0.0)
    for now in range(2, 5000, 40):
        assert failures.failed("b", 2, now, answered_at=now - 1)  # polls may work all the same
        assert failures.failed("a", 1, now + 1, answered_at=now - 1)
        assert not failures.is_hopeless("a", now) and not failures.is_hopeless("b", now)


def test_two_bad_messages_do_not_pause_the_others_for_long():
    failures, paused = Failures(), 0
    for now in range(0, 1000, 10):
        paused += failures.failed("a", 1, now, 0.0)
        paused += failures.failed("b", 2, now + 1, 0.0)
        failures.succeeded("c", now + 5)
    assert paused <= 3 and failures.is_hopeless("a", 1000.0) and failures.is_hopeless("b", 1000.0)


@pytest.mark.parametrize(("since", "now", "seconds"), [(0, 1.8e9, 0), (1.9e9, 1.8e9, 0), (1.7e9 + 1e8, 1.8e9 + 5, 5)])
def test_a_time_that_cannot_be_true_expires_nothing(since, now, seconds):
    assert age(since, now) == seconds


def test_a_delayed_queue_is_woken_for_what_is_too_old():
    queues = ChatQueues()
    for chat in (1, 2):
        queues.delay(chat, 1e9)
        queues.add(chat, f"m{chat}", False)
    assert queues.seconds_to_next(10.0) > 0
    queues.wake(lambda entry_id: entry_id == "m2")
    assert queues.seconds_to_next(10.0) <= 0 and queues.take(10.0).chat_id == 2
    assert queues.seconds_to_next(10.0) > 0


HASTY = """
from bot import delivery, failures
failures.HOPELESS_SECONDS = 3
failures.MAX_BACKOFF_SECONDS = delivery.MAX_BACKOFF_SECONDS = 0.3
delivery.EXPIRE_SECONDS = 0.5
"""


@pytest.fixture
def hasty(tmp_path, telegram):
    """A bot that gives up after seconds; `hasty(**settings)` starts it."""
    started = []

    def start(**settings):
        bot = Bot(tmp_path, telegram.url, **settings)
        bot.users(**{ME: 1})
        for chat in (1, 2):
            telegram.person(chat)
            telegram.control("unblock", chat_id=chat)
        started.append(bot.start(HASTY))
        return bot.settle()

    yield start
    for bot in started:
        bot.stop()
        assert "Traceback" not in bot.log


def test_a_photo_that_telegram_never_takes(hasty, telegram, tmp_path):
    """Its text arrives ahead of it, it is given up, and nobody else waits; the bot stays in health."""
    bot = hasty()
    telegram.control("faults", action="error", method="sendPhoto", chat_id=1, status=500, description="Internal")
    picture = tmp_path / "a.png"
    picture.write_bytes(png())
    with open(picture, "rb") as file:
        assert bot.post("/send_photo", files={"photo": file}, data={"caption": "news", "wait": "0"}).status_code == 202
    assert bot.send("next", wait=0).status_code == 202
    deadline = time.monotonic() + 40
    while not bot.outbox("failed"):
        telegram.types(2, "/whoami")
        assert bot.get("/health").status_code == 200 and time.monotonic() < deadline
        time.sleep(0.2)
    until(lambda: telegram.texts(1) == ["news", "next"])
    assert "Telegram takes other messages and not this one" in bot.log


def test_what_is_delayed_expires_though_nothing_is_sent(hasty, telegram):
    bot = hasty(NOTIFY_MAX_AGE="2")
    telegram.control("faults", action="error", method="sendMessage", chat_id=1, times=1, status=429,
                     description="Too Many Requests", retry_after=1_000_000_000)
    ids = [bot.send(f"m {number}", wait=0).json()["id"] for number in range(3)]
    until(lambda: bot.outbox("failed") == sorted(ids), 20)
    assert "86400 s of rest" in bot.log and telegram.texts(1) == []


def test_a_chat_is_not_gone_for_what_telegram_quotes():
    assert is_gone(TelegramError(400, "Bad Request: chat not found"))
    assert not is_gone(TelegramError(400, "Bad Request: inline keyboard button URL 'http://chat not found' is invalid"))
