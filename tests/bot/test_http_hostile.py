"""Requests that no reader must understand in two ways, and accounts that take all there is to take."""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from live import ME, PYTHON, Bot, until
from outbox_files import waiting

NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens, so what is accepted stays in the queue
BODY = b'{"text": "smuggled", "wait": 0}'
SEND = b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.fixture(scope="module")
def bot(tmp_path_factory):
    bot = Bot(tmp_path_factory.mktemp("hostile"), NOWHERE)
    bot.users(**{ME: 42})
    bot.start()
    yield bot
    assert "Traceback" not in bot.log
    assert bot.stop() == 0


def statuses(answer):
    return [int(number) for number in re.findall(rb"HTTP/1\.1 (\d+) ", answer)]


def head(*lines, target=b"/send", version=b"HTTP/1.1"):
    """The head of a POST with a legal body behind it."""
    return (b"\r\n".join([b"POST %s %s" % (target, version), b"Host: x", *lines, b"Content-Length: %d" % len(BODY)])
            + b"\r\n\r\n" + BODY)


def chunked(chunks, *lines, version=b"HTTP/1.1"):
    return b"\r\n".join([b"POST /send " + version, b"Host: x", b"Transfer-Encoding: chunked", *lines, b"", chunks])


MALFORMED = {
    "obs-fold": head(b"X: a", b" b"),
    "fold first": b"POST /send HTTP/1.1\r\n X: y\r\nHost: x\r\nContent-Length: 31\r\n\r\n" + BODY,
    "no colon": head(b"Idempotency-Key", b"X: y"),
    "space before the colon": head(b"Idempotency-Key : k"),
    "no name": head(b": k"),
    "name of two words": head(b"X Y: k"),
    "name in another script": head("Schlüssel: k".encode()),
    "bare LF": head(b"X: y\nY: z"),
    "all LF": head().replace(b"\r\n", b"\n"),
    "LF in the request line": head().replace(b"1.1\r\n", b"1.1\n"),
    "bare CR": head(b"X: y\rY: z"),
    "NUL in a value": head(b"X: a\0b"),
    "NUL in a name": head(b"X\0: b"),
    "a control character": head(b"X: a\x01b"),
    "DEL": head(b"X: a\x7fb"),
    "two Hosts": head(b"Host: y"),
    "no Host": SEND.replace(b"Host: x\r\n", b""),
    "two equal lengths": head(b"Content-Length: %d" % len(BODY)),
    "two lengths": head(b"Content-Length: 5"),
    "a list of lengths": head().replace(b"Length: 31", b"Length: 31, 31"),
    "length with plus": head().replace(b"Length: 31", b"Length: +31"),
    "length below zero": head().replace(b"Length: 31", b"Length: -31"),
    "length in hexadecimal": head().replace(b"Length: 31", b"Length: 0x1f"),
    "length with underscore": head().replace(b"Length: 31", b"Length: 3_1"),
    "length with exponent": head().replace(b"Length: 31", b"Length: 3e1"),
    "length in other digits": head().replace(b"Length: 31", "Length: ３１".encode()),
    "length of 40 digits": head().replace(b"Length: 31", b"Length: " + b"9" * 40),
    "empty length": head().replace(b"Length: 31", b"Length:"),
    "two keys": head(b"Idempotency-Key: a", b"Idempotency-Key: b"),
    "two types": head(b"Content-Type: application/json", b"Content-Type: text/plain"),
    "chunks and a length": chunked(CHUNKS, b"Content-Length: 31"),
    "a length and chunks": chunked(CHUNKS).replace(b"Host: x", b"Host: x\r\nContent-Length: 31"),
    "chunked twice": chunked(CHUNKS, b"Transfer-Encoding: chunked"),
    "chunked, chunked": chunked(CHUNKS).replace(b"chunked", b"chunked, chunked"),
    "chunked not last": chunked(CHUNKS).replace(b"chunked", b"chunked, gzip"),
    "xchunked": chunked(CHUNKS).replace(b"chunked", b"xchunked"),
    "identity": chunked(CHUNKS).replace(b"chunked", b"identity"),
    "empty coding": chunked(CHUNKS).replace(b"chunked", b""),
    "chunked with a tab of its own kind": chunked(CHUNKS).replace(b"chunked", b"\x0bchunked"),
    "chunks of HTTP/1.0": chunked(CHUNKS, version=b"HTTP/1.0"),
    "chunk size with sign": chunked(b"+" + CHUNKS),
    "chunk size with 0x": chunked(b"0x" + CHUNKS),
    "chunk size with underscore": chunked(b"0_" + CHUNKS),
    "chunk size with space before": chunked(b" " + CHUNKS),
    "chunk size missing": chunked(b"\r\n" + CHUNKS),
    "chunk size of 17 digits": chunked(b"0" * 16 + CHUNKS),
    "chunk line without CR": chunked(CHUNKS.replace(b"1f\r\n", b"1f\n")),
    "chunk with another end": chunked(CHUNKS.replace(b"}\r\n0", b"}xx0")),
    "chunk without its end": chunked(CHUNKS.replace(b"}\r\n0", b"}0")),
    "chunk longer than it says": chunked(CHUNKS.replace(b"1f\r\n", b"1e\r\n")),
    "chunk shorter than it says": chunked(CHUNKS.replace(b"1f\r\n", b"20\r\n")),
    "extension of 300 bytes": chunked(CHUNKS.replace(b"1f\r\n", b"1f;" + b"x" * 300 + b"\r\n")),
    "extension with a bare CR": chunked(CHUNKS.replace(b"1f\r\n", b"1f;a\rb\r\n")),
    "trailer without colon": chunked(CHUNKS[:-2] + b"X\r\n\r\n"),
    "trailer folded": chunked(CHUNKS[:-2] + b"X: y\r\n z\r\n\r\n"),
    "no version": b"POST /send\r\nHost: x\r\nContent-Length: 31\r\n\r\n" + BODY,
    "no target": b"POST HTTP/1.1\r\nHost: x\r\nContent-Length: 31\r\n\r\n" + BODY,
    "two spaces": head(target=b" /send"),
    "a tab": head().replace(b"POST ", b"POST\t"),
    "space in the target": head(target=b"/send x"),
    "space at the end": head(version=b"HTTP/1.1 "),
    "space first": b" " + SEND,
    "lower-case version": head(version=b"http/1.1"),
    "version of two digits": head(version=b"HTTP/1.10"),
    "version with a comma": head(version=b"HTTP/1,1"),
    "method with a bracket": b"(" + SEND,
    "target without slash": head(target=b"send"),
    "fragment": head(target=b"/send#x"),
    "URL of another kind": head(target=b"ftp://x/send"),
    "URL without host": head(target=b"http:///send"),
    "target in another script": head(target="/sänd".encode()),
    "NUL in the target": head(target=b"/send\0"),
    "two empty lines first": b"\r\n\r\n" + SEND,
    "an LF first": b"\n" + SEND,
    "a CR first": b"\r" + SEND,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n" + SEND,
}


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED)
def test_a_defect_is_one_400_and_nothing_behind_it_is_executed(bot, request_bytes):
    before = bot.outbox()
    answer = bot.raw(request_bytes + SEND)
    assert statuses(answer) == [400], answer
    assert b"\r\nConnection: close\r\n" in answer and b'{"ok": false, "error": ' in answer
    assert bot.outbox() == before


@pytest.mark.parametrize("request_bytes", [head(b"Idempotency-Key: k"), chunked(CHUNKS, b"X: y"),
                                           chunked(CHUNKS[:-2] + b"X: y\r\n\r\n")], ids=["length", "chunks", "trailer"])
def test_half_a_request_is_never_executed(bot, request_bytes):
    before = bot.outbox()
    for end in range(len(request_bytes)):
        answer = bot.raw(request_bytes[:end])
        assert statuses(answer) in ([], [400]), (request_bytes[:end], answer)
    assert bot.outbox() == before


WELL_FORMED = {
    "an empty line first": b"\r\n" + SEND,
    "chunks": chunked(CHUNKS),
    "chunks of a byte": chunked(b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"),
    "size with zeros and an extension": chunked(b'0001F ; a="b"\r\n' + BODY + b"\r\n000\r\nX: y\r\n\r\n"),
    "coding in capitals": chunked(CHUNKS).replace(b"chunked", b"Chunked"),
    "absolute form": head(target=b"http://localhost/send"),
    "absolute form with a query": head(target=b"HTTP://localhost:80/send?a=b"),
    "no space after the colon": head(b"X:y", b"Y:", b"Z: \t"),
    "Latin-1 in a value": head(b"X: \xe9"),
    "empty Host": head().replace(b"Host: x", b"Host:"),
    "HTTP/1.0": head(version=b"HTTP/1.0").replace(b"Host: x\r\n", b"Connection: keep-alive\r\n"),
    "a form's type, as curl --data has it": head(b"Content-Type: application/x-www-form-urlencoded"),
    "identity": head(b"Content-Encoding: identity"),
}


@pytest.mark.parametrize("request_bytes", WELL_FORMED.values(), ids=WELL_FORMED)
def test_what_is_legal_is_taken_and_the_connection_kept(bot, request_bytes):
    """Each answer is a 202, so what came before the next request was read to its end and no further."""
    answer = bot.raw(request_bytes * 2 + SEND)
    assert statuses(answer) == [202, 202, 202], answer


HOLD = """
import contextlib, socket, sys
path, count = sys.argv[1], int(sys.argv[2])
held = []
for _ in range(count):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(path)
    with contextlib.suppress(BrokenPipeError):  # it is refused before it asks
        connection.sendall(b"GET /metrics HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    answer = connection.recv(12)
    held.append(connection)
    print(answer.decode()[9:], end=" ", flush=True)
print(flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holding(bot, uid, count):
    """The statuses that a user got on so many connections, all of which are kept open."""
    os.chmod(bot.socket_path, 0o666)
    for folder in (bot.folder, *list(bot.folder.parents)[:2]):
        os.chmod(folder, 0o755)
    process = subprocess.Popen([PYTHON, "-c", HOLD, bot.socket_path, str(count)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, user=uid, group=uid, extra_groups=[], text=True)
    with process:
        yield [int(status) for status in process.stdout.readline().split()]
        process.stdin.close()


@pytest.mark.root
def test_a_user_has_32_connections_and_no_number_of_users_keeps_the_first_of_another_out(tmp_path):
    bot = Bot(tmp_path, NOWHERE).start()
    with contextlib.ExitStack() as stack:
        users = [stack.enter_context(holding(bot, 20_000 + number, 33)) for number in range(20)]
        assert all(len(answers) == 33 for answers in users)
        assert users[0] == [200] * 32 + [503]
        assert sum(answers.count(200) for answers in users) == 448 + 6  # of the last six, each has its first
        for number in range(45):
            assert stack.enter_context(holding(bot, 30_000 + number, 1)) == ([200] if number < 42 else [503])
        assert bot.get("/metrics").status_code == 200
        assert stack.enter_context(holding(bot, 0, 20)) == [200] * 16 + [503] * 4
    until(lambda: len(os.listdir(f"/proc/{bot.process.pid}/task")) < 20)
    with holding(bot, 20_000, 32) as answers:
        assert answers == [200] * 32
    assert bot.stop() == 0


@pytest.mark.root
def test_refusals_are_a_line_a_minute_for_a_user(tmp_path):
    bot = Bot(tmp_path, NOWHERE).start()
    with holding(bot, 20_000, 432) as answers:
        assert answers == [200] * 32 + [503] * 400
    for _ in range(300):
        bot.raw(b"nonsense\r\n\r\n")
    for number in range(100):
        bot.get(f"/nowhere/{number}")
    assert len([line for line in bot.log.splitlines() if "refused uid" in line]) == 2
    assert re.search(r"refused uid 20000: 503 32 connections are open$", bot.log, re.M)
    assert re.search(r"refused uid 0: 400 the request line is not", bot.log)
    assert bot.stop() == 0
    assert re.search(r"refused uid 0 399 times more within \d+ s, the last: 404 there is no /nowhere/99 ", bot.log)
    assert re.search(r"refused uid 20000 399 times more within \d+ s, the last: 503 32 connections are open$", bot.log,
                     re.M)


def test_a_large_body_takes_no_room_while_its_sender_waits(tmp_path):
    """Its room is for two of them, and twelve wait for Telegram, which is away."""
    bot = Bot(tmp_path, NOWHERE)
    bot.users(**{ME: 42})
    bot.start()
    answers = []

    def send():
        answers.append(bot.send("x" * 1_000_000, wait=60).status_code)

    clients = [threading.Thread(target=send) for _ in range(12)]
    for number, client in enumerate(clients, 1):
        client.start()
        until(lambda: len(bot.outbox()) + len(answers) >= number)  # noqa: B023
    assert answers == [] and len(bot.outbox()) == 12
    assert bot.stop(signal.SIGTERM) == 0
    for client in clients:
        client.join(5)
    assert answers == [202] * 12


@pytest.mark.parametrize("row", [[], {}, [[]], [{}], None])
def test_rows_of_buttons_are_bounded_as_buttons_are(bot, row):
    text = json.dumps({"text": "x", "wait": 0, "buttons": [row] * 3000})
    answer = bot.post("/send", data=text)
    if row == []:
        assert answer.status_code == 202
        assert len(json.dumps(waiting(bot.state / "outbox")[answer.json()["id"]])) < 1000
    else:
        assert answer.status_code == 400 and "buttons" in answer.json()["error"]


@pytest.mark.parametrize("piece", ["{}", "[]", '"a"', '"ab"', "1.5", "999", '{"a":1}'])
def test_a_body_of_many_values_costs_no_memory(tmp_path, piece):
    bot = Bot(tmp_path, NOWHERE)
    bot.users(**{ME: 42})
    bot.start()
    body = '{"text": "x", "junk": [' + ",".join([piece] * ((1 << 20) // (len(piece) + 1) - 10)) + "]}"
    for _ in range(4):
        answer = bot.post("/send", data=body)
        assert answer.status_code == 400 and "over 10000" in answer.json()["error"]
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{bot.process.pid}/status").read_text())
    assert int(peak[1]) < 48 << 10
    assert bot.stop() == 0
