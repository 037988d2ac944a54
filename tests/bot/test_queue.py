"""notify-bot queue, retry and drop: an administrator's hands on what waits and what failed, beside the service."""

import os
import subprocess

import pytest

from bot.pacing import RAMP_SECONDS, ChatQueues, Pace, Window
from live import CHECKOUT, ME, PYTHON, Bot, png, until
from outbox_files import entry, write_failed


@pytest.fixture
def bot(tmp_path, telegram):
    bot = Bot(tmp_path, telegram.url)
    bot.users(**{ME: 1})
    telegram.person(1)
    telegram.types(1, "hi")
    bot.start()
    until(lambda: len(telegram.messages(1)) == 1 and not bot.outbox())
    bot.settle()
    yield bot
    bot.stop()
    assert "Traceback" not in bot.log


def command(bot, *arguments, status=0, **options):
    done = subprocess.run([PYTHON, "-EsS", CHECKOUT / "notify_bot.py", *arguments], capture_output=True, text=True,
                          timeout=30, env={"NOTIFY_BOT_SOCKET": str(bot.socket_path), "TZ": "UTC"}, **options)
    assert done.returncode == status, done
    return done.stdout if status == 0 else done.stderr


def fail(bot, telegram, text, **options):
    telegram.refuses("sendMessage", 400, "Bad Request: not today")
    assert bot.send(text, wait=10, script="s.py", **options).status_code == 502
    return max(bot.outbox("failed"), key=lambda name: (bot.state / "outbox/failed" / f"{name}.json").stat().st_mtime_ns)


def test_what_failed_is_listed_and_sent_again(bot, telegram):
    assert command(bot, "queue") == "0 queued, 0 failed\n"
    entry_id = fail(bot, telegram, "secret words")
    shown = command(bot, "queue")
    assert f"{entry_id}  20" in shown and f"failed  {ME}  s.py\n    Bad Request: not today\n" in shown
    assert shown.endswith("0 queued, 1 failed\n") and "secret" not in shown
    assert command(bot, "retry", entry_id) == f"{entry_id} queued again\n"
    until(lambda: "secret words" in telegram.texts(1))
    until(lambda: entry_id in bot.outbox("sent"))
    assert command(bot, "queue") == "0 queued, 0 failed\n"
    assert "no failed message has the ID" in command(bot, "retry", entry_id, status=66)


def test_all_that_failed_is_sent_again_with_its_pictures(bot, telegram):
    ids = {fail(bot, telegram, f"f {number}") for number in range(2)}
    telegram.refuses("sendPhoto", 400, "Bad Request: no picture today")
    assert bot.post("/send_photo", files={"photo": ("a.png", png())}, data={"caption": "pic"}).status_code == 502
    assert ids < set(bot.outbox("failed")) and list((bot.state / "outbox/pictures").iterdir())
    assert command(bot, "retry", "--all") == "3 queued again\n"
    until(lambda: {"f 0", "f 1", "pic"} <= set(telegram.texts(1)))
    until(lambda: bot.outbox() == [] and bot.outbox("failed") == [])
    until(lambda: not list((bot.state / "outbox/pictures").iterdir()))


def test_a_retry_survives_a_kill(bot, telegram):
    entry_id = fail(bot, telegram, "again and again")
    telegram.control("faults", action="cut_before")
    command(bot, "retry", entry_id)
    bot.kill()
    assert bot.outbox() == [entry_id] and bot.outbox("failed") == []
    telegram.control_delete("faults")
    bot.start()
    until(lambda: "again and again" in telegram.texts(1))


def test_what_waits_is_dropped_and_who_waits_for_it_is_told(bot, telegram):
    telegram.control("faults", action="error", method="sendMessage", times=1, status=429, retry_after=3600,
                     description="Too Many Requests: retry after 3600")
    first = bot.send("first", wait=0).json()["id"]
    until(lambda: "3600 s of rest" in bot.log)
    second = bot.send("second", wait=0, headers={"Idempotency-Key": "k"}).json()["id"]
    assert command(bot, "queue").endswith("2 queued, 0 failed\n")
    assert bot.get("/health").json()["queued"] == 2
    assert command(bot, "drop", second) == f"{second} dropped\n"
    assert command(bot, "drop", first) == f"{first} dropped\n"
    assert bot.outbox() == [] and bot.get("/health").json()["queued"] == 0
    assert "no message that waits or failed" in command(bot, "drop", first, status=66)
    bot.kill()
    failed = fail_directly(bot)
    bot.start()
    command(bot, "drop", failed)
    assert bot.outbox("failed") == []


def fail_directly(bot):
    """An entry as a run before this one left it."""
    entry_id = "f" * 20
    write_failed(bot.state / "outbox", entry(entry_id, ME, reason="no"))
    return entry_id


@pytest.mark.parametrize("arguments", [["retry"], ["drop"], ["queue", "x"], ["drop", "--all"],
                                       ["retry", "../../etc/passwd"], ["drop", "A" * 20], ["retry", ""]])
def test_wrong_arguments_are_said(bot, arguments):
    assert command(bot, *arguments, status=64).startswith("notify-bot: ")


def test_no_service_says_where_to_look(bot):
    bot.stop()
    assert "systemctl status notify-bot.socket" in command(bot, "queue", status=69)


@pytest.mark.root
def test_the_queue_is_for_the_administrator_alone(bot):
    os.chmod(bot.socket_path, 0o666)
    for folder in (bot.folder, bot.folder.parent, bot.folder.parent.parent):
        os.chmod(folder, 0o755)
    entry_id = fail_directly(bot)
    for arguments in (["queue"], ["retry", entry_id], ["retry", "--all"], ["drop", entry_id]):
        done = subprocess.run(["/usr/bin/python3", "-c", ASK, str(bot.socket_path), *arguments], capture_output=True,
                              text=True, user="daemon", group="daemon", extra_groups=[], timeout=30)
        assert done.stdout.startswith("403 "), done
    assert bot.outbox("failed") == [entry_id]


ASK = """
import http.client, socket, sys
connection = http.client.HTTPConnection("localhost")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1])
method, path = ("GET", "/queue") if sys.argv[2] == "queue" else ("POST", "/queue/" + sys.argv[2])
connection.request(method, path, b'{"all": true, "id": "%s"}' % sys.argv[-1].encode() if method == "POST" else None)
answer = connection.getresponse()
print(answer.status, answer.read())
"""


def test_a_queue_that_was_emptied_gives_out_nothing():
    queues = ChatQueues()
    queues.add(1, "a", False)
    queues.add(1, "b", True)
    assert queues.withdraw(1, "a") and queues.withdraw(1, "b") and not queues.withdraw(1, "a")
    assert queues.seconds_to_next(100) > 0
    queues.add(1, "c", False)
    assert queues.seconds_to_next(100) == 0
    queue = queues.take(100)
    assert queue.head() == "c" and not queues.withdraw(1, "c")
    queues.add(1, "d", False)
    assert queues.withdraw(1, "d")
    queue.remove("c")
    queues.ended(queue, 100)
    assert queues.seconds_to_next(200) > 0


def test_turns_a_reply_leads_in_its_own_chat_and_each_at_its_pace():
    queues = ChatQueues()
    for chat in (1, 2, 3):
        for number in range(5):
            queues.add(chat, f"{chat}/{number}", False)
    queues.add(3, "reply", True)
    now, sent, times = 100.0, [], {}
    while len(sent) < 16:
        wait = queues.seconds_to_next(now)
        if wait > 0:
            now += wait
            continue
        queue = queues.take(now)
        entry_id = queue.head()
        queue.remove(entry_id)
        queues.ended(queue, now)
        sent.append(entry_id)
        times.setdefault(queue.chat_id, []).append(now)
    assert sent[:3] == ["1/0", "2/0", "reply"]
    for chat in (1, 2, 3):
        assert [name for name in sent if name.startswith(f"{chat}/")] == [f"{chat}/{number}" for number in range(5)]
    for chat, count in times.items():
        assert all(later - earlier >= 1.0 for earlier, later in zip(count[3:], count[4:], strict=False)), chat
    everything = sorted(when for chat in times.values() for when in chat)
    assert all(sum(1 for when in everything if start <= when < start + 1) <= 30 for start in everything)


def test_a_refusal_slows_a_pace_and_it_recovers():
    pace = Pace(1.0, 1)
    pace.slow_down()
    pace.take(0.0)
    assert pace.ready_at() == 1.5
    for _ in range(10):
        pace.slow_down()
    pace.take(100.0)
    assert pace.ready_at() == 104.0
    for number in range(200):
        pace.take(200.0 + 10 * number)
    assert pace.ready_at() == 200.0 + 10 * 199 + 1.0


def test_how_many_calls_a_pace_allows_at_once():
    pace = Pace(1.0, 3)
    found = [pace.at_once(0.0)]
    for _ in range(3):
        pace.take(0.0)
        found.append(pace.at_once(0.0))
    assert found == [3, 2, 1, 0]
    assert [pace.at_once(now) for now in (0.9, 1.0, 2.5, 3.0, 99.0)] == [0, 1, 2, 3, 3]
    assert Pace(0.0, 1).at_once(0.0) == 1


def test_a_storm_in_one_chat_delays_no_other():
    queues = ChatQueues()
    for number in range(200):
        queues.add(1, str(number), False)
    now = 100.0
    for _ in range(50):
        wait = queues.seconds_to_next(now)
        now += wait
        if wait == 0:
            queue = queues.take(now)
            queue.remove(queue.head())
            queues.ended(queue, now)
    queues.add(2, "other", False)
    waited = 0.0
    while True:
        wait = queues.seconds_to_next(now)
        now, waited = now + wait, waited + wait
        if wait == 0:
            queue = queues.take(now)
            if queue.chat_id == 2:
                break
            queue.remove(queue.head())
            queues.ended(queue, now)
    assert waited < 0.1


def test_a_call_counts_until_a_second_after_its_end():
    window = Window(3, 1.0)
    for _ in range(3):
        assert window.seconds_to_next(0) == 0
        window.begin()
    assert window.seconds_to_next(0) > 0
    window.end(5.0)
    assert window.seconds_to_next(5.0) == 1.0 and window.seconds_to_next(6.0) == 0
    window.slow_down()
    assert window.seconds_to_next(6.0) > 0  # two are in flight, and two is the most now
    window.end(6.0)
    assert window.seconds_to_next(6.5) == 0.5
    for number in range(200):
        assert window.seconds_to_next(10.0 + number) == 0
        window.begin()
        window.end(10.0 + number)
    window.begin()
    assert window.seconds_to_next(300) == 0  # two are in flight, and three is the most again


def test_one_more_call_at_once_only_where_one_takes_long():
    queues = ChatQueues()
    for chat in (1, 2, 3):
        queues.add(chat, f"m{chat}", False)
    assert queues.seconds_to_next(10.0) == 0
    first = queues.take(10.0)
    assert 0 < queues.seconds_to_next(10.0) < 1.1 * RAMP_SECONDS
    assert queues.seconds_to_next(10.0 + RAMP_SECONDS) == 0
    queues.ended(first, 10.001)  # sooner than that: the next one takes its place at once, and alone
    assert queues.seconds_to_next(10.001) == 0
    queues.take(10.001)
    assert queues.seconds_to_next(10.001) > 0


def test_what_is_being_sent_is_not_withdrawn_where_a_reply_has_come_before_it():
    queues = ChatQueues()
    queues.add(1, "n", reply=False)
    assert queues.seconds_to_next(10.0) == 0
    queue = queues.take(10.0)
    queues.add(1, "r", reply=True)
    assert not queues.withdraw(1, "n") and queues.withdraw(1, "r")
    queues.ended(queue, 11.0)
    assert queues.withdraw(1, "n")
