"""The guides, done as they say and in their order, on a machine on which nothing is installed."""

import re

import pytest

from documents import blocks, code_spans, commands, prose, text_of
from host import CHATS, SANDBOX_PORT
from live import TOKEN
from machine import PROJECT, until

README, ADMIN, GUIDE = "README.md", "docs/telegram_bot.md", "docs/notifications.md"
SANDBOX = f"""[Service]
ExecStart=/usr/bin/python3 -EsS {PROJECT}/tests/telegram --port {SANDBOX_PORT} --token {TOKEN}
DynamicUser=yes
"""
API = f"""[Service]
Environment=TELEGRAM_API_URL=http://127.0.0.1:{SANDBOX_PORT}
"""
EDITOR = "/usr/local/sbin/test-editor"
# Documents name these, and this machine has no need of them.
OPTIONAL = {"/opt/data-analyst/.env", "/run/ws-gateway/ws.sock", "/data/notifications/bot.sock", "~/.venv/bin/python",
            "~/.notifications/unsent/", "/data/notifications/link_guesses.json"}


@pytest.fixture(scope="module")
def machine(bare_machine):
    """The machine, with a sandbox in Telegram's place from the start."""
    bare_machine.write("/etc/systemd/system/telegram-sandbox.service", SANDBOX)
    bare_machine.write("/etc/systemd/system/notify-bot.service.d/sandbox.conf", API)
    bare_machine.run("systemctl", "daemon-reload")
    bare_machine.run("systemctl", "start", "telegram-sandbox.service")
    call_up = f"import socket; socket.create_connection(('127.0.0.1', {SANDBOX_PORT}), 5).close()"
    until(lambda: bare_machine.run("python3", "-c", call_up, check=False).returncode == 0, 20, "the sandbox is up")
    return bare_machine


def follow(machine, name, section, replace=()):
    """Type the commands of a section, each as who its block says; the outputs by command."""
    outputs = {}
    for block in blocks(name, section=section):
        if "edit" in block.marks:
            machine.write(EDITOR, f"#!/bin/sh\ncat >\"$1\" <<'END'\n{block.text}END\n", 0o755)
    # As in a terminal: a directory that is entered stays entered.
    folder = PROJECT
    for block in blocks(name, "console", section):
        user = block.marks.get("machine") or None
        for prompt, command in commands(block):
            assert (prompt == "#") == (user is None), command
            if "curl" in command:
                continue  # test_docs.py runs these
            if command.startswith("cd "):
                folder = command[3:]
                continue
            outputs[command] = type_in(machine, command, user, folder if user is None else f"/home/{user}", replace)
    assert outputs, f"{name} has nothing to type below {section!r}"
    return outputs


def type_in(machine, command, user, folder, replace):
    for old, new in replace:
        command = command.replace(old, new)
    line = f"cd {folder}; {command}"
    if "systemctl --user edit" in command:  # which wants a terminal
        line = f"cd {folder}; SYSTEMD_EDITOR={EDITOR} script --quiet --return --command '{command}' /dev/null"
    done = machine.run("bash", "-c", line, user=user, input=f"{TOKEN}\n", check=False, timeout=120)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_install_as_the_readme_says(machine):
    outputs = follow(machine, README, "Install for real")
    assert "Installed." in outputs["make install"]
    assert machine.show("notify-bot.service", "ActiveState")["ActiveState"] == "active"
    assert machine.path("/etc/notify-bot/telegram-bot-token").stat().st_mode & 0o777 == 0o600


def test_install_as_the_guide_says(machine):
    outputs = follow(machine, ADMIN, "Install")
    assert "nothing to do" in outputs["make install"]
    assert "Active: active (running)" in outputs["systemctl status notify-bot.service"]
    assert machine.path("/data/docs/notifications.md").read_text() == text_of(GUIDE)


def test_link_by_hand(machine):
    machine.control("POST", "chats", {"id": CHATS["alice"], "first_name": "Alice"})
    machine.types("alice", "/start")
    code = machine.wait_for("alice", "Your code is ").split()[3]
    follow(machine, ADMIN, "Link a chat without a dashboard", [("483920", code)])
    machine.wait_for("alice", "This chat is now linked to alice", 10)


def test_write_a_script(machine):
    block, = [block for block in blocks(GUIDE, "python") if "file" in block.marks]
    machine.script("alice", block.marks["file"], block.text)
    outputs = follow(machine, GUIDE, "Write a script")
    assert "would send now" in outputs["notify-runner --dry-run hello"]
    assert "disk_use.py" in outputs["notify-runner --dry-run disk_use"]
    assert machine.wait_for("alice", "Hello") == "Hello\nfrom my first script"
    assert machine.texts("alice").count("Hello\nfrom my first script") == 1


def test_a_schedule_of_its_own(machine):
    outputs = follow(machine, GUIDE, "When it runs")
    timers = outputs["systemctl --user list-timers"]
    assert "notify-runner@hello.timer" in timers and "notify-runner.timer" in timers
    schedule = machine.user_systemctl("alice", "show", "--property=TimersCalendar", "notify-runner@hello.timer")
    assert schedule.count("OnCalendar=") == 1 and "Mon..Fri *-*-* 08:00:00" in schedule
    back, = [span for span in code_spans(prose(GUIDE)) if span.startswith("systemctl --user disable")]
    type_in(machine, back, "alice", "/home/alice", ())
    assert "notify-runner@hello.timer" not in machine.user_systemctl("alice", "list-timers")


def test_look_when_something_is_wrong(machine):
    machine.user_systemctl("alice", "start", "notify-runner.service")
    outputs = follow(machine, GUIDE, "When something is wrong")
    assert "its cooldown holds it until" in outputs["notify-runner --dry-run hello"]
    assert "hello.py: sent (alert)" in outputs["tail ~/.notifications/logs/runner.log"]
    assert "scripts in" in outputs["journalctl --user -u notify-runner"]


def test_watch(machine):
    machine.types("alice", "/status")
    machine.wait_for("alice", "hello.py")
    until(lambda: "1 linked, 0 queued, polled " in machine.output("systemctl", "status", "notify-bot.service"), 20,
          "the status line")
    outputs = follow(machine, ADMIN, "Watch")
    assert "delivered" in outputs["journalctl -u notify-bot.service --since today"]
    assert "notify-runner.timer" in outputs["systemctl --user --machine=alice@ list-timers"]
    assert "scripts in" in outputs["journalctl _UID=$(id -u alice) --since today"]
    assert "Lists and runs the scripts of alice" in outputs["journalctl -u 'notify-scripts@*' --since today"]


@pytest.mark.parametrize("name", [README, ADMIN, GUIDE, "docs/ARCHITECTURE.md"])
def test_paths_named_are_there(machine, name):
    found = re.findall(r"(?<![\w/.:])(?:~|/(?:usr|etc|data|run|opt))/[\w@./~-]+", text_of(name))
    paths = {path.rstrip(".") for path in found} - OPTIONAL
    assert paths
    for path in paths:
        place = path.replace("USER", "alice").replace("NAME", "hello").replace("~/", "/home/alice/")
        place = place.replace("sent/DAY", "sent").replace("/data/notifications.json", "/data/notifications")
        assert machine.run("ls", "-d", place, check=False).returncode == 0, f"{name} names {path}"


@pytest.mark.parametrize("name", [README, ADMIN, GUIDE, "docs/ARCHITECTURE.md"])
def test_units_named_are_there(machine, name):
    units = set(re.findall(r"\bnotify-[a-z-]+(?:@\w*)?\.(?:service|socket|timer)\b", text_of(name)))
    for unit in units:
        instance = unit.replace("@.", "@alice.").replace("@USER.", "@alice.").replace("@NAME.", "@hello.")
        user = "alice" if unit.startswith("notify-runner") else None
        machine.run("systemctl", *(["--user"] if user else []), "cat", instance, user=user)


def test_the_manual_pages_named_are_installed(machine):
    pages = {span[4:] for name in (ADMIN, GUIDE) for span in code_spans(prose(name)) if span.startswith("man ")}
    for page in pages - {"systemd.time"}:
        assert list(machine.path("/usr/local/share/man").glob(f"man?/{page}.?")), page


def test_take_it_away(machine):
    follow(machine, ADMIN, "Take it away")
    assert not machine.path("/usr/local/lib/notify-bot").exists()
    for kept in ("/etc/notify-bot/telegram-bot-token", "/data/notifications/telegram_users.json",
                 "/home/alice/user/notifications/hello.py"):
        assert machine.path(kept).exists()
    assert machine.run("systemctl", "status", "notify-bot.service", check=False).returncode == 4
