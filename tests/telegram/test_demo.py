"""`make demo` from a copy of the checkout: it shows what it promises, fails when it must, and leaves nothing behind."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from live import until

CHECKOUT = Path(__file__).resolve().parents[2]
PARTS = ("Makefile", "VERSION", "notify_bot.py", "notify_runner.py", "notify_scripts.py", "bot", "common", "runner",
         "tests/telegram", "examples")
DEMO = "tests/telegram/demo.py"


class Demo:
    """A copy of the checkout; `run` and `start` play its demo. At the end nothing of it may be there any more."""

    def __init__(self, folder):
        self.folder = folder
        self.process = None
        for part in PARTS:
            copy = shutil.copytree if (CHECKOUT / part).is_dir() else shutil.copy
            copy(CHECKOUT / part, folder / part)
        for cache in list(folder.rglob("__pycache__")):
            shutil.rmtree(cache)
        self._files = sorted(folder.rglob("*"))
        # By which to tell this demo from others on the host.
        self._prefix = f"notify-demo-{os.urandom(4).hex()}-"
        self.change(DEMO, 'prefix="notify-demo-"', f'prefix="{self._prefix}"')

    def change(self, name, old, new):
        path = self.folder / name
        text = path.read_text()
        assert text.count(old) == 1, f"{name} has {old!r} {text.count(old)} times"
        path.write_text(text.replace(old, new))

    def run(self, *arguments):
        return subprocess.run(["make", "-C", self.folder, "demo", *arguments], capture_output=True, text=True,
                              timeout=60, stdin=subprocess.DEVNULL)

    def start(self):
        self._output = open(self.folder.with_suffix(".out"), "wb")  # noqa: SIM115
        self.process = subprocess.Popen(["/usr/bin/python3", self.folder / DEMO], stdin=subprocess.DEVNULL,
                                        stdout=self._output, stderr=self._output, cwd=self.folder)

    @property
    def output(self):
        return self.folder.with_suffix(".out").read_text()

    def wait_for(self, pattern, seconds=20):
        def found():
            assert self.process.poll() is None, self.output
            return re.search(pattern, self.output)
        return until(found, seconds, f"{pattern!r} in the demo's output")

    def end(self, number):
        self.process.send_signal(number)
        return self.process.wait(30)

    def close(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self._output.close()

    def assert_nothing_is_left(self):
        assert list(Path("/tmp").glob(f"{self._prefix}*")) == []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                assert self._prefix.encode() not in (entry / "cmdline").read_bytes()
        assert sorted(self.folder.rglob("*")) == self._files


@pytest.fixture
def demo(tmp_path):
    (tmp_path / "checkout").mkdir()
    demo = Demo(tmp_path / "checkout")
    yield demo
    demo.close()


def test_once_shows_the_notification_within_five_seconds(demo):
    begin = time.monotonic()
    done = demo.run("ONCE=1")
    seconds = time.monotonic() - begin
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert seconds < 5
    order = ["you  /start", "bot  Your code is ", "is now linked to", "bot  [photo, 900x", "Disk use of",
             "has arrived, text and picture"]
    places = [done.stdout.find(text) for text in order]
    assert -1 not in places, done.stdout
    assert places == sorted(places), done.stdout
    demo.assert_nothing_is_left()


def test_once_works_for_an_account_without_rights(demo):
    """The way of a newcomer; as root the others start over as one."""
    account = {} if os.getuid() else {"user": "nobody", "group": "nogroup", "extra_groups": []}
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        shutil.copytree(demo.folder, place, dirs_exist_ok=True)
        os.chmod(place, 0o755)
        done = subprocess.run(["/usr/bin/python3", f"{place}/{DEMO}", "--once"], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=60, cwd="/", **account)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "has arrived, text and picture" in done.stdout
    demo.assert_nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_stays_until_it_is_told_to_end_and_runs_what_is_put_into_its_folder(demo, number):
    demo.change(DEMO, "PASS_SECONDS = 10", "PASS_SECONDS = 1")
    demo.start()
    folder = Path(demo.wait_for(r"data_freshness\.py (/tmp/\S+/)\n")[1])
    demo.wait_for("Ctrl-C")
    script = folder / "mine.py"
    script.write_text('print(\'{"notify": true, "title": "Mine", "message": "dropped in"}\')\n')
    os.chown(script, folder.stat().st_uid, folder.stat().st_gid)
    demo.wait_for(r"bot  Mine\n +dropped in\n")
    assert demo.end(number) == 0
    demo.assert_nothing_is_left()


def test_a_run_button_in_the_page_works(demo):
    import requests
    demo.start()
    url = demo.wait_for(r"chat page +(http://127\.0\.0\.1:\d+)/\n")[1]
    chat = requests.get(f"{url}/sandbox/chats", timeout=10).json()["chats"][0]["id"]
    requests.post(f"{url}/sandbox/messages", json={"chat_id": chat, "text": "/status"}, timeout=10)
    demo.wait_for(r"\[ ▶ Run disk_use\.py \]")
    messages = requests.get(f"{url}/sandbox/messages", params={"chat_id": chat}, timeout=10).json()["messages"]
    press = {"chat_id": chat, "message_id": messages[-1]["message_id"], "text": "▶ Run disk_use.py"}
    assert requests.post(f"{url}/sandbox/press", json=press, timeout=10).ok
    until(lambda: demo.output.count("[photo, 900x") == 2, 20, "the picture of the run")
    assert demo.end(signal.SIGINT) == 0


@pytest.mark.parametrize("moment", ["started the sandbox", "started the bot", "Your code is", "the runner runs"])
def test_it_can_be_ended_at_any_moment(demo, moment):
    demo.start()
    demo.wait_for(moment)
    assert demo.end(signal.SIGTERM) == 128 + signal.SIGTERM
    demo.assert_nothing_is_left()


def test_it_ends_what_it_started_when_nobody_reads_its_output(demo):
    process = subprocess.Popen(["/usr/bin/python3", demo.folder / DEMO], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process.stdout, process.stderr:
        assert b"started the sandbox" in process.stdout.readline()
        process.stdout.close()
        assert b"Broken pipe" in process.stderr.read()
    assert process.wait(30) != 0
    demo.assert_nothing_is_left()


def test_it_fails_when_the_sandbox_refuses_the_token(demo):
    demo.change(DEMO, '{"TELEGRAM_BOT_TOKEN": TOKEN', '{"TELEGRAM_BOT_TOKEN": "1:another"')
    demo.change(DEMO, "PATIENCE_SECONDS = 15", "PATIENCE_SECONDS = 3")
    done = demo.run("ONCE=1")
    assert done.returncode != 0
    assert "demo: the welcome in the chat did not arrive" in done.stderr
    assert "Telegram refuses the bot token" in done.stderr, "the log of the bot is shown"
    demo.assert_nothing_is_left()


def test_it_fails_when_the_sandbox_refuses_the_picture(demo):
    demo.change("tests/telegram/faults.py", "self._rules = []",
                'self._rules = [{"action": "error", "method": "sendPhoto", "status": 403, '
                '"description": "Forbidden: bot was blocked by the user", "draw": random.Random(0)}]')
    demo.change(DEMO, "PATIENCE_SECONDS = 15", "PATIENCE_SECONDS = 3")
    done = demo.run("ONCE=1")
    assert done.returncode != 0
    assert "demo: the notification did not arrive" in done.stderr
    demo.assert_nothing_is_left()


def test_it_fails_when_a_process_dies(demo):
    head = "def _serve(verbose: bool) -> int:\n"
    demo.change("notify_bot.py", head, f"{head}    return 3\n")
    done = demo.run("ONCE=1")
    assert done.returncode != 0
    assert "demo: the bot ended with status 3" in done.stderr
    demo.assert_nothing_is_left()
