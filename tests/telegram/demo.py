#!/usr/bin/env python3
"""The whole path of a notification on this machine: no token, no root, nothing to install.

usage: demo.py [--once]

Starts the sandbox (a stand-in for Telegram with a chat page), the bot and the runner of an example script in a
temporary folder, plays the person who links a chat, and prints the chat as it goes. Then the chat page stays open
until Ctrl-C. With --once it ends when the notification has arrived; the exit status is 1 if it does not. All it
started has ended, and all it wrote is gone, when it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
PARTS = ("notify_bot.py", "notify_runner.py", "notify_scripts.py", "VERSION", "bot", "runner", "common",
         "tests/telegram")
TOKEN = "123456:a-made-up-token-that-opens-nothing"
CHAT_ID = 4242
PATIENCE_SECONDS = 15
PASS_SECONDS = 10
STOP_SECONDS = 10
UNPRIVILEGED = "nobody"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


class Stopped(Exception):
    """The person wants it to end."""


class Screen:
    """Printed lines: aligned, and in colours on a terminal."""

    def __init__(self):
        self._colours = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and "NO_COLOR" not in os.environ

    def style(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colours and text else text

    def step(self, text: str) -> None:
        print(self.style(f"· {text}", "2"), flush=True)

    def say(self, who: str, lines: list[str], code: str) -> None:
        for number, line in enumerate(lines):
            print(f"  {self.style((who if number == 0 else '').rjust(5), code)}  {line}".rstrip(), flush=True)

    def message(self, message: dict) -> None:
        """A message of the chat as the sandbox has it."""
        by_bot = message.get("from", {}).get("is_bot", False)
        lines = []
        for kind in ("photo", "document"):
            if message.get(kind):
                sizes = message[kind] if kind == "photo" else [message[kind]]
                size = f"{sizes[-1]['width']}x{sizes[-1]['height']}" if kind == "photo" else sizes[-1]["file_name"]
                lines.append(self.style(f"[{kind}, {size}]", "36"))
        text = message.get("text", message.get("caption", ""))
        lines += self._formatted(text, message.get("entities", message.get("caption_entities", []))).split("\n")
        for row in message.get("reply_markup", {}).get("inline_keyboard", []):
            lines.append("  ".join(self.style(f"[ {button['text']} ]", "34") for button in row))
        self.say("bot" if by_bot else "you", lines, "1;32" if by_bot else "1;35")

    def _formatted(self, text: str, entities: list) -> str:
        codes = {"bold": "1", "italic": "3", "code": "36", "pre": "36"}
        encoded = text.encode("utf-16-le")
        for entity in sorted(entities, key=lambda entity: -entity["offset"]):
            if entity["type"] in codes:
                start, end = 2 * entity["offset"], 2 * (entity["offset"] + entity["length"])
                inside = self.style(encoded[start:end].decode("utf-16-le"), codes[entity["type"]])
                encoded = encoded[:start] + inside.encode("utf-16-le") + encoded[end:]
        return encoded.decode("utf-16-le")


class Signals:
    """SIGINT, SIGTERM and SIGHUP raise Stopped, but not within `held`: there they wait for its end."""

    def __init__(self):
        self._held = False
        self._pending = None
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame) -> None:
        if self._held:
            self._pending = number
        else:
            raise Stopped(number)

    @contextlib.contextmanager
    def held(self):
        """A process that is started in here is known to whoever stops them all."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._pending is not None:
            raise Stopped(self._pending)

    def unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def ignore(self) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


class Processes:
    """Processes of the demo. Each has a log in `folder`, and a session of its own: Ctrl-C is the demo's alone."""

    def __init__(self, folder: Path, signals: Signals):
        self._folder, self._signals = folder, signals
        self._running: dict[str, subprocess.Popen] = {}

    def start(self, name: str, command: list, environment: dict, **options) -> subprocess.Popen:
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", **environment}
        with self._signals.held(), open(self.log(name), "ab") as log:
            process = self._running[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
                cwd=self._folder, **options)
        return process

    def log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def check(self, *names: str) -> None:
        """Raise DemoError when one of them has ended."""
        for name in names:
            status = self._running[name].poll()
            if status is not None:
                raise DemoError(f"the {name} ended with status {status}")

    def stop(self) -> None:
        """End them all, the last one first."""
        while self._running:
            _, process = self._running.popitem()
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def tails(self) -> str:
        """The ends of the logs."""
        return "".join(f"\n--- {path.name}\n{path.read_text(errors='replace')[-2000:]}"
                       for path in sorted(self._folder.glob("*.log")))


class Sandbox:
    """The sandbox's control API, as far as the demo plays the person."""

    def __init__(self, url: str):
        self.url = url
        self._seq = 0
        # Whatever proxy the environment names, this is a process of ours on the loopback.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def person(self, first_name: str, username: str) -> None:
        self._call("chats", {"id": CHAT_ID, "first_name": first_name, "username": username, "type": "private"})

    def types(self, text: str) -> None:
        self._call("messages", {"chat_id": CHAT_ID, "text": text})

    def news(self, wait: int) -> list[dict]:
        """The messages that are new or changed since the last call; waits up to `wait` seconds for one."""
        news = self._call(f"messages?chat_id={CHAT_ID}&after={self._seq}&wait={wait}")
        self._seq = news["seq"]
        return news["messages"]

    def file(self, file_id: str) -> bytes:
        return self._read(f"files/{file_id}")

    def _call(self, name: str, body: dict | None = None) -> dict:
        return json.loads(self._read(name, None if body is None else json.dumps(body).encode()))

    def _read(self, name: str, data: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"{self.url}/sandbox/{name}", data, {"Content-Type": "application/json"})
        try:
            with self._opener.open(request, timeout=PATIENCE_SECONDS) as answer:
                return answer.read()
        except OSError as error:
            raise DemoError(f"the sandbox does not answer: {error}") from None


class Demo:
    """One run of it, in `folder`, which holds a copy of the project in `lib` and a home."""

    def __init__(self, folder: Path, signals: Signals, screen: Screen, copy_command: str):
        self.folder, self.home = folder, folder / "home"
        self.scripts = self.home / "user" / "notifications"
        self.user = _account_name()
        self.processes = Processes(folder, signals)
        self._screen, self._copy_command = screen, copy_command
        self._python = _python()
        self._bot_socket, self._on_demand = folder / "bot.sock", folder / "on-demand"
        self._analyst = {"NOTIFY_HOME": str(self.home), "NOTIFY_ANALYST_GROUP": "",
                         "NOTIFY_BOT_SOCKET": str(self._bot_socket)}
        self._sandbox: Sandbox | None = None
        self._pass: subprocess.Popen | None = None

    def start(self) -> None:
        for path in (self.folder / "data", self._on_demand, self.scripts):
            path.mkdir(parents=True)
        # Scripts run with the Python that runs the demo, wherever that is.
        (self.home / ".venv/bin").mkdir(parents=True)
        (self.home / ".venv/bin/python").symlink_to(self._python)
        self._start_sandbox()
        environment = {"TELEGRAM_BOT_TOKEN": TOKEN, "TELEGRAM_API_URL": self._sandbox.url,
                       "NOTIFY_DATA_DIR": str(self.folder / "data"), "NOTIFY_STATE_DIR": str(self.folder / "state"),
                       "NOTIFY_BOT_SOCKET": str(self._bot_socket),
                       "NOTIFY_SCRIPTS_DIR": str(self._on_demand), "NOTIFY_WS_SOCKET": str(self.folder / "no-gateway"),
                       "NOTIFY_SITE_NAME": "this machine"}
        self.processes.start("bot", self._program("notify_bot.py"), environment)
        self._screen.step("started the bot, with a made-up token")
        self._serve_scripts()

    def link(self) -> None:
        """The person writes /start; the code in the answer is taken as the dashboard would take it."""
        self._sandbox.person("Jana", "jana")
        self._sandbox.types("/start")
        self._wait_for("the welcome in the chat", lambda message: "is now linked" in _text(message))

    def notify(self) -> None:
        """A script runs, and what it says arrives, text and picture."""
        shutil.copy(self.folder / "examples" / "disk_use.py", self.scripts)
        script = self.scripts / "disk_use.py"
        disks = ["/", "/home", "/tmp", "/var", "/dev/shm"]
        limit = max(_percent(disk) for disk in disks if os.path.exists(disk)) - 1
        source = re.sub("^DISKS = .*$", f"DISKS = {json.dumps(disks)}", script.read_text(), flags=re.M)
        script.write_text(re.sub("^LIMIT_PERCENT = .*$", f"LIMIT_PERCENT = {limit}", source, flags=re.M))
        self._screen.step(f"examples/disk_use.py with a limit of {limit} % goes into the folder; the runner runs")
        self._run_pass()
        message = self._wait_for("the notification", lambda message: message.get("photo"))
        picture = (self.home / ".cache" / "disk_use.png").read_bytes()
        if not _text(message).startswith("Disk use of") or "% full" not in _text(message):
            raise DemoError(f"the notification has another text: {_text(message)!r}")
        if self._sandbox.file(message["photo"][-1]["file_id"]) != picture:
            raise DemoError("the picture in the chat is not the one the script drew")

    def stay(self) -> None:
        """Show what happens in the chat and run what is put into the folder, until a signal comes."""
        self._screen.step("and now you:")
        print(f"""
    the chat page    {self._sandbox.url}/
                     type /status and press a Run button, or type /help
    a new script     {self._copy_command} examples/data_freshness.py {self.scripts}/
                     runs within {PASS_SECONDS} seconds (on a real host: every five minutes)
    end and remove   Ctrl-C
""", flush=True)
        next_pass = time.monotonic() + PASS_SECONDS
        while True:
            self._show_news()
            if time.monotonic() >= next_pass:
                self._run_pass()
                next_pass = time.monotonic() + PASS_SECONDS

    def _program(self, name: str, *arguments: str) -> list:
        return [self._python, "-EsS", self.folder / "lib" / name, *arguments]

    def _start_sandbox(self) -> None:
        self.processes.start("sandbox", self._program("tests/telegram", "--port", "0", "--token", TOKEN), {})
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (url := re.match(r"(http://\S+)\n", self.processes.log("sandbox").read_text())):
            self.processes.check("sandbox")
            if time.monotonic() > deadline:
                raise DemoError("the sandbox does not start")
            time.sleep(0.02)
        self._sandbox = Sandbox(url[1].rstrip("/"))
        self._screen.step(f"started the sandbox, a stand-in for Telegram: {self._sandbox.url}/")

    def _serve_scripts(self) -> None:
        """Stand in for systemd: notify-scripts gets its listening socket as descriptor 3."""
        launch = ("import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid()); "
                  "os.execv(sys.argv[2], sys.argv[2:])")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.fspath(self._on_demand / f"{self.user}.sock"))
            listener.listen()
            number = listener.fileno()
            serve = self._program("notify_scripts.py", "serve", "--bot-user", self.user, "--idle", "1e6")
            self.processes.start("scripts", [self._python, "-IS", "-c", launch, str(number), *serve],
                                 {**self._analyst, "LISTEN_FDS": "1"}, pass_fds=(number,))

    def _run_pass(self) -> None:
        """A pass of the runner, unless one is still going on."""
        if self._pass is None or self._pass.poll() is not None:
            self._pass = self.processes.start("runner", self._program("notify_runner.py"), self._analyst)

    def _wait_for(self, what: str, is_it) -> dict:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            for message in self._show_news():
                if is_it(message):
                    return message
        raise DemoError(f"{what} did not arrive within {PATIENCE_SECONDS} s")

    def _show_news(self) -> list[dict]:
        messages = self._sandbox.news(1)
        for message in messages:
            self._screen.message(message)
            code = re.match(r"Your code is (\d{6})\n", _text(message))
            if code and message["from"]["is_bot"]:
                self._redeem(code[1])
        self.processes.check("sandbox", "bot", "scripts")
        return messages

    def _redeem(self, code: str) -> None:
        from common.links import Links
        Links(self.folder / "data").redeem(code, self.user, os.getuid())
        self._screen.step(f"the dashboard would take the code now: it links the chat to {self.user}")


def _text(message: dict) -> str:
    return message.get("text") or message.get("caption") or ""


def _percent(path: str) -> int:
    use = shutil.disk_usage(path)
    return int(100 * use.used / max(1, use.used + use.free))


def _account_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise DemoError(f"uid {os.getuid()} has no name on this machine, and a chat is linked to a name") from None


def _prepare(folder: Path) -> None:
    """Copy what is run into the folder: nothing is written into the checkout, and who runs it need not read that."""
    for name in PARTS:
        target = folder / "lib" / name
        target.parent.mkdir(exist_ok=True, parents=True)
        if (HERE / name).is_dir():
            shutil.copytree(HERE / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(HERE / name, target)
    shutil.copytree(HERE / "examples", folder / "examples")


def _go_on_without_root(folder: Path, arguments: list[str]):
    """Start over in this process as an account without rights, for scripts are never run as root."""
    account = pwd.getpwnam(UNPRIVILEGED)
    shutil.copy(__file__, folder / "demo.py")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid)
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    os.chdir(folder)
    python = _python()
    environment = {name: os.environ[name] for name in ("PATH", "TERM", "LANG", "NO_COLOR") if name in os.environ}
    # Blocked until the new program handles them: a mask outlives execve(2), a handler does not.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    os.execve(python, [python, "-I", folder / "demo.py", *arguments, "--folder", folder], environment)


def _python() -> str:
    """This Python, or the system's where the account that goes on may not enter this one's folder."""
    return sys.executable if os.access(sys.executable or "", os.X_OK) else "/usr/bin/python3"


def _play(demo: Demo, once: bool, signals: Signals, screen: Screen) -> int:
    sys.path.insert(0, str(demo.folder / "lib"))
    arrived = False
    try:
        demo.start()
        demo.link()
        demo.notify()
        arrived = True
        screen.step("the notification has arrived, text and picture")
        if not once:
            demo.stay()
        return 0
    except DemoError as error:
        print(f"demo: {error}{demo.processes.tails()}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        return 0 if arrived and not once else 128 + stopped.args[0]
    finally:
        signals.ignore()
        demo.processes.stop()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--once", action="store_true", help="end when the notification has arrived")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if sys.version_info < (3, 11):  # noqa: UP036  # whoever tries the demo has the Python they have
        parser.error(f"this needs Python 3.11 or newer, and this is {sys.version.split()[0]}")
    signals, screen, folder = Signals(), Screen(), options.folder
    try:
        if folder is None:
            with signals.held():
                # Not in $TMPDIR: the path of a unix socket has at most 107 bytes, and any account can enter /tmp.
                folder = Path(tempfile.mkdtemp(prefix="notify-demo-", dir="/tmp"))
            _prepare(folder)
            if os.geteuid() == 0:
                _go_on_without_root(folder, arguments)
        signals.unblock()
        # A script has to be its owner's, which a copy of root's is not.
        copy_command = f"install -o {UNPRIVILEGED} -m 644" if options.folder else "cp"
        return _play(Demo(folder, signals, screen, copy_command), options.once, signals, screen)
    except (DemoError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        return 128 + stopped.args[0]
    finally:
        signals.ignore()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
