"""An analyst's account for the tests: a home of its own, and our programs run as its owner.

As root the account is `nobody`, because the programs refuse root; otherwise it is whoever runs the tests.
"""

import http.server
import json
import os
import pwd
import shutil
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from live import CHECKOUT, PYTHON
from machine import children_of

OWNER = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
AS_OWNER = {"user": OWNER.pw_uid, "group": OWNER.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}


class Analyst:
    """A home in a folder that its owner can reach, with a copy of the programs beside it."""

    def __init__(self):
        self._others = set(children_of(os.getpid()))
        self.folder = Path(tempfile.mkdtemp(prefix="analyst-"))
        self.folder.chmod(0o755)
        self.programs = self.folder / "lib"
        unneeded = shutil.ignore_patterns("__pycache__", ".*", "tests", "docs", "bench", "examples")
        shutil.copytree(CHECKOUT, self.programs, ignore=unneeded)
        self.home = self.folder / "home"
        self.scripts = self.home / "user/notifications"
        self.private = self.home / ".notifications"
        self.state = self.private / "state"
        self.unsent = self.private / "unsent"
        self.scripts.mkdir(parents=True)
        self.socket = self.folder / "bot.sock"
        self.environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "NOTIFY_HOME": str(self.home),
                            "NOTIFY_ANALYST_GROUP": "", "NOTIFY_BOT_SOCKET": str(self.socket)}
        self.own(self.home)

    def remove(self):
        shutil.rmtree(self.folder)
        # What a script left behind and our program killed has become the child of the tests (conftest.py).
        for pid in set(children_of(os.getpid())) - self._others:
            os.waitpid(pid, os.WNOHANG)

    @staticmethod
    def own(path):
        for folder, names, files in os.walk(path):
            for name in [folder, *(os.path.join(folder, name) for name in names + files)]:
                os.chown(name, OWNER.pw_uid, OWNER.pw_gid, follow_symlinks=False)

    def script(self, name, source):
        """Write a script; `source` may be an object, which it prints as JSON."""
        if not isinstance(source, str):
            source = f"print({json.dumps(json.dumps(source))})"
        path = self.scripts / f"{name}.py"
        path.write_text(source + "\n")
        path.chmod(0o644)
        os.chown(path, OWNER.pw_uid, OWNER.pw_gid)
        return path

    def file(self, name, data):
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.own(self.home)
        return path

    def start(self, program, *arguments, **environment):
        """The program as a process, its output in pipes."""
        return subprocess.Popen([PYTHON, "-EsS", self.programs / program, *arguments], stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env=self.environment | environment, cwd="/", **AS_OWNER)

    def call(self, program, *arguments, seconds=60, **environment):
        """The program run to its end: a CompletedProcess."""
        with self.start(program, *arguments, **environment) as process:
            try:
                output, errors = process.communicate(timeout=seconds)
            except BaseException:
                process.kill()
                raise
        assert "Traceback" not in errors, errors
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors)

    def python(self, source, seconds=60):
        """What some lines of Python print, run as the owner with the programs to import."""
        run = subprocess.run([PYTHON, "-EsSc", source], capture_output=True, text=True, timeout=seconds,
                             env=self.environment | {"PYTHONDONTWRITEBYTECODE": "1"}, cwd=self.programs,
                             **AS_OWNER)
        assert run.returncode == 0, run.stderr
        return run.stdout

    def run_scripts(self, *arguments, code=0, **options):
        """One pass of notify-runner; its log."""
        run = self.call("notify_runner.py", *arguments, **options)
        assert run.returncode == code, run.stderr
        return run.stderr

    def helper(self, *arguments, code=0, **environment):
        run = self.call("notify_scripts.py", *arguments, **environment)
        assert run.returncode == code, run.stderr
        return run.stdout if code == 0 else run.stderr

    def state_of(self, stem):
        return json.loads((self.state / f"{stem}.json").read_text())

    def set_state(self, stem, **fields):
        self.file(f".notifications/state/{stem}.json", json.dumps(fields).encode())

    def kept(self):
        """The messages that wait on disk, oldest first."""
        return [json.loads(path.read_text()) for path in sorted(self.unsent.glob("*.json"))]


class Bot:
    """In the bot's place on the socket: notes every request, and answers as it is told to.

    `status` is what it answers; `hold`, while it is set, keeps requests waiting once they were noted.
    """

    def __init__(self, path):
        self.status, self.answer, self.requests = 200, {"ok": True}, []
        self.release = threading.Event()
        self.release.set()
        bot = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                bot.requests.append((self.path, dict(self.headers), body))
                bot.release.wait(30)
                data = json.dumps(bot.answer).encode()
                try:
                    self.send_response(bot.status)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except BrokenPipeError:
                    self.close_connection = True

            def address_string(self):
                return "unix"

            def log_message(self, *arguments):
                pass

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            request_queue_size = 64

        self._server = Server(str(path), Handler)
        path.chmod(0o666)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def stop(self):
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def keys(self):
        return [headers["Idempotency-Key"] for _, headers, _ in self.requests]

    @property
    def sent(self):
        """The fields of each JSON request."""
        return [json.loads(body) for path, _, body in self.requests if path == "/send"]

    @property
    def texts(self):
        return [fields["text"] for fields in self.sent]


def processes(marker):
    """The live processes that have `marker` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def ask(path, request, seconds=90):
    """One request to notify-scripts' socket: `(answer, the bytes that follow it)`."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(seconds)
        connection.connect(str(path))
        connection.sendall(request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n")
        data = b""
        while piece := connection.recv(65536):
            data += piece
        line, _, image = data.partition(b"\n")
        return json.loads(line), image


def now():
    return int(time.time())
