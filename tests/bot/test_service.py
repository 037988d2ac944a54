"""What systemd is told: readiness, the status line, and the watchdog, which is fed only while all goes on."""

import os
import socket
import subprocess
import time

import pytest

from live import CHECKOUT, ME, PYTHON, Bot, Process, until

STUCK = {
    "polling": "from bot import polling; polling.STUCK_SECONDS = 1",
    "delivery": "from bot import delivery; delivery.STUCK_SECONDS = 1",
    "the API": "from bot import http_server; http_server.Server.came_round = lambda self: None; "
               "from bot import service; service.API_STUCK_SECONDS = 1",
    "the page's API": "from bot import page_api; page_api.WebServer.came_round = lambda self: None; "
                      "from bot import service; service.API_STUCK_SECONDS = 1",
}


class Manager:
    """systemd's end of NOTIFY_SOCKET."""

    def __init__(self, folder):
        self.path = str(folder / "manager.sock")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(0.05)
        self.said = []

    def close(self):
        self._socket.close()

    def heard(self, prefix):
        try:
            while True:
                self.said.append(self._socket.recv(4096).decode())
        except TimeoutError:
            return [line for line in self.said if line.startswith(prefix)]


@pytest.fixture
def manager(tmp_path):
    manager = Manager(tmp_path)
    yield manager
    manager.close()


def test_the_manager_is_told_how_things_are(tmp_path, telegram, manager):
    bot = Bot(tmp_path, telegram.url, NOTIFY_SOCKET=manager.path, WATCHDOG_USEC="2000000")
    bot.users(alice=1)
    bot.start()
    try:
        until(lambda: manager.heard("READY=1"))
        until(lambda: len(manager.heard("WATCHDOG=1")) >= 3)
        until(lambda: any(line.startswith("STATUS=1 linked, 0 queued, polled ") for line in manager.heard("STATUS=")))
    finally:
        assert bot.stop() == 0
    assert manager.heard("STOPPING=1")


@pytest.mark.parametrize("part", STUCK)
def test_a_part_that_makes_no_progress_starves_the_watchdog(tmp_path, telegram, manager, part):
    bot = Bot(tmp_path, telegram.url, NOTIFY_WEB_SOCKET=str(tmp_path / "web.sock"))
    bot.users(**{ME: 1})
    telegram.person(1)
    telegram.types(1, "hi")
    # The first polls pass, so that what starves the watchdog is the one part under test.
    code = f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); import notify_bot; {STUCK[part]}; notify_bot.main([])"
    environment = bot.environment | {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "2000000"}
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen([PYTHON, "-c", code], env=environment, stdout=log, stderr=log)
    try:
        until(lambda: manager.heard("READY=1"))
        until(bot.socket_path.exists)
        if part == "delivery":
            until(lambda: len(telegram.messages(1)) == 1)
            telegram.control("faults", action="delay", method="sendMessage", seconds=8)
            assert bot.send("slow", wait=0).status_code == 202
        until(lambda: f"{part} makes no progress" in (tmp_path / "log").read_text())
        fed = len(manager.heard("WATCHDOG=1"))
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            assert len(manager.heard("WATCHDOG=1")) == fed
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("environment", "status", "said"), [
    ({"TELEGRAM_BOT_TOKEN": "nonsense"}, 78, "not of the form"),
    ({"TELEGRAM_API_URL": "ftp://x"}, 78, "TELEGRAM_API_URL"),
    ({"NOTIFY_MAX_AGE": "1d"}, 78, "NOTIFY_MAX_AGE must be a whole number of seconds"),
    ({"NOTIFY_JOIN": "yes"}, 78, "NOTIFY_JOIN must be 0 or 1"),
    ({"NOTIFY_DATA_DIR": "/nonexistent/data"}, 78, "/nonexistent/data"),
    ({"NOTIFY_STATE_DIR": "/nonexistent/state"}, 78, "/nonexistent/state"),
    ({"NOTIFY_KEEP_SENT": "3d"}, 78, "NOTIFY_KEEP_SENT must be a whole number of days"),
    ({"NOTIFY_BOT_SOCKET": "/nonexistent/x.sock"}, 69, "cannot start"),
    ({"NOTIFY_WEB_SOCKET": "/nonexistent/x.sock"}, 69, "cannot start"),
])
def test_a_wrong_setting_is_said_and_has_its_exit_status(tmp_path, environment, status, said):
    bot = Bot(tmp_path, "http://127.0.0.1:9")
    process = Process("notify_bot.py", folder=tmp_path, **bot.environment | environment)
    assert process.process.wait(10) == status
    process.stop()
    assert said in process.log and "Traceback" not in process.log


def test_help_and_version():
    def run(program, option):
        return subprocess.run([PYTHON, "-EsS", CHECKOUT / program, option], capture_output=True, text=True, timeout=20)

    for program in ("notify_bot.py", "notify_runner.py", "notify_scripts.py", "tests/telegram"):
        for option in ("--help", "--version"):
            done = run(program, option)
            assert done.returncode == 0 and done.stdout and not done.stderr, (program, option)
        wrong = run(program, "--nonsense")
        assert wrong.returncode == 64 and program[:6].replace("_", "-") in wrong.stderr, program


def test_the_copy_of_the_log_is_bounded(tmp_path):
    code = (f"import sys, pathlib; sys.path.insert(0, {str(CHECKOUT)!r}); import logging; from common import log; "
            "log.LOG_COPY_BYTES = 1000; log.set_up_log(pathlib.Path('copy.log'), ('secret',)); "
            "[logging.info('line %d secret %s', n, 'x' * 50) for n in range(100)]")
    done = subprocess.run([PYTHON, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and done.stderr.count("\n") == 100
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(files) == {"copy.log", "copy.log.1"}
    assert 1000 <= len(files["copy.log.1"]) < 1200 and len(files["copy.log"]) < 1200
    lines = [line.split()[4] for name in ("copy.log.1", "copy.log") for line in files[name].splitlines()]
    assert lines == [str(number) for number in range(100 - len(lines), 100)]
    assert "secret" not in "".join(files.values())


def test_a_copy_that_cannot_be_written_is_not_missed_twice(tmp_path):
    code = (f"import sys, pathlib; sys.path.insert(0, {str(CHECKOUT)!r}); import logging, resource, signal; "
            "from common import log; "
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
            "log.set_up_log(pathlib.Path('copy.log')); logging.info('one'); logging.info('two')")
    done = subprocess.run([PYTHON, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr.splitlines()) == (0, ["one", "two"])


@pytest.mark.parametrize("thing", ["open", "link", "another's"])
def test_a_state_folder_that_is_not_the_service_s_own_is_refused(tmp_path, thing):
    bot = Bot(tmp_path, "http://127.0.0.1:9")
    if thing == "open":
        bot.state.chmod(0o750)
    elif thing == "link":
        bot.state.rename(tmp_path / "elsewhere")
        bot.state.symlink_to(tmp_path / "elsewhere")
    elif os.geteuid() == 0:
        os.chown(bot.state, 65534, -1)
    else:
        bot = Bot(tmp_path, "http://127.0.0.1:9", NOTIFY_STATE_DIR="/")
    process = Process("notify_bot.py", folder=tmp_path, **bot.environment)
    assert process.process.wait(10) == 78
    process.stop()
    assert "must be a folder of this account" in process.log and not (tmp_path / "elsewhere/outbox").exists()


COPY = f"""
import sys, pathlib
sys.path.insert(0, {str(CHECKOUT)!r})
import logging
from common import log
log.LOG_COPY_BYTES = 1000
log.set_up_log(pathlib.Path("copy.log"))
for number in range(100):
    logging.info("line %d %s", number, "x" * 50)
"""


@pytest.mark.parametrize("thing", ["pipe", "pipe with a reader", "folder", "link", "second name"])
def test_what_is_no_file_of_the_service_s_is_not_its_log(tmp_path, thing):
    path, secret, reader = tmp_path / "copy.log", tmp_path / "secret", None
    secret.write_text("secret")
    if "pipe" in thing:
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if "reader" in thing else None
    elif thing == "folder":
        path.mkdir()
    elif thing == "link":
        path.symlink_to(secret)
    else:
        os.link(secret, path)
    done = subprocess.run([PYTHON, "-c", COPY], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    if reader is not None:
        os.close(reader)
    first, *others = done.stderr.splitlines()
    assert done.returncode == 0 and first.startswith("no copy of the log in copy.log: ") and len(others) == 100
    assert secret.read_text() == "secret" and {one.name for one in tmp_path.iterdir()} == {"copy.log", "secret"}


def test_a_copy_that_cannot_be_turned_over_stays_bounded(tmp_path):
    (tmp_path / "copy.log.1").mkdir()
    done = subprocess.run([PYTHON, "-c", COPY], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and done.stderr.count("\n") == 100
    assert 0 < (tmp_path / "copy.log").stat().st_size < 1200 and not list((tmp_path / "copy.log.1").iterdir())
