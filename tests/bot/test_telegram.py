"""The Bot API client, spoken to by servers that are not Telegram."""

import socket
import threading
import time

import pytest

from bot import telegram
from bot.telegram import TelegramAPI, TelegramError, TelegramUnreachable


class Server:
    """Accepts one connection after another and hands each to `serve(connection)`."""

    def __init__(self, serve):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._serve = serve
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self._serve(connection)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def test_a_refusal_that_comes_before_the_body_was_read_is_read(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"x" * (20 << 20))

    def refuse(connection):
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 413 Request Entity Too Large\r\nContent-Type: text/html\r\n"
                           b"Content-Length: 6\r\n\r\n<html>")

    with Server(refuse) as server:
        api = TelegramAPI("1:x", server.url)
        for _ in range(3):
            with pytest.raises((TelegramError, TelegramUnreachable)) as raised, open(picture, "rb") as file:
                api.call("sendPhoto", {"chat_id": 1}, {"photo": ("a.png", file)})
            # The kernel may have thrown the answer away with the connection; then nothing is known.
            assert getattr(raised.value, "code", 413) == 413
        api.close()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", b"junk\r\n\r\n",
                                    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
                                    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull",
                                    b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"ok\": \"x\"}",
                                    b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>"])
def test_what_is_no_answer_is_an_unknown_fate_and_names_no_token(answer):
    def serve(connection):
        connection.recv(65536)
        connection.sendall(answer)

    with Server(serve) as server:
        api = TelegramAPI("123:SECRET", server.url)
        with pytest.raises(TelegramUnreachable) as raised:
            api.call("sendMessage", {"chat_id": 1, "text": "x"}, timeout=5)
        assert raised.value.unknown and "SECRET" not in repr(raised.value)
        api.close()


def test_nobody_there_means_nothing_was_sent():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    api = TelegramAPI("1:x", f"http://127.0.0.1:{port}")
    with pytest.raises(TelegramUnreachable) as raised:
        api.call("getMe")
    assert not raised.value.unknown
    api.close()


def in_pieces(connection, data, pause):
    """Send byte after byte, until the other side has gone."""
    try:
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(pause)
    except OSError:
        pass


def read_slowly(connection, _, pause):
    try:
        while connection.recv(1 << 16):
            time.sleep(pause)
    except OSError:
        pass


@pytest.mark.parametrize(("serve", "size"), [(in_pieces, 10), (read_slowly, 8 << 20)])
def test_a_call_that_trickles_fails_alone_at_its_deadline(tmp_path, monkeypatch, serve, size):
    """In either direction; the silence between two bytes is shorter than what an answer is waited for."""
    monkeypatch.setattr(telegram, "CALL_SECONDS", 1)
    monkeypatch.setattr(telegram, "FLOOR_BYTES", 8 << 20)
    picture = tmp_path / "a.png"
    picture.write_bytes(b"x" * size)

    with (Server(lambda connection: serve(connection, b"HTTP/1.1 200 OK\r\n" * 100, 0.05)) as server,
          open(picture, "rb") as file):
        api = TelegramAPI("1:x", server.url)
        started = time.monotonic()
        with pytest.raises(TelegramUnreachable) as raised:
            api.call("sendPhoto", {"chat_id": 1}, {"photo": ("a.png", file)})
        assert raised.value.unknown
        assert 1 <= time.monotonic() - started < 4
        api.close()


def test_a_slow_uplink_has_time_for_the_largest_picture():
    assert telegram.call_seconds(49 << 20) > (49 << 20) / 200_000 * 2


@pytest.mark.parametrize(("description", "seconds"), [
    ('Bad Request: failed to send message #1 with the error message "Too Many Requests: retry after 8"', 8),
    ("Bad Request: chat not found", None),
    ("Bad Request: inline keyboard button URL 'http://Too Many Requests: retry after 60' is invalid", None)])
def test_a_limit_met_within_an_upload_is_read_from_its_words(description, seconds):
    with pytest.raises(TelegramError) as raised:
        telegram._result(400, {}, b'{"ok": false, "error_code": 400, "description": %s}'
                             % telegram.json.dumps(description).encode())
    assert raised.value.retry_after == seconds


@pytest.mark.parametrize(("method", "is_taken"), [("sendMessage", False), ("getUpdates", True)])
def test_an_answer_is_bounded_by_what_its_method_may_give(method, is_taken):
    """Sixteen calls are under way at a time, and one poll."""
    answer = b'{"ok": true, "result": ["%s"]}' % (b"x" * (2 << 20))

    def serve(connection):
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))

    with Server(serve) as server:
        api = TelegramAPI("1:x", server.url)
        if is_taken:
            assert len(api.call(method)[0]) == 2 << 20
        else:
            with pytest.raises(TelegramUnreachable) as raised:
                api.call(method)
            assert raised.value.unknown
        api.close()
