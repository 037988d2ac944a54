"""Telegram refuses connections, fails at random, answers slowly, and wants hours of rest; then all is well again."""

import contextlib
import os
import random
import time

from chaos.faults import Faults
from chaos.kill import Senders, check_log, crowd, delivered, drained, queued, through_line, users
from chaos.load import judge
from live import until

SHORT_ROUNDS, LONG_ROUNDS = 1, 2
MAX_CPU_SHARE = 0.25
MAX_LOG_BYTES_PER_SECOND = 2000
HOURS = 3019
FAULTS = (("html", {"status": 502}), ("cut_before", {}), ("cut_after", {}), ("cut_within", {}),
          ("delay", {"seconds": 0.3}), ("error", {"status": 429, "retry_after": 1}))


def run(result, folder, rounds):
    chance = random.Random(result.seed)
    names = users(12)
    faults = Faults(folder, folder / "nowhere")
    with (contextlib.closing(faults), crowd(folder, names, **faults.environment) as (telegram, bot, chats),
          through_line(bot) as line):
        delayed_chats = list(chats.values())[:2]
        bot.start()
        senders = Senders(bot, result.seed, names, processes=2)
        try:
            seconds = 60 if rounds > 1 else 2
            for _ in range(rounds):
                away(result, bot, line, seconds)
                failing(result, telegram, chance, seconds)
                delayed(result, telegram, bot, delayed_chats, seconds)
        finally:
            senders.stop()
        unknown = bot.get("/health").json()["unknown"]
        an_hour_later(result, telegram, bot, faults, delayed_chats)
        judge(result, senders.tried(), delivered(telegram, chats), line.may_be_copied())
        judge_end(result, bot, unknown)


def an_hour_later(result, telegram, bot, faults, chats):
    """A restart does not forget the rest that is wanted; when it is over, the rest is delivered."""
    before = [len(telegram.messages(chat)) for chat in chats]
    bot.stop()
    bot.start()
    until(lambda: {entry["chat_id"] for entry in queued(bot)} <= set(chats), 300,
          "the other chats have what they were sent")
    result.expect([len(telegram.messages(chat)) for chat in chats] == before, "a restart forgets who wants rest")
    bot.stop()
    faults.order(clock=HOURS + 60)
    bot.start()
    drained(bot, 300)


def judge_end(result, bot, unknown):
    result.count(unknown=unknown, log_bytes=len(bot.log))
    result.expect(result.figures["duplicates"] <= unknown, "copies of what was not unknown")
    result.expect(not bot.outbox("failed"), "messages failed for good")
    check_log(result, bot)


def away(result, bot, line, seconds):
    """Nobody listens where Telegram was."""
    line.cut()
    try:
        until(lambda: bot.get("/health").status_code == 503, 30, "health says that Telegram is away")
        cpu, log = cpu_seconds(bot), len(bot.log)
        time.sleep(seconds)
        used, written = cpu_seconds(bot) - cpu, len(bot.log) - log
    finally:
        line.mend()
    result.figures["cpu_percent_while_away"] = round(100 * used / seconds, 1)
    result.figures["log_bytes_a_second_while_away"] = round(written / seconds)
    result.expect(used < MAX_CPU_SHARE * seconds, f"{used} s of CPU in {seconds} s of waiting")
    result.expect(written < MAX_LOG_BYTES_PER_SECOND * seconds, f"{written} bytes of log in {seconds} s")
    until(lambda: bot.get("/health").status_code == 200, 90, "health says that Telegram is back")


def failing(result, telegram, chance, seconds):
    """Of all calls 30 % go wrong in one of six ways."""
    for action, fields in FAULTS:
        if action == "error":
            fields = {**fields, "description": f"Too Many Requests: retry after {fields['retry_after']}"}
        telegram.control("faults", action=action, share=0.06, seed=chance.randrange(1 << 30), **fields)
    time.sleep(2 * seconds)
    telegram.control_delete("faults")
    result.figures["faults"] = sum(telegram.stats()["faults"].values())


def delayed(result, telegram, bot, chats, seconds):
    """Two chats are refused for almost an hour: they get nothing more, and the others all they are sent."""
    for chat in chats:
        telegram.control("faults", action="error", method="sendMessage", chat_id=chat, times=1, status=429,
                         description=f"Too Many Requests: retry after {HOURS}", retry_after=HOURS)
        telegram.control("faults", action="error", method="sendPhoto", chat_id=chat, times=1, status=429,
                         description=f"Too Many Requests: retry after {HOURS}", retry_after=HOURS)
    for chat in chats:
        until(lambda chat=chat: f"{HOURS} s of rest for chat {chat}" in bot.log, 60, f"chat {chat} is refused")
    telegram.control_delete("faults")
    sent, before = telegram.stats()["sent"], [len(telegram.messages(chat)) for chat in chats]
    time.sleep(seconds)
    result.expect([len(telegram.messages(chat)) for chat in chats] == before, "a chat that wants rest got none")
    if os.getuid() == 0:
        until(lambda: telegram.stats()["sent"] > sent, 60, "the other chats get what they are sent")


def cpu_seconds(bot):
    with open(f"/proc/{bot.process.pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
