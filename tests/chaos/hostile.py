"""Bytes that nobody should send: to the socket, from Telegram, from scripts, and in every file on disk."""

import contextlib
import itertools
import json
import os
import re
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor

from hypothesis import strategies as st

from chaos import inputs
from chaos.inputs import batches, drawn
from chaos.kill import check_log, crowd, queued, users
from chaos.telegram import Hostile
from common.script_output import ContractError, parse_output
from live import ME, Bot, until
from outbox_files import OPEN, entry

SHORT_ROUNDS, LONG_ROUNDS = 2000, 100_000
CLIENTS = 8
CHATS = tuple(range(5001, 5031))
SITTING = 100  # results of getUpdates
SITTING_SECONDS = 15
MAX_OUTPUTS = 10_000


def run(result, folder, rounds):
    requests(result, folder / "a", rounds)
    updates(result, folder / "b", max(20, min(500, rounds // 200)))
    files(result, folder / "c", max(8, min(100, rounds // 250)))
    scripts(result, min(rounds, MAX_OUTPUTS))


def requests(result, folder, rounds):
    """On the socket: no traceback reaches anybody, nothing is left open, it goes on serving, and it goes on delivering
    what it has accepted."""
    folder.mkdir()
    names = users()
    with crowd(folder, names) as (_, bot, _), ThreadPoolExecutor(CLIENTS) as clients:
        bot.start()
        assert bot.get("/metrics").ok
        threads, descriptors = settled(bot)
        for batch in batches(result.seed, rounds, "requests", names):
            for request, answer in zip(batch, clients.map(lambda data: bot_answers(bot, data), batch), strict=True):
                judge_answer(result, request, answer)
        # A client that went away is waited for; idle connections to Telegram and workers of the delivery come and go.
        left = until(lambda: settled(bot) <= (threads + 20, descriptors + 40) and settled(bot), 90,
                     "threads and descriptors are given back")
        result.count(threads_more=left[0] - threads, descriptors_more=left[1] - descriptors)
        report = until(lambda: balanced(bot.get("/health").json()), 10, "what was accepted has an end or is queued")
        result.count(accepted=report["accepted"], delivered=report["delivered"], queued=report["queued"])
        result.expect(report["delivered"] >= rounds // 100, "hardly anything was delivered")
        assert bot.get("/metrics").status_code == 200
        check_log(result, bot)


def settled(bot):
    return tuple(len(os.listdir(f"/proc/{bot.process.pid}/{what}")) for what in ("task", "fd"))


def balanced(report):
    ended = report["delivered"] + report["refused"] + report["expired"]
    return report if report["accepted"] == ended + report["queued"] else None


def bot_answers(bot, data):
    """Everything that is answered; a request that wants to wait is not waited for longer than a second."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        connection.connect(str(bot.socket_path))
        answer = b""
        with contextlib.suppress(OSError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                answer += piece
        return answer


def judge_answer(result, request, answer):
    result.count(requests=1)
    for status in re.findall(rb"HTTP/1\.1 (\d+) [A-Z]", answer):
        result.expect(status != b"500", f"500: {answer[:300]} to {request[:2000]}")
    result.expect(b"Traceback" not in answer, f"a traceback: {answer[:300]} to {request[:2000]}")


def updates(result, folder, rounds):
    """From Telegram: what it answers to every method and what getUpdates brings is spoilt; then it answers as it
    should, and all that came in is dealt with."""
    sent = {"message_id": 1, "chat": {"id": CHATS[0], "type": "private"}}
    results = {"getMe": {"id": 1, "is_bot": True, "username": "chaos_bot"}, "sendMessage": sent, "sendPhoto": sent,
               "": True}
    answers = {method: itertools.cycle(drawn(inputs.answers(value), f"{result.seed} {method}", 300))
               for method, value in results.items()}
    polls = numbered(drawn(inputs.polls(CHATS), result.seed, rounds))
    folder.mkdir()
    telegram = Hostile(answers)
    bot = Bot(folder, telegram.url)
    try:
        for start in range(0, rounds, SITTING):
            sitting(result, telegram, bot, polls[start:start + SITTING])
        telegram.hostile = False
        all_is_well(result, telegram, bot)
        result.count(updates=sum(len(found) for found in polls if isinstance(found, list)),
                     spoilt_answers=telegram.spoilt)
        check_log(result, bot)
    finally:
        bot.stop()
        telegram.close()


def numbered(polls):
    """With an ID for every update."""
    number = itertools.count(1)
    return [[{**update, "update_id": next(number)} if isinstance(update, dict) else update for update in found]
            if isinstance(found, list) else found for found in polls]


def sitting(result, telegram, bot, polls):
    """One answer may stop the polls for years, which a restart forgets: so there are several."""
    linked(bot)
    bot.start()
    telegram.update(*polls)
    for user in users():
        bot.send("m", user=user, wait=0)
    with contextlib.suppress(AssertionError):  # what was not fetched by now is fetched in the next
        until(lambda: not telegram.polls and not bot.outbox(), SITTING_SECONDS)
    result.expect(bot.stop() == 0, "it does not stop")


def linked(bot, **others):
    """A press of "Yes, unlink" may have been among the updates."""
    bot.users(**dict(zip(users(), CHATS, strict=False)) | others)


def all_is_well(result, telegram, bot):
    """Users without trouble do not wait for those with a backlog, who get theirs in the end."""
    linked(bot, **{ME: 7001})
    bot.start()
    # The stand-in may still hold a poll of the bot that was stopped, which would take what is for this one.
    until(lambda: bot.get("/health").json()["last_poll"], 10, "it polls")
    telegram.update([{"update_id": 1 << 20, "message": {"message_id": 1, "text": "/help", "chat":
                                                        {"id": 7002, "type": "private"}}}])
    result.expect(bot.send("the end", wait=30).status_code == 200, "messages do not arrive again")
    until(lambda: 7002 in telegram.chats, 30, "commands are answered again")
    until(lambda: not telegram.polls, 60, "all updates have been fetched")
    until(lambda: not overdue(bot), 120, "what Telegram wants no rest for is delivered")
    until(lambda: not json.loads((bot.state / "polling.json").read_text())["pending"], 10, "all updates are handled")
    result.expect(bot.get("/health").status_code == 200, "health says that all is not well")


def overdue(bot):
    """Waiting messages, without those of chats with a long delay."""
    entries = queued(bot)
    resting = {entry["chat_id"] for entry in entries if entry.get("retry_after", 0) > 30}
    return [entry for entry in entries if entry["chat_id"] not in resting]


def good_files():
    message = {"title": "t", "text": "*m*", "parse_mode": "Markdown", "photo": "a.png", "photo_size": 4, "silent": True}
    waits = entry("aa", ME, accepted_at=1.0, chat_id=CHATS[0], picture="aa", message=message, script="")
    pending = {"update": {"update_id": 7, "callback_query": {"id": "1", "message": {"chat": {"id": CHATS[0]}}}},
               "started": True}
    return {
        "telegram_users.json": {ME: {"chat_id": CHATS[0], "linked_at": "2026-01-31T12:00:00Z"}},
        "pending_codes.json": {"123456": {"chat_id": CHATS[0], "created_at": 1}},
        "polling.json": {"offset": 1, "pending": {"7": pending, "8": {**pending, "started": False}}},
        "outbox/journal/00000001.jsonl": {"open": 1, **waits},
        "outbox/failed/bb.json": {**waits, "id": "bb", "code": 502, "reason": "x"}}


def files(result, folder, rounds):
    """On disk: whatever the files hold, it starts, says what is wrong, and serves when they are right again."""
    sets = drawn(st.fixed_dictionaries({name: inputs.files(document) for name, document in good_files().items()}),
                 result.seed, rounds)
    telegram = Hostile({})
    try:
        for contents in sets:
            on_spoilt_files(result, folder, telegram, contents)
            result.count(sets_of_files=1)
    finally:
        telegram.close()


def on_spoilt_files(result, folder, telegram, contents):
    """A bot that is started on files of which some are spoilt serves, and stops when it is asked to."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in contents.items():
        path = folder / ("state" if name.startswith(("outbox", "polling")) else "data") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (folder / "state").mkdir(mode=0o700, exist_ok=True)
        (folder / "state").chmod(0o700)
        if path.suffix == ".jsonl":
            content = content.replace(b'{"open": 1, ', OPEN) + b"\n"
        path.write_bytes(content)
    bot = Bot(folder, telegram.url)
    try:
        bot.start()
        for path in ("/health", "/metrics", "/queue"):
            result.expect(bot.get(path).status_code in (200, 503), f"{path} is not answered")
        bot.users(**{ME: CHATS[0]})
        result.expect(bot.send("m", wait=5).status_code in (200, 202), "nothing is accepted with a good file of users")
    finally:
        status = bot.stop()
        result.expect(status == 0 and "Traceback" not in bot.log, f"ended with {status}: {bot.log[-1500:]}")


def scripts(result, rounds):
    """Output of a script is legal, or the error names its field and the reason."""
    document = {"notify": True, "title": "t", "message": "m", "image_path": "/a.png", "cooldown": "1h", "data": {}}
    for batch in batches(result.seed, rounds, "files", document):
        for output in batch:
            try:
                parse_output(output)
            except ContractError as error:
                result.expect(error.reason, "no reason is given")
            result.count(outputs=1)
