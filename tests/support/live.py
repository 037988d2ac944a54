"""Live processes for the tests: the bot as it is installed, and the sandbox in Telegram's place."""

import contextlib
import json
import os
import pwd
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from urllib.parse import quote

import requests
import requests_unixsocket

from outbox_files import waiting

CHECKOUT = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
TOKEN = "123456789:AAtestTESTtestTESTtestTESTtestTEST00"
ME = pwd.getpwuid(os.getuid()).pw_name


def uid_of(user):
    """The uid of an account, and a uid for a name that has none on this machine: it may be in a directory."""
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return 4711


def until(condition, seconds=10, what=None):
    """The first true value of `condition()`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        time.sleep(0.02)
    return value


def parts_of(text):
    """The texts in a joined message, which have no empty line; or the one text."""
    heading, _, joined = text.partition("\n\n")
    return joined.split("\n\n") if re.fullmatch(r"\d+ notifications", heading) else [text]


def png(width=60, height=40):
    """The bytes of a picture in one colour."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + b"\x40\x80\xc0" * width for _ in range(height))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


class Process:
    """A program of ours with its own environment and a log file; stopped by its own pid."""

    def __init__(self, name, *arguments, folder, pass_fds=(), within=(), **environment):
        self.log_path = folder / f"{Path(name).name}.log"
        self._log = open(self.log_path, "ab")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*within, PYTHON, "-EsS", CHECKOUT / name, *arguments], stdin=subprocess.DEVNULL, stdout=self._log,
            stderr=self._log, pass_fds=pass_fds, env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **environment})
        self.pid = self.process.pid

    @property
    def log(self):
        return self.log_path.read_text(errors="replace")

    def stop(self, number=signal.SIGTERM, seconds=15):
        """Its exit status, after `number`."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()
            self.process.wait()
            self._log.close()

    def kill(self):
        return self.stop(signal.SIGKILL)


class Bot:
    """A bot on `folder`; it can be killed and started again on the same files. `within` is a command that runs it in a
    namespace."""

    within: tuple = ()

    def __init__(self, folder, api_url, **environment):
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir(exist_ok=True)
        self.state = folder / "state"
        self.state.mkdir(mode=0o700, exist_ok=True)
        self.socket_path = folder / "bot.sock"
        self.environment = {
            "TELEGRAM_BOT_TOKEN": TOKEN, "TELEGRAM_API_URL": api_url, "NOTIFY_DATA_DIR": str(self.data),
            "NOTIFY_STATE_DIR": str(self.state),
            "NOTIFY_BOT_SOCKET": str(self.socket_path), "NOTIFY_SCRIPTS_DIR": str(folder / "scripts"),
            "NOTIFY_WS_SOCKET": str(folder / "ws.sock"), "NOTIFY_SITE_NAME": "testhost", **environment}
        self.url = f"http+unix://{quote(str(self.socket_path), safe='')}"
        self.process = None

    def start(self, changes=""):
        """`changes` is Python that runs in the bot's process before it: other constants, a step that stops it."""
        program = "notify_bot.py"
        if changes:
            program = self.folder / "notify_bot.py"
            program.write_text(f"import sys\nsys.path.insert(0, {str(CHECKOUT)!r})\n{changes}\n"
                               "import notify_bot\nsys.exit(notify_bot.main([]))\n")
        self.process = Process(program, folder=self.folder, within=self.within, **self.environment)
        until(self.answers, what="the bot answers")
        return self

    def settle(self):
        """Until what people wrote before is answered, so that what a test counts is its own."""
        def settled():
            path = self.state / "polling.json"
            handled = not path.exists() or not json.loads(path.read_text()).get("pending")
            return self.get("/health").json()["last_poll"] and handled and not self.outbox()
        until(settled, what="earlier updates are answered")
        return self

    def answers(self):
        assert self.process.process.poll() is None, self.process.log
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket_path)) == 0

    def stop(self, number=signal.SIGTERM):
        process, self.process = self.process, None
        return process.stop(number) if process else None

    def kill(self):
        return self.stop(signal.SIGKILL)

    @property
    def log(self):
        return (self.folder / "notify_bot.py.log").read_text(errors="replace")

    def get(self, path):
        return self._request("GET", path)

    def post(self, path, **options):
        return self._request("POST", path, **options)

    def send(self, text="hello", **fields):
        headers = fields.pop("headers", None)
        return self.post("/send", json={"text": text, **fields}, headers=headers)

    def _request(self, method, path, **options):
        with requests_unixsocket.Session() as session:
            return session.request(method, self.url + path, timeout=30, **options)

    def connect(self):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20)
        connection.connect(str(self.socket_path))
        return connection

    def raw(self, data):
        """Everything the bot answers to some bytes, after which the client has nothing more to say."""
        with self.connect() as connection:
            with contextlib.suppress(BrokenPipeError):
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while data := connection.recv(65536):
                    answer += data
            return answer

    def users(self, **links):
        """Old links, which are not welcomed."""
        (self.data / "telegram_users.json").write_text(json.dumps(
            {user: {"chat_id": chat, "linked_at": "2026-01-31T12:00:00Z", "uid": uid_of(user)}
             for user, chat in links.items()}))

    def outbox(self, place="queue"):
        """The IDs of messages in a part of the outbox."""
        if place == "sent":
            return sorted(line["id"] for line in self.sent())
        if place == "queue":
            return sorted(waiting(self.state / "outbox"))
        return sorted(path.stem for path in (self.state / "outbox" / place).glob("*.json"))

    def sent(self):
        """The lines of what was sent, oldest first."""
        return [json.loads(line) for path in sorted((self.state / "outbox/sent").glob("*.jsonl"))
                for line in path.read_text().splitlines()]


class Telegram:
    """The sandbox as a process, driven over its control API."""

    def __init__(self, folder, limits="off"):
        self.process = Process("tests/telegram", "--token", TOKEN, "--limits", limits, folder=folder)
        self.url = until(self._base_url, what="the sandbox is up")

    def _base_url(self):
        assert self.process.process.poll() is None, self.process.log
        line = self.process.log.partition("\n")
        return line[0].strip() if line[1] else None

    def stop(self):
        return self.process.stop()

    def control(self, name, **fields):
        answer = requests.post(f"{self.url}/sandbox/{name}", json=fields, timeout=10)
        assert answer.ok, answer.text
        return answer.json()

    def control_delete(self, name):
        assert requests.delete(f"{self.url}/sandbox/{name}", timeout=10).ok

    def refuses(self, method, status, description, **fields):
        """Telegram refuses the next call of a method."""
        self.control("faults", action="error", method=method, times=1, status=status, description=description, **fields)

    def person(self, chat_id, first_name="Jana", username=None, **fields):
        return self.control("chats", id=chat_id, first_name=first_name, username=username, **fields)

    def types(self, chat_id, text):
        return self.control("messages", chat_id=chat_id, text=text)

    def messages(self, chat_id):
        """Texts of the bot in a chat, in order."""
        answer = requests.get(f"{self.url}/sandbox/messages", params={"chat_id": chat_id}, timeout=10).json()
        messages = answer["messages"] if isinstance(answer, dict) else answer
        return [message for message in messages if message.get("from", {}).get("is_bot", True)]

    def texts(self, chat_id):
        """The texts of the bot in a chat, in order, those of a joined message one by one."""
        return [part for message in self.messages(chat_id)
                for part in parts_of(message.get("text", message.get("caption", "")))]

    def wait_for(self, chat_id, count=1, seconds=10):
        return until(lambda: len(self.messages(chat_id)) >= count and self.messages(chat_id), seconds,
                     f"{count} messages in chat {chat_id}")

    def stats(self):
        return requests.get(f"{self.url}/sandbox/stats", timeout=10).json()
