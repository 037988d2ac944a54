"""The HTTP client against servers on real sockets that answer well, badly, early, late or not at all."""

import contextlib
import socket
import threading
import time

import pytest

from common.http_client import request


class Server:
    """A unix socket on which one connection is served by a function of it; `asked` is what came first on it."""

    def __init__(self, path, serve):
        self.path, self.asked = path, b""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run, args=(serve,))
        self._thread.start()

    def _run(self, serve):
        connection, _ = self._listener.accept()
        with connection, contextlib.suppress(OSError):
            self.asked = connection.recv(1 << 16)
            serve(connection)

    def close(self):
        self._thread.join(20)
        self._listener.close()


@pytest.fixture
def serve(tmp_path):
    with contextlib.ExitStack() as servers:
        yield lambda function: servers.enter_context(contextlib.closing(Server(tmp_path / "socket", function)))


def answering(*pieces, seconds=0.0):
    def serve(connection):
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(seconds)
    return serve


def test_a_request_and_its_answer(serve):
    server = serve(answering(b"HTTP/1.1 202 Accepted\r\nContent-Type: text/plain\r\nRETRY-After:  7 \r\n"
                             b"Content-Length: 5\r\n\r\nhello"))
    status, headers, body = request(server.path, "POST", "/send", b"{}", {"Content-Type": "application/json"})
    assert (status, body) == (202, b"hello")
    assert headers == {"content-type": "text/plain", "retry-after": "7", "content-length": "5"}
    assert server.asked == (b"POST /send HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                            b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")


@pytest.mark.parametrize(("answer", "status"), [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200), (b"HTTP/1.1 204 No Content\r\n\r\n", 204),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 200)])
def test_an_answer_ends_before_the_connection(serve, answer, status):
    done = threading.Event()

    def stay(connection):
        connection.sendall(answer)
        done.wait(20)
    server = serve(stay)
    try:
        assert request(server.path, "GET", "/", seconds=5)[0] == status
    finally:
        done.set()


@pytest.mark.parametrize("body", [b"", b"some", b"x" * 300_000])
def test_a_body_without_a_length_ends_with_the_connection(serve, body):
    server = serve(answering(b"HTTP/1.0 200 OK\r\n\r\n", body))
    assert request(server.path, "GET", "/") == (200, {}, body)


def test_an_answer_in_single_bytes(serve):
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    server = serve(answering(*(answer[i:i + 1] for i in range(len(answer)))))
    assert request(server.path, "GET", "/") == (200, {"content-length": "2"}, b"ok")


def test_a_body_in_pieces(serve):
    def serve_length(connection):
        received = len(server.asked.partition(b"\r\n\r\n")[2])
        while received < 3 << 20:
            received += len(connection.recv(1 << 16))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    server = serve(serve_length)
    pieces = (b"x" * (1 << 20) for _ in range(3))
    assert request(server.path, "POST", "/", pieces, {"Content-Length": str(3 << 20)})[0] == 200
    assert b"\r\nContent-Length: 3145728\r\n" in server.asked


@pytest.mark.parametrize("answer", [
    b"", b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"])
def test_a_truncated_answer_is_none(serve, answer):
    server = serve(answering(answer))
    with pytest.raises(ConnectionError, match="cut off"):
        request(server.path, "GET", "/")


@pytest.mark.parametrize("answer", [
    b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 two OK\r\n\r\n", b"\r\n\r\n", b"HTTP/2 200\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more",
    *(b"HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\nabc" % length for length in (b"-1", b"", b"3, 3", b"9" * 30))])
def test_what_is_not_http_is_no_answer(serve, answer):
    server = serve(answering(answer))
    with pytest.raises(ConnectionError, match="the answer"):
        request(server.path, "GET", "/")


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n",
                                  b"HTTP/1.1 200 OK\r\nX: "])
def test_a_huge_answer_is_refused(serve, head):
    server = serve(answering(head, *[b"x" * 100_000] * 20))
    with pytest.raises(ConnectionError, match="over 1000000 bytes"):
        request(server.path, "GET", "/", max_bytes=1_000_000)


@pytest.mark.parametrize("pieces, pause", [([b"H"], 1.5), ([b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 14], 0.1),
                                           ([b"HTTP/1.1 200 OK\r\n\r\n", *[b"x"] * 14], 0.1)])
def test_a_slow_answer_ends_at_the_deadline(serve, pieces, pause):
    server = serve(answering(*pieces, seconds=pause))
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match="timed out"):
        request(server.path, "GET", "/", seconds=0.5)
    assert 0.4 < time.monotonic() - begin < 1.2


def test_a_server_that_reads_nothing_ends_at_the_deadline(serve):
    server = serve(lambda connection: time.sleep(1.5))
    with pytest.raises(TimeoutError):
        request(server.path, "POST", "/", b"x" * (8 << 20), seconds=0.5)


@pytest.mark.parametrize("in_pieces", [False, True])
def test_an_early_refusal_of_a_large_body_is_read(serve, in_pieces):
    server = serve(answering(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nover"))
    body = b"x" * (8 << 20)
    pieces = (body[i:i + 65536] for i in range(0, len(body), 65536)) if in_pieces else body
    status, _, answer = request(server.path, "POST", "/", pieces, {"Content-Length": str(len(body))})
    assert (status, answer) == (413, b"over")


def test_a_connection_closed_with_a_request_unread_is_no_answer(serve):
    server = serve(lambda connection: None)
    with pytest.raises(ConnectionError):
        request(server.path, "POST", "/", b"x" * (8 << 20))


def test_errors_of_the_socket_are_told_apart(tmp_path):
    path = tmp_path / "socket"
    with pytest.raises(FileNotFoundError):
        request(path, "GET", "/")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        with pytest.raises(ConnectionRefusedError):
            request(path, "GET", "/")
    with pytest.raises(OSError, match="too long"):
        request("/" + "x" * 200, "GET", "/")
