"""The send API against the sandbox: who may send what, every answer of the design's table, nothing sent twice."""

import contextlib
import json
import os
import pwd
import re
import socket
import subprocess
import threading
from pathlib import Path

import pytest
import requests_unixsocket

from live import ME, TOKEN, Bot, Telegram, png, until
from outbox_files import entry, write_failed, write_picture, write_waiting

CHAT = 4242


@pytest.fixture(scope="module")
def telegram(tmp_path_factory):
    telegram = Telegram(tmp_path_factory.mktemp("sandbox"))
    for chat in range(CHAT, CHAT + 40):
        telegram.person(chat)
        telegram.types(chat, "hi")
    yield telegram
    assert telegram.stop() == 0


@pytest.fixture
def bot(tmp_path, telegram):
    bot = Bot(tmp_path, telegram.url)
    bot.users(**{ME: CHAT, "bob": CHAT + 1, "daemon": CHAT + 2})
    bot.start()
    yield bot
    bot.stop()
    assert "Traceback" not in bot.log
    assert TOKEN not in bot.log and TOKEN not in (bot.data / "bot.log").read_text()


def sent_to(telegram, chat, text):
    return [message for message in telegram.texts(chat) if text in message]


def as_user(name, code, *arguments):
    """Run Python as another user of the host; what it prints, as JSON."""
    account = pwd.getpwnam(name)
    result = subprocess.run(["/usr/bin/python3", "-c", code, *arguments], capture_output=True, text=True, timeout=60,
                            user=account.pw_uid, group=account.pw_gid, extra_groups=[])
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


POST_AS = """
import http.client, json, socket, sys
connection = http.client.HTTPConnection("localhost")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1])
connection.request("POST", sys.argv[2], sys.argv[3].encode(), {"Content-Type": "application/json"})
answer = connection.getresponse()
print(json.dumps([answer.status, json.loads(answer.read())]))
"""


KEY = '"Idempotency-Key": "k", '


def open_to_all(bot):
    os.chmod(bot.socket_path, 0o666)
    for folder in (bot.folder, bot.folder.parent, bot.folder.parent.parent):
        os.chmod(folder, 0o755)


def post_as(name, bot, path, **fields):
    open_to_all(bot)
    return as_user(name, POST_AS, str(bot.socket_path), path, json.dumps(fields))


def test_the_earlier_clients_work_unchanged(bot, telegram):
    with requests_unixsocket.Session() as session:
        answer = session.post(bot.url + "/send", json={"user": ME, "text": "*Sales* fell", "parse_mode": "Markdown"})
        assert (answer.status_code, answer.json()["ok"]) == (200, True)
        answer = session.post(bot.url + "/send", json={"user": "nobody-here", "text": "x", "parse_mode": "Markdown"})
        assert answer.status_code == (404 if os.getuid() == 0 else 403)
        if os.getuid() == 0:
            assert answer.json()["error"] == "User 'nobody-here' has no linked Telegram"
    (message,) = [m for m in telegram.messages(CHAT) if m.get("text") == "Sales fell"]
    assert [(e["type"], e["offset"], e["length"]) for e in message["entities"]] == [("bold", 0, 5)]


def test_user_may_be_left_out_and_everything_optional_arrives(bot, telegram):
    answer = bot.send("body one", title="A_title*", silent=True, script="s.py",
                      buttons=[{"text": "Open", "url": "https://example.org/x"}])
    assert answer.status_code == 200
    (message,) = [m for m in telegram.messages(CHAT) if "body one" in m.get("text", "")]
    assert message["text"] == "A_title*\nbody one"
    assert message["reply_markup"]["inline_keyboard"] == [[{"text": "Open", "url": "https://example.org/x"}]]


def test_without_waiting_the_answer_is_202_and_the_message_arrives(bot, telegram):
    answer = bot.send("no wait", wait=0)
    assert (answer.status_code, answer.json()["queued"]) == (202, True)
    until(lambda: sent_to(telegram, CHAT, "no wait"))
    until(lambda: answer.json()["id"] in bot.outbox("sent") and bot.outbox() == [])


def test_half_a_surrogate_pair_is_sent_as_a_replacement_character(bot, telegram):
    assert bot.post("/send", data=b'{"text": "half \\ud83d pair"}').status_code == 200
    assert sent_to(telegram, CHAT, "half \ufffd pair")


@pytest.mark.root
def test_nobody_sends_in_another_name(bot, telegram):
    status, answer = post_as("daemon", bot, "/send", text="as bob", user="bob")
    assert status == 403 and "cannot send as 'bob'" in answer["error"]
    status, answer = post_as("daemon", bot, "/send", text="as root", user="root")
    assert status == 403
    status, answer = post_as("daemon", bot, "/send", text="as myself", user="daemon")
    assert status == 200 and sent_to(telegram, CHAT + 2, "as myself")
    status, answer = post_as("daemon", bot, "/send", text="as whoever I am")
    assert status == 200 and sent_to(telegram, CHAT + 2, "as whoever I am")
    assert bot.send("from root", user="bob").status_code == 200 and sent_to(telegram, CHAT + 1, "from root")


def test_a_photo_as_bytes(bot, telegram):
    answer = bot.post("/send_photo", files={"photo": ("chart 1.png", png())},
                      data={"title": "T", "caption": "*c*", "wait": "10", "silent": "true"})
    assert answer.status_code == 200, answer.text
    (message,) = [m for m in telegram.messages(CHAT) if m.get("caption") == "T\nc"]
    assert message["photo"]
    until(lambda: not list((bot.state / "outbox/pictures").iterdir()))  # messages of earlier tests may still wait


def test_a_photo_by_its_path(bot, telegram, tmp_path):
    path = tmp_path / "mine.png"
    path.write_bytes(png(61))
    answer = bot.post("/send_photo", json={"photo_path": str(path), "caption": "by path"})
    assert answer.status_code == 200, answer.text
    assert [m for m in telegram.messages(CHAT) if m.get("caption") == "by path" and m["photo"]]


def test_a_photo_that_telegram_does_not_take_arrives_as_a_document(bot, telegram):
    assert bot.post("/send_photo", files={"photo": ("long.png", png(4000, 20))}, data={"caption": "ribbon"}).ok
    (message,) = [m for m in telegram.messages(CHAT) if m.get("caption") == "ribbon"]
    assert message["document"]["file_name"] == "long.png"


def test_a_photo_larger_than_telegram_shows_arrives_as_a_document(bot, telegram):
    data = png() + b"\0" * (11 << 20)
    assert bot.post("/send_photo", files={"photo": ("big.png", data)}, data={"caption": "big one"}).status_code == 200
    (message,) = [m for m in telegram.messages(CHAT) if m.get("caption") == "big one"]
    assert message["document"]["file_size"] == len(data)


@pytest.mark.parametrize(("name", "make"), [
    ("link", lambda path, target: path.symlink_to(target)),
    ("folder/../mine.png", lambda path, target: None),
    ("relative", None),
    ("fifo", lambda path, target: os.mkfifo(path)),
    ("a folder", lambda path, target: path.mkdir()),
    ("missing", lambda path, target: None),
    ("text", lambda path, target: path.write_text("no picture")),
    ("empty", lambda path, target: path.write_bytes(b"")),
])
def test_a_photo_path_that_is_not_the_callers_picture(bot, tmp_path, name, make):
    target = tmp_path / "mine.png"
    target.write_bytes(png())
    path = tmp_path / name
    if make:
        make(path, target)
    answer = bot.post("/send_photo", json={"photo_path": str(path) if make else "mine.png", "caption": "x"})
    assert answer.status_code == 400 and answer.json()["error"], answer.text


def test_a_photo_path_through_a_linked_folder(bot, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(png())
    (tmp_path / "alias").symlink_to("real")
    answer = bot.post("/send_photo", json={"photo_path": str(tmp_path / "alias" / "a.png")})
    assert answer.status_code == 400 and "symbolic link" in answer.json()["error"]


@pytest.mark.root
def test_a_photo_path_of_another_user(bot, tmp_path):
    path = tmp_path / "of_root.png"
    path.write_bytes(png())
    path.chmod(0o644)
    status, answer = post_as("daemon", bot, "/send_photo", photo_path=str(path))
    assert (status, answer["error"]) == (400, "photo_path is not a regular file of yours")
    hard = tmp_path / "hard.png"
    os.link(path, hard)
    assert post_as("daemon", bot, "/send_photo", photo_path=str(hard))[0] == 400


@pytest.mark.root
@pytest.mark.parametrize("key", ["", KEY])
def test_a_picture_for_nobody_is_refused_before_it_is_read(bot, key):
    bot.users(**{ME: CHAT})
    status, answer = announce_photo(bot, key)
    assert (status, answer["error"]) == (404, "User 'daemon' has no linked Telegram")


@pytest.mark.root
def test_a_key_that_was_accepted_before_is_answered_before_the_picture_is_read(bot):
    bot.users(**{ME: CHAT, "daemon": CHAT + 1})
    open_to_all(bot)
    code = POST_AS.replace('{"Content-Type"', '{' + KEY + '"Content-Type"')
    status, answer = as_user("daemon", code, str(bot.socket_path), "/send", '{"text": "sent"}')
    assert status == 200
    assert announce_photo(bot, KEY) == [200, answer]


def announce_photo(bot, headers):
    """The answer to daemon's head of a request, whose picture of 50 MB does not come."""
    code = POST_AS.replace("sys.argv[3].encode()", "None")
    code = code.replace('{"Content-Type"', '{"Content-Length": "50000000", ' + headers + '"x"')
    open_to_all(bot)
    return as_user("daemon", code, str(bot.socket_path), "/send_photo")


@pytest.mark.parametrize("body", [
    b"", b"--x", b"--x\r\n", b"--x--\r\n", b"junk", b"--x\r\n\r\n\r\n--x--",
    b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\nnot closed',
    b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\nGIF89a\r\n--x--\r\n',
    b'--x\r\nContent-Disposition: form-data; name="caption"\r\n\r\nno photo\r\n--x--\r\n',
    b'--x\r\nContent-Disposition: form-data; name="caption"\r\n\r\n\xff\r\n--x--\r\n',
    b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 40])
def test_a_form_that_is_broken(bot, body):
    answer = bot.post("/send_photo", data=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 400 and answer.json()["error"]
    assert bot.outbox() == [] and not list((bot.state / "outbox/pictures").iterdir())


def test_a_form_without_a_boundary(bot):
    answer = bot.post("/send_photo", data=b"x", headers={"Content-Type": "multipart/form-data"})
    assert (answer.status_code, answer.json()["error"]) == (400, "the Content-Type has no boundary")


def test_a_blocked_bot_is_a_409_and_marks_the_link(bot, telegram):
    bot.settle()
    telegram.control("block", chat_id=CHAT + 1)
    bot.users(**{ME: CHAT + 1})
    answer = bot.send("into the void")
    assert answer.status_code == 409 and "blocked by the user" in answer.json()["error"]
    assert "blocked by the user" in json.loads((bot.data / "telegram_users.json").read_text())[ME]["blocked"]
    calls = telegram.stats()
    assert bot.send("once more").status_code == 409
    assert telegram.stats()["calls"].get("sendMessage") == calls["calls"].get("sendMessage"), "it is not tried again"
    telegram.control("unblock", chat_id=CHAT + 1)
    telegram.types(CHAT + 1, "/whoami")
    until(lambda: bot.send("back again", wait=5).status_code == 200)
    assert any("Earlier messages were not delivered (Forbidden" in text for text in telegram.texts(CHAT + 1))


def test_what_telegram_refuses_for_good_is_a_502_and_kept(bot, telegram):
    bot.settle()
    telegram.refuses("sendMessage", 400, "Bad Request: no such luck")
    answer = bot.send("unlucky")
    assert (answer.status_code, answer.json()["error"]) == (502, "Bad Request: no such luck")
    (entry_id,) = bot.outbox("failed")
    entry = json.loads((bot.state / "outbox" / "failed" / f"{entry_id}.json").read_text())
    assert (entry["reason"], entry["message"]["text"]) == ("Bad Request: no such luck", "unlucky")


def test_markup_that_telegram_cannot_parse_arrives_as_written(bot, telegram):
    assert bot.send("<b>broken", parse_mode="HTML").status_code == 200
    assert sent_to(telegram, CHAT, "<b>broken")


def test_too_many_queued_is_a_429(tmp_path):
    bot = Bot(tmp_path, "http://127.0.0.1:9")
    bot.users(**{ME: CHAT, "bob": CHAT + 1})
    bot.start()
    answers = [bot.send("x", wait=0) for _ in range(201)]
    assert [answer.status_code for answer in answers] == [202] * 200 + [429]
    assert int(answers[-1].headers["Retry-After"]) > 0
    for _ in range(3):  # clients may retry many times a second
        assert bot.send("x", wait=0).status_code == 429
    assert bot.log.count("are queued") == 1
    if os.getuid() == 0:
        assert bot.send("x", user="bob", wait=0).status_code == 202
    bot.kill()
    assert len(bot.outbox()) in (200, 201)


def with_picture(bot, number, size):
    """A message, and its picture on disk, of `size`."""
    write_picture(bot.state / "outbox", f"{number:020}", size)
    return entry(f"{number:020}", ME, chat_id=CHAT, picture=f"{number:020}",
                 message={"text": "", "photo": "a.png", "photo_size": size})


def test_too_many_bytes_of_pictures_are_a_429(tmp_path):
    """What waits is as an earlier run left it: half a gigabyte would take the test long to send."""
    bot = Bot(tmp_path, "http://127.0.0.1:9")
    bot.users(**{ME: CHAT})
    for number, size in enumerate((50 << 20, 450 << 20)):
        write_waiting(bot.state / "outbox", with_picture(bot, number, size))
    bot.start()
    answer = bot.send("x", wait=0)
    assert answer.status_code == 429 and "500" in answer.json()["error"]
    assert int(answer.headers["Retry-After"]) > 0
    assert bot.post("/queue/drop", json={"id": f"{0:020}"}).json()["ok"]
    assert bot.send("x", wait=0).status_code == 202
    bot.kill()


def test_a_corrupt_users_file_is_a_503_and_stays_as_it_is(bot):
    path = bot.data / "telegram_users.json"
    path.write_text('{"alice": {"chat_id": 1')
    answer = bot.send("x")
    assert answer.status_code == 503 and "not valid JSON" in answer.json()["error"]
    assert int(answer.headers["Retry-After"]) > 0
    assert path.read_text() == '{"alice": {"chat_id": 1'
    assert bot.get("/health").json()["linked"] is None


def test_a_key_is_sent_once_however_often_it_is_asked_for(bot, telegram):
    headers = {"Idempotency-Key": "job-17"}
    first = bot.send("only once", headers=headers)
    assert first.status_code == 200
    assert bot.send("only once", headers=headers).json() == first.json()
    assert bot.kill() == -9
    bot.start()
    assert bot.send("only once", headers=headers).json() == first.json()
    threads = [threading.Thread(target=bot.send, args=("all at once",), kwargs={"headers": {"Idempotency-Key": "x"}})
               for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sent_to(telegram, CHAT, "only once")) == len(sent_to(telegram, CHAT, "all at once")) == 1
    photo = {"files": {"photo": ("a.png", png())}, "data": {"caption": "key and photo"}, "headers": headers | {
        "Idempotency-Key": "p"}}
    assert bot.post("/send_photo", **photo).json() == bot.post("/send_photo", **photo).json()
    assert len(sent_to(telegram, CHAT, "key and photo")) == 1
    assert bot.send("x", headers={"Idempotency-Key": "k" * 201}).status_code == 400
    if os.getuid() == 0:
        assert bot.send("for bob", user="bob", headers=headers).json() != first.json()


def test_a_key_belongs_to_its_caller(bot, telegram):
    if os.getuid() == 0:
        bot.send("mine", headers={"Idempotency-Key": "same"})
        code = POST_AS.replace('{"Content-Type"', '{"Idempotency-Key": "same", "Content-Type"')
        os.chmod(bot.socket_path, 0o666)
        for folder in (bot.folder, bot.folder.parent, bot.folder.parent.parent):
            os.chmod(folder, 0o755)
        assert as_user("daemon", code, str(bot.socket_path), "/send", '{"text": "of daemon"}')[0] == 200
        assert sent_to(telegram, CHAT + 2, "of daemon")


def test_a_refusal_is_answered_again_for_the_same_key(bot, telegram):
    bot.settle()
    telegram.refuses("sendMessage", 400, "Bad Request: once")
    headers = {"Idempotency-Key": "refused"}
    first, second = bot.send("x", headers=headers), bot.send("x", headers=headers)
    assert [(answer.status_code, answer.json()["error"]) for answer in (first, second)] == [
        (502, "Bad Request: once")] * 2


@pytest.mark.root
def test_a_disk_that_is_nearly_full_takes_no_more_and_delivers_what_waits(tmp_path, telegram):
    bot = Bot(tmp_path, telegram.url)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,nr_inodes=64,mode=0700", "tmpfs", bot.state], check=True)
    try:
        bot.users(**{ME: CHAT + 5})
        bot.start()
        telegram.control("faults", action="error", method="sendMessage", times=1, status=429, retry_after=3,
                         description="Too Many Requests: retry after 3")
        waiting = [bot.send(f"waits {number}", wait=0).json()["id"] for number in range(3)]
        with open(bot.state / "ballast", "wb", buffering=0) as ballast:
            ballast.write(bytes(11 << 20))
            assert bot.send("room enough", wait=0).status_code == 202
            with pytest.raises(OSError, match="No space"):
                while True:
                    ballast.write(b"x" * 4096)
        answers = [bot.send("too late"),
                   bot.post("/send_photo", files={"photo": ("a.png", png())}, data={"caption": "no"})]
        for answer in answers:
            assert answer.status_code == 503 and "nearly full" in answer.json()["error"]
            assert int(answer.headers["Retry-After"]) > 0
        health = bot.get("/health")
        assert health.status_code == 503 and "nearly full" in health.json()["error"]
        until(lambda: bot.outbox() == [])
        assert [text for text in telegram.texts(CHAT + 5) if "waits" in text] == ["waits 0", "waits 1", "waits 2"]
        assert not list((bot.state / "outbox/pictures").iterdir())
        (bot.state / "ballast").unlink()
        assert bot.send("room again").status_code == 200 and bot.get("/health").status_code == 200
        assert waiting[0] not in bot.outbox("failed") and "Traceback" not in bot.log
    finally:
        bot.stop()
        subprocess.run(["umount", bot.state], check=True)


def begin_upload(bot, size, fields=b"", **headers):
    """A connection on which all of a form has been sent but its end."""
    body = b'--b\r\nContent-Disposition: form-data; name="photo"; filename="a.png"\r\n\r\n' + png()
    lines = [b"POST /send_photo HTTP/1.1", b"Host: x", b"Content-Type: multipart/form-data; boundary=b",
             b"Content-Length: %d" % size, *(f"{name}: {value}".encode() for name, value in headers.items())]
    connection = bot.connect()
    connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)
    return connection


def test_uploads_that_are_still_arriving_count(tmp_path):
    """Each alone has room; the check before an upload began was the only one once."""
    bot = Bot(tmp_path, "http://127.0.0.1:9")
    bot.users(**{ME: CHAT})
    write_waiting(bot.state / "outbox", with_picture(bot, 0, 460 << 20))
    write_failed(bot.state / "outbox", with_picture(bot, 1, 20 << 20) | {"reason": "no"})
    pictures = bot.state / "outbox/pictures"
    bot.start()
    connections = []
    try:
        connections += [begin_upload(bot, 30 << 20), begin_upload(bot, 30 << 20)]
        until(lambda: len(list(pictures.iterdir())) == 4)
        for connection in connections:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(29):
                    connection.sendall(bytes(1 << 20))
        answer = connections[1].recv(1 << 16)
        assert b" 429 " in answer and b"Retry-After" in answer and b"are kept for" in answer
        assert bot.outbox("failed") == []  # what failed made way before that
    finally:
        for connection in connections:
            connection.close()
        until(lambda: len(list(pictures.iterdir())) == 1)
        bot.kill()


def test_the_token_is_in_no_process_list_and_no_child(bot):
    pid = bot.process.pid
    assert TOKEN.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


def whole_request(connection):
    """Head and body, which may come in pieces."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(re.search(rb"(?i)^content-length: ([0-9]+)", head, re.M)[1])
    while len(body) < length:
        body += connection.recv(65536)
    return head, body


def test_the_desktop_gets_what_was_delivered_and_cannot_harm(bot, telegram):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(bot.folder / "ws.sock"))
        listener.listen()
        listener.settimeout(10)
        assert bot.send("*for* the desktop", title="T", script="s.py").status_code == 200
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            head, body = whole_request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        assert head.startswith(b"POST /dispatch HTTP/1.1\r\n")
        dispatched = json.loads(body)
        notification = dispatched["notification"]
        assert (dispatched["user"], notification["title"], notification["message"], notification["script"]) == (
            ME, "T", "*for* the desktop", "s.py")
        assert len(notification["id"]) == 36 and notification["timestamp"].endswith("Z")
        assert bot.send("the gateway does not answer this one").status_code == 200
    assert bot.send("and now it is gone").status_code == 200
    until(lambda: "do not reach the desktop gateway" in bot.log)


def test_a_gateway_that_cannot_even_be_looked_for_harms_nothing(tmp_path, telegram):
    bot = Bot(tmp_path, telegram.url, NOTIFY_WS_SOCKET="/run/" + "x" * 300)  # stat(2) fails with ENAMETOOLONG
    bot.users(**{ME: CHAT + 6})
    bot.start()
    assert bot.send("delivered once", wait=10).status_code == 200
    assert bot.send("and the next", wait=3).status_code == 200
    assert bot.stop() == 0
    assert sent_to(telegram, CHAT + 6, "delivered once") == ["delivered once"]


def test_many_clients_at_once_lose_nothing_and_order_holds_in_a_chat(bot, telegram):
    names = [f"user{number}" for number in range(10)] if os.getuid() == 0 else [ME]
    bot.users(**{name: CHAT + 10 + number for number, name in enumerate(names)})
    def client(name):
        with requests_unixsocket.Session() as session:
            for index in range(5):
                fields = {"user": name, "text": f"{name} {index}", "wait": 0}
                assert session.post(bot.url + "/send", json=fields).status_code == 202
    threads = [threading.Thread(target=client, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, name in enumerate(names):
        wanted = [f"{name} {index}" for index in range(5)]
        until(lambda chat=CHAT + 10 + number, wanted=wanted, name=name: [
            text for text in telegram.texts(chat) if text.startswith(name)] == wanted, 15)


