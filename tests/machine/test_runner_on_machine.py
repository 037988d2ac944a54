"""notify-runner and notify-scripts with a real user manager: timers, and what a script may leave running."""

import json
import re
import time

from machine import until

SILENT = "print('{\"notify\": false}')\n"
YEARLY = "[Timer]\nOnCalendar=\nOnCalendar=*-01-01 00:00:00 UTC\nRandomizedDelaySec=0\n"
INTERVAL = "[Timer]\nOnCalendar=\nOnActiveSec=3h\n"


def own_timer(host, user, stem, settings):
    """A script with a timer of its own. It is let go of with `forget`."""
    host.script(user, f"{stem}.py", SILENT)
    host.write(f"/home/{user}/.config/systemd/user/notify-runner@{stem}.timer.d/test.conf", settings, owner=user)
    host.run("chown", "-R", f"{user}:", f"/home/{user}/.config")
    host.user_systemctl(user, "daemon-reload")
    host.user_systemctl(user, "enable", "--now", f"notify-runner@{stem}.timer")


def forget(host, user, stem):
    host.user_systemctl(user, "disable", "--now", f"notify-runner@{stem}.timer")
    host.path(f"/home/{user}/user/notifications/{stem}.py").unlink()


def listed(host, user, *as_user):
    scripts = json.loads(host.output(*as_user, "notify-scripts", "list", user=None if as_user else user))
    return {script["name"]: script for script in scripts}


def test_list_knows_when_a_script_runs_next(host):
    host.script("alice", "shared.py", SILENT)
    own_timer(host, "alice", "own-time", YEARLY)
    own_timer(host, "alice", "interval", INTERVAL)
    try:
        # Once more, should a timer have fired between the two.
        sudo = ("runuser", "-u", "deploy", "--", "sudo", "-u", "alice")
        until(lambda: listed(host, "alice") == listed(host, "alice", *sudo), 30, "sudo lists the same")
        scripts = listed(host, "alice")
        now = int(host.output("date", "+%s"))
        assert 0 <= scripts["shared.py"]["next_run"] - now <= 325
        assert "*:00/5" in scripts["shared.py"]["schedule"]
        assert time.gmtime(scripts["own-time.py"]["next_run"])[1:6] == (1, 1, 0, 0, 0)
        assert abs(scripts["interval.py"]["next_run"] - now - 3 * 3600) < 60
        assert scripts["interval.py"]["schedule"] == "OnActiveSec=3h"
    finally:
        forget(host, "alice", "own-time")
        forget(host, "alice", "interval")


def test_a_timer_that_is_off_makes_its_scripts_overdue(host):
    """Nobody waits half an hour here: the helper is asked with no time of grace."""
    ask = ("import sys; sys.path.insert(0, '/usr/local/lib/notify-bot'); import notify_scripts as n; "
           "n.OVERDUE_SECONDS = 0; print({s['name']: s['overdue'] for s in n.listing(n.this_account())}['shared.py'])")
    host.script("alice", "shared.py", SILENT)
    host.user_systemctl("alice", "start", "notify-runner.service")
    assert host.output("python3", "-c", ask, user="alice") == "False"
    host.user_systemctl("alice", "stop", "notify-runner.timer")
    try:
        assert host.output("python3", "-c", ask, user="alice") == "True"
        assert listed(host, "alice")["shared.py"]["overdue"] is False
    finally:
        host.user_systemctl("alice", "start", "notify-runner.timer")


def test_what_a_script_leaves_running_ends_with_the_pass(host):
    """A child in a session of its own is out of the runner's reach, but not out of the unit's."""
    host.script("bob", "daemon.py", "import subprocess\n"
                "subprocess.Popen(['sleep', '4321'], start_new_session=True)\n" + SILENT)
    try:
        host.user_systemctl("bob", "start", "notify-runner.service")
        assert host.run("pgrep", "-f", "sleep 4321", check=False).returncode == 1
    finally:
        host.path("/home/bob/user/notifications/daemon.py").unlink()


def test_while_the_service_is_away_messages_wait(host):
    host.script("bob", "alert.py", "print('{\"notify\": true, \"title\": \"patience\", \"message\": \"m\"}')\n")
    host.run("systemctl", "stop", "notify-bot.socket", "notify-bot.service")
    try:
        started = host.run("systemctl", "--user", "start", "notify-runner.service", user="bob", check=False)
        assert started.returncode == 0, "messages that wait are no failure of the unit's"
        host.user_systemctl("bob", "start", "notify-runner.service")
    finally:
        host.run("systemctl", "start", "notify-bot.socket", "notify-bot.service")
    host.user_systemctl("bob", "start", "notify-runner.service")
    host.wait_for("bob", "patience")
    assert sum("patience" in text for text in host.texts("bob")) == 1
    host.path("/home/bob/user/notifications/alert.py").unlink()
    log = host.path("/home/bob/.notifications/logs/runner.log").read_text()
    assert re.search(r"alert\.py: the bot on \S+ did not take it", log)
    until(lambda: not list(host.path("/home/bob/.notifications/unsent").iterdir()), 5, "nothing waits")


def test_an_acl_that_lets_others_write_is_seen(host):
    """The bits of the group are then the ACL's mask, though the group is the analyst's own."""
    folder = "/home/alice/user/notifications"
    host.script("alice", "acl.py", SILENT)
    try:
        host.run("chmod", "664", f"{folder}/acl.py")
        assert listed(host, "alice")["acl.py"]["refused"] is None
        host.run("setfacl", "-m", "u:bob:rw", f"{folder}/acl.py")
        host.run("tee", "-a", f"{folder}/acl.py", user="bob", input="# by bob\n")
        assert listed(host, "alice")["acl.py"]["refused"] == "others can write to it by its ACL; setfacl -b"
        refused = host.run("notify-scripts", "run", "acl.py", user="alice", check=False)
        assert refused.returncode == 77 and "by its ACL" in refused.stderr
        host.run("setfacl", "-m", "u:bob:r", f"{folder}/acl.py")
        host.run("chmod", "g-w", f"{folder}/acl.py")
        assert listed(host, "alice")["acl.py"]["refused"] is None
        host.run("setfacl", "-m", "u:bob:rwx", folder)
        refused = host.run("notify-scripts", "list", user="alice", check=False)
        assert refused.returncode == 77 and f"{folder} is refused: others can write to it by its ACL" in refused.stderr
    finally:
        host.run("setfacl", "-b", folder)
        host.path(f"{folder}/acl.py").unlink()
