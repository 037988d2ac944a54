"""The HTTP side of the send API, spoken to byte by byte: nothing a client does harms another or the service."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from live import CHECKOUT, ME, PYTHON, Bot, Process, until

NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens, so Telegram is unreachable all along


@pytest.fixture(scope="module")
def bot(tmp_path_factory):
    bot = Bot(tmp_path_factory.mktemp("http"), NOWHERE).start()
    yield bot
    assert "Traceback" not in bot.log
    assert bot.stop() == 0


def statuses(answer):
    return [int(number) for number in re.findall(rb"HTTP/1\.1 (\d+) ", answer)]


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid):
    return len(os.listdir(f"/proc/{pid}/task"))


@pytest.mark.parametrize(("request_bytes", "status"), [
    (b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    (b"DELETE /send HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    (b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405),
    (b"POST /send HTTP/1.1\r\nHost: x\r\n\r\n", 411),
    (b"POST /send HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFF\r\n" + b"x" * 0xfffff
     + b"\r\n2\r\nxx\r\n0\r\n\r\n", 413),
    (b"POST /send HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx", 413),
    (b"POST /send HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * (1 << 18), 413),
    (b"POST /send HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 200, 431),
    (b"POST /send HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 415),
    (b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", 415),
    (b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 2\r\n\r\n{}",
     415),
    (b"POST /send_photo HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 4\r\n\r\n\x89PNG", 415),
    (b"POST /send HTTP/1.1\r\nHost: x\r\nExpect: 200-ok\r\nContent-Length: 2\r\n\r\n{}", 417),
    (b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n", 413),
    (b"POST /send_photo HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
     b"Content-Length: 99999999\r\n\r\n", 413),
    (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
    (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 431),
    (b"GET /" + b"y" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    (b"POST /send_photo HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary*=idna''%ff\r\n"
     b"Content-Length: 2\r\n\r\n{}", 400),
    (b"GET /health HTTP/9.9\r\n\r\n", 505),
    (b"GET\r\n\r\n", 400),
])
def test_what_is_wrong_gets_its_status_as_json(bot, request_bytes, status):
    bot.users(**{ME: 1})  # an account without a chat gets 404 for a picture, before its length counts
    answer = bot.raw(request_bytes)
    bot.users()
    assert statuses(answer)[:1] == [status], answer
    assert b'{"ok": false, "error": ' in answer
    if status == 405:
        assert re.search(rb"Allow: (POST|GET, HEAD)\r\n", answer)


def test_a_body_is_refused_before_it_is_read_and_the_client_still_reads_why(bot):
    with bot.connect() as connection:
        connection.sendall(b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Length: 200000000\r\n\r\n")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(64):
                connection.sendall(b"x" * (1 << 18))
        assert statuses(connection.recv(65536)) == [413]


def test_a_client_that_asks_before_sending_is_refused_without_a_100(bot):
    answer = bot.raw(b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\nExpect: 100-continue\r\n\r\n")
    assert statuses(answer) == [413]
    with bot.connect() as connection:
        connection.sendall(b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"{}")
        assert statuses(connection.recv(65536)) == [400]


def test_a_connection_is_kept_and_requests_may_be_pipelined(bot):
    one = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    post = b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n" + b'{"text": "abc"}'
    answer = bot.raw(one + post + one + b"GET /no HTTP/1.1\r\nHost: x\r\n\r\n" + one)
    assert statuses(answer) == [503, 404, 503, 404, 503]


def test_a_head_has_no_body_and_http_1_0_is_answered_once(bot):
    head = bot.raw(b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\nHEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
                   b"HEAD /send HTTP/1.1\r\nHost: x\r\n\r\n")
    assert statuses(head) == [503, 200, 405] and head.endswith(b"\r\n\r\n") and b"{" not in head
    assert len(statuses(bot.raw(b"GET /health HTTP/1.0\r\n\r\nGET /health HTTP/1.0\r\n\r\n"))) == 1


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'"text"', b"{", b"\xff", b"[" * 100_000, b'{"text": 5}',
                                  b'{"text": "x", "parse_mode": "markdown"}', b'{"text": "x", "user": 5}',
                                  b'{"text": "x", "title": []}', b'{"text": "x", "silent": "yes"}',
                                  b'{"text": "x", "wait": "long"}', b'{"text": "x", "wait": NaN}', b'{"caption": "x"}',
                                  b'{"text": "x", "buttons": [{"text": "a", "callback_data": "run:1"}]}',
                                  b'{"text": "x", "buttons": [{"text": "a", "url": "javascript:1"}]}'])
def test_a_body_that_is_wrong_is_a_400_that_says_how(bot, body):
    answer = bot.raw(b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert statuses(answer) == [400], answer
    for field in (b"text", b"parse_mode", b"user", b"title", b"silent", b"wait", b"buttons"):
        if b'"%s": ' % field in body and field != b"text":
            assert field in answer.partition(b"\r\n\r\n")[2]


def test_two_hundred_slow_clients_do_not_hold_a_normal_one_up(bot):
    slow = [bot.connect() for _ in range(200)]
    try:
        for connection in slow:
            connection.sendall(b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        until(lambda: threads(bot.process.pid) > 200, what="the slow ones are being served")
        started = time.monotonic()
        assert bot.get("/health").status_code == 503
        assert time.monotonic() - started < 1
    finally:
        for connection in slow:
            connection.close()
    until(lambda: threads(bot.process.pid) < 20, what="the threads of the slow ones have ended")


def test_clients_that_vanish_leave_no_descriptor_and_no_thread(bot):
    before = descriptors(bot.process.pid)
    for index in range(300):
        with bot.connect() as connection:
            connection.sendall(b"POST /send HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n"[:index % 60])
    until(lambda: threads(bot.process.pid) < 20)
    until(lambda: descriptors(bot.process.pid) <= before)


def test_a_request_that_trickles_in_is_ended(tmp_path):
    """The deadline is for the whole header, not for each byte, so it runs out however busy the client looks."""
    bot = Bot(tmp_path, NOWHERE).start()
    with bot.connect() as connection:
        stop = threading.Event()

        def trickle():
            with contextlib.suppress(OSError):
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
                while not stop.wait(0.2):
                    connection.sendall(b"X: y\r\n")

        thread = threading.Thread(target=trickle)
        started = time.monotonic()
        thread.start()
        try:
            assert statuses(connection.recv(65536)) == [408]
            assert 9 < time.monotonic() - started < 13
        finally:
            stop.set()
            thread.join()
    assert bot.stop() == 0


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path):
    bot = Bot(tmp_path, NOWHERE).start()
    other = Bot(tmp_path, NOWHERE, NOTIFY_DATA_DIR=str(tmp_path))
    second = Process("notify_bot.py", folder=tmp_path, **other.environment)
    assert second.process.wait(10) == 69
    assert "another process answers on the socket" in second.log
    second.stop()
    bot.kill()
    assert bot.socket_path.is_socket()
    bot.start()
    assert bot.get("/health").json()["linked"] == 0
    assert bot.stop() == 0


def test_a_file_where_the_socket_should_be_is_left_alone(tmp_path):
    bot = Bot(tmp_path, NOWHERE)
    bot.socket_path.write_text("precious")
    process = Process("notify_bot.py", folder=tmp_path, **bot.environment)
    assert process.process.wait(10) == 69
    process.stop()
    assert bot.socket_path.read_text() == "precious"


def test_large_bodies_are_bounded_in_memory(tmp_path):
    """A text of 1 MiB takes four in memory for one emoji in it, and the unit has 256 MiB for everybody."""
    bot = Bot(tmp_path, NOWHERE)
    bot.users(**{ME: 42})
    bot.start()
    body = b'{"text": "\xf0\x9f\x98\x80' + b"x" * 1_000_000 + b'", "wait": 0}'
    answers = []

    def send():
        with contextlib.suppress(OSError):
            answers.append(bot.post("/send", data=body).status_code)

    clients = [threading.Thread(target=send) for _ in range(24)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert set(answers) == {202, 503}
    status = Path(f"/proc/{bot.process.pid}/status").read_text()
    assert int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) < 96 << 10
    assert bot.stop() == 0


def test_nobody_writes_lines_into_the_log(bot):
    assert bot.send("x", user="x\ndelivered 12345 to alice in 0.1 s" + "y" * 100_000).status_code in (403, 404)
    lines = bot.log.splitlines()
    assert not [line for line in lines if line.startswith("delivered 12345")]
    assert max(map(len, lines)) < 5000


def test_two_services_on_one_outbox_are_refused(tmp_path):
    bot = Bot(tmp_path, NOWHERE).start()
    other = Bot(tmp_path, NOWHERE, NOTIFY_BOT_SOCKET=str(tmp_path / "other.sock"))
    second = Process("notify_bot.py", folder=tmp_path, **other.environment)
    assert second.process.wait(10) == 73
    assert "another notify-bot is running" in second.log
    second.stop()
    assert bot.stop() == 0


def test_sigterm_answers_who_waits_and_keeps_the_message(tmp_path):
    bot = Bot(tmp_path, NOWHERE)
    bot.users(**{ME: 42})
    bot.start()
    answers = []
    client = threading.Thread(target=lambda: answers.append(bot.send("wait for it", wait=60)))
    client.start()
    until(lambda: bot.outbox(), what="the message is accepted")
    started = time.monotonic()
    assert bot.stop(signal.SIGTERM) == 0
    assert time.monotonic() - started < 10
    client.join(5)
    assert (answers[0].status_code, answers[0].json()["queued"]) == (202, True)
    assert bot.outbox() == [answers[0].json()["id"]]


def test_who_was_let_in_before_the_end_is_served(tmp_path):
    """Otherwise a restart under socket activation resets a connection now and then."""
    bot = Bot(tmp_path, NOWHERE).start()
    until(lambda: bot.get("/health").json().get("error"), what="Telegram was tried")
    connections = 20
    before = threads(bot.process.pid)  # the thread of an earlier request may be among them, and end
    try:
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(bot.connect()) for _ in range(connections)]
            until(lambda: threads(bot.process.pid) >= before + connections - 2, what="nearly all were let in")
            os.kill(bot.process.pid, signal.SIGTERM)
            until(lambda: "stopping;" in bot.log)
            for connection in opened[:connections - 4]:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            for connection in opened[:connections - 4]:
                assert statuses(connection.recv(65536)) == [503]
    finally:
        assert bot.stop() == 0


def test_the_socket_that_systemd_hands_over_is_served(tmp_path):
    path = tmp_path / "handed.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        bot = Bot(tmp_path, NOWHERE)
        bot.socket_path = path
        environment = {**bot.environment, "NOTIFY_BOT_SOCKET": str(tmp_path / "unused.sock")}
        # LISTEN_PID must be the pid of the program itself, so something has to run that then becomes it.
        hand_over = ("import os, sys\nos.dup2(int(sys.argv[1]), 3)\nos.environ['LISTEN_PID'] = str(os.getpid())\n"
                     "os.execv(sys.argv[2], sys.argv[2:])")
        with open(tmp_path / "log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", hand_over, str(listener.fileno()), PYTHON, "-EsS", CHECKOUT / "notify_bot.py"],
                pass_fds=[listener.fileno()], stdout=log, stderr=log,
                env={**environment, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "bot"})
        try:
            assert statuses(bot.raw(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
            assert not (tmp_path / "unused.sock").exists()
        finally:
            process.terminate()
            assert process.wait(10) == 0


def test_without_a_token_it_says_what_to_do_and_exits_78(tmp_path):
    process = Process("notify_bot.py", folder=tmp_path, NOTIFY_DATA_DIR=str(tmp_path))
    assert process.process.wait(10) == 78
    process.stop()
    assert "put the token that @BotFather gave you into /etc/notify-bot/telegram-bot-token" in process.log
