"""Memory of a live bot at the worst of what users can put into it; its unit allows 256 MB."""

import contextlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from test_outbox import write_million

from common.jsonstore import MAX_BYTES, MAX_ITEMS
from live import CHECKOUT, ME, PYTHON, Bot
from outbox_files import entry, write_failed, write_waiting

MOST_KILOBYTES = 96 << 10
MEBIBYTE = 1 << 20


def large(first, user, **fields):
    """200 messages of a MiB."""
    return [entry(f"{number:020x}", user, sequence=number, message={"text": "x" * (MEBIBYTE - 1000)}, **fields)
            for number in range(first, first + 200)]


def peak(bot):
    """VmHWM, in KiB, of a bot that has read what is on disk: it answers."""
    assert bot.get("/health").status_code in (200, 503)
    status = Path(f"/proc/{bot.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def test_memory_at_the_worst(tmp_path):
    bot = Bot(tmp_path, "http://127.0.0.1:9")
    bot.users(**{user: number for number, user in enumerate((ME, "alice", "bob", "carol"), 1)})
    waiting = large(0, ME)
    for number in range(0, 200, 4):  # as many as a segment holds
        write_waiting(bot.state / "outbox", *waiting[number:number + 4])
    for number, user in enumerate(("alice", "bob", "carol"), 1):
        for failed in large(1000 * number, user, reason="no", code=502):
            write_failed(bot.state / "outbox", failed)
    (bot.state / "outbox/sent").mkdir()
    write_million(bot.state / "outbox/sent")
    bot.start()
    peaks = {"start": peak(bot)}
    try:
        done = subprocess.run([PYTHON, "-EsS", CHECKOUT / "notify_bot.py", "queue"], capture_output=True, text=True,
                              timeout=60, env={"NOTIFY_BOT_SOCKET": str(bot.socket_path)})
        assert done.stdout.endswith("200 queued, 600 failed\n"), done
        peaks["queue"] = peak(bot)
        for _ in range(190):
            bot.send("x", user="alice", wait=0, buttons=[[]] * 21_000)
        peaks["buttons"] = peak(bot)
        with ThreadPoolExecutor(30) as threads:  # who wait for what becomes of it, longer than all take to be accepted
            answers = [threads.submit(bot.send, "x" * (MEBIBYTE - 1000), user="bob", wait=3) for _ in range(30)]
        assert all(answer.result().status_code in (202, 503) for answer in answers)
        peaks["waiting"] = peak(bot)
        bot.kill()
        bot.start()
        peaks["restart"] = peak(bot)
        assert max(peaks.values()) <= MOST_KILOBYTES, peaks
        assert "Traceback" not in bot.log
    finally:
        bot.kill()


def test_a_shared_file_at_its_worst_takes_neither_the_memory_nor_the_log(tmp_path):
    """The web server's account may write what it likes into the links, again and again."""
    bot = Bot(tmp_path, "http://127.0.0.1:9")
    path = bot.data / "telegram_users.json"
    worst = "{" + ",".join(f'"{number}":{{"a":1}}' for number in range(MAX_ITEMS // 4 - 1)) + "}"
    path.write_text(worst[:-1] + ',"\N{PARTY POPPER}":"' + "x" * (MAX_BYTES - len(worst) - 100) + '"}')
    bot.start()
    try:
        for _ in range(5):
            os.utime(path)
            with ThreadPoolExecutor(20) as threads:
                answers = list(threads.map(bot.get, ["/health"] * 20))
            assert {answer.json()["linked"] for answer in answers} == {0}
        assert peak(bot) <= 128 << 10
        assert len(bot.log) < 10_000
    finally:
        bot.kill()


def test_clients_that_are_refused_before_their_body_take_no_memory(tmp_path):
    bot = Bot(tmp_path, "http://127.0.0.1:9")
    bot.start()
    try:
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(bot.connect()) for _ in range(300)]
            for connection in connections:
                connection.sendall(b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n")
            assert all(b" 413 " in connection.recv(4096) for connection in connections)
            assert peak(bot) <= MOST_KILOBYTES
    finally:
        bot.kill()
