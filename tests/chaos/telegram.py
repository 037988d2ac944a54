"""Two more stand-ins for Telegram: one whose answers are spoilt, and, as a program, one that survives a power cut.

    telegram.py PORT LEDGER

writes each message that it takes to LEDGER, `{"chat", "text"}` a line, before it answers.
"""

import email
import http.server
import json
import os
import sys
import threading
import time
from collections import deque

ANSWER_SECONDS = 0.03  # so that calls are under way when the power is cut


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection. `server.result_of(method, fields)` has the answers."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        method = self.path.rpartition("/")[2]
        data = self.server.answer_to(method, fields_of(self.headers["Content-Type"], body))
        try:
            self.send_response_only(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except ConnectionError:
            self.close_connection = True

    def setup(self):
        super().setup()
        # An answer is two writes, of which the second would wait for an acknowledgement of the first.
        self.connection.setsockopt(6, 1, True)


def fields_of(content_type, body):
    if not content_type.startswith("multipart/"):
        return json.loads(body)
    form = email.message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    return {part.get_param("name", header="content-disposition"): part.get_payload(decode=True).decode("latin-1")
            for part in form.get_payload()}


class Server(http.server.ThreadingHTTPServer):
    """A Bot API of a few methods; `taken(chat, text)` is called for each message."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port, taken):
        super().__init__(("127.0.0.1", port), Handler)
        self.taken = taken
        self.waiting = deque()
        self.changed = threading.Condition()

    def answer_to(self, method, fields):
        return json.dumps({"ok": True, "result": self.result_of(method, fields)}).encode()

    def result_of(self, method, fields):
        if method == "getMe":
            return {"id": 1, "is_bot": True, "username": "chaos_bot"}
        if method == "getUpdates":
            return self.updates(fields)
        if method.startswith("send"):
            self.taken(int(fields["chat_id"]), fields.get("text", fields.get("caption", "")))
            return {"message_id": 1, "chat": {"id": int(fields["chat_id"])}}
        return True

    def updates(self, fields):
        with self.changed:
            self.changed.wait_for(lambda: self.waiting, min(int(fields["timeout"]), 5))
            return [self.waiting.popleft() for _ in range(min(4, len(self.waiting)))]


class Hostile:
    """A server in this process whose answers `spoil` has changed, until it is told to behave."""

    def __init__(self, spoil):
        self.chats = set()
        self.spoilt = 0
        self._spoil = spoil
        self._lock = threading.Lock()
        self._server = Server(0, lambda chat, text: self.chats.add(chat))
        self._server.answer_to = self._answer
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._ends = time.monotonic() + 30

    def _answer(self, method, fields):
        answer = {"ok": True, "result": self._server.result_of(method, fields), "error_code": 400,
                  "description": "x", "parameters": {"retry_after": 0}}
        if self._spoil is None:
            return json.dumps(answer).encode()
        with self._lock:
            self.spoilt += 1
            # Were most polls refused, the bot would back off, and few of the updates would be fetched.
            spoilt = self._spoil(answer["result"] if method == "getUpdates" else answer)
            return json.dumps({**answer, "result": spoilt} if method == "getUpdates" else spoilt).encode()

    def update(self, update):
        with self._server.changed:
            self._server.waiting.append(update)
            self._server.changed.notify_all()

    def polled_out(self):
        return not self._server.waiting

    def behave(self):
        """Answer as Telegram does from now on, if it has been hostile for long enough."""
        if time.monotonic() > self._ends or self.polled_out():
            self._spoil = None

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def main(port, path):
    ledger = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def taken(chat, text):
        os.write(ledger, (json.dumps({"chat": chat, "text": text}) + "\n").encode())
        time.sleep(ANSWER_SECONDS)

    Server(int(port), taken).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
