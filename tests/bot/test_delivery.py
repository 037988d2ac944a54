"""Delivery under faults: what was accepted arrives, in order, and only what may be lost is sent twice."""

import json
import os
import re
import signal
import subprocess
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bot.delivery import Delivery
from bot.desktop import Desktop
from bot.metrics import Metrics
from bot.outbox import Outbox
from bot.pacing import ChatQueue
from bot.recipients import Recipients
from common.links import Links
from live import CHECKOUT, ME, PYTHON, TOKEN, Bot, until
from outbox_files import change_waiting, line, write_picture, write_waiting


@pytest.fixture
def bot(tmp_path, telegram):
    bot = Bot(tmp_path, telegram.url)
    bot.users(**{ME: 1, "u2": 2, "u3": 3})
    for chat in (1, 2, 3):
        telegram.person(chat)
        telegram.types(chat, "hi")
    bot.start()
    until(lambda: all(len(telegram.messages(chat)) == 1 for chat in (1, 2, 3)) and not bot.outbox())
    bot.settle()
    yield bot
    bot.stop()
    assert "Traceback" not in bot.log
    assert TOKEN not in bot.log and TOKEN not in (bot.data / "bot.log").read_text()


def arrived(telegram, chat, prefix="m"):
    return [text for text in telegram.texts(chat) if re.match(rf"(Delivered late.*\n)?{prefix} \d", text)]


def test_queued_messages_survive_a_kill_and_arrive_in_order(bot, telegram):
    telegram.control("faults", action="html", status=502)
    wanted = [f"m {number}" for number in range(8)]
    assert [bot.send(text, wait=0).status_code for text in wanted] == [202] * 8
    bot.kill()
    assert len(bot.outbox()) == 8
    telegram.control_delete("faults")
    bot.start()
    until(lambda: len(arrived(telegram, 1)) >= 8, 20)
    assert list(dict.fromkeys(arrived(telegram, 1))) == wanted
    until(lambda: bot.outbox() == [])


@pytest.mark.parametrize("action", ["html", "cut_before", "cut_within", "cut_after", "error"])
def test_a_passing_fault_loses_nothing_and_doubles_only_the_unknown(bot, telegram, action):
    fault = {"status": 502} if action in ("html", "error") else {}
    if action == "error":
        fault["description"] = "Bad Gateway"
    telegram.control("faults", action=action, method="sendMessage", times=2, **fault)
    assert bot.send("m 1", wait=20).status_code == 200
    assert bot.send("m 2", wait=20).status_code == 200
    texts = arrived(telegram, 1)
    assert list(dict.fromkeys(texts)) == ["m 1", "m 2"]
    assert len(texts) == (4 if action in ("cut_within", "cut_after") else 2)
    assert bot.log.count("it may have been delivered and is sent again") == 2
    assert bot.get("/health").json()["unknown"] == 2


@pytest.mark.root
def test_a_retry_after_delays_its_chat_and_no_other(bot, telegram):
    telegram.control("faults", action="error", method="sendMessage", chat_id=2, times=1, status=429,
                     description="Too Many Requests: retry after 3", retry_after=3)
    started = time.monotonic()
    assert bot.send("m 1", user="u2", wait=0).status_code == 202
    until(lambda: "3 s of rest for chat 2" in bot.log)
    assert bot.send("m 2", user="u3", wait=5).status_code == 200
    assert time.monotonic() - started < 2.5
    until(lambda: arrived(telegram, 2))
    assert time.monotonic() - started >= 3


def test_a_rest_that_telegram_wants_outlives_the_bot(bot, telegram):
    telegram.control("faults", action="error", method="sendMessage", times=1, status=429,
                     description="Too Many Requests: retry after 4", retry_after=4)
    assert bot.send("m 1", wait=0).status_code == 202
    until(lambda: "4 s of rest" in bot.log)
    told = time.monotonic()
    bot.kill()
    bot.start()
    assert bot.send("m 2", wait=20).status_code == 200
    assert 3.9 <= time.monotonic() - told < 8
    assert arrived(telegram, 1) == ["m 1", "m 2"]


@pytest.mark.root
def test_telegram_away_is_one_line_and_no_busy_loop(bot, telegram):
    telegram.control("faults", action="cut_before")
    for number in range(8):
        assert bot.send(f"m {number}", wait=0).status_code == 202
    assert bot.send("m 1", user="u2", wait=0).status_code == 202  # one chat alone says nothing of Telegram
    until(lambda: "Telegram cannot be reached" in bot.log)
    assert "cannot be reached" in bot.get("/health").json()["error"]
    log_before = len(bot.log)
    ticks = cpu_ticks(bot.process.pid)
    deadline = time.monotonic() + 4
    while time.monotonic() < deadline:
        assert bot.get("/health").status_code in (200, 503)
        time.sleep(0.5)
    assert cpu_ticks(bot.process.pid) - ticks < 0.1 * 4 * os.sysconf("SC_CLK_TCK")
    assert len(bot.log) - log_before < 3000
    telegram.control_delete("faults")
    until(lambda: len(set(arrived(telegram, 1))) == 8, 60)
    assert arrived(telegram, 1) == [f"m {number}" for number in range(8)]


def cpu_ticks(pid):
    fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_revoked_token_waits_and_says_so(bot, telegram):
    telegram.control("revoke")
    assert bot.send("m 1", wait=0).status_code == 202
    until(lambda: "Telegram refuses the bot token" in bot.log)
    health = until(lambda: bot.get("/health").status_code == 503 and bot.get("/health").json())
    assert "token" in health["error"]
    assert len(bot.outbox()) == 1


def test_a_second_poller_and_a_webhook_are_said_once(bot, telegram):
    telegram.control("faults", action="error", method="getUpdates", times=3, status=409,
                     description="Conflict: terminated by other getUpdates request; make sure that only one bot "
                                 "instance is running")
    telegram.types(1, "wake the poll")
    until(lambda: "something else polls with the same token" in bot.log)
    until(lambda: "Telegram is polled again" in bot.log, 30)
    assert bot.log.count("something else polls") == 1
    telegram.control("faults", action="error", method="getUpdates", times=1, status=409,
                     description="Conflict: can't use getUpdates method while webhook is active; use deleteWebhook")
    telegram.types(1, "wake the poll again")
    until(lambda: "deleteWebhook" in bot.log)


def test_a_chat_that_moved_is_followed(bot, telegram):
    telegram.control("faults", action="error", method="sendMessage", chat_id=1, times=1, status=400,
                     description="Bad Request: group chat was upgraded to a supergroup chat", migrate_to_chat_id=3)
    assert bot.send("m 1", wait=10).status_code == 200
    assert arrived(telegram, 3) == ["m 1"]
    assert json.loads((bot.data / "telegram_users.json").read_text())[ME]["chat_id"] == 3


def test_a_message_for_who_unlinked_meanwhile_goes_nowhere(bot, telegram):
    telegram.control("faults", action="cut_before", method="sendMessage")
    assert bot.send("m 1", wait=0).status_code == 202
    until(lambda: "is sent again" in bot.log)
    bot.users(u2=2)
    telegram.control_delete("faults")
    until(lambda: bot.outbox("failed"), 20)
    assert arrived(telegram, 1) == []


def test_a_message_for_who_linked_another_chat_meanwhile_goes_there(bot, telegram):
    telegram.control("faults", action="cut_before", method="sendMessage")
    assert bot.send("m 1", wait=0).status_code == 202
    until(lambda: "is sent again" in bot.log)
    bot.users(**{ME: 2})
    telegram.control_delete("faults")
    until(lambda: arrived(telegram, 2), 20)
    assert arrived(telegram, 1) == []


def test_a_corrupt_entry_is_set_aside_and_blocks_nothing(bot, telegram):
    telegram.control("faults", action="cut_before")
    ids = [bot.send(f"m {number}", wait=0).json()["id"] for number in range(4)]
    strange = bot.send("x", wait=0).json()["id"]
    bot.kill()
    outbox = bot.state / "outbox"
    damaged = {ids[0]: lambda fields: line(fields)[:100] + b"\n", ids[1]: lambda fields: line({"id": "other"}),
               strange: lambda fields: {**fields, "message": {"text": 5, "title": ["x"]}}}
    change_waiting(outbox, lambda fields: damaged.get(fields["id"], dict)(fields))
    write_waiting(outbox, b"\xff\n")
    (outbox / "failed" / ".half.json.tmp").write_text("x")
    write_picture(outbox, "orphan", 10)
    telegram.control_delete("faults")
    bot.start()
    until(lambda: len(arrived(telegram, 1)) == 2)
    assert arrived(telegram, 1) == ["m 2", "m 3"]
    set_aside = [path.read_bytes() for path in (outbox / "corrupt").iterdir()]
    assert len(set_aside) == bot.log.count("is set aside") == 4
    for part in (ids[0].encode(), b"other", b"\xff\n", strange.encode()):
        assert sum(part in kept for kept in set_aside) == 1
    assert not list((outbox / "failed").iterdir()) and not list((outbox / "pictures").iterdir())
    bot.kill()
    bot.start()
    assert bot.log.count("is set aside") == 4
    until(lambda: bot.outbox() == [])


def test_while_messages_wait_telegram_is_asked_if_it_is_back_and_not_sent_copies(bot, telegram):
    """The long poll hangs and says nothing."""
    telegram.control("faults", action="cut_before")
    for user in (ME, "u2", "u3"):
        bot.send("m 1", user=user, wait=0)
    until(lambda: telegram.stats()["faults"].get("cut_before", 0) and "cannot be reached" in bot.log)
    asked = telegram.stats()["calls"]
    until(lambda: telegram.stats()["calls"]["getMe"] >= asked.get("getMe", 0) + 5, 12)
    tried = telegram.stats()["calls"]["sendMessage"] - asked["sendMessage"]
    assert tried <= 4
    telegram.control_delete("faults")
    until(lambda: all(arrived(telegram, chat) for chat in (1, 2, 3)), 3)
    assert telegram.stats()["calls"]["getUpdates"] <= asked["getUpdates"] + 1


def test_a_long_message_goes_on_where_a_kill_stopped_it(bot, telegram):
    text = "".join(f"m {number} {'x' * 90}\n" for number in range(400))
    telegram.control("faults", action="delay", method="sendMessage", seconds=0.4)
    assert bot.send(text, wait=0).status_code == 202
    until(lambda: any("(3/" in message for message in telegram.texts(1)), 20)
    bot.kill()
    telegram.control_delete("faults")
    bot.start()
    until(lambda: not bot.outbox(), 30)
    parts = [message for message in telegram.texts(1) if re.search(r"\(\d+/\d+\)", message)]
    total = int(re.search(r"/(\d+)\)", parts[0])[1])
    numbers = [int(re.search(r"\((\d+)/", part)[1]) for part in parts]
    assert sorted(set(numbers)) == list(range(1, total + 1))
    assert numbers == sorted(numbers) and len(numbers) <= total + 1


def age(bot, entry_id, seconds):
    """Make a queued entry look as if it had been accepted so long ago."""
    change_waiting(bot.state / "outbox", lambda fields: fields | (
        {"accepted_at": time.time() - seconds} if fields["id"] == entry_id else {}))


def test_old_messages_say_so(bot, telegram):
    telegram.control("faults", action="cut_before")
    entry_id = bot.send("m 1", wait=0).json()["id"]
    bot.kill()
    age(bot, entry_id, 1000)
    telegram.control_delete("faults")
    bot.start()
    until(lambda: arrived(telegram, 1))
    assert re.fullmatch(r"Delivered late, written 20\d\d-\d\d-\d\d \d\d:\d\d\nm 1", arrived(telegram, 1)[0])


def test_messages_that_are_too_old_are_given_up_and_counted_to_their_user(bot, telegram):
    telegram.control("faults", action="cut_before")
    ids = [bot.send(f"m {number}", wait=0).json()["id"] for number in range(3)]
    bot.kill()
    for entry_id in ids[:2]:
        age(bot, entry_id, 86400 + 60)
    telegram.control_delete("faults")
    bot.start()
    until(lambda: arrived(telegram, 1) == ["m 2"])
    until(lambda: any(text.startswith("2 notifications for you could not") for text in telegram.texts(1)))
    assert bot.outbox("failed") == sorted(ids[:2])
    reason = json.loads((bot.state / "outbox" / "failed" / f"{ids[0]}.json").read_text())["reason"]
    assert reason == "it could not be delivered within 86400 s"
    assert bot.get("/health").json()["expired"] == 2


def test_metrics_are_what_prometheus_reads(bot, telegram):
    assert bot.send("m 1", wait=10).status_code == 200
    telegram.refuses("sendMessage", 400, "Bad Request: no")
    assert bot.send("m 2", wait=10).status_code == 502
    answer = bot.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    values = {sample.name: sample.value for family in families.values() for sample in family.samples
              if not sample.labels}
    assert (values["notify_bot_accepted_total"], values["notify_bot_refused_total"]) == (2, 1)
    assert values["notify_bot_up"] == 1 and values["notify_bot_linked_users"] == 3
    assert values["notify_bot_queued_messages"] == 0
    assert time.time() - values["notify_bot_last_poll_timestamp_seconds"] < 120
    assert families["notify_bot_delivery_seconds"].type == "histogram"
    assert values["notify_bot_delivery_seconds_count"] == values["notify_bot_delivered_total"]
    buckets = [sample.value for sample in families["notify_bot_delivery_seconds"].samples if sample.labels]
    assert buckets == sorted(buckets) and buckets[-1] == values["notify_bot_delivery_seconds_count"]


NO_THREAD = """
import pathlib, sys, threading
sys.path.insert(0, sys.argv[1])
from bot.delivery import Delivery
from pathlib import Path
from bot.desktop import Desktop
from bot.recipients import Recipients
from common.links import Links
from bot.metrics import Metrics
from bot.outbox import Outbox

class Telegram:
    def call(self, method, params, files=None):
        pass

start, refused = threading.Thread.start, []

def start_but_the_first_worker(thread):
    if thread.name.startswith("delivery-") and not refused:
        refused.append(thread)
        raise RuntimeError("can't start new thread")
    start(thread)

threading.Thread.start = start_but_the_first_worker
outbox = Outbox(pathlib.Path(sys.argv[2]), 3, 30)
delivery = Delivery(outbox, Telegram(), Recipients(Links(Path('.')), Desktop(Path('none'))), Metrics(), 86400)
delivery.start()
receipts = [delivery.submit(outbox.add(str(chat), {"chat_id": chat, "message": {"text": "m"}})) for chat in (1, 2)]
assert [receipt.wait(10).status for receipt in receipts] == [200, 200] and refused
"""


def test_a_worker_that_cannot_be_had_is_asked_for_again(tmp_path):
    command = [PYTHON, "-c", NO_THREAD, CHECKOUT, tmp_path / "outbox"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", [401, 404])
def test_a_message_refused_as_a_wrong_token_is_harms_no_other(bot, telegram, code):
    """Telegram refuses a wrong token for every method, and this for one call alone."""
    telegram.refuses("sendMessage", code, "Not Found")
    assert (bot.send("m 1", wait=10).status_code, bot.send("m 2", wait=10).status_code) == (502, 200)
    assert bot.get("/health").status_code == 200


def test_an_error_after_a_message_was_recorded_leaves_nothing_of_it(tmp_path):
    """Its ID may be that of a new message a day later, which must not count as sent."""
    class Telegram:
        succeeded_at = 0.0

        def call(self, method, params, files=None):
            return {"message_id": 1}

    class Failing(Recipients):
        def delivered(self, entry):
            raise RuntimeError("can't start new thread")

    outbox = Outbox(tmp_path / "outbox", 3, 30)
    outbox.load()
    delivery = Delivery(outbox, Telegram(), Failing(Links(tmp_path), Desktop(tmp_path / "none")), Metrics(), 86400)
    queue = ChatQueue(1)
    entry = outbox.add("ab", {"chat_id": 1, "message": {"text": "m"}})
    delivery._enqueue(entry)
    queue.notifications.append("ab")
    with pytest.raises(RuntimeError):
        delivery._succeeded(queue, [entry], True, [1])
    assert delivery._unrecorded == {} and outbox.find("ab") == "sent"
    outbox.close()


def test_what_is_accepted_while_the_service_stops_is_answered_and_sent_by_the_next(bot, telegram):
    """A call in flight holds the stop up, and requests that had begun are still served."""
    telegram.control("faults", action="delay", method="sendMessage", seconds=2, times=1)
    bot.send("m 0", wait=0)
    until(lambda: telegram.stats()["faults"].get("delay"))
    with bot.connect() as connection:
        connection.sendall(b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Length: 24\r\n\r\n")
        until(lambda: len(os.listdir(f"/proc/{bot.process.pid}/task")) > 3)
        bot.process.process.send_signal(signal.SIGTERM)
        until(lambda: "stopping" in bot.log)
        connection.sendall(b'{"text":"m 1","wait":10}')
        assert connection.recv(65536).startswith(b"HTTP/1.1 202 ")
    assert bot.process.process.wait(15) == 0
    bot.start()
    until(lambda: arrived(telegram, 1) == ["m 0", "m 1"])


def test_a_flood_s_pause_does_not_end_with_an_outage():
    from bot.outage import Outage
    from bot.pacing import ChatQueues
    from bot.telegram import TelegramUnreachable
    api = type("Api", (), {"succeeded_at": 0.0})()
    queues = ChatQueues()
    outage = Outage(queues, api)
    queues.add(1, "a", False)
    now = time.monotonic()
    queues.pause(now + 3)
    outage.unreachable(TelegramUnreachable("no", unknown=False), 1)
    api.succeeded_at = time.monotonic() + 1
    outage.seconds_to_probe()
    assert 2 < queues.seconds_to_next(now) <= 3
