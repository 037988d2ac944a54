"""Two more stand-ins for Telegram: one whose answers are spoilt, and, as a program, one that survives a power cut.

    telegram.py PORT LEDGER

writes to LEDGER, in lines of JSON: `{"started"}`; for each message that it takes `{"chat", "text"}` before it answers,
and again with `"answered"`, the time, after.
"""

import email
import http.server
import json
import os
import sys
import threading
import time
from collections import deque

ANSWER_SECONDS = 0.1  # so that calls are in flight when the power is cut


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection. `server.result_of(method, fields)` has the answers."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        method = self.path.rpartition("/")[2]
        fields = fields_of(self.headers["Content-Type"], body)
        data = self.server.answer_to(method, fields)
        try:
            self.send_response_only(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except ConnectionError:
            self.close_connection = True
        else:
            self.server.answered(method, fields)

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


def message_of(fields):
    return int(fields["chat_id"]), fields.get("text", fields.get("caption", ""))


class Server(http.server.ThreadingHTTPServer):
    """A Bot API of a few methods; `taken(chat, text)` is called for each message, `answered` when that was said."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port, taken):
        super().__init__(("127.0.0.1", port), Handler)
        self.taken = taken
        self.polls = deque()  # what getUpdates has as its results
        self.newest_poll = None
        self.changed = threading.Condition()

    def answer_to(self, method, fields):
        return json.dumps({"ok": True, "result": self.result_of(method, fields)}).encode()

    def answered(self, method, fields):
        pass

    def result_of(self, method, fields):
        if method == "getMe":
            return {"id": 1, "is_bot": True, "username": "chaos_bot"}
        if method == "getUpdates":
            return self.poll(int(fields["timeout"]))
        if method.startswith("send"):
            self.taken(*message_of(fields))
            return {"message_id": 1, "chat": {"id": int(fields["chat_id"])}}
        return True

    def poll(self, seconds):
        with self.changed:
            # As with Telegram, a poll ends an older one: of a bot that was stopped, it must not take what comes now.
            poll = self.newest_poll = object()
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.polls or self.newest_poll is not poll, min(seconds, 5))
            return self.polls.popleft() if self.polls and self.newest_poll is poll else []

    def update(self, *results):
        with self.changed:
            self.polls.extend(results)
            self.changed.notify_all()


class Hostile(Server):
    """A server in this process that gives `answers` in turn (`{method: iterator}`; "" has those of the other methods)
    until it is told to behave."""

    def __init__(self, answers):
        self.chats = set()
        self.spoilt = 0
        self.hostile = bool(answers)
        self._answers = answers
        self._lock = threading.Lock()
        super().__init__(0, lambda chat, text: self.chats.add(chat))
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def answer_to(self, method, fields):
        good = super().answer_to(method, fields)
        # Were polls refused, too, the bot would back off, and few of the updates would be fetched.
        if not self.hostile or method == "getUpdates":
            return good
        with self._lock:
            self.spoilt += 1
            return json.dumps(next(self._answers.get(method, self._answers[""]))).encode()

    def close(self):
        self.shutdown()
        self._thread.join()
        self.server_close()


class Ledger(Server):
    """Writes down in the file at `path` when it was started, what it takes, and when it has answered."""

    def __init__(self, port, path):
        super().__init__(port, self._take)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._write(started=True)

    def _take(self, chat, text):
        self._write(chat=chat, text=text)
        time.sleep(ANSWER_SECONDS)

    def answered(self, method, fields):
        if method.startswith("send"):
            chat, text = message_of(fields)
            self._write(chat=chat, text=text, answered=time.monotonic())

    def _write(self, **entry):
        # One write(2) to a file opened for appending: whole, whatever ends next.
        os.write(self._file, (json.dumps(entry) + "\n").encode())


if __name__ == "__main__":
    Ledger(int(sys.argv[1]), sys.argv[2]).serve_forever()
