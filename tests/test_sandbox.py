"""The sandbox refuses what Telegram refuses, in Telegram's words: each row of the Bot API's rules, over real HTTP."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

import notify_sandbox
from notify_sandbox import Sandbox

TOKEN = "987654321:test-token_of-the-sandbox"
PROGRAM = Path(notify_sandbox.__file__)
PERSON = 1001
GROUP = -2002


class Client:
    """Both sides of a sandbox: `call` is the bot's, `control` the person's."""

    def __init__(self, sandbox: Sandbox):
        self.sandbox = sandbox
        self.url = sandbox.url
        self.session = requests.Session()

    def post(self, method: str, token: str = TOKEN, **arguments) -> requests.Response:
        arguments.setdefault("timeout", 20)
        return self.session.post(f"{self.url}/bot{token}/{method}", **arguments)

    def call(self, method: str, **parameters):
        answer = self.post(method, json=parameters).json()
        assert answer["ok"], answer
        return answer["result"]

    def refused(self, method: str, **parameters) -> tuple:
        response = self.post(method, json=parameters)
        answer = response.json()
        assert answer["ok"] is False and response.status_code == answer["error_code"]
        return answer["error_code"], answer["description"]

    def control(self, name: str, **values) -> dict:
        answer = self.session.post(f"{self.url}/sandbox/{name}", json=values, timeout=20).json()
        assert answer["ok"], answer
        return answer

    def news(self, **query) -> dict:
        return self.session.get(f"{self.url}/sandbox/messages", params=query, timeout=60).json()

    def stats(self) -> dict:
        return self.session.get(f"{self.url}/sandbox/stats", timeout=20).json()

    def say(self, text: str, chat_id: int = PERSON) -> dict:
        return self.control("messages", chat_id=chat_id, text=text)["message"]

    def send(self, text: str = "hello", chat_id: int = PERSON, **parameters) -> dict:
        return self.call("sendMessage", chat_id=chat_id, text=text, **parameters)


@contextmanager
def client_of(sandbox: Sandbox):
    with sandbox:
        client = Client(sandbox)
        client.say("/start")
        client.call("getUpdates", offset=-1)
        client.control("chats", id=GROUP, first_name="Team", type="group")
        try:
            yield client
        finally:
            client.session.close()
    assert not [thread for thread in threading.enumerate() if thread is not threading.main_thread()]


@pytest.fixture
def bot():
    with client_of(Sandbox(TOKEN)) as client:
        yield client


@pytest.fixture
def paced():
    """With Telegram's pace, on a clock that stands still until a test puts it forward."""
    with client_of(Sandbox(TOKEN, limits=True)) as client:
        stop_clock(client)
        yield client


def stop_clock(client: Client) -> None:
    state = client.sandbox.state
    now, already = state.elapsed(), state.advanced
    state.elapsed = lambda: now + state.advanced - already


def in_thread(function, *arguments, **parameters):
    """The function's result, once asked for: `in_thread(f)()`."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*arguments, **parameters)))
    thread.start()

    def result():
        thread.join(20)
        return results[0]
    return result


def until_polling(bot: Client, polls: int = 1) -> None:
    """Until that many getUpdates have been taken up; two come before it in the fixture."""
    deadline = time.monotonic() + 10
    while bot.stats()["calls"].get("getUpdates", 0) < polls + 1:
        assert time.monotonic() < deadline


def png(width: int, height: int, padding: int = 0, data: bytes = b"IDAT") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
            + chunk(data, b"x") + chunk(b"tEXt", b"p" * padding) + chunk(b"IEND", b""))


def jpeg(width: int, height: int) -> bytes:
    frame = struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\x00"
    return (b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame
            + b"\xff\xda\x00\x03x" + b"scan\xff\xd9")


# Envelope.

def test_me(bot):
    me = bot.call("getMe")
    assert me["id"] == 987654321 and me["is_bot"] and me["username"].endswith("bot")


def test_method_names_ignore_case(bot):
    assert bot.call("GETME") == bot.call("getme") == bot.call("getMe")


def test_arguments_come_in_any_form(bot):
    keyboard = {"inline_keyboard": [[{"text": "A", "callback_data": "a"}]]}
    fields = {"chat_id": str(PERSON), "text": "hi", "reply_markup": json.dumps(keyboard)}
    responses = [
        bot.post("sendMessage", json={"chat_id": PERSON, "text": "hi", "reply_markup": keyboard}),
        bot.post("sendMessage", data=fields), bot.post("sendMessage", params=fields),
        bot.post("sendMessage", files={name: (None, value) for name, value in fields.items()}),
        bot.session.get(f"{bot.url}/bot{TOKEN}/sendMessage", params=fields, timeout=20)]
    for response in responses:
        result = response.json()["result"]
        assert (result["text"], result["reply_markup"]) == ("hi", keyboard)


@pytest.mark.parametrize("body", ["{", "[1]", '"x"', "nul", "[" * 100_000])
def test_malformed_json_is_ignored(bot, body):
    headers = {"Content-Type": "application/json"}
    assert bot.post("getMe", data=body, headers=headers).json()["ok"]
    answer = bot.post("sendMessage", data=body, headers=headers).json()
    assert answer["description"] == "Bad Request: message text is empty"


def test_chunked_body_and_percent_in_token(bot):
    body = json.dumps({"chat_id": PERSON, "text": "in chunks"}).encode()
    response = requests.post(f"{bot.url}/bot{TOKEN.replace(':', '%3A')}/sendMessage", timeout=20,
                             data=iter([body[:7], body[7:]]), headers={"Content-Type": "application/json"})
    assert response.json()["result"]["text"] == "in chunks"


def test_wrong_token_is_unauthorized_whatever_the_method(bot):
    for method in ("getMe", "noSuchMethod"):
        response = bot.post(method, token="987654321:wrong")
        assert response.status_code == 401
        assert response.json() == {"ok": False, "error_code": 401, "description": "Unauthorized"}


@pytest.mark.parametrize("path", ["/botnonsense/getMe", "/bot/getMe", "/bot1:a/getMe/more", f"/bot{TOKEN}/", "/bot"])
def test_what_is_no_token_is_not_found(bot, path):
    response = bot.session.post(bot.url + path, timeout=20)
    assert (response.status_code, response.json()["description"]) == (404, "Not Found")


def test_unknown_method(bot):
    assert bot.refused("sendPigeon") == (404, "Not Found: method not found")


def test_revoked_token(bot):
    bot.control("revoke")
    assert bot.refused("getMe") == (401, "Unauthorized")


def test_body_over_the_limit_is_refused_before_it_is_read(bot):
    connection = http.client.HTTPConnection("127.0.0.1", int(bot.url.rpartition(":")[2]), timeout=20)
    connection.putrequest("POST", f"/bot{TOKEN}/sendDocument")
    connection.putheader("Content-Length", str(60 << 20))
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413 and response.headers["Content-Type"] == "text/html"
    assert b"nginx" in response.read()
    connection.close()


# Getting updates.

def test_updates_wait_until_they_are_confirmed(bot):
    for text in ("one", "two", "three"):
        bot.say(text)
    updates = bot.call("getUpdates", offset=1)
    assert [update["message"]["text"] for update in updates][-3:] == ["one", "two", "three"]
    rest = bot.call("getUpdates", offset=updates[-2]["update_id"])
    assert [update["message"]["text"] for update in rest] == ["two", "three"]
    assert [update["message"]["text"] for update in bot.call("getUpdates", offset=-1)] == ["three"]
    assert bot.call("getUpdates", offset=rest[-1]["update_id"] + 1) == []


def test_limit(bot):
    for text in ("one", "two", "three"):
        bot.say(text)
    assert len(bot.call("getUpdates", offset=1, limit=2)) == 2


def test_same_offset_within_half_a_second_yields_one_update(bot):
    stop_clock(bot)
    for text in ("one", "two"):
        bot.say(text)
    assert len(bot.call("getUpdates", offset=7)) > 1
    assert len(bot.call("getUpdates", offset=7)) == 1
    bot.sandbox.state.advance(0.6)
    assert len(bot.call("getUpdates", offset=7)) > 1


def test_a_poll_waits_for_news(bot):
    bot.call("getUpdates", offset=1_000_000_000)
    poll = in_thread(Client(bot.sandbox).call, "getUpdates", offset=200_000_001, timeout=20)
    until_polling(bot, 2)
    started = time.monotonic()
    bot.say("hello there")
    assert poll()[0]["message"]["text"] == "hello there"
    assert time.monotonic() - started < 5


def test_a_poll_ends_after_its_timeout(bot):
    started = time.monotonic()
    assert bot.call("getUpdates", offset=1_000_000_000, timeout=1) == []
    assert 1 <= time.monotonic() - started < 5


def test_the_older_of_two_polls_fails(bot):
    bot.call("getUpdates", offset=1_000_000_000)
    older = in_thread(Client(bot.sandbox).refused, "getUpdates", timeout=20)
    until_polling(bot, 2)
    newer = in_thread(Client(bot.sandbox).call, "getUpdates", timeout=20)
    assert older() == (409, "Conflict: terminated by other getUpdates request; "
                            "make sure that only one bot instance is running")
    bot.say("for the newer")
    assert newer()[0]["message"]["text"] == "for the newer"


def test_a_webhook_shuts_out_polls(bot):
    bot.call("getUpdates", offset=1_000_000_000)
    poll = in_thread(Client(bot.sandbox).refused, "getUpdates", timeout=20)
    until_polling(bot, 2)
    bot.call("setWebhook", url="https://example.org/hook")
    assert poll() == (409, "Conflict: terminated by setWebhook request")
    assert bot.refused("getUpdates") == (
        409, "Conflict: can't use getUpdates method while webhook is active; "
             "use deleteWebhook to delete the webhook first")
    assert bot.call("getWebhookInfo")["url"] == "https://example.org/hook"
    bot.call("deleteWebhook", drop_pending_updates=True)
    assert bot.call("getWebhookInfo") == {"url": "", "has_custom_certificate": False, "pending_update_count": 0}
    assert bot.call("getUpdates") == []


def test_allowed_updates_are_remembered(bot):
    message = bot.send(reply_markup={"inline_keyboard": [[{"text": "A", "callback_data": "a"}]]})
    bot.call("getUpdates", offset=1_000_000_000, allowed_updates=["callback_query"])
    bot.say("not wanted")
    bot.control("press", chat_id=PERSON, message_id=message["message_id"], data="a")
    updates = bot.call("getUpdates", offset=1)
    assert [set(update) for update in updates] == [{"update_id", "callback_query"}]


def test_updates_expire(bot):
    message = bot.send(reply_markup={"inline_keyboard": [[{"text": "A", "callback_data": "a"}]]})
    bot.call("getUpdates", offset=1_000_000_000)
    bot.say("kept a day")
    bot.control("press", chat_id=PERSON, message_id=message["message_id"], data="a")
    bot.control("clock", advance=151)
    assert ["message" in update for update in bot.call("getUpdates", offset=1)] == [True]
    bot.control("clock", advance=24 * 3600)
    assert bot.call("getUpdates", offset=1) == []


def test_a_command_is_an_entity(bot):
    assert bot.say("/start@some_bot now")["entities"] == [{"type": "bot_command", "offset": 0, "length": 15}]
    assert "entities" not in bot.say("no / command")


# Text, its length and its markup.

def test_text_is_trimmed_and_measured_in_code_points_after_parsing(bot):
    assert bot.send("  \n\thi \r\n ")["text"] == "hi"
    assert len(bot.send("😀" * 4096)["text"]) == 4096
    assert len(bot.send("*" + "x" * 4096 + "* \n", parse_mode="Markdown")["text"]) == 4096
    assert bot.refused("sendMessage", chat_id=PERSON, text="x" * 4097) == (400, "Bad Request: message is too long")
    assert bot.refused("sendMessage", chat_id=PERSON, text="é" * 16385) == (400, "Bad Request: text is too long")


@pytest.mark.parametrize("text, description", [
    ("", "message text is empty"), (" \n ", "text must be non-empty"), ("**", "text must be non-empty")])
def test_empty_text(bot, text, description):
    assert bot.refused("sendMessage", chat_id=PERSON, text=text, parse_mode="Markdown") == (
        400, f"Bad Request: {description}")


def test_unfinished_markdown(bot):
    assert bot.refused("sendMessage", chat_id=PERSON, text="net_sales fell", parse_mode="markdown") == (
        400, "Bad Request: can't parse entities: Can't find end of the entity starting at byte offset 3")
    assert bot.send("net_sales fell")["text"] == "net_sales fell"


def test_unknown_parse_mode(bot):
    assert bot.refused("sendMessage", chat_id=PERSON, text="x", parse_mode="rst") == (
        400, "Bad Request: unsupported parse_mode")


def test_offsets_are_utf16_and_move_with_trimming(bot):
    message = bot.send(" 😀 *b* [x](e.com)", parse_mode="Markdown")
    assert message["text"] == "😀 b x"
    assert message["entities"] == [{"type": "bold", "offset": 3, "length": 1},
                                   {"type": "text_link", "offset": 5, "length": 1, "url": "http://e.com/"}]


def test_what_is_trimmed_is_cut_off_entities_too(bot):
    message = bot.send("* a*\r\n\r_b_\t", parse_mode="Markdown")
    assert message["text"] == "a\nb"
    assert types(message) == [("bold", 0, 1), ("italic", 2, 1)]


def test_null_is_no_argument(bot):
    assert bot.send("*x*", parse_mode=None, reply_markup=None)["text"] == "*x*"


def test_entities_are_taken_as_they_stand(bot):
    entities = [{"type": "bold", "offset": 0, "length": 2}, {"type": "code", "offset": 3, "length": 99},
                {"type": "italic", "offset": 50, "length": 1}]
    message = bot.send("😀 *_", entities=entities)
    assert message["text"] == "😀 *_"
    assert message["entities"] == [{"type": "bold", "offset": 0, "length": 2},
                                   {"type": "code", "offset": 3, "length": 2}]


def test_entities_after_the_hundredth_are_dropped(bot):
    entities = [{"type": "bold", "offset": 2 * index, "length": 1} for index in range(120)]
    assert bot.send("x " * 120, entities=entities)["entities"] == entities[:100]


@pytest.mark.parametrize("entities", ["{", [1], [{"type": "bold"}], [{"type": "huge", "offset": 0, "length": 1}],
                                      [{"type": "text_link", "offset": 0, "length": 1}], {"type": "bold"}])
def test_broken_entities(bot, entities):
    code, description = bot.refused("sendMessage", chat_id=PERSON, text="x", entities=entities)
    assert code == 400 and "MessageEntity" in description


def test_urls_of_entities_are_checked(bot):
    link = {"type": "text_link", "offset": 0, "length": 1}
    assert bot.send("x", entities=[{**link, "url": "E.com"}])["entities"] == [{**link, "url": "http://e.com/"}]
    assert bot.refused("sendMessage", chat_id=PERSON, text="x", entities=[{**link, "url": "javascript:alert(1)"}]) == (
        400, "Bad Request: entity URL 'javascript:alert(1)' is invalid")


def types(message: dict) -> list:
    return [(entity["type"], entity["offset"], entity["length"]) for entity in message.get("entities", [])]


def test_html(bot):
    message = bot.send("<b>a <i>b</i></b> &lt;3 <a href='http://e.com'>l</a> "
                       "<pre><code class='language-py'>x</code></pre>", parse_mode="HTML")
    assert message["text"] == "a b <3 l x"
    assert types(message) == [("bold", 0, 3), ("italic", 2, 1), ("text_link", 7, 1), ("pre", 9, 1)]
    assert message["entities"][-1]["language"] == "py"


@pytest.mark.parametrize("text, reason", [
    ("<b>x", "Can't find end tag corresponding to start tag \"b\""),
    ("é<x>", "Unsupported start tag \"x\" at byte offset 2"),
    ("x</b>", "Unexpected end tag at byte offset 1"),
    ("<b>x</i>", "Unmatched end tag at byte offset 4, expected \"</b>\", found \"</i>\""),
    ("1 < 2", "Unsupported start tag \"\" at byte offset 2"), ("<b", "Unclosed start tag at byte offset 0")])
def test_broken_html(bot, text, reason):
    assert bot.refused("sendMessage", chat_id=PERSON, text=text, parse_mode="HTML") == (
        400, f"Bad Request: can't parse entities: {reason}")


def test_markdown_v2(bot):
    message = bot.send("*a _b_* __u__ ~s~ ||p|| `c` [l](http://e.com) 1\\.5\n>q", parse_mode="MarkdownV2")
    assert message["text"] == "a b u s p c l 1.5\nq"
    assert types(message) == [("bold", 0, 3), ("italic", 2, 1), ("underline", 4, 1), ("strikethrough", 6, 1),
                              ("spoiler", 8, 1), ("code", 10, 1), ("text_link", 12, 1), ("blockquote", 18, 1)]


@pytest.mark.parametrize("text, reason", [
    ("1.5", "Character '.' is reserved and must be escaped with the preceding '\\'"),
    ("é*x", "Can't find end of Bold entity at byte offset 2"),
    ("[x](http://e.com", "Can't find end of a URL at byte offset 4")])
def test_broken_markdown_v2(bot, text, reason):
    assert bot.refused("sendMessage", chat_id=PERSON, text=text, parse_mode="MarkdownV2") == (
        400, f"Bad Request: can't parse entities: {reason}")


# Keyboards.

@pytest.mark.parametrize("button, reason", [
    ({"text": "A", "callback_data": "x" * 65}, "BUTTON_DATA_INVALID"),
    ({"text": "A", "callback_data": "é" * 33}, "BUTTON_DATA_INVALID"),
    ({"text": "A", "callback_data": ""}, "BUTTON_DATA_INVALID"),
    ({"text": "A", "url": "javascript:alert(1)"}, "inline keyboard button URL 'javascript:alert(1)' is invalid"),
    ({"text": "A"}, "can't parse inline keyboard button: Text buttons are unallowed in the inline keyboard"),
    ({"callback_data": "a"}, "can't parse inline keyboard button: Can't find field \"text\"")])
def test_broken_button(bot, button, reason):
    assert bot.refused("sendMessage", chat_id=PERSON, text="x", reply_markup={"inline_keyboard": [[button]]}) == (
        400, f"Bad Request: {reason}")


def test_keyboard_at_and_over_the_limits(bot):
    row = [{"text": "A", "callback_data": "x" * 64}]
    assert bot.send(reply_markup={"inline_keyboard": [row] * 100})["reply_markup"]["inline_keyboard"] == [row] * 100
    for rows in ([row] * 101, [[{"text": "A" * 6000, "callback_data": "a"}]] * 2):
        assert bot.refused("sendMessage", chat_id=PERSON, text="x", reply_markup={"inline_keyboard": rows}) == (
            400, "Bad Request: reply markup is too long")
    assert bot.refused("sendMessage", chat_id=PERSON, text="x", reply_markup="{") == (
        400, "Bad Request: can't parse reply keyboard markup JSON object")


def test_a_press_reaches_the_bot_and_its_answer_the_person(bot):
    message = bot.send(reply_markup={"inline_keyboard": [[{"text": "Run", "callback_data": "r:1"}]]})
    pressed = bot.control("press", chat_id=PERSON, message_id=message["message_id"], text="Run")
    query = bot.call("getUpdates", offset=-1)[0]["callback_query"]
    assert (query["id"], query["data"], query["from"]["id"]) == (pressed["callback_query_id"], "r:1", PERSON)
    assert query["message"]["message_id"] == message["message_id"]
    assert bot.call("answerCallbackQuery", callback_query_id=query["id"], text="Running…", show_alert=True) is True
    answer = bot.news(chat_id=PERSON)["answers"][0]
    assert (answer["callback_query_id"], answer["text"], answer["show_alert"]) == (query["id"], "Running…", True)


def test_a_press_goes_stale(bot):
    message = bot.send(reply_markup={"inline_keyboard": [[{"text": "A", "callback_data": "a"}]]})
    query_id = bot.control("press", chat_id=PERSON, message_id=message["message_id"], data="a")["callback_query_id"]
    too_old = (400, "Bad Request: query is too old and response timeout expired or query ID is invalid")
    assert bot.refused("answerCallbackQuery", callback_query_id="1") == too_old
    assert bot.refused("answerCallbackQuery", callback_query_id=query_id, text="x" * 201)[0] == 400
    bot.control("clock", advance=149)
    assert bot.call("answerCallbackQuery", callback_query_id=query_id, text="x" * 200)
    bot.control("clock", advance=2)
    assert bot.refused("answerCallbackQuery", callback_query_id=query_id) == too_old


def test_a_button_that_is_not_there_cannot_be_pressed(bot):
    message = bot.send()
    response = bot.session.post(f"{bot.url}/sandbox/press", timeout=20,
                                json={"chat_id": PERSON, "message_id": message["message_id"], "data": "a"})
    assert (response.status_code, response.json()["error"]) == (404, "the message has no such button")


# Photos and documents.

def upload(bot: Client, method: str, name: str, content: bytes, **fields) -> requests.Response:
    return bot.post(method, data={"chat_id": PERSON, **fields}, files={name: ("chart é.png", content)})


@pytest.mark.parametrize("content, size, mime_type", [
    (png(640, 480), (640, 480), "image/png"), (png(9000, 1000), (9000, 1000), "image/png"),
    (png(20, 1), (20, 1), "image/png"), (jpeg(320, 200), (320, 200), "image/jpeg")])
def test_photo(bot, content, size, mime_type):
    message = upload(bot, "sendPhoto", "photo", content, caption="*c*", parse_mode="Markdown").json()["result"]
    photo = message["photo"][-1]
    assert (photo["width"], photo["height"], photo["file_size"]) == (*size, len(content))
    assert (message["caption"], message["caption_entities"]) == ("c", [{"type": "bold", "offset": 0, "length": 1}])
    file = bot.session.get(f"{bot.url}/sandbox/files/{photo['file_id']}", timeout=20)
    assert (file.content, file.headers["Content-Type"]) == (content, mime_type)


@pytest.mark.parametrize("content, description", [
    (png(9001, 1000), "PHOTO_INVALID_DIMENSIONS"), (png(21, 1), "PHOTO_INVALID_DIMENSIONS"),
    (png(1, 21), "PHOTO_INVALID_DIMENSIONS"), (jpeg(30000, 3000), "PHOTO_INVALID_DIMENSIONS"),
    (png(0, 5), "IMAGE_PROCESS_FAILED"), (b"junk", "IMAGE_PROCESS_FAILED"), (b"\xff\xd8junk", "IMAGE_PROCESS_FAILED"),
    (png(6, 4)[:-20], "IMAGE_PROCESS_FAILED"), (png(6, 4, data=b"tIME"), "IMAGE_PROCESS_FAILED"),
    (png(6, 4).replace(b"IDATx", b"IDATy"), "IMAGE_PROCESS_FAILED"),
    (jpeg(6, 4)[:12], "IMAGE_PROCESS_FAILED"), (b"GIF89a" + bytes(40), "IMAGE_PROCESS_FAILED"),
    (b"", "file must be non-empty")], ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_no_photo(bot, content, description):
    response = upload(bot, "sendPhoto", "photo", content)
    assert (response.status_code, response.json()["description"]) == (400, f"Bad Request: {description}")


def test_photo_of_ten_megabytes_passes_and_no_more(bot):
    exact = png(6, 4, (10 << 20) - len(png(6, 4)))
    assert len(exact) == 10 << 20
    assert upload(bot, "sendPhoto", "photo", exact).json()["ok"]
    assert upload(bot, "sendPhoto", "photo", png(6, 4, 10 << 20)).json()["description"] == (
        f"Bad Request: file of size {(10 << 20) + len(png(6, 4))} bytes is too big for a photo; "
        "the maximum size is 10485760 bytes")


def test_document(bot):
    message = upload(bot, "sendDocument", "document", b"a,b\n", caption="x" * 1024).json()["result"]
    document = message["document"]
    assert (document["file_name"], document["file_size"]) == ("chart é.png", 4)
    again = bot.call("sendDocument", chat_id=PERSON, document=document["file_id"])["document"]
    assert again["file_id"] == document["file_id"]


def test_document_over_fifty_megabytes(bot):
    response = upload(bot, "sendDocument", "document", bytes((50 << 20) + 1))
    assert (response.status_code, response.json()["description"]) == (413, "Request Entity Too Large")


def test_a_page_sent_as_a_document_is_never_shown(bot):
    message = bot.post("sendDocument", data={"chat_id": PERSON},
                       files={"document": ("a.html", b"<script>alert(1)</script>")}).json()["result"]
    file = bot.session.get(f"{bot.url}/sandbox/files/{message['document']['file_id']}", timeout=20)
    assert file.headers["Content-Disposition"].startswith("attachment")
    assert file.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("method, name", [("sendPhoto", "photo"), ("sendDocument", "document")])
def test_caption_and_file_are_checked(bot, method, name):
    assert bot.refused(method, chat_id=PERSON) == (400, f"Bad Request: there is no {name} in the request")
    assert bot.refused(method, chat_id=PERSON, **{name: "no-such-id"})[0] == 400
    response = upload(bot, method, name, png(6, 4), caption="😀" * 1025)
    assert response.json()["description"] == "Bad Request: message caption is too long"
    entities = json.dumps([{"type": "code", "offset": 2, "length": 1}])
    message = upload(bot, method, name, png(6, 4), caption="😀_*", caption_entities=entities).json()["result"]
    assert (message["caption"], message["caption_entities"]) == ("😀_*", json.loads(entities))


# Editing, deleting, and the rest.

def test_edits(bot):
    keyboard = {"inline_keyboard": [[{"text": "A", "callback_data": "a"}]]}
    message = bot.send("old", reply_markup=keyboard)
    target = {"chat_id": PERSON, "message_id": message["message_id"]}
    edited = bot.call("editMessageText", **target, text="*new*", parse_mode="Markdown")
    assert (edited["text"], types(edited)) == ("new", [("bold", 0, 3)])
    assert "reply_markup" not in edited and "edit_date" in edited
    edited = bot.call("editMessageReplyMarkup", **target, reply_markup=keyboard)
    assert (edited["text"], edited["reply_markup"]) == ("new", keyboard)
    code, description = bot.refused("editMessageReplyMarkup", **target, reply_markup=keyboard)
    assert code == 400 and description.startswith("Bad Request: message is not modified: ")
    assert bot.news(chat_id=PERSON)["messages"][-1] == edited


def test_what_cannot_be_edited(bot):
    mine = bot.say("the person's")
    photo = upload(bot, "sendPhoto", "photo", png(6, 4)).json()["result"]
    for message_id, description in ((mine["message_id"], "message can't be edited"),
                                    (99, "message to edit not found"),
                                    (photo["message_id"], "there is no text in the message to edit")):
        assert bot.refused("editMessageText", chat_id=PERSON, message_id=message_id, text="x") == (
            400, f"Bad Request: {description}")


def test_delete(bot):
    message = bot.send()
    target = {"chat_id": PERSON, "message_id": message["message_id"]}
    after = bot.news(chat_id=PERSON)["seq"]
    assert bot.call("deleteMessage", **target) is True
    assert bot.news(chat_id=PERSON, after=after)["deleted"] == [target]
    assert bot.refused("deleteMessage", **target) == (400, "Bad Request: message to delete not found")


def test_commands(bot):
    commands = [{"command": "start", "description": "link"}]
    assert bot.call("setMyCommands", commands=commands) is True
    assert bot.call("getMyCommands") == commands
    for broken in ({"command": "Bad-name", "description": "x"}, {"command": "x" * 33, "description": "x"}):
        assert bot.refused("setMyCommands", commands=[broken]) == (400, "Bad Request: BOT_COMMAND_INVALID")
    assert bot.refused("setMyCommands", commands=[{"command": "a", "description": "x" * 257}]) == (
        400, "Bad Request: BOT_COMMAND_DESCRIPTION_INVALID")
    assert bot.call("getMyCommands") == commands


def test_chat_action(bot):
    assert bot.call("sendChatAction", chat_id=PERSON, action="typing") is True
    assert bot.news(chat_id=PERSON)["actions"] == [{"chat_id": PERSON, "action": "typing"}]
    assert bot.refused("sendChatAction", chat_id=PERSON, action="dance")[0] == 400


# Chats that are gone.

@pytest.mark.parametrize("state, description", [
    ("blocked", "bot was blocked by the user"), ("deactivated", "user is deactivated"),
    ("kicked", "bot was kicked from the group chat"), ("new", "bot can't initiate conversation with a user")])
def test_a_chat_the_bot_may_not_write_to(bot, state, description):
    message = bot.send()
    bot.control("block", chat_id=PERSON, state=state)
    for method, parameters in (("sendMessage", {"text": "x"}), ("sendChatAction", {"action": "typing"}),
                               ("editMessageText", {"message_id": message["message_id"], "text": "x"})):
        assert bot.refused(method, chat_id=PERSON, **parameters) == (403, f"Forbidden: {description}")
    response = upload(bot, "sendPhoto", "photo", png(6, 4))
    assert (response.status_code, response.json()["description"]) == (403, f"Forbidden: {description}")
    bot.control("unblock", chat_id=PERSON)
    assert bot.send("back")["text"] == "back"


def test_blocking_is_told_to_the_bot(bot):
    bot.control("block", chat_id=PERSON)
    change = bot.call("getUpdates", offset=-1)[0]["my_chat_member"]
    assert (change["chat"]["id"], change["new_chat_member"]["status"]) == (PERSON, "kicked")


@pytest.mark.parametrize("chat_id", [5, "@nobody", "abc", "12x", -7])
def test_unknown_chat(bot, chat_id):
    assert bot.refused("sendMessage", chat_id=chat_id, text="x") == (400, "Bad Request: chat not found")


def test_chat_by_name_and_chat_left_out(bot):
    bot.control("chats", id=77, first_name="Ann", username="ann")
    assert bot.refused("sendMessage", chat_id="@ann", text="x") == (
        403, "Forbidden: bot can't initiate conversation with a user")
    bot.say("hi", 77)
    assert bot.call("sendMessage", chat_id="@ann", text="x")["chat"]["first_name"] == "Ann"
    assert bot.refused("sendMessage", text="x") == (400, "Bad Request: chat_id is empty")


def test_a_group_that_was_upgraded(bot):
    bot.control("migrate", chat_id=GROUP, to=-1009)
    response = bot.post("sendMessage", json={"chat_id": GROUP, "text": "x"})
    assert (response.status_code, response.json()) == (400, {
        "ok": False, "error_code": 400, "description": "Bad Request: group chat was upgraded to a supergroup chat",
        "parameters": {"migrate_to_chat_id": -1009}})
    assert bot.send(chat_id=-1009)["chat"]["type"] == "supergroup"


# Pace.

def refused_for_pace(client: Client, method: str = "sendMessage", **parameters) -> int:
    response = client.post(method, json={"chat_id": PERSON, "text": "x", **parameters})
    answer = response.json()
    seconds = answer["parameters"]["retry_after"]
    assert (response.status_code, answer["error_code"]) == (429, 429)
    assert answer["description"] == f"Too Many Requests: retry after {seconds}"
    assert response.headers["Retry-After"] == str(seconds)
    return seconds


def test_one_a_second_in_a_chat_after_a_burst_of_three(paced):
    message = [paced.send() for _ in range(3)][0]
    assert refused_for_pace(paced) == 1
    assert refused_for_pace(paced, "editMessageText", message_id=message["message_id"]) == 1
    paced.control("clock", advance=1)
    paced.send()
    assert refused_for_pace(paced) == 1


def test_answers_to_presses_are_not_paced(paced):
    message = paced.send(reply_markup={"inline_keyboard": [[{"text": "A", "callback_data": "a"}]]})
    for _ in range(10):
        pressed = paced.control("press", chat_id=PERSON, message_id=message["message_id"], data="a")
        assert paced.call("answerCallbackQuery", callback_query_id=pressed["callback_query_id"])


def test_thirty_a_second_over_all_chats(paced):
    for chat_id in range(1, 21):
        paced.say("/start", chat_id)
    sent = refused = 0
    while not refused:
        for chat_id in range(1, 21):
            ok = paced.post("sendMessage", json={"chat_id": chat_id, "text": "x"}).json()["ok"]
            sent, refused = sent + ok, refused + (not ok)
    assert sent == 30
    paced.control("clock", advance=1)
    paced.send(chat_id=20)


def test_twenty_a_minute_in_a_group(paced):
    for _ in range(20):
        paced.send(chat_id=GROUP)
        paced.control("clock", advance=1)
    assert refused_for_pace(paced, chat_id=GROUP) == 40
    paced.control("clock", advance=40)
    paced.send(chat_id=GROUP)


def test_without_limits_nothing_is_paced(bot):
    for _ in range(50):
        bot.send()
    assert bot.stats()["refusals"] == {}


# Faults.

def test_errors_to_order(bot):
    bot.control("faults", action="error", retry_after=34, method="sendmessage", chat_id=PERSON, times=1)
    bot.control("faults", action="error", status=500, description="Internal Server Error", times=1)
    assert refused_for_pace(bot) == 34
    assert bot.refused("getMe") == (500, "Internal Server Error")
    bot.call("getMe")
    assert bot.stats()["faults"] == {"error": 2}


def test_a_front_end_answers_html(bot):
    bot.control("faults", action="html", times=2)
    response = bot.post("sendMessage", json={"chat_id": PERSON, "text": "x"})
    assert (response.status_code, response.headers["Content-Type"]) == (502, "text/html")
    assert b"502 Bad Gateway" in response.content
    bot.post("getMe")
    assert bot.stats()["sent"] == 0


@pytest.mark.parametrize("action, sent", [("cut_before", 0), ("cut_within", 1), ("cut_after", 1)])
def test_cut_connections(bot, action, sent):
    bot.control("faults", action=action, times=1)
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        requests.post(f"{bot.url}/bot{TOKEN}/sendMessage", json={"chat_id": PERSON, "text": "x"}, timeout=20)
    assert bot.stats()["sent"] == sent
    bot.send("after it")


@pytest.mark.parametrize("action, sent", [("delay", 0), ("delay_answer", 1)])
def test_late_answers(bot, action, sent):
    bot.control("faults", action=action, seconds=30, times=1)
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.post(f"{bot.url}/bot{TOKEN}/sendMessage", json={"chat_id": PERSON, "text": "x"}, timeout=0.5)
    assert bot.stats()["sent"] == sent


def test_a_share_of_calls_is_the_same_for_the_same_seed(bot):
    outcomes = []
    for _ in range(2):
        bot.control("faults", action="html", share=0.3, seed=5, method="getMe")
        outcomes.append([bot.post("getMe").status_code for _ in range(60)])
        assert bot.session.delete(f"{bot.url}/sandbox/faults", timeout=20).json()["ok"]
    assert outcomes[0] == outcomes[1]
    assert 5 < outcomes[0].count(502) < 35
    assert bot.post("getMe").status_code == 200


@pytest.mark.parametrize("rule", [{}, {"action": "explode"}, {"action": "html", "times": 0},
                                  {"action": "html", "times": "2"}, {"action": "html", "share": 2}])
def test_a_rule_that_means_nothing_is_refused(bot, rule):
    assert bot.session.post(f"{bot.url}/sandbox/faults", json=rule, timeout=20).status_code == 400


# The person's side.

def test_news_since(bot):
    start = bot.news(chat_id=PERSON)["seq"]
    assert bot.news(chat_id=PERSON, after=start)["messages"] == []
    first = bot.send("first")
    bot.send("elsewhere", GROUP)
    news = bot.news(chat_id=PERSON, after=start)
    assert news["messages"] == [first]
    bot.call("editMessageText", chat_id=PERSON, message_id=first["message_id"], text="edited")
    assert [message["text"] for message in bot.news(after=news["seq"])["messages"]] == ["edited"]


def test_waiting_for_news(bot):
    after = bot.news(chat_id=PERSON)["seq"]
    waiting = in_thread(Client(bot.sandbox).news, chat_id=PERSON, after=after, wait=20)
    started = time.monotonic()
    bot.send("elsewhere", GROUP)
    bot.send("here")
    assert [message["text"] for message in waiting()["messages"]] == ["here"]
    assert time.monotonic() - started < 5


def test_stats_name_duplicates_and_refusals(bot):
    for text in ("once", "twice", "twice"):
        bot.send(text)
    bot.refused("sendMessage", chat_id=5, text="twice")
    stats = bot.stats()
    assert stats["duplicates"] == [{"chat_id": PERSON, "text": "twice", "count": 2}]
    assert (stats["calls"]["sendMessage"], stats["sent"]) == (4, 3)
    assert stats["refusals"] == {"sendMessage": {"400": 1}}


@pytest.mark.parametrize("name, values", [
    ("chats", {"id": "x"}), ("chats", {"id": 5, "type": "group"}), ("chats", {"id": 5, "first_name": 1}),
    ("messages", {"chat_id": 5}), ("messages", {"text": "x"}), ("block", {"chat_id": PERSON, "state": "odd"})])
def test_broken_control_calls(bot, name, values):
    assert bot.session.post(f"{bot.url}/sandbox/{name}", json=values, timeout=20).status_code == 400


def test_control_calls_to_nowhere(bot):
    assert bot.session.post(f"{bot.url}/sandbox/nothing", json={}, timeout=20).status_code == 404
    assert bot.session.post(f"{bot.url}/sandbox/block", json={"chat_id": 5}, timeout=20).status_code == 404
    assert bot.session.get(f"{bot.url}/sandbox/files/none", timeout=20).status_code == 404
    assert bot.session.get(f"{bot.url}/elsewhere", timeout=20).status_code == 404


def test_pages_elsewhere_cannot_use_it(bot):
    foreign = bot.session.get(f"{bot.url}/sandbox/chats", headers={"Host": "evil.example"}, timeout=20)
    assert foreign.status_code == 403
    form = bot.session.post(f"{bot.url}/sandbox/messages", data='{"chat_id": 1, "text": "x"}', timeout=20,
                            headers={"Content-Type": "text/plain"})
    assert form.status_code == 415


def test_chat_page(bot):
    response = bot.session.get(bot.url + "/", timeout=20)
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    page = response.text
    assert not any(word in page for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("))
    assert "src=\"http" not in page and "@import" not in page


# The process, and the limits of the server itself.

def test_only_loopback():
    for host in ("0.0.0.0", "192.0.2.1", "::"):
        with pytest.raises(ValueError, match="loopback"):
            Sandbox(TOKEN, host=host)
    with pytest.raises(ValueError, match="token"):
        Sandbox("not a token")


def test_ipv6_loopback():
    with client_of(Sandbox(TOKEN, host="::1")) as client:
        assert client.url.startswith("http://[::1]:")
        assert client.session.get(client.url + "/", timeout=20).ok


def test_waits_end_when_it_stops():
    sandbox = Sandbox(TOKEN)
    sandbox.start()
    client = Client(sandbox)
    client.say("/start")
    client.call("getUpdates", offset=1_000_000_000)
    poll = in_thread(Client(sandbox).post, "getUpdates", json={"timeout": 50, "offset": 200_000_001})
    until_polling(client, 1)
    client.session.close()
    started = time.monotonic()
    sandbox.stop()
    assert time.monotonic() - started < 3
    assert poll().json() == {"ok": True, "result": []}


@pytest.fixture
def process(tmp_path):
    """The program as it is installed, on the system's Python; its output goes to files."""
    started = []

    def start(*arguments: str) -> subprocess.Popen:
        with open(tmp_path / "out", "wb") as out, open(tmp_path / "err", "wb") as err:
            started.append(subprocess.Popen([sys.executable, "-EsS", PROGRAM, *arguments], stdout=out, stderr=err,
                                            env={"PATH": os.environ["PATH"]}))
        return started[-1]
    yield start
    for one in started:
        if one.poll() is None:
            one.kill()
        one.wait()


def test_the_program(process, tmp_path):
    ready = tmp_path / "ready"
    running = process("--token", TOKEN, "--ready-file", str(ready))
    deadline = time.monotonic() + 10
    while not ready.exists():
        assert time.monotonic() < deadline and running.poll() is None
    url = ready.read_text().strip()
    assert (tmp_path / "out").read_text() == url + "\n"
    for path in (f"/bot{TOKEN}/getMe", f"/bot{TOKEN}/x", "/", f"/bot{TOKEN}x/getMe"):
        requests.get(url + path, timeout=20)
    broken = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 20)
    broken.sendall(f"GET /bot{TOKEN}/ge\ttMe NONSENSE\r\n\r\n".encode())
    broken.recv(1000)
    broken.close()
    running.send_signal(signal.SIGTERM)
    assert running.wait(10) == 0
    assert TOKEN not in (tmp_path / "out").read_text() + (tmp_path / "err").read_text()


@pytest.mark.parametrize("arguments, code", [
    (["--help"], 0), (["--version"], 0), (["--limits", "some"], 64), (["--nonsense"], 64), (["--host", "0.0.0.0"], 64),
    (["--port", "x"], 64), (["--token", "x"], 64)])
def test_exit_codes(process, arguments, code):
    assert process(*arguments).wait(20) == code


def test_port_in_use(process, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert process("--port", str(other.getsockname()[1])).wait(20) == 69
    assert "cannot listen" in (tmp_path / "err").read_text()


def test_it_costs_little_to_measure_with(bot):
    """A slow sandbox would be what the bot's figures show: thousands a second is usual, both sides in this process."""
    body = json.dumps({"chat_id": PERSON, "text": "hello *b*", "parse_mode": "Markdown"})
    connection = http.client.HTTPConnection("127.0.0.1", int(bot.url.rpartition(":")[2]), timeout=20)
    started = time.process_time()
    for _ in range(1000):
        connection.request("POST", f"/bot{TOKEN}/sendMessage", body, {"Content-Type": "application/json"})
        assert connection.getresponse().read().startswith(b'{"ok":true')
    used = time.process_time() - started
    connection.close()
    print(f"{used:.2f} ms of CPU a message")
    assert used < 1.5
