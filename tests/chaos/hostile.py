"""Bytes that nobody should send: to the socket, from Telegram, from scripts, and in every file on disk."""

import contextlib
import json
import os
import random
import re
import shutil
import socket

from chaos.kill import check_log
from chaos.telegram import Hostile
from contract import ContractError, parse_output
from live import ME, Bot, Telegram, png, until

SHORT_ROUNDS, LONG_ROUNDS = 2000, 100_000
CHAT = 5001
NUMBERS = (0, -1, 1, 2 ** 31, 2 ** 63, -2 ** 63, 10 ** 30, 10 ** 400, 1.5, 1e308, float("inf"), float("nan"))
STRINGS = ("", " ", "\0", "\ud800", "é", "😀" * 3, "x" * 5000, "*", "[a](", "/start", "/status", "run:", "page:9" * 9,
           "../../etc/passwd", "2026-13-45T99:99:99Z", "a\nb", "%s%n", "{0}")
FIELDS = ("user", "text", "title", "parse_mode", "script", "silent", "buttons", "wait", "caption", "photo_path",
          "url", "chat_id", "id")
FORM = (b'--b\r\nContent-Disposition: form-data; name="caption"\r\n\r\nhello\r\n--b\r\n'
        b'Content-Disposition: form-data; name="photo"; filename="a.png"\r\n\r\n%s\r\n--b--\r\n' % png(4, 4))
CORPUS = (
    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /metrics HTTP/1.1\r\n\r\n", b"GET /queue HTTP/1.1\r\n\r\n",
    b'POST /send HTTP/1.1\r\nContent-Length: 26\r\n\r\n{"text": "m", "wait": 0.0}',
    b'POST /send HTTP/1.1\r\nExpect: 100-continue\r\nIdempotency-Key: k\r\nContent-Length: 23\r\n\r\n'
    b'{"text": "m", "wait":0}',
    b"POST /send_photo HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n%s"
    % (len(FORM), FORM))
TOKENS = (b"\r\n", b"\0", b"\xff\xfe", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1", b"--b",
          b'"', b"{" * 5000, b"9" * 30, b":", b" ", b'filename*=utf-8\'\'%ff', b"charset=utf-7;", b"=?utf-8?q?=ff?=")


def value(chance, depth=0):
    """Some JSON value."""
    kind = chance.randrange(7 if depth < 4 else 4)
    if kind == 0:
        return chance.choice((None, True, False))
    if kind == 1:
        return chance.choice(NUMBERS)
    if kind in (2, 3):
        return chance.choice(STRINGS)
    if kind == 4:
        return [value(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {chance.choice(FIELDS): value(chance, depth + 1) for _ in range(chance.randrange(5))}


def spoilt(chance, document, share=0.15):
    """The document with some of its values replaced, left out or added to."""
    if chance.random() < share:
        return value(chance)
    if isinstance(document, dict):
        kept = {key: spoilt(chance, item, share) for key, item in document.items() if chance.random() > share / 3}
        return kept | ({chance.choice(FIELDS): value(chance)} if chance.random() < share else {})
    if isinstance(document, list):
        return [spoilt(chance, item, share) for item in document if chance.random() > share / 3]
    return document


def mangled(chance, data):
    """The bytes with a few of them changed, cut, doubled or put in."""
    data = bytearray(data)
    for _ in range(chance.randrange(4)):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.randrange(40))
        data[start:end] = chance.choice((b"", chance.choice(TOKENS), bytes(data[start:end]) * 2,
                                         chance.randbytes(3), data[start:end]))
    return bytes(data[:chance.randrange(len(data) + 1)] if chance.random() < 0.1 else data)


def encoded(document):
    return json.dumps(document).encode()


def run(result, folder, rounds):
    chance = random.Random(result.seed)
    requests(result, folder / "a", chance, rounds)
    updates(result, folder / "b", chance, max(20, min(400, rounds // 40)))
    files(result, folder / "c", chance, max(8, min(150, rounds // 250)))
    scripts(result, chance, rounds)


@contextlib.contextmanager
def running(folder, api_url):
    folder.mkdir()
    bot = Bot(folder, api_url)
    bot.users(**{ME: CHAT})
    bot.start()
    try:
        yield bot
    finally:
        bot.stop()


def requests(result, folder, chance, rounds):
    """On the socket: no traceback reaches anybody, nothing is left open, and it goes on serving."""
    folder.parent.joinpath("t").mkdir()
    telegram = Telegram(folder.parent / "t")
    try:
        telegram.person(CHAT)
        with running(folder, telegram.url) as bot:
            assert bot.get("/metrics").ok
            threads, descriptors = settled(bot)
            for _ in range(rounds):
                answer = bot_answers(bot, one_request(chance))
                result.count(requests=1)
                for status in re.findall(rb"HTTP/1\.1 (\d+) [A-Z]", answer):
                    result.expect(status != b"500", f"500: {answer[:300]}")
                result.expect(b"Traceback" not in answer, f"a traceback: {answer[:300]}")
            # Idle connections to Telegram and workers of the delivery come and go; both are bounded.
            left = until(lambda: settled(bot) <= (threads + 20, descriptors + 40) and settled(bot), 30,
                         "threads and descriptors are given back")
            result.count(threads_more=left[0] - threads, descriptors_more=left[1] - descriptors)
            assert bot.get("/metrics").status_code == 200
            check_log(result, bot)
    finally:
        telegram.stop()


def settled(bot):
    return tuple(len(os.listdir(f"/proc/{bot.process.pid}/{what}")) for what in ("task", "fd"))


def one_request(chance):
    if chance.random() < 0.5:
        return mangled(chance, chance.choice(CORPUS))
    body = encoded(spoilt(chance, {"text": "m", "wait": 0, "title": "t", "parse_mode": "HTML", "silent": True,
                                   "buttons": [[{"text": "a", "url": "https://x.org"}]]}))
    body = body if chance.random() < 0.8 else mangled(chance, body)
    path = chance.choice((b"/send", b"/send", b"/send_photo", b"/queue", b"/queue/retry", b"/queue/drop"))
    return b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (path, len(body), body)


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


def updates(result, folder, chance, rounds):
    """From Telegram: every answer to every method is spoilt; then it answers as it should, and all is well."""
    telegram = Hostile(lambda answer: spoilt(chance, answer, 0.05))
    try:
        with running(folder, telegram.url) as bot:
            for number in range(rounds):
                telegram.update(encoded_update(chance, number))
                if number % 40 == 0:
                    bot.send("m", wait=0)
            until(lambda: telegram.polled_out() or telegram.behave(), 60, "all updates have been fetched")
            telegram.behave()
            result.count(updates=rounds, spoilt_answers=telegram.spoilt)
            # Some answers wanted a rest of years, which is kept until a restart.
            result.expect(bot.stop() == 0, "it does not stop")
            bot.start()
            # A press of "Yes, unlink" may have been among the updates.
            until(lambda: bot.users(**{ME: CHAT}) or bot.send("the end", wait=2).status_code == 200, 90,
                  "messages arrive again")
            telegram.update({"update_id": 1 << 20, "message": {"message_id": 1, "text": "/help", "chat":
                                                               {"id": 77, "type": "private"}}})
            until(lambda: 77 in telegram.chats, 90, "commands are answered again")
            check_log(result, bot)
    finally:
        telegram.close()


def encoded_update(chance, number):
    message = {"message_id": number, "chat": {"id": CHAT, "type": "private", "first_name": "J", "username": "j"},
               "from": {"id": CHAT}, "text": chance.choice(("/start", "/status", "/whoami@x", "/stop", "hi", "/test"))}
    update = {"message": message} if chance.random() < 0.5 else {
        "callback_query": {"id": str(number), "data": chance.choice(("run:1", "page:1", "stop:yes", "x")),
                           "from": {"id": CHAT}, "message": message}}
    bad = spoilt(chance, update, 0.1)
    return {**bad, "update_id": number} if isinstance(bad, dict) else bad


def files(result, folder, chance, rounds):
    """On disk: whatever the files hold, it starts, says what is wrong, and serves when they are right again."""
    telegram = Hostile(lambda answer: answer)
    telegram.behave()
    try:
        for _ in range(rounds):
            on_spoilt_files(result, folder, telegram, chance)
            result.count(sets_of_files=1)
    finally:
        telegram.close()


def good_files():
    entry = {"id": "aa", "sequence": 1, "accepted_at": 1.0, "user": ME, "chat_id": CHAT, "reply": False, "part": 0,
             "late_since": None, "script": "", "message": {"title": "t", "text": "*m*", "parse_mode": "Markdown",
                                                           "photo": "a.png", "photo_size": 4, "silent": True}}
    pending = {"update": {"update_id": 7, "callback_query": {"id": "1", "message": {"chat": {"id": CHAT}}}},
               "started": True}
    return {
        "telegram_users.json": {ME: {"chat_id": CHAT, "linked_at": "2026-01-31T12:00:00Z"}},
        "pending_codes.json": {"123456": {"chat_id": CHAT, "created_at": 1}},
        "polling.json": {"offset": 1, "pending": {"7": pending, "8": {**pending, "started": False}}},
        "outbox/queue/aa.json": entry, "outbox/failed/bb.json": {**entry, "id": "bb", "code": 502, "reason": "x"}}


def on_spoilt_files(result, folder, telegram, chance):
    """A bot that is started on files of which some are spoilt serves, and stops when it is asked to."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, document in good_files().items():
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = encoded(spoilt(chance, document, 0.1))
        path.write_bytes(content if chance.random() < 0.7 else mangled(chance, content))
    bot = Bot(folder, telegram.url)
    try:
        bot.start()
        for path in ("/health", "/metrics", "/queue"):
            result.expect(bot.get(path).status_code in (200, 503), f"{path} is not answered")
        bot.users(**{ME: CHAT})
        result.expect(bot.send("m", wait=5).status_code in (200, 202), "nothing is accepted with a good file of users")
    finally:
        status = bot.stop()
        result.expect(status == 0 and "Traceback" not in bot.log, f"ended with {status}: {bot.log[-1500:]}")


def scripts(result, chance, rounds):
    """What a script prints is legal, or its field and the reason are named."""
    for _ in range(rounds):
        output = encoded(spoilt(chance, {"notify": True, "title": "t", "message": "m", "image_path": "/a.png",
                                         "cooldown": "1h", "data": {}}))
        output = output if chance.random() < 0.5 else mangled(chance, output)
        try:
            parse_output(output)
        except ContractError as error:
            result.expect(error.reason, "no reason is given")
        result.count(outputs=1)
