"""The time of day jumps by a day, forward and back, while messages wait, codes are out and cooldowns run.

What is off is what the C library tells the process; the kernel's own clock, and with it the times of files, stays.
"""

import json
import random
import re
import time

from analyst import OWNER, Analyst
from chaos.faults import Faults
from chaos.kill import check_log
from live import ME, Bot, Telegram, until

SHORT_ROUNDS, LONG_ROUNDS = 1, 10
DAY = 86400
CHAT, OWNER_CHAT, OTHER_CHAT = 5001, 5002, 5003


def run(result, folder, rounds):
    telegram = Telegram(folder)
    faults = Faults(folder, folder / "nowhere")
    bot = Bot(folder, telegram.url, **faults.environment)
    analyst = Analyst()
    try:
        analyst.environment["NOTIFY_BOT_SOCKET"] = str(bot.socket_path)
        bot.users(**{OWNER.pw_name: OWNER_CHAT, ME: CHAT})
        for chat in (CHAT, OWNER_CHAT):
            telegram.person(chat)
            telegram.control("unblock", chat_id=chat)
        bot.start()
        campaign(result, telegram, bot, faults, analyst, rounds)
        check_log(result, bot)
    finally:
        bot.stop()
        analyst.remove()
        faults.close()
        telegram.stop()


def campaign(result, telegram, bot, faults, analyst, rounds):
    chance = random.Random(result.seed)
    sent, found = [], []
    for number in range(rounds):
        jumps = [DAY, -DAY, chance.randrange(1 - DAY, DAY)]
        chance.shuffle(jumps)
        for jump in jumps:
            sent += messages(result, telegram, bot, faults, jump, f"{number} {jump:+d}")
            codes(result, telegram, bot, faults, jump)
            found += cooldowns(result, bot, faults, analyst, jump, f"{number} {jump:+d}")
            result.count(jumps=1)
    texts = [text.split("\n")[-1] for chat in (CHAT, OWNER_CHAT) for text in telegram.texts(chat)]
    passes = [text for text in texts if " pass " in text]
    texts = [text for text in texts if " pass " not in text]
    for wanted, got in ((sent, texts), (found, passes)):
        result.count(accepted=len(wanted), delivered=len(set(got) & set(wanted)), lost=len(set(wanted) - set(got)),
                     duplicates=len(got) - len(set(got)))
        result.expect(got == wanted, f"wanted {wanted}, got {got}")


def messages(result, telegram, bot, faults, jump, name):
    """Accepted before, during and after a jump: in order, with one key once, and none given up."""
    telegram.control("faults", action="cut_before", method="sendMessage")
    texts = [f"{name} {number}" for number in range(4)]
    answers = [bot.send(texts[0], wait=0, headers={"Idempotency-Key": texts[0]})]
    faults.order(clock=jump)
    answers.append(bot.send(texts[1], wait=0))
    if jump < DAY:  # a key is good for a day
        answers.append(bot.send(texts[0], wait=0, headers={"Idempotency-Key": texts[0]}))
    if abs(jump) < DAY:  # what a start finds it can only judge by the time of day
        bot.kill()
        bot.start()
    answers.append(bot.send(texts[2], wait=0))
    faults.order()
    answers.append(bot.send(texts[3], wait=0))
    result.expect([answer.status_code for answer in answers] == [202] * len(answers), f"{name}: {answers}")
    telegram.control_delete("faults")
    until(lambda: not bot.outbox(), 60, f"{name}: the queue is empty")
    result.expect(bot.outbox("failed") == [], f"{name}: given up as too old")
    return texts


def codes(result, telegram, bot, faults, jump):
    """A code is good for ten minutes, not for as long as the clock takes to come round again."""
    telegram.types(OTHER_CHAT, "/start")
    first = new_code(telegram, 1)
    faults.order(clock=jump)
    telegram.types(OTHER_CHAT, "/start")
    second = new_code(telegram, 2)
    pending = json.loads((bot.data / "pending_codes.json").read_text())
    result.expect(second in pending and first not in pending, "the older code is still good")
    result.expect(abs(pending[second]["created_at"] - (time.time() + jump)) < 60, "the code has another time")
    faults.order()
    result.count(codes=2)
    telegram.control("chats", id=OTHER_CHAT, first_name="Jana")
    telegram.types(OTHER_CHAT, "/start")
    new_code(telegram, 3)


def new_code(telegram, count):
    """The newest code in the other chat, when there is one more than before."""
    seen = getattr(telegram, "seen_codes", 0)
    found = until(lambda: len(all_codes(telegram)) > seen and all_codes(telegram), 20, f"code {count} arrives")
    telegram.seen_codes = len(found)
    return found[-1]


def all_codes(telegram):
    return [re.search(r"\d{6}", text)[0] for text in telegram.texts(OTHER_CHAT) if text.startswith("Your code")]


def cooldowns(result, bot, faults, analyst, jump, name):
    """A clock set back does not silence a script, and none sends twice within a cooldown on a steady clock."""
    for path, mode in ((bot.folder, 0o755), (bot.socket_path, 0o666)):
        path.chmod(mode)  # the account of the scripts is another one
    wanted = []
    script = None
    for number, clock in enumerate((0, 0, jump, jump)):
        faults.order(clock=clock)
        text = f"{name} pass {number}"
        script = analyst.script(f"s{name.replace(' ', '_')}", {"notify": True, "title": "", "message": text,
                                                               "cooldown": "12h"})
        analyst.run_scripts(**faults.environment)
        if number == 0 or (number == 2 and (jump < 0 or jump >= DAY // 2)):
            wanted.append(text)
    faults.order()
    until(lambda: not bot.outbox(), 30, "what the script found is delivered")
    script.unlink()
    result.count(passes=4)
    return wanted
