"""kill -9 of the bot, at random moments, while people send."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from chaos.line import Line
from chaos.load import judge, read_ledger
from live import ME, Bot, Process, Telegram, until
from outbox_files import waiting

LOAD = Path(__file__).with_name("load.py")
FIRST_CHAT = 5001
SHORT_ROUNDS, LONG_ROUNDS = 15, 300


def users(count=24):
    """Only root may send in the name of others."""
    return [f"u{number}" for number in range(count)] if os.getuid() == 0 else [ME]


class Senders:
    """`load.py` for several users, in several processes, with one ledger."""

    def __init__(self, bot, seed, names, processes=3):
        self.ledger = bot.folder / "ledger"
        photo = bot.folder / "photo.png"
        shutil.copy(Path(__file__).parents[2] / "bot" / "sample_chart.png", photo)
        self.processes = [subprocess.Popen(
            [sys.executable, LOAD, bot.socket_path, self.ledger, str(seed), *names[number::processes]],
            env={**os.environ, "CHAOS_PHOTO": str(photo)}) for number in range(min(processes, len(names)))]

    def stop(self):
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(60)
        self.processes = []

    def tried(self):
        return read_ledger(self.ledger)


@contextlib.contextmanager
def crowd(folder, names, **environment):
    """A sandbox in which everybody has a chat, and a bot to which they are linked; not yet started."""
    telegram = Telegram(folder)
    bot = Bot(folder, telegram.url, **environment)
    try:
        chats = {name: FIRST_CHAT + number for number, name in enumerate(names)}
        bot.users(**chats)
        for name, chat in chats.items():
            telegram.person(chat, name)
            telegram.control("unblock", chat_id=chat)
        yield telegram, bot, chats
    finally:
        bot.stop()
        telegram.stop()


def queued(bot):
    """Messages in the queue of a bot, which may be running."""
    return list(waiting(bot.state / "outbox").values())


def drained(bot, seconds):
    until(lambda: not queued(bot), seconds, "the queue is empty")


def delivered(telegram, chats):
    return {name: [text.split("\n")[-1] for text in telegram.texts(chat)] for name, chat in chats.items()}


def check_log(result, bot):
    result.expect("Traceback" not in bot.log, "a traceback is in the log")
    result.expect(bot.environment["TELEGRAM_BOT_TOKEN"] not in bot.log, "the token is in the log")


def run(result, folder, rounds):
    chance = random.Random(result.seed)
    with crowd(folder, users()) as (telegram, bot, chats), through_line(bot) as line:
        # Answers that take a while, so that calls are in flight when the bot is killed.
        telegram.control("faults", action="delay_answer", method="sendMessage", share=0.5, seed=result.seed,
                         seconds=0.03)
        bot.start()
        senders = Senders(bot, result.seed, list(chats))
        try:
            for _ in range(rounds):
                interrupt(bot, line, chance)
                result.count(kills=1)
        finally:
            if bot.process is None:
                bot.start()
            senders.stop()
        drained(bot, 300)
        judge(result, senders.tried(), delivered(telegram, chats), line.may_be_copied())
        result.expect(not bot.outbox("failed"), "messages failed for good")
        result.expect(not list((bot.state / "outbox" / "corrupt").iterdir()), "entries were set aside")
        check_log(result, bot)


@contextlib.contextmanager
def through_line(bot):
    """Put a line between the bot, which is not yet started, and Telegram."""
    line = Line(bot.environment["TELEGRAM_API_URL"])
    bot.environment["TELEGRAM_API_URL"] = line.url
    with contextlib.ExitStack() as ends:
        ends.callback(line.cut)
        ends.callback(bot.stop)
        yield line


def interrupt(bot, line, chance):
    """Kill the bot at some moment: while it serves, or while it is still starting; and start it again."""
    if chance.random() < 0.3:
        kill(bot, line)
        bot.process = Process("notify_bot.py", folder=bot.folder, **bot.environment)
        time.sleep(chance.uniform(0, 0.3))
    else:
        time.sleep(chance.uniform(0, 0.8))
    kill(bot, line)
    bot.start()


def kill(bot, line):
    moment = time.monotonic()
    bot.kill()
    line.interrupted(moment, {entry["message"]["text"] for entry in queued(bot)})
