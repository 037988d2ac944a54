"""The network between the bot and the sandbox: it can be cut, and notes which calls were answered."""

import contextlib
import http.client
import http.server
import select
import socket
import sys
import threading
import time
from collections import Counter
from urllib.parse import urlsplit

from chaos.calls import Call, in_flight
from chaos.telegram import fields_of, message_of
from live import until


class Relay(http.server.BaseHTTPRequestHandler):
    """One connection of the bot's, and one to the sandbox. What comes over is passed on, halves too."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.far = socket.create_connection(self.server.target)
        self.far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.opened(self.far)

    def finish(self):
        self.server.ended(self.far)
        self.far.close()
        super().finish()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if len(body) < int(self.headers["Content-Length"]):
            self.close_connection = True
            return
        sends = self.path.rpartition("/")[2].startswith("send")
        call = self._call(body) if sends else None
        head = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        self.far.sendall(f"{self.requestline}\r\n{head}\r\n".encode("latin-1") + body)
        # A poll may be waited for by somebody who has gone; what a message becomes is worth knowing all the same.
        if not sends and self.connection in select.select([self.connection, self.far], [], [])[0]:
            self.close_connection = True
        elif self._pass_on() and call:
            call.answered = time.monotonic()

    def _call(self, body):
        chat, text = message_of(fields_of(self.headers["Content-Type"], body))
        return self.server.line.called(chat, text)

    def _pass_on(self):
        """True when there was an answer and all of it has been passed on."""
        self.close_connection = True
        response = http.client.HTTPResponse(self.far, method="POST")
        try:
            response.begin()
        except http.client.HTTPException:
            return False
        try:
            whole, data = True, response.read()
        except http.client.IncompleteRead as error:
            whole, data = False, error.partial
        head = "".join(f"{name}: {value}\r\n" for name, value in response.getheaders())
        self.wfile.write(f"HTTP/1.1 {response.status} {response.reason}\r\n{head}\r\n".encode("latin-1") + data)
        self.close_connection = response.will_close or not whole
        return whole

    def log_message(self, format, *args):
        pass


class RelayServer(http.server.ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128

    def __init__(self, line, port, target):
        self.line, self.target = line, target
        self._lock = threading.Lock()
        self._open = set()
        super().__init__(("127.0.0.1", port), Relay)

    def process_request(self, request, client_address):
        self.opened(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.ended(request)
        super().shutdown_request(request)

    def opened(self, connection):
        with self._lock:
            self._open.add(connection)

    def ended(self, connection):
        with self._lock:
            self._open.discard(connection)

    def is_quiet(self):
        return not self._open

    def cut(self):
        self.shutdown()
        self.socket.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):  # the other side may have been quicker
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Line:
    """`calls` has the calls that carry a message, in the order in which they came."""

    def __init__(self, url):
        parts = urlsplit(url)
        self._target = parts.hostname, parts.port
        self._lock = threading.Lock()
        self._server = None
        self.calls = []
        self._in_flight = []
        self.port = 0
        self.mend()
        self.url = f"http://127.0.0.1:{self.port}"

    def mend(self):
        self._server = RelayServer(self, self.port, self._target)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def cut(self):
        """Close every connection and the door; harmless when that was done."""
        if self._server:
            self._server.cut()
            self._thread.join()
            self._server = None

    def called(self, chat, text):
        call = Call(chat, text)
        with self._lock:
            self.calls.append(call)
        return call

    def interrupted(self, moment, queued):
        """The bot, which is gone now, was killed at this moment (time.monotonic), with these texts in its queue: note
        which of them were in flight."""
        # Connections are served in the order in which they were made: after this one there is none of the bot's.
        with socket.create_connection(("127.0.0.1", self.port)) as last:
            last.shutdown(socket.SHUT_WR)
            last.recv(1)
        until(self._server.is_quiet, 10, "the connections of a bot that is gone have ended")
        with self._lock:
            self._in_flight += [text for call in in_flight(self.calls, moment) for text in call.texts if text in queued]
            self.calls.clear()

    def may_be_copied(self):
        """How often each text was in flight when the bot was interrupted, or stayed without an answer."""
        with self._lock:
            unanswered = [text for call in self.calls if call.answered is None for text in call.texts]
        return Counter(self._in_flight + unanswered)
