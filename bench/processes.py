"""The processes that are measured, whole and on the system's Python: started, asked how they are, ended."""

import contextlib
import fcntl
import grp
import http.client
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.parse
from pathlib import Path

import load

BENCH = Path(__file__).resolve().parent
CHECKOUT = BENCH.parent
PYTHON = "/usr/bin/python3"
VENV_PYTHON = CHECKOUT / ".venv-bench/bin/python"
TOKEN = "123456789:AAbenchBENCHbenchBENCHbenchBENCHbench0"
TICK = os.sysconf("SC_CLK_TCK")
AS_ANALYST = {"user": pwd.getpwnam("nobody").pw_uid, "group": pwd.getpwnam("nobody").pw_gid,
              "extra_groups": []} if os.getuid() == 0 else {}


def until(condition, seconds=60, what="it is so", pause=0.005):
    """The first true value of `condition()`; raises TimeoutError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(pause)
    return value


class Place:
    """A folder with the project installed in it, on a disk, and what the processes in it need.

    It is below `folder`, because a /tmp in memory would make a durable file look cheap."""

    def __init__(self, folder):
        self.folder = Path(tempfile.mkdtemp(prefix="notify-bench-", dir=folder))
        self.folder.chmod(0o755)
        subprocess.run([CHECKOUT / "install.sh", "install"], check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, "DESTDIR": str(self.folder), "PREFIX": "/usr"})
        self.modules = self.folder / "usr/lib/notify-bot"
        self._count = 0

    def remove(self):
        shutil.rmtree(self.folder)

    def new(self, name):
        """A new folder."""
        self._count += 1
        folder = self.folder / f"{name}-{self._count}"
        folder.mkdir(mode=0o755)
        return folder

    def bot(self, *arguments):
        """The command that starts the bot: as it is without arguments, else through bot.py."""
        if not arguments:
            return [PYTHON, "-EsS", self.modules / "notify_bot.py"]
        return [PYTHON, "-EsS", BENCH / "bot.py", self.modules, *arguments]

    def standard_modules(self):
        """Names of the standard modules that the bot imports."""
        code = (f"import sys; sys.path.insert(0, {str(self.modules)!r}); import notify_bot; "
                "print(*(name for name in sys.modules if name.partition('.')[0] in sys.stdlib_module_names))")
        names = subprocess.run([PYTHON, "-EsSc", code], check=True, capture_output=True, text=True).stdout.split()
        return sorted(set(names) - {"__main__"})


class Account:
    """An account that the link page takes for an analyst's: with a mount namespace that names one, when root, so that
    no account of the host is needed; else whoever runs this. `run` is where a program finds it."""

    PASSWD, GROUP = "root:x:0:0::/root:/bin/sh\nu1:x:3001:3001::/:/bin/sh\n", "root:x:0:\nu1:x:3001:\n"

    def __init__(self, folder):
        self._holder, self.run, self.name = None, [], pwd.getpwuid(os.getuid()).pw_name
        self.group = grp.getgrgid(os.getgid()).gr_name
        if os.getuid():
            return
        self.name = self.group = "u1"
        for name, text in (("passwd", self.PASSWD), ("group", self.GROUP)):
            (folder / name).write_text(text)
        script = 'for name in passwd group; do mount --bind "$1/$name" /etc/$name; done; echo up; exec sleep 3600'
        self._holder = subprocess.Popen(["unshare", "--mount", "sh", "-ec", script, "sh", folder],
                                        stdout=subprocess.PIPE, text=True)
        if self._holder.stdout.readline() != "up\n":
            raise RuntimeError("a mount namespace with an analyst in it could not be made")
        self.run = ["nsenter", "-t", str(self._holder.pid), "--mount"]

    def close(self):
        if self._holder:
            self._holder.kill()
            self._holder.wait()
            self._holder.stdout.close()


def floor(*arguments):
    """The command of a floor (floors.py)."""
    return [PYTHON, "-EsS", BENCH / "floors.py", *map(str, arguments)]


def floor_result(*arguments):
    """Figures of a floor that ends by itself."""
    return json.loads(subprocess.run(floor(*arguments), check=True, capture_output=True).stdout)


class Server:
    """A process on listening sockets that it is handed as systemd does it (sd_listen_fds(3)), one for each of `names`.

    `path` is that of the first; `begin` is when it was started; with `ready`, until it answers."""

    def __init__(self, folder, command, environment=None, ready=True, names=("api",)):
        self.path = str(folder / f"{names[0]}.sock")
        self._log = folder / "log"
        environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "LISTEN_FDS": str(len(names)),
                       "LISTEN_FDNAMES": ":".join(names), **(environment or {})}
        with contextlib.ExitStack() as stack:
            listeners = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in names]
            for name, listener in zip(names, listeners, strict=True):
                listener.bind(str(folder / f"{name}.sock"))
                listener.listen(4096)
            self.begin = time.perf_counter()
            self.pid = os.fork()
            if not self.pid:
                self._become([listener.fileno() for listener in listeners], [os.fspath(word) for word in command],
                             environment)
        if ready:
            self.first_answer()

    def _become(self, listeners, command, environment):
        """In the child: never returns."""
        try:
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            # Out of the way first, for one may have a number that another is to get.
            for number, listener in enumerate([fcntl.fcntl(one, fcntl.F_DUPFD, 64) for one in listeners], 3):
                os.dup2(listener, number)
            os.execve(command[0], command, {**environment, "LISTEN_PID": str(os.getpid())})
        finally:
            os._exit(127)

    def first_answer(self):
        """Seconds from its start to its first answer."""
        load.run(self.path, 1, [load.get("/health")])
        return time.perf_counter() - self.begin

    def cpu(self):
        """Seconds of processor time it has used, its system calls included (proc(5))."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def memory(self):
        """Resident bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def log(self):
        return self._log.read_text(errors="replace")

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + 15
        while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.005)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.stop()


class Telegram:
    """The sandbox, with so many private chats, numbered from 1."""

    def __init__(self, place, chats, limits="off"):
        ready = place.new("telegram") / "url"
        self._process = subprocess.Popen(
            [PYTHON, "-EsS", CHECKOUT / "tests/telegram", "--token", TOKEN, "--limits", limits,
             "--ready-file", ready], stdout=subprocess.DEVNULL)
        until(ready.exists, what="the sandbox is up")
        self.url, self.chats = ready.read_text().strip(), chats
        parts = urllib.parse.urlsplit(self.url)
        self.host, self.port = parts.hostname, parts.port
        for chat_id in range(1, chats + 1):
            self._call("POST", "/sandbox/chats", {"id": chat_id})
            self._call("POST", "/sandbox/unblock", {"chat_id": chat_id})
        offset = 0
        # That the chats were opened is an update each, which is not to be handled while something is measured.
        while updates := self._call("POST", f"/bot{TOKEN}/getUpdates", {"offset": offset})["result"]:
            offset = updates[-1]["update_id"] + 1

    def _call(self, method, path, fields=None):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.request(method, path, json.dumps(fields or {}), {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        if not answer["ok"]:
            raise RuntimeError(answer)
        return answer

    def stats(self):
        return self._call("GET", "/sandbox/stats")

    def wait_for(self, count):
        """Wait until so many messages have come. The service itself is not asked: that would be work, too."""
        until(lambda: self.stats()["sent"] >= count, 120, f"{count} messages have come", pause=0.05)

    def quiet_since(self, seconds):
        """Wait until nothing has come for so long; the time (time.perf_counter) at which the last message came."""
        sent, since = self.stats()["sent"], time.perf_counter()
        while time.perf_counter() - since < seconds:
            time.sleep(0.02)
            if (now := self.stats()["sent"]) != sent:
                sent, since = now, time.perf_counter()
        return since

    def texts(self):
        """The number of texts in all chats, those of joined messages one by one."""
        answers = [self._call("GET", f"/sandbox/messages?chat_id={chat_id}") for chat_id in range(1, self.chats + 1)]
        return sum(line.startswith("message ") for answer in answers for message in answer["messages"]
                   for line in message.get("text", "").split("\n"))

    def calls(self, count):
        """The floor of a call: what `floors.py call` says."""
        return floor_result("call", self.host, self.port, f"/bot{TOKEN}/sendMessage", self.chats, count)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._process.terminate()
        self._process.wait(15)


class Service(Server):
    """The bot, or what it is compared with (`kind` is bot or comparison), for the users u1, u2, …, whose chats have
    those numbers. `linked` is how many users there are; those beyond the chats of `telegram` are never written to. What
    waits is joined if it `joins`: in the other rows a message is a call."""

    def __init__(self, place, telegram, kind, *arguments, linked=None, ready=True, joins=False):
        folder = place.new(kind)
        users = folder / "telegram_users.json"
        users.write_text(json.dumps({f"u{number}": {"chat_id": number, "linked_at": "2026-01-31T12:00:00Z",
                                                   "uid": 10000 + number}
                                     for number in range(1, (linked or telegram.chats) + 1)}))
        self.chats, self._sent = telegram.chats, 0
        environment = {"TELEGRAM_BOT_TOKEN": TOKEN}
        if kind == "comparison":
            command = [VENV_PYTHON, BENCH / "comparison.py", users, telegram.url]
        else:
            command = place.bot(*arguments)
            environment |= {"TELEGRAM_API_URL": telegram.url, "NOTIFY_DATA_DIR": str(folder),
                            "NOTIFY_STATE_DIR": str(folder / "state"),
                            "NOTIFY_SCRIPTS_DIR": str(folder / "scripts"), "NOTIFY_WS_SOCKET": str(folder / "ws"),
                            "NOTIFY_BOT_SOCKET": str(folder / "api.sock"), "NOTIFY_JOIN": str(int(joins))}
        self.folder = folder
        super().__init__(folder, command, environment, ready, ("api", "web") if kind == "bot" else ("api",))

    def messages(self, count, wait):
        """So many requests for a message each, to one chat after another; no two are the same."""
        for _ in range(count):
            self._sent += 1
            yield load.post("/send", {"user": f"u{1 + self._sent % self.chats}", "text": f"message {self._sent}",
                                      "wait": wait})

    def send(self, count, clients, wait):
        """The Load of sending messages. Raises RuntimeError where one was not taken."""
        done = load.run(self.path, clients, self.messages(count, wait))
        if done.statuses != {200 if wait else 202: count}:
            raise RuntimeError(f"answers {dict(done.statuses)}; {self.log()[-2000:]}")
        return done
