"""The whole way on a booted Debian: sockets, timers, accounts and groups as they are on a real host."""

import json
import re

from common.settings import bot_settings
from host import BOT_SOCKET, CHATS
from live import TOKEN
from machine import until

WEB_SOCKET = str(bot_settings({}).web_socket)
SOON = """[Timer]
OnCalendar=
OnCalendar=*:*:0/2
RandomizedDelaySec=0
AccuracySec=100ms
"""
LONG = "Line of a long report with *no* markup in it. " * 200
# Sends without pause, a connection each, and prints what became of every one.
STEADY_CLIENT = """
import http.client, json, socket, sys, time
results = []
end = time.monotonic() + 6
while time.monotonic() < end:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(20)
    try:
        connection.sock.connect("/run/notify-bot/bot.sock")
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        results.append(answer.status)
    except (OSError, http.client.HTTPException) as error:
        results.append(repr(error))
    finally:
        connection.close()
    time.sleep(0.01)
print(json.dumps(results))
"""
WHO_AM_I = """
import grp, json, os, resource
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"notify": True, "title": "who", "message": "who\\n" + json.dumps({
    "uid": os.getuid(),
    "groups": " ".join(sorted(grp.getgrgid(gid).gr_name for gid in {os.getgid(), *os.getgroups()})),
    "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
    "no_new_privileges": int(status["NoNewPrivs"]),
    "files": resource.getrlimit(resource.RLIMIT_NOFILE)[1], "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
    "cwd": os.getcwd(), "unit": open("/proc/self/cgroup").read().split("/")[-1].strip(),
    "usr_is_writable": os.access("/usr/local", os.W_OK),
}).replace("_", " ")}))
"""

# What analysts run. Threads, shared memory, a name to look up and a server on the network included.
HEAVY = """
import json, multiprocessing, socket
import duckdb, numpy
import matplotlib.pyplot as plot

values = numpy.random.default_rng(1).normal(size=(400, 400))
numpy.linalg.svd(values)
rows = duckdb.sql("select count(*) from range(1000000) where range % 3 = 0").fetchall()[0][0]
connection = duckdb.connect("figures.duckdb")
connection.execute("create or replace table t as select range as x from range(1000)")
plot.plot(values[0])
plot.savefig("chart.png")
with multiprocessing.Pool(2) as pool:
    squares = sum(pool.map(abs, range(10)))
socket.create_connection(("localhost", 8081), 5).close()
print(json.dumps({"notify": True, "title": "heavy", "message": f"{rows} rows, {squares}",
                  "image_path": "/home/bob/chart.png"}))
"""


LEAVES_A_MARK = """
import json, pathlib
pathlib.Path.home().joinpath("mark").write_text("ran")
print(json.dumps({"notify": True, "title": "secret", "message": "figures of the new erin", "cooldown": "1m"}))
"""


def find(script, **output):
    return f"import json\nprint(json.dumps({output!r}))\n"


def active(host, unit):
    return host.show(unit, "ActiveState")["ActiveState"]


def test_first_connection_starts_the_bot(host):
    host.run("systemctl", "stop", "notify-bot.service")
    assert (active(host, "notify-bot.socket"), active(host, "notify-bot.service")) == ("active", "inactive")
    status, health = host.request("alice", "GET", "/health")
    assert (status, health["ok"], health["linked"]) == (200, True, len(CHATS))
    assert active(host, "notify-bot.service") == "active"


def test_connections_during_restarts_are_served(host):
    starts = host.show("notify-bot.service", "ExecMainPID")["ExecMainPID"]
    client = host.start("python3", "-c", STEADY_CLIENT, user="alice")
    for _ in range(3):
        host.restart_bot()
    results = json.loads(client.communicate(timeout=60)[0])
    assert len(results) > 20
    assert set(results) == {200}
    assert host.show("notify-bot.service", "ExecMainPID")["ExecMainPID"] != starts


def test_killed_bot_comes_back(host):
    before = host.show("notify-bot.service", "MainPID")["MainPID"]
    host.run("kill", "-9", before)
    until(lambda: host.show("notify-bot.service", "MainPID")["MainPID"] not in (before, "0"), 20, "a new bot runs")
    assert host.request("alice", "GET", "/health")[0] == 200


def test_hanging_bot_is_replaced(host):
    host.write("/etc/systemd/system/notify-bot.service.d/test.conf", "[Service]\nWatchdogSec=3s\n")
    host.run("systemctl", "daemon-reload")
    host.restart_bot()
    before = host.show("notify-bot.service", "MainPID")["MainPID"]
    host.run("kill", "-STOP", before)
    until(lambda: host.show("notify-bot.service", "MainPID")["MainPID"] not in (before, "0"), 30, "a new bot runs")
    assert "watchdog" in host.journal("-u", "notify-bot.service", "-n", "20").lower()
    host.path("/etc/systemd/system/notify-bot.service.d/test.conf").unlink()
    host.run("systemctl", "daemon-reload")
    host.restart_bot()


def test_status_line_has_live_figures(host):
    line = until(lambda: host.show("notify-bot.service", "StatusText")["StatusText"], 20, "a status line")
    assert line.startswith(f"{len(CHATS)} linked, 0 queued, ")


def test_alice_sends_to_alice_and_not_as_bob(host):
    assert host.send("alice", "for *alice*", wait=10)[0] == 200
    host.wait_for("alice", "for alice")
    status, answer = host.send("alice", "from alice", user="bob")
    assert status == 403, answer
    assert host.send("root", "from root", user="bob", wait=10)[0] == 200
    host.wait_for("bob", "from root")
    assert not [text for text in host.texts("bob") if "from alice" in text]


def test_strangers_do_not_reach_the_socket(host):
    host.run("useradd", "--create-home", "mallory")
    for socket in (BOT_SOCKET, "/run/notify-bot/bot.sock", "/run/notify-scripts/alice.sock"):
        assert host.request("mallory", "GET", "/health", socket=socket) == ["PermissionError", None]
    # Analysts may send, and no more: not look into the data, not ask for each other's scripts.
    for place in ("/data/notifications", "/data/notify-bot/outbox"):
        assert host.run("ls", place, user="alice", check=False).returncode != 0
    assert host.run("cat", "/data/notifications/telegram_users.json", user="alice", check=False).returncode != 0
    assert host.request("alice", "GET", "/", socket="/run/notify-scripts/bob.sock") == ["PermissionError", None]


def test_web_server_may_use_its_own_socket_and_nothing_else(host):
    status, card = host.request("www-data", "POST", "/card", {"user": "alice"}, socket=WEB_SOCKET)
    assert (status, card["ok"], card["scripts_error"]) == (200, True, None)
    assert host.request("www-data", "POST", "/invite", {"user": "alice"}, socket=WEB_SOCKET)[0] == 200
    for path in ("/send", "/send_photo", "/health", "/queue", "/metrics"):
        assert host.request("www-data", "POST", path, {"user": "alice", "text": "x"}, socket=WEB_SOCKET)[0] == 404
    assert host.request("root", "POST", "/card", {"user": "alice"}, socket=WEB_SOCKET)[0] == 200
    for user in ("alice", "mallory", "nobody", "deploy"):
        assert host.request(user, "POST", "/card", {"user": "alice"}, socket=WEB_SOCKET) == ["PermissionError", None]
    assert host.request("www-data", "GET", "/health", socket=BOT_SOCKET) == ["PermissionError", None]
    assert host.output("stat", "-c", "%a %U", "/data/notify-bot/invites.json") == "600 deploy"
    for place in ("/data/notify-bot/invites.json", "/data/notify-bot/polling.json",
                  "/etc/notify-bot/telegram-bot-token", "/run/credentials/notify-bot.service/telegram-bot-token"):
        assert host.run("cat", place, user="www-data", check=False).returncode != 0
    for place in ("/data/notify-bot/outbox", "/data/notify-bot/outbox/sent"):
        assert host.run("ls", place, user="www-data", check=False).returncode != 0


def test_run_of_the_page_runs_as_its_owner_and_the_chat_gets_it(host):
    host.script("alice", "page.py", find("page", notify=True, title="from the page", message="ran")
                .replace("print", "import getpass\nprint", 1).replace("'ran'", "'ran as ' + getpass.getuser()"))
    assert host.request("www-data", "POST", "/run", {"user": "alice", "name": "page.py"}, socket=WEB_SOCKET) == [
        202, {"ok": True}]
    assert "ran as alice" in host.wait_for("alice", "from the page")
    assert host.request("www-data", "POST", "/run", {"user": "bob", "name": "page.py"}, socket=WEB_SOCKET)[0] == 404
    card = host.request("www-data", "POST", "/card", {"user": "alice"}, socket=WEB_SOCKET)[1]
    (script,) = [script for script in card["scripts"] if script["name"] == "page.py"]
    assert script["last_run"] and script["can_run"] and not script["running"] and "OnCalendar" in script["schedule"]
    # The five-minute timer may have run it since; the newest comes first.
    notice = [notice for notice in card["notifications"] if notice["title"] == "from the page"][-1]
    assert (notice["script"], notice["state"]) == ("page.py", "delivered")


def test_bot_serves_without_the_socket_of_the_page(host):
    """A host without the group of the web server, or whose administrator wants no page."""
    host.write("/etc/systemd/system/notify-bot-web.socket.d/test.conf", "[Socket]\nSocketGroup=nosuchgroup\n")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "stop", "notify-bot-web.socket")
    host.restart_bot()
    assert active(host, "notify-bot-web.socket") == "failed"
    assert host.request("alice", "GET", "/health")[0] == 200
    host.path("/etc/systemd/system/notify-bot-web.socket.d/test.conf").unlink()
    host.run("systemctl", "daemon-reload")
    host.restart_bot()
    assert host.request("www-data", "POST", "/card", {"user": "alice"}, socket=WEB_SOCKET)[0] == 200


def test_page_starts_the_bot(host):
    host.run("systemctl", "stop", "notify-bot.service")
    assert host.request("www-data", "POST", "/card", {"user": "alice"}, socket=WEB_SOCKET)[0] == 200
    assert active(host, "notify-bot.service") == "active"


def test_timers_of_two_analysts_fire_without_a_login(host):
    host.script("alice", "text.py", find("text", notify=True, title="from a timer", message="for alice"))
    host.script("alice", "long.py", find("long", notify=True, title="all of it", message=LONG))
    host.script("alice", "photo.py", """
import json, shutil
shutil.copy("/usr/local/lib/notify-bot/bot/sample_chart.png", "chart.png")
print(json.dumps({"notify": True, "title": "a picture", "message": "see", "image_path": "/home/alice/chart.png"}))
""")
    host.script("bob", "text.py", find("text", notify=True, title="from a timer", message="for bob"))
    for user in CHATS:
        assert host.output("loginctl", "show-user", user, "--property=Sessions", "--value") == ""
        assert host.user_systemctl(user, "is-active", "notify-runner.timer") == "active"
        host.run("mkdir", "-p", f"/home/{user}/.config/systemd/user", user=user)
        host.write(f"/home/{user}/.config/systemd/user/notify-runner.timer.d/test.conf", SOON, 0o644)
        host.user_systemctl(user, "daemon-reload")
        host.user_systemctl(user, "restart", "notify-runner.timer")
    for user in CHATS:
        assert f"for {user}" in host.wait_for(user, "from a timer")
    host.wait_for("alice", "a picture")
    assert any("photo" in message for message in host.messages("alice"))
    until(lambda: sum(text.count("Line of a long report") for text in host.texts("alice")) == 200, 20,
          "all of the long text arrives")
    # The cooldown holds: the timer goes on, and nothing comes twice.
    until(lambda: host.journal(f"_UID={host.uid('alice')}").count("scripts in") >= 3, 20, "three passes")
    assert sum("from a timer" in text for text in host.texts("alice")) == 1
    for user in CHATS:
        host.path(f"/home/{user}/.config/systemd/user/notify-runner.timer.d/test.conf").unlink()
        host.user_systemctl(user, "daemon-reload")
        host.user_systemctl(user, "restart", "notify-runner.timer")


def test_script_on_its_own_schedule(host):
    host.script("bob", "daily-figures.py", find("daily", notify=True, title="daily", message="on its own timer"))
    host.user_systemctl("bob", "enable", "--now", "notify-runner@daily-figures.timer")
    host.user_systemctl("bob", "start", "notify-runner@daily-figures.service")
    host.wait_for("bob", "on its own timer")
    host.user_systemctl("bob", "start", "notify-runner.service")
    assert host.user_systemctl("bob", "show", "--property=Result", "notify-runner.service") == "Result=success"
    listed = json.loads(host.output("notify-scripts", "list", user="bob"))
    schedules = {script["name"]: script["schedule"] for script in listed}
    assert schedules["daily-figures.py"] != schedules["text.py"]


def test_run_press_runs_as_its_owner_with_groups_and_limits(host):
    host.run("groupadd", "--force", "ledger")
    host.run("usermod", "--append", "--groups", "ledger", "alice")
    host.run("systemctl", "stop", "notify-scripts@alice.service")
    host.script("alice", "who.py", WHO_AM_I)
    host.types("alice", "/status")
    host.wait_for("alice", "who.py")
    host.press("alice", "▶ Run who.py")
    text = host.wait_for("alice", "who\n{")
    seen = json.loads(text[text.index("{"):])
    assert seen == {
        "uid": host.uid("alice"), "groups": "alice dataread ledger", "capabilities": 0,
        "no new privileges": 1, "files": 4096, "core": 0, "cwd": "/home/alice",
        "unit": "notify-scripts@alice.service", "usr is writable": False}
    limits = host.show("notify-scripts@alice.service", "MemoryMax", "TasksMax")
    assert limits == {"MemoryMax": str(2 << 30), "TasksMax": "256"}


def test_what_analysts_run_works_from_the_timer_and_from_the_chat(host):
    host.make_venv("bob")
    host.script("bob", "heavy.py", HEAVY)
    host.user_systemctl("bob", "start", "notify-runner.service")
    assert "333334 rows, 45" in host.wait_for("bob", "rows, ")
    host.types("bob", "/status")
    host.wait_for("bob", "heavy.py")
    before = len(host.texts("bob"))
    host.press("bob", "▶ Run heavy.py")
    until(lambda: any("333334 rows, 45" in text for text in host.texts("bob")[before:]), 60, "the run's result")
    assert sum("photo" in message for message in host.messages("bob")) == 2


def test_account_made_again_is_another_person(host, monkeypatch):
    """erin leaves, and another erin comes: neither has anything to do with the other's chat."""
    monkeypatch.setitem(CHATS, "erin", 1003)
    host.control("POST", "chats", {"id": CHATS["erin"], "first_name": "Erin", "username": "erin"})
    host.run("notify-add-analyst", "--create", "erin")
    host.link("erin")
    until(lambda: host.path("/home/erin/user/notifications").exists(), 20, "erin's manager makes the folders")
    host.script("erin", "secret.py", LEAVES_A_MARK)
    host.types("erin", "/status")
    host.wait_for("erin", "secret.py")
    was = host.uid("erin")
    # Not by notify-add-analyst --remove, which would end the link.
    host.run("loginctl", "disable-linger", "erin")
    host.run("systemctl", "stop", "notify-scripts@erin.service", f"user@{was}.service")
    host.run("userdel", "--remove", "erin")
    host.run("useradd", "--create-home", "--uid", str(was + 500), "erin")
    shown = host.output("notify-add-analyst", "erin")
    assert "chat 1003 Erin (@erin)" in shown and f"not used: the account erin has the uid {was + 500}" in shown
    until(lambda: host.path("/home/erin/user/notifications").exists(), 20, "the new erin's manager makes the folders")
    host.script("erin", "secret.py", LEAVES_A_MARK)

    assert host.send("erin", "of the new erin") == [404, {"ok": False, "error": "User 'erin' has no linked Telegram"}]
    assert host.send("root", "for erin", user="erin")[0] == 404
    host.user_systemctl("erin", "start", "notify-runner.service")
    host.path("/home/erin/mark").unlink()
    before = len(host.texts("erin"))
    host.press("erin", "▶ Run secret.py")
    host.types("erin", "/status")
    host.types("erin", "/whoami")
    host.wait_for("erin", "is linked to nobody")
    said = host.texts("erin")[before:]
    assert not [text for text in said if "secret" in text or "new erin" in text or "for erin" in text], said
    assert any("Use /start to link your account" in text for text in said)
    assert not host.path("/home/erin/mark").exists()
    assert host.journal("-u", "notify-bot.service").count("the link of erin to chat 1003 is not used") == 1

    host.run("notify-add-analyst", "--remove", "erin")
    assert host.output("notify-bot", "links", "erin") == ""


def test_deploy_may_use_sudo_for_analysts_only(host):
    helper = "/usr/local/bin/notify-scripts"

    def sudo(user, *arguments):
        return host.run("sudo", "-n", "-u", user, *arguments, user="deploy", check=False)

    names = [script["name"] for script in json.loads(sudo("alice", helper, "list").stdout)]
    assert "text.py" in names
    assert json.loads(sudo("alice", helper, "run", "text.py").stdout)["message"] == "for alice"
    assert sudo("alice", helper, "sync-status").returncode == 0
    refused = [("root", helper, "list"), ("mallory", helper, "list"), ("alice", "/bin/sh"),
               ("alice", helper, "run", "../../../tmp/x.py"), ("alice", helper, "run", "a.py", "b.py"),
               ("alice", helper, "serve"), ("alice", helper, "list", "--help")]
    for user, *command in refused:
        answer = sudo(user, *command)
        assert answer.returncode == 1 and "password is required" in answer.stderr, (user, command, answer)
    environment = host.run("sudo", "-n", "-u", "alice", "EVIL=1", helper, "list", user="deploy", check=False)
    assert environment.returncode == 1


def test_reboot_keeps_everything(host):
    host.run("systemctl", "stop", "telegram-sandbox.service")
    status, answer = host.send("alice", "written before the reboot", wait=0)
    assert (status, answer["queued"]) == (202, True)
    host.reboot()
    host.wait_for("alice", "written before the reboot", 90)
    for user in CHATS:
        assert host.user_systemctl(user, "is-active", "notify-runner.timer") == "active"
        assert active(host, f"notify-scripts@{user}.socket") == "active"
        assert host.send(user, f"{user} is still linked", wait=10)[0] == 200
    assert host.request("alice", "GET", "/health")[1]["queued"] == 0


def test_journal_tells_the_story(host):
    story = host.journal("-u", "notify-bot.service")
    for line in ("notify-bot 0.1.0 serves", "alice is linked to chat 1001", "stopping; what is queued stays on disk",
                 "Deactivated successfully", "Telegram cannot be reached"):
        assert line in story, f"{line!r} is not in the journal of notify-bot.service"
    runner = host.journal(f"_UID={host.uid('alice')}", "_SYSTEMD_USER_UNIT=notify-runner.service")
    assert re.search(r"scripts in .*[1-9] sent", runner)
    assert "Traceback" not in host.journal()


def test_token_is_nowhere_to_be_read(host):
    secret = TOKEN.split(":")[1]
    # Fields of the journal that nobody sees, such as command lines, count too. The sandbox, unlike Telegram, is told
    # the token on its own.
    entries = host.output("journalctl", "--no-pager", "-o", "json").splitlines()
    assert len(entries) > 100
    assert [entry for entry in entries if secret in entry and "telegram-sandbox.service" not in entry] == []
    assert secret not in host.output("systemctl", "show", "notify-bot.service")
    told = host.show("telegram-sandbox.service", "MainPID")["MainPID"]
    processes = host.output("ps", "axeww", "-o", "pid=,command=").splitlines()
    assert [line for line in processes if secret in line and line.split()[0] != told] == []
    places = ("/data", "/home", "/var", "/tmp", "/run", "/etc")
    found = host.output("grep", "-rlsa", "--exclude-dir=journal", secret, *places, check=False)
    own = {"/etc/notify-bot/telegram-bot-token", "/etc/sandbox.env",
           "/run/credentials/notify-bot.service/telegram-bot-token"}
    assert set(found.splitlines()) == own
    for place in sorted(own - {"/etc/sandbox.env"}):
        assert host.run("cat", place, user="alice", check=False).returncode != 0


def test_without_a_token_one_clear_state_and_two_ways_out(host):
    token, settings = host.path("/etc/notify-bot/telegram-bot-token"), host.path("/etc/notify-bot/notify-bot.env")
    away, written = token.with_suffix(".away"), settings.read_text()
    token.rename(away)
    host.run("systemctl", "restart", "notify-bot.service", check=False)
    assert host.show("notify-bot.service", "ActiveState", "ExecMainStatus") == {
        "ActiveState": "failed", "ExecMainStatus": "78"}
    assert host.request("alice", "GET", "/health")[0] in ("ConnectionResetError", "ConnectionRefusedError")
    until(lambda: active(host, "notify-bot.socket") == "failed", 20, "the socket gives up")
    # The other one's attempts bring the first one back, and come to an end as well.
    assert host.request("www-data", "POST", "/card", {"user": "alice"}, socket=WEB_SOCKET)[0] in (
        "ConnectionResetError", "ConnectionRefusedError")
    until(lambda: active(host, "notify-bot-web.socket") == "failed", 20, "the socket of the page gives up")
    assert "systemctl restart notify-bot.service" in host.journal("-u", "notify-bot.service", "-n", "5")
    settings.write_text(f"{written}TELEGRAM_BOT_TOKEN={TOKEN}\n")
    host.restart_bot()
    assert host.send("alice", "with a token from the settings", wait=10)[0] == 200
    assert host.request("www-data", "POST", "/card", {"user": "alice"}, socket=WEB_SOCKET)[0] == 200
    # The credential wins: Telegram would refuse the other one.
    away.rename(token)
    settings.write_text(f"{written}TELEGRAM_BOT_TOKEN=1:wrong\n")
    host.restart_bot()
    assert host.send("alice", "with the credential", wait=10)[0] == 200
    settings.write_text(written)
    host.restart_bot()
