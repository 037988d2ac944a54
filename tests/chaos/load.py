"""People who send: a program that posts messages for several users at once and writes down what was answered.

    load.py SOCKET LEDGER SEED USER …

It runs until SIGTERM, and goes on where its ledger ends. Every user has a thread of their own, which sends one
message after the other, so that the order within a chat is known. Half of the messages have an Idempotency-Key, and
those are sent again until they are accepted; the others are given up when their fate is unknown. The ledger has a
line of JSON for every attempt and for every answer: `text`, `key`, `status` (absent, a status, or "unknown").
"""

import http.client
import json
import os
import random
import signal
import socket
import sys
import threading
from collections import Counter


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=30)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self.path)


class Sender:
    """One user, whose messages are `USER 1`, `USER 2`, …"""

    def __init__(self, path, ledger, user, seed, stop):
        self.path, self.ledger, self.user, self.stop = path, ledger, user, stop
        self.random = random.Random(f"{seed} {user}")

    def run(self, number, unsettled):
        while not self.stop.is_set():
            key = unsettled if unsettled is not None else self.random.random() < 0.5
            self.send(f"{self.user} {number}", key)
            number, unsettled = number + 1, None

    def send(self, text, key):
        """Until it was accepted, or refused, or nobody knows."""
        self.write(text=text, key=key)
        photo = os.environ.get("CHAOS_PHOTO") if self.random.random() < 0.1 else None
        wait = self.random.choice([0, 0.2, 3])
        while not self.stop.is_set():
            status = self.post(text, key, wait, photo)
            if status in (200, 202) or (status == "unknown" and not key):
                self.write(text=text, key=key, status=status)
                return
            if status not in ("refused", "unknown", 429, 503):
                self.write(text=text, key=key, status=status)
                return
            # The bot is down, its disk is full, or this user has enough in the queue.
            self.stop.wait(0.02 if status in ("refused", "unknown") else 0.3)

    def post(self, text, key, wait, photo):
        connection = Connection(self.path)
        body = {"user": self.user, "wait": wait}
        body |= {"caption": text, "photo_path": photo} if photo else {"text": text}
        try:
            try:
                connection.connect()
            except OSError:
                return "refused"
            connection.request("POST", "/send_photo" if photo else "/send", json.dumps(body),
                               {"Idempotency-Key": text} if key else {})
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except (OSError, http.client.HTTPException):
            return "unknown"
        finally:
            connection.close()

    def write(self, **fields):
        # One write(2) to a file opened for appending: whole, whatever is killed next.
        os.write(self.ledger, (json.dumps(fields) + "\n").encode())


def read_ledger(path):
    """`{text: {"key", "status"}}` in the order of the attempts."""
    messages = {}
    with open(path) as file:
        for line in file:
            if line.endswith("\n"):
                entry = json.loads(line)
                messages.setdefault(entry["text"], {"status": None}).update(entry)
    return messages


def main(path, ledger_path, seed, *users):
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    ledger = os.open(ledger_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    tried = read_ledger(ledger_path)
    threads = []
    for user in users:
        mine = [text for text in tried if text.rpartition(" ")[0] == user]
        number, unsettled = len(mine) + 1, None
        if mine and tried[mine[-1]]["status"] is None and tried[mine[-1]]["key"]:
            number, unsettled = len(mine), True
        sender = Sender(path, ledger, user, f"{seed} {number}", stop)
        threads.append(threading.Thread(target=sender.run, args=(number, unsettled)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(ledger)


def judge(result, tried, delivered, in_flight):
    """Hold what was accepted against what arrived: `{user: [text, …]}` in the order in which it arrived. `in_flight` is
    how often each text was on its way when the bot or the line was interrupted: so many copies it may have."""
    accepted = {text for text, entry in tried.items() if entry["status"] in (200, 202)}
    arrived = Counter(text for texts in delivered.values() for text in texts)
    lost = accepted - arrived.keys()
    result.count(tried=len(tried), accepted=len(accepted), delivered=len(arrived), lost=len(lost),
                 duplicates=arrived.total() - len(arrived), in_flight=in_flight.total())
    result.expect(not lost, f"accepted and lost: {sorted(lost)[:5]}")
    result.expect(accepted, "nothing was accepted")
    result.expect(arrived.keys() <= tried.keys(), f"nobody sent {sorted(arrived.keys() - tried.keys())[:5]}")
    needless = arrived - in_flight - Counter(dict.fromkeys(arrived, 1))
    result.expect(not needless, f"copies of what was not in flight: {sorted(needless.items())[:5]}")
    refused = {entry["status"] for entry in tried.values()} - {200, 202, "unknown", None}
    result.expect(not refused, f"refused with {refused}")
    for user, texts in delivered.items():
        judge_order(result, user, texts)


def judge_order(result, user, texts):
    """Copies may only follow their originals at once, for these were in flight when the bot was interrupted: one, or
    several in a joined message."""
    numbers = [int(text.rpartition(" ")[2]) for text in texts]
    overtaken = 0
    for place, number in enumerate(numbers[1:], 1):
        if number < numbers[place - 1]:  # what follows repeats the end of what was there
            original = max((start for start in range(place) if numbers[start] == number), default=None)
            overtaken += original is None or numbers[original:place] != numbers[place:2 * place - original]
    result.count(overtaken=overtaken)
    result.expect(not overtaken, f"in the chat of {user} the order is {numbers}")


if __name__ == "__main__":
    main(*sys.argv[1:])
