"""What is made of answers that Telegram should not give, or gives too late."""

import threading
import time
from collections import Counter

import pytest

from bot.pacing import ChatQueues
from bot.telegram import TelegramError, _result
from live import ME, Bot, until


@pytest.mark.parametrize(("wanted", "seconds"), [
    ("34", 34), ("1000000000", 86400), ("-5", 1),
    ('"34"', 34), ("1.5", 1), ("1e400", 1), ("NaN", 1), ("1" + "0" * 400, 1), ("[]", 1), ("null", 1)])
def test_a_rest_is_a_whole_number_of_seconds(wanted, seconds):
    answer = '{"ok": false, "error_code": 429, "parameters": {"retry_after": ' + wanted + "}}"
    with pytest.raises(TelegramError) as refusal:
        _result(429, {}, answer.encode())
    assert refusal.value.retry_after == seconds


def test_a_pause_may_be_longer_than_a_lock_can_wait():
    queues = ChatQueues()
    queues.add(1, "aa", False)
    queues.pause(float(1 << 62))
    assert 0 < queues.seconds_to_next(0.0) < threading.TIMEOUT_MAX


PATIENCE, LATE = 2, 5


@pytest.fixture
def impatient(tmp_path, telegram):
    """A bot that waits for an answer for two seconds only."""
    bot = Bot(tmp_path, telegram.url)
    bot.users(**{ME: 1})
    for chat in (1, 2):
        telegram.person(chat)
        telegram.control("unblock", chat_id=chat)
    bot.start(f"from bot import telegram\ntelegram.ANSWER_SECONDS = {PATIENCE}").settle()
    yield bot
    bot.stop()
    assert "Traceback" not in bot.log


@pytest.mark.parametrize("action", ["delay_answer", "delay"])
def test_an_answer_after_the_timeout(impatient, telegram, action):
    """The call is made again, once, and is said and counted; the late answer is nobody's; no other chat waits."""
    telegram.control("faults", action=action, method="sendMessage", chat_id=1, times=1, seconds=LATE)
    started = time.monotonic()
    assert impatient.send("first", wait=0).status_code == 202
    telegram.types(2, "/whoami")
    telegram.wait_for(2)
    assert time.monotonic() - started < PATIENCE and "no answer" not in impatient.log
    until(lambda: "no answer to sendMessage: " in impatient.log)
    assert PATIENCE <= time.monotonic() - started < LATE
    assert impatient.send("second", wait=20).status_code == 200
    until(lambda: time.monotonic() - started > LATE and telegram.texts(1).count("first") == 2)
    assert impatient.send("third", wait=20).status_code == 200
    texts = telegram.texts(1)
    assert Counter(texts) == {"first": 2, "second": 1, "third": 1}
    assert list(dict.fromkeys(texts)) == ["first", "second", "third"]
    assert impatient.log.count("it may have been delivered and is sent again") == 1
    report = impatient.get("/health").json()
    assert report["ok"] and report["unknown"] == 1 and report["delivered"] == 4
