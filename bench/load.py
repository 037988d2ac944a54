"""Clients of an HTTP server on a unix socket: each asks, waits for the whole answer, and asks again.

A connection is kept as long as there is something to ask. All of them are one thread that waits in epoll, so that
what is measured is the server and not the clients.
"""

import json
import selectors
import socket
import time
from collections import Counter, namedtuple

PATIENCE_SECONDS = 60

Load = namedtuple("Load", "seconds latencies statuses")
Load.__doc__ = """Outcome of a load: `seconds` in all, `latencies` in seconds, how often each of the `statuses` came."""


class _Client:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_SECONDS)
        self.socket.connect(path)
        self._answer = b""
        self._begin = 0.0

    def ask(self, request):
        self._begin = time.perf_counter()
        self.socket.sendall(request)

    def hear(self):
        """`(status, seconds)` once the answer is whole, else None."""
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server ended the connection")
        self._answer += data
        head, end, body = self._answer.partition(b"\r\n\r\n")
        if not end or len(body) < _length(head):
            return None
        self._answer = b""
        return int(head.split(None, 2)[1]), time.perf_counter() - self._begin


def _length(head):
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    raise ConnectionError("an answer without a Content-Length")


def get(path):
    """The bytes of a GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post(path, fields):
    """The bytes of a POST request with a JSON body."""
    body = json.dumps(fields).encode()
    return (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n").encode() + body


def run(path, clients, requests):
    """Give out `requests`, an iterable of bytes, to so many clients until there are no more."""
    selector, requests = selectors.EpollSelector(), iter(requests)
    latencies, statuses, active = [], Counter(), 0
    begin = time.perf_counter()
    try:
        for _, request in zip(range(clients), requests, strict=False):
            client = _Client(path)
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.ask(request)
            active += 1
        while active:
            ready = selector.select(PATIENCE_SECONDS)
            if not ready:
                raise TimeoutError(f"no answer within {PATIENCE_SECONDS} s")
            for key, _ in ready:
                if not (heard := key.data.hear()):
                    continue
                statuses[heard[0]] += 1
                latencies.append(heard[1])
                if (request := next(requests, None)) is None:
                    active -= 1
                    selector.unregister(key.data.socket)
                    key.data.socket.close()
                else:
                    key.data.ask(request)
        return Load(time.perf_counter() - begin, latencies, statuses)
    finally:
        for key in list(selector.get_map().values()):
            key.data.socket.close()
        selector.close()


def for_seconds(request, seconds):
    """The same request again and again, for so long."""
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        yield request
