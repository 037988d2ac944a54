"""The web server's account against the bot, in the folder that they share: everything that the folder allows."""

import pytest

from live import TOKEN
from machine import until

DATA, STATE = "/data/notifications", "/data/notify-bot"
CANARY, CANARY_FILE = "canary-5c1d", "/var/lib/canary"
CREDENTIAL = "/run/credentials/notify-bot.service/telegram-bot-token"
FILES = ("telegram_users.json", ".telegram_users.json.lock", ".telegram_users.json.tmp", "pending_codes.json",
         ".pending_codes.json.lock", "bot.log", "bot.log.1")
# In the place of a file, by www-data.
WAYS = {
    "away": lambda path: [],
    "pipe": lambda path: ["mkfifo", path],
    "folder": lambda path: ["mkdir", path],
    "link to another's file": lambda path: ["ln", "-s", CANARY_FILE, path],
    "link to the token": lambda path: ["ln", "-s", CREDENTIAL, path],
    "link to a pipe": lambda path: ["ln", "-s", "/tmp/pipe", path],
    "huge": lambda path: ["truncate", "-s", "1T", path],
    "half": lambda path: ["dd", "status=none", "if=/etc/machine-id", f"of={path}", "bs=10", "count=1"],
}
HOLD = """
import fcntl, sys, time
files = [open(path, "r+") for path in sys.argv[1:]]
for file in files:
    fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(300)
"""


@pytest.fixture
def shared(host):
    """The host with a file of the bot's that nobody else may read, and the folder as it was afterwards."""
    host.write(CANARY_FILE, CANARY, 0o600, "deploy")
    host.run("mkfifo", "/tmp/pipe", user="www-data")
    yield host
    host.restart_bot()
    host.run("rm", "-f", CANARY_FILE, "/tmp/pipe")
    assert_serves(host)
    host.send("root", "well again", user="alice", wait=10)
    assert host.wait_for("alice", "well again")


def assert_serves(host):
    """It answers, and it was not the watchdog that made it."""
    until(lambda: host.request("root", "GET", "/health")[0] in (200, 503), 20, "the bot answers")
    shown = host.show("notify-bot.service", "ActiveState", "Result", "NRestarts")
    assert shown == {"ActiveState": "active", "Result": "success", "NRestarts": "0"}


def assert_nothing_leaked(host):
    seen = host.run("sh", "-c", f"find {DATA} -type f -size -9M -exec cat {{}} +", user="www-data",
                    check=False).stdout
    assert TOKEN not in seen and CANARY not in seen
    for user in ("alice", "bob"):
        assert not [text for text in host.texts(user) if TOKEN in text or CANARY in text]
    assert host.output("cat", CANARY_FILE) == CANARY


@pytest.mark.parametrize("way", WAYS)
def test_another_thing_in_the_place_of_the_shared_files(shared, way):
    host = shared
    host.restart_bot()
    since = host.output("date", "+%s.%N")
    kept = f"{DATA}/kept"
    host.run("mkdir", kept, user="www-data")
    try:
        for name in FILES:
            path = f"{DATA}/{name}"
            host.run("mv", path, kept, user="www-data", check=False)
            if command := WAYS[way](path):
                host.run(*command, user="www-data")
        host.types("alice", "/start")
        host.request("root", "POST", "/send", {"user": "alice", "text": "while it is so", "wait": 0})
        host.restart_bot()
        assert_serves(host)
        host.types("bob", "/status")
        host.request("root", "POST", "/send", {"user": "alice", "text": "and again", "wait": 0})
        assert_serves(host)
        assert_nothing_leaked(host)
        if way != "away":
            said = host.output("journalctl", "-u", "notify-bot.service", f"--since=@{since}", "-o", "cat")
            problem = {"huge": "telegram_users.json cannot be read: it has 1099511627776 bytes",
                       "half": "telegram_users.json is not valid JSON"}.get(way, "it is no regular file")
            assert problem in said and "Traceback" not in said
            if way != "half":
                assert said.count("no copy of the log in") <= 2
    finally:
        host.run("sh", "-c", f"cd {DATA} && rm -rf {' '.join(FILES)} *.corrupt-*; mv kept/* kept/.[a-z]* .; rmdir kept",
                 check=False)


def test_a_lock_that_is_held_is_named_and_stops_nobody(shared):
    host = shared
    locks = [f"{DATA}/.{name}.lock" for name in ("telegram_users.json", "pending_codes.json")]
    host.run("touch", *locks, user="www-data", check=False)
    since = host.output("date", "+@%s")
    host.run("systemd-run", "--unit=holder", "--uid=www-data", "--gid=data-ops", "python3", "-c", HOLD,
             *locks)
    try:
        pid = host.show("holder.service", "MainPID")["MainPID"]
        until(lambda: "held" in host.output("journalctl", "-u", "holder.service", "-o", "cat"), 10, "locks")
        host.control("POST", "chats", {"id": 1999, "first_name": "Stranger"})
        host.control("POST", "messages", {"chat_id": 1999, "text": "/start"})
        until(lambda: f"is locked for over 5 s by process {pid}" in host.output(
            "journalctl", "-u", "notify-bot.service", f"--since={since}", "-o", "cat"), 20,
            "the journal names the holder")
        until(lambda: "cannot read its own files now" in str(host.control("GET", "messages?chat_id=1999")), 20,
              "the stranger is answered all the same")
        assert host.send("root", "meanwhile", user="alice", wait=10)[0] == 200
        assert_serves(host)
    finally:
        host.run("systemctl", "stop", "holder.service", check=False)


def test_the_bots_own_files_are_out_of_reach(shared):
    host = shared
    for user in ("www-data", "alice"):
        for command in (["ls", STATE], ["mv", STATE, f"{DATA}/x"], ["touch", f"{STATE}/x"], ["rm", "-r", STATE],
                        ["ln", f"{STATE}/polling.json", f"{DATA}/x"], ["cat", f"{STATE}/polling.json"]):
            assert host.run(*command, user=user, check=False).returncode != 0
    assert not host.run("ls", f"{DATA}/outbox", check=False).stdout
    assert host.output("stat", "-c", "%a %U:%G", STATE) == "700 deploy:deploy"


def test_a_state_folder_that_others_can_enter_is_refused(shared):
    host = shared
    try:
        host.run("chmod", "770", STATE)
        host.run("systemctl", "restart", "notify-bot.service", check=False)
        assert host.show("notify-bot.service", "ExecMainStatus") == {"ExecMainStatus": "78"}
        assert f"{STATE} must be a folder of this account" in host.output(
            "journalctl", "-u", "notify-bot.service", "-n", "20", "-o", "cat")
    finally:
        host.run("chmod", "700", STATE)
        host.run("systemctl", "reset-failed", "notify-bot.service", "notify-bot.socket", check=False)
        host.run("systemctl", "start", "notify-bot.socket", "notify-bot-web.socket", "notify-bot.service")
