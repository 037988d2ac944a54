"""Strangers, chats that are linked to nobody, take nothing from those that are linked."""

import json
import threading
import time

import pytest

from bot.pacing import ChatQueues
from bot.strangers import MAX_WAITING, MAX_WAITING_PER_CHAT, Strangers
from live import ME, Bot, until

STRANGERS, CALL_SECONDS = 10_000, 0.1


def waits(strangers, alerts, slow=0):
    """The seconds that each alert of a chat of its own waits in the queues, with `strangers` who write all the time.
    `alerts` has when each comes; after `slow` refusals of the whole bot."""
    queues, places, now = ChatQueues(), Strangers(lambda chat: chat <= len(alerts)), 0.0
    for _ in range(slow):
        queues.slow_down()
    coming, calls, found, turn, latest = sorted(alerts), [], {}, 0, []
    while len(found) < len(alerts):
        for _ in range(strangers and 100):  # as many as a poll brings
            turn += 1
            chat = 1_000_000 + turn % strangers
            if places.admit(str(turn), chat):
                queues.add(chat, str(turn), True, True)
        while coming and coming[0] <= now:
            chat = len(alerts) - len(coming) + 1
            queues.add(chat, f"alert {chat}", False)
            coming.pop(0)
        while queues.seconds_to_next(now) <= 0:
            queue = queues.take(now)
            calls.append((now + CALL_SECONDS, queue))
            if queue.head().startswith("alert"):
                found[queue.chat_id] = now - sorted(alerts)[queue.chat_id - 1]
            else:
                latest.append(now)
        for ended, queue in [call for call in calls if call[0] <= now]:
            calls.remove((ended, queue))
            places.leave(queue.head())
            queue.remove(queue.head())
            queues.ended(queue, now)
        now += 0.01
        assert now < 600
    assert all(sum(start <= when < start + 1 for when in latest) <= 6 for start in latest)
    return [found[chat] for chat in sorted(found)]


@pytest.mark.parametrize("alerts", [[5.0], [5.0] * 100, [number / 20 for number in range(400)]])
@pytest.mark.parametrize("slow", [0, 20])
def test_no_alert_waits_longer_than_twice_what_it_waits_without_strangers(alerts, slow):
    without, beside = waits(0, alerts, slow), waits(STRANGERS, alerts, slow)
    assert max(beside) <= max(2 * max(without), 0.1)
    assert sum(beside) <= 2 * sum(without) + 0.1 * len(alerts)


def test_places_are_bounded_in_all_and_in_a_chat():
    places = Strangers()
    assert [places.admit(str(number), 7) for number in range(9)] == [True] * MAX_WAITING_PER_CHAT + [False] * 4
    assert sum(places.admit(f"x{number}", 100 + number) for number in range(STRANGERS)) \
        == MAX_WAITING - MAX_WAITING_PER_CHAT
    places.leave("0")
    assert places.admit("9", 7) and not places.admit("10", 7)
    assert not places.admit("11", 8) and len(places._places._used) == MAX_WAITING - MAX_WAITING_PER_CHAT + 1


def test_hundreds_of_strangers_keep_nobody_waiting_and_leave_nothing_on_the_disk(tmp_path, telegram):
    bot = Bot(tmp_path, telegram.url)
    bot.users(**{ME: 1})
    telegram.person(1)
    telegram.types(1, "hi")
    for chat in range(1000, 1300):
        telegram.person(chat)
        telegram.types(chat, "/start")
    telegram.types(1, "/whoami")
    bot.start()
    stop, worst = threading.Event(), []

    def look():
        while not stop.wait(0.01):
            path = bot.state / "polling.json"
            if path.exists():
                worst.append(len(json.loads(path.read_text()).get("pending", {})))
    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        until(lambda: len(telegram.messages(1)) == 2, 5)
        started = time.monotonic()
        assert bot.send("m 1", wait=10).status_code == 200
        assert time.monotonic() - started < 2
        until(lambda: "chats that are linked to nobody were left unanswered" in bot.log)
        until(lambda: bot.get("/health").json()["queued"] == 0 and not json.loads(
            (bot.state / "polling.json").read_text())["pending"], 60)
    finally:
        stop.set()
        watcher.join()
        bot.stop()
    answered = sum(len(telegram.messages(chat)) for chat in range(1000, 1300))
    assert 0 < answered <= MAX_WAITING + 20 and max(worst) <= MAX_WAITING + 2
    assert len(json.loads((bot.data / "pending_codes.json").read_text())) == answered
    assert bot.log.count("left unanswered") == 1 and "Traceback" not in bot.log
