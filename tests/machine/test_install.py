"""make install, uninstall and notify-add-analyst, on a bare Debian and into a folder."""

import contextlib
import json
import os
import re
import stat
import subprocess

import pytest

from common.settings import bot_settings
from host import BOT_SOCKET
from live import TOKEN
from machine import CHECKOUT, PROJECT, until

WEB_SOCKET = str(bot_settings({}).web_socket)
LIB = "/usr/local/lib/notify-bot"
PLACES = ("/usr/local", "/etc", "/data", "/home", "/var/lib/systemd/linger", "/var/lib/notify-bot")
# Version 0.1.0 as it was installed: modules side by side, the page's files among them.
OLD_MODULES = (
    "accounts addressee bounded_json chat clock contract delivery entries failures gateway handover history http1 "
    "invites jsonstore lanes links links_command linksapi markdown metrics multipart notification notify_sandbox "
    "outbox overdue polling queue_command queueapi receipt recipients refusals replies runs sandbox_control "
    "sandbox_faults sandbox_form sandbox_http sandbox_limits sandbox_markup sandbox_methods sandbox_state "
    "scripts_socket sendapi service status_page strangers telegram_api turns unixhttp webapi webapp_actions "
    "webapp_bot webapp_browser webapp_guesses webapp_login webapp_page webapp_qr webapp_request webapp_routes "
    "workers")
OLD_FILES = ("sample_chart.png", "sandbox.html", "webapp_telegram.css", "webapp_telegram.html", "webapp_telegram.js")
# A command in a terminal of its own; prints its status, seconds and output, and which processes of an account had
# that terminal meanwhile, as controlling terminal or as a descriptor.
IN_A_TERMINAL = """
import contextlib, json, os, select, sys, time
uid, command = int(sys.argv[1]), sys.argv[2:]
started = time.monotonic()
terminal, end = os.openpty()
name = os.ttyname(end)
device = os.stat(name).st_rdev
if (pid := os.fork()) == 0:
    os.login_tty(end)
    os.execvp(command[0], command)
os.close(end)
seen, output = set(), b""
while True:
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{entry}").st_uid != uid:
                continue
            command_line = open(f"/proc/{entry}/cmdline").read().replace(chr(0), " ")
            if int(open(f"/proc/{entry}/stat").read().rpartition(")")[2].split()[4]) == device:
                seen.add(f"controlling terminal: {command_line}")
            for number in os.listdir(f"/proc/{entry}/fd"):
                if os.readlink(f"/proc/{entry}/fd/{number}") == name:
                    seen.add(f"descriptor {number}: {command_line}")
    if select.select([terminal], [], [], 0.005)[0]:
        try:
            output += os.read(terminal, 65536)
        except OSError:
            break
    if time.monotonic() - started > 100:
        os.kill(pid, 9)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(json.dumps([status, time.monotonic() - started, output.decode(), sorted(seen)]))
"""


@pytest.fixture(scope="module")
def machine(bare_machine):
    bare_machine.first_words = bare_machine.make("install")
    return bare_machine


def snapshot(machine):
    """Every file, folder and link that an installation touches, with what tells whether it was written again."""
    listing = machine.output("find", *PLACES, "-printf", "%p %y %i %m %u:%g %T@ %l\\n")
    return {line.split(" ", 1)[0]: line for line in listing.splitlines()}


def invocations(machine):
    """The current invocation of each unit."""
    units = ("notify-bot.socket", "notify-bot-web.socket", "notify-bot.service", "notify-scripts@carol.socket",
             "systemd-journald.service")
    return {unit: machine.show(unit, "InvocationID")["InvocationID"] for unit in units}


TRACE = """
import ctypes, os, sys
PTRACE_ATTACH = 16
if ctypes.CDLL(None, use_errno=True).ptrace(PTRACE_ATTACH, int(sys.argv[1]), None, None):
    raise OSError(ctypes.get_errno(), "ptrace")
os.waitpid(int(sys.argv[1]), 0)
print("traced", flush=True)
sys.stdin.read()
"""


def user_unit(machine, user, unit):
    """Waits until a unit of the account's own manager is active."""
    return until(lambda: machine.run("systemctl", "--user", "is-active", unit, user=user, check=False).returncode == 0,
                 20, f"{unit} of {user} is active")


def state_of(machine, user):
    """State of an account that notify-add-analyst changes."""
    return {"account": machine.run("getent", "passwd", user, check=False).stdout,
            "groups": machine.run("id", "-nG", user, check=False).stdout,
            "home": machine.path(f"/home/{user}").exists(),
            "linger": machine.path(f"/var/lib/systemd/linger/{user}").exists(),
            "record": machine.path(f"/var/lib/notify-bot/analysts/{user}").exists(),
            "socket": machine.run("systemctl", "is-active", f"notify-scripts@{user}.socket", check=False).stdout,
            "enabled": os.path.lexists(machine.path(
                f"/etc/systemd/system/sockets.target.wants/notify-scripts@{user}.socket"))}


@contextlib.contextmanager
def traced_manager(machine, user):
    """The manager of an account, traced by its owner and so at a stop that no signal but SIGKILL ends."""
    unit = f"user@{machine.uid(user)}.service"
    until(lambda: machine.show(unit, "ActiveState")["ActiveState"] == "active", 20, f"{unit} is active")
    with machine.start("/usr/bin/python3", "-c", TRACE, machine.show(unit, "MainPID")["MainPID"], user=user,
                       stdin=subprocess.PIPE) as tracer:
        assert tracer.stdout.readline() == "traced\n"
        yield
        tracer.stdin.close()
    until(lambda: machine.output("systemctl", "list-jobs", "--no-legend", unit) in ("", "No jobs running."), 60,
          f"{unit} has done what it was asked")


def in_a_terminal(machine, user, *command):
    """`(status, output)` of a command that took no more than 30 s, while no process of `user` had its terminal."""
    status, seconds, output, seen = json.loads(machine.python(IN_A_TERMINAL, machine.uid(user), *command, timeout=120))
    assert seen == [], output
    assert seconds < 30, output
    return status, output


def test_first_install_says_what_is_left_to_do(machine):
    for step in ("/etc/notify-bot/telegram-bot-token", "systemctl restart notify-bot.service", "notify-add-analyst"):
        assert step in machine.first_words
    for socket in ("notify-bot.socket", "notify-bot-web.socket"):
        assert machine.show(socket, "ActiveState", "UnitFileState") == {
            "ActiveState": "active", "UnitFileState": "enabled"}
    assert machine.show("notify-bot.service", "UnitFileState")["UnitFileState"] == "enabled"


@pytest.mark.parametrize(("place", "mode", "owner"), [
    ("/run/notify-bot/bot.sock", "660", "deploy:dataread"),
    ("/run/notify-bot/web.sock", "660", "root:www-data"),
    ("/data/notifications", "2770", "deploy:data-ops"),
    ("/data/notify-bot", "700", "deploy:deploy"),
    ("/run/notify-scripts", "755", "root:root"),
    ("/etc/sudoers.d/notify-bot", "440", "root:root"),
    ("/etc/notify-bot/notify-bot.env", "600", "root:root"),
    (f"{LIB}/notify_bot.py", "755", "root:root"),
    (f"{LIB}/common/jsonstore.py", "644", "root:root"),
])
def test_owners_and_modes(machine, place, mode, owner):
    assert machine.output("stat", "-c", "%a %U:%G", place) == f"{mode} {owner}"


def test_accounts_and_groups(machine):
    groups = {name: set(machine.output("id", "-nG", name).split()) for name in ("deploy", "www-data")}
    assert groups == {"deploy": {"deploy", "data-ops"}, "www-data": {"www-data", "data-ops"}}
    assert machine.output("getent", "passwd", "deploy").endswith("nologin")


def test_commands_tell_their_version(machine):
    version = (CHECKOUT / "VERSION").read_text().strip()
    for command in ("notify-runner", "notify-scripts", "notify-add-analyst", f"{LIB}/notify_bot.py"):
        assert machine.output(command, "--version").split()[-1] == version


def test_modules_are_compiled(machine):
    lib = machine.path(LIB)
    compiled = {path.parents[1] / f"{path.name.partition('.')[0]}.py" for path in lib.rglob("*.pyc")}
    assert compiled == set(lib.rglob("*.py")) and len(compiled) > 30


def test_second_install_changes_nothing(machine):
    machine.write("/etc/notify-bot/telegram-bot-token", TOKEN, 0o600)
    machine.run("systemctl", "restart", "notify-bot.service")
    machine.run("notify-add-analyst", "--create", "carol")
    user_unit(machine, "carol", "notify-runner-folders.service")
    before = snapshot(machine), invocations(machine)
    assert "nothing to do" in machine.make("install")
    after = snapshot(machine), invocations(machine)
    running = {"/data/notifications/bot.log", "/data/notify-bot/polling.json"}
    assert {path for path in before[0] if before[0][path] != after[0].get(path)} <= running
    assert set(after[0]) - running == set(before[0]) - running
    assert after[1] == before[1]


def test_only_what_changed_is_restarted(machine):
    before = invocations(machine)
    machine.write(f"{PROJECT}/common/links.py", machine.path(f"{PROJECT}/common/links.py").read_text() + "\n")
    assert f"installed {LIB}/common/links.py" in machine.make("install").splitlines()
    assert machine.make("install") == "nothing to do: this version is installed already"
    after = invocations(machine)
    assert {unit for unit in before if before[unit] != after[unit]} == {"notify-bot.service"}


def test_socket_of_the_page_is_replaced_beside_the_running_bot(machine):
    before = invocations(machine)
    unit = machine.path(f"{PROJECT}/units/system/notify-bot-web.socket")
    unit.write_text(unit.read_text().replace("Backlog=128", "Backlog=64"))
    machine.make("install")
    after = invocations(machine)
    assert {unit for unit in before if before[unit] != after[unit]} == {"notify-bot-web.socket", "notify-bot.service"}
    assert machine.show("notify-bot-web.socket", "ActiveState", "Backlog") == {"ActiveState": "active", "Backlog": "64"}
    assert machine.request("www-data", "POST", "/card", {"user": "carol"}, socket=WEB_SOCKET)[0] == 200


def test_update_of_a_version_without_the_page_brings_its_socket(machine):
    machine.run("systemctl", "disable", "--now", "notify-bot-web.socket")
    machine.path("/usr/local/lib/systemd/system/notify-bot-web.socket").unlink()
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "notify-bot.service")
    assert machine.request("carol", "GET", "/health")[0] in (200, 503)
    assert machine.request("root", "POST", "/card", {"user": "carol"}, socket=WEB_SOCKET)[0] == "FileNotFoundError"
    machine.make("install")
    assert machine.show("notify-bot-web.socket", "ActiveState", "UnitFileState") == {
        "ActiveState": "active", "UnitFileState": "enabled"}
    assert machine.request("www-data", "POST", "/card", {"user": "carol"}, socket=WEB_SOCKET)[0] == 200


def test_what_a_later_version_has_not_goes(machine):
    machine.write(f"{LIB}/of_old.py", "")
    machine.run("/usr/bin/python3", "-m", "compileall", "-q", f"{LIB}/of_old.py")
    before = invocations(machine)
    assert machine.make("install") == f"removed {LIB}/of_old.py"
    assert machine.output("find", LIB, "-name", "of_old*") == ""
    assert machine.make("install") == "nothing to do: this version is installed already"
    after = invocations(machine)
    assert {unit for unit in before if before[unit] != after[unit]} == {"notify-bot.service"}


def test_settings_are_the_administrators(machine):
    edited = {"/etc/notify-bot/notify-bot.env": "NOTIFY_SITE_NAME=ours\n",
              "/etc/sudoers.d/notify-bot": "# no sudo here\n"}
    shipped = {place: machine.path(place).read_text() for place in edited}
    for place, text in edited.items():
        machine.path(place).write_text(text)
    words = machine.make("install")
    for place, text in edited.items():
        assert machine.path(place).read_text() == text
        assert f"kept {place}" in words
        machine.path(place).write_text(shipped[place])


def test_analyst_is_created_once(machine):
    before = snapshot(machine)
    assert "carol is ready" in machine.output("notify-add-analyst", "carol")
    after = snapshot(machine)
    # What systemctl enable and loginctl enable-linger write anew.
    again = ("wants", "/var/lib/systemd/linger", "/data/notifications/bot.log", "/data/notify-bot/polling.json")
    assert [path for path in after if before.get(path) != after[path] and not any(part in path for part in again)] == []
    assert machine.output("stat", "-c", "%U %a", "/home/carol/user/notifications") == "carol 755"
    for place in ("/home/carol/.notifications/state", "/home/carol/.notifications/logs"):
        assert machine.output("stat", "-c", "%U %a", place) == "carol 700"
    assert machine.request("carol", "GET", "/health")[1]["linked"] == 0
    assert user_unit(machine, "carol", "notify-runner.timer")
    # Nothing is enabled in a home, which may be on NFS.
    assert not machine.path("/home/carol/.config").exists()
    assert machine.show("notify-scripts@carol.socket", "ActiveState", "UnitFileState") == {
        "ActiveState": "active", "UnitFileState": "enabled"}


def test_existing_account_with_a_running_manager_is_adopted(machine):
    machine.run("useradd", "--create-home", "--groups", "users", "dave")
    machine.write("/home/dave/mine.txt", "kept", owner="dave")
    machine.run("loginctl", "enable-linger", "dave")
    machine.run("systemctl", "start", f"user@{machine.uid('dave')}.service")
    assert "restarting the services of dave" in machine.output("notify-add-analyst", "dave")
    assert set(machine.output("id", "-nG", "dave").split()) == {"dave", "users", "dataread"}
    assert machine.path("/home/dave/mine.txt").read_text() == "kept"
    # From within his own timers' manager, which must know of the group.
    machine.output("systemd-run", "--user", "--wait", "--quiet", "test", "-w", BOT_SOCKET, user="dave")
    assert user_unit(machine, "dave", "notify-runner.timer")


def test_timer_is_for_analysts_alone(machine):
    machine.run("useradd", "--create-home", "visitor")
    machine.run("loginctl", "enable-linger", "visitor")
    machine.run("systemctl", "start", f"user@{machine.uid('visitor')}.service")
    shown = machine.user_systemctl("visitor", "show", "--property=ActiveState,ConditionResult", "notify-runner.timer")
    assert shown.split() == ["ActiveState=inactive", "ConditionResult=no"]
    assert not machine.path("/home/visitor/user").exists()


def test_linger_is_given_back_as_it_was(machine):
    machine.run("useradd", "--create-home", "--groups", "users", "gina")
    for user, lingers in (("dave", True), ("gina", False)):
        machine.run("notify-add-analyst", user)
        assert machine.path(f"/var/lib/systemd/linger/{user}").exists()
        assert "kept" in machine.output("notify-add-analyst", "--remove", user)
        assert machine.path(f"/var/lib/systemd/linger/{user}").exists() is lingers
        assert machine.show(f"user@{machine.uid(user)}.service", "ActiveState")["ActiveState"] == (
            "active" if lingers else "inactive")
    # The manager that goes on has left the group.
    until(lambda: machine.run("systemd-run", "--user", "--wait", "--quiet", "test", "-w", BOT_SOCKET, user="dave",
                              check=False).returncode == 1, 20, "dave's services may not send any more")
    machine.run("notify-add-analyst", "dave")


def test_no_account_is_made_by_mistake(machine):
    before = snapshot(machine)
    done = machine.run("notify-add-analyst", "alcie", check=False)
    assert (done.returncode, done.stdout) == (67, "")
    assert done.stderr == "notify-add-analyst: there is no account alcie; --create makes one\n"
    after = snapshot(machine)
    assert {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)} <= {
        "/data/notifications/bot.log", "/data/notify-bot/polling.json"}


def test_failed_add_keeps_a_home_that_was_there(machine):
    """The next account may get the uid of the last one, and so the home that was kept of it."""
    machine.run("useradd", "--create-home", "otto")
    machine.write("/home/otto/thesis", "years of work", owner="otto")
    machine.run("userdel", "otto")
    mask = "/etc/systemd/system/notify-scripts@otto.socket"
    machine.run("ln", "-s", "/dev/null", mask)
    done = machine.run("notify-add-analyst", "--create", "otto", check=False)
    machine.run("rm", mask)
    machine.run("systemctl", "daemon-reload")
    assert done.returncode == 71 and "nothing is left of this attempt" in done.stderr
    assert machine.run("id", "otto", check=False).returncode != 0
    assert machine.output("cat", "/home/otto/thesis") == "years of work"


@pytest.mark.parametrize(("user", "create"), [("hugo", ["--create"]), ("ivan", []), ("jack", [])])
def test_failed_add_leaves_nothing_half_done(machine, user, create):
    if not create:
        machine.run("useradd", "--create-home", user)
    if user == "jack":
        machine.run("loginctl", "enable-linger", user)
    before = state_of(machine, user)
    mask = f"/etc/systemd/system/notify-scripts@{user}.socket"
    machine.run("ln", "-s", "/dev/null", mask)
    done = machine.run("notify-add-analyst", *create, user, check=False)
    assert done.returncode == 71
    assert f"this failed: systemctl enable --now notify-scripts@{user}.socket" in done.stderr
    assert "nothing is left of this attempt" in done.stderr
    assert state_of(machine, user) == before
    machine.run("rm", mask)
    machine.run("systemctl", "daemon-reload")
    assert f"{user} is ready" in machine.output("notify-add-analyst", *create, user)
    machine.run("notify-add-analyst", "--remove", user)


def test_no_process_of_an_analyst_has_roots_terminal(machine):
    """An analyst could stop their manager, trace what root starts as them, and type into root's shell by it."""
    machine.run("useradd", "--create-home", "hank")
    machine.run("notify-add-analyst", "hank")
    with traced_manager(machine, "hank"):
        status, output = in_a_terminal(machine, "hank", "notify-add-analyst", "hank")
        assert status == 0 and "hank is ready" in output
    machine.run("notify-add-analyst", "--remove", "hank")


def test_stopped_services_hold_nobody_and_see_no_terminal(machine):
    machine.run("useradd", "--create-home", "frank")
    machine.run("loginctl", "enable-linger", "frank")
    unit = f"user@{machine.uid('frank')}.service"
    before = state_of(machine, "frank")
    with traced_manager(machine, "frank"):
        status, output = in_a_terminal(machine, "frank", "notify-add-analyst", "frank")
        assert status == 71
        assert "the services of frank do not restart" in output and f"systemctl status {unit}" in output
        assert "nothing is left of this attempt" in output
        assert state_of(machine, "frank") == before
    # systemd wakes what SIGSTOP stopped.
    machine.run("systemctl", "start", unit)
    machine.run("kill", "-STOP", machine.show(unit, "MainPID")["MainPID"])
    status, output = in_a_terminal(machine, "frank", "notify-add-analyst", "frank")
    assert status == 0 and "frank is ready" in output
    with traced_manager(machine, "frank"):
        status, output = in_a_terminal(machine, "frank", "make", "--no-print-directory", "-C", PROJECT, "uninstall")
        assert status == 0 and "the manager of frank does not answer" in output
    machine.make("install")
    with traced_manager(machine, "frank"):
        status, output = in_a_terminal(machine, "frank", "notify-add-analyst", "--remove", "frank")
        assert status == 71 and "the services of frank do not restart" in output
        assert "dataread" not in machine.output("id", "-nG", "frank").split()
    assert machine.run("notify-add-analyst", "--remove", "frank").returncode == 0
    assert not machine.path("/var/lib/notify-bot/analysts/frank").exists()


def test_removed_analyst_is_linked_to_no_chat(machine):
    records = json.dumps({user: {"chat_id": 7, "linked_at": "2026-01-31T12:00:00Z", "chat_name": "Carol",
                                 "uid": machine.uid(user)} for user in ("carol", "dave")})
    machine.write("/data/notifications/telegram_users.json", records, 0o660, "deploy")
    assert "chat 7 Carol" in machine.output("notify-add-analyst", "carol")
    assert "carol  chat 7 Carol  since 2026-01-31" in machine.output("notify-bot", "links")
    machine.run("notify-add-analyst", "--remove", "--keep-link", "dave")
    assert "not linked any more; it was linked to chat 7 Carol" in machine.output("notify-add-analyst", "--remove",
                                                                                  "carol")
    assert json.loads(machine.path("/data/notifications/telegram_users.json").read_text()).keys() == {"dave"}
    machine.run("systemctl", "stop", "notify-bot.socket", "notify-bot-web.socket", "notify-bot.service")
    done = machine.run("notify-add-analyst", "--remove", "dave", check=False)
    assert done.returncode == 75 and "notify-bot unlink dave" in done.stderr
    machine.run("systemctl", "start", "notify-bot.socket", "notify-bot-web.socket", "notify-bot.service")
    assert "was not linked" not in machine.output("notify-bot", "unlink", "dave")
    for user in ("carol", "dave"):
        machine.run("notify-add-analyst", user)


def test_removed_analyst_keeps_the_files(machine):
    machine.script("carol", "mine.py", "print('{}')\n")
    assert "scripts are kept" in machine.output("notify-add-analyst", "--remove", "carol")
    assert machine.path("/home/carol/user/notifications/mine.py").exists()
    assert "dataread" not in machine.output("id", "-nG", "carol").split()
    assert not machine.path("/var/lib/systemd/linger/carol").exists()
    assert machine.show("notify-scripts@carol.socket", "ActiveState", "UnitFileState") == {
        "ActiveState": "inactive", "UnitFileState": "disabled"}
    assert machine.output("find", "/run/notify-scripts", "-name", "carol*") == ""
    assert machine.request("carol", "GET", "/health")[0] == "PermissionError"
    assert machine.run("notify-add-analyst", "--remove", "carol").returncode == 0
    assert "carol is ready" in machine.output("notify-add-analyst", "carol")


@pytest.mark.parametrize(("arguments", "status"), [
    ((), 64), (("--purge", "carol"), 64), (("carol", "dave"), 64), (("",), 65), (("root",), 65), (("deploy",), 65),
    (("www-data",), 65), (("nobody",), 65), (("../carol",), 65), (("a b",), 65), (("-",), 64), (("x" * 33,), 65),
    (("carol@home",), 65), (("--remove", "nosuchuser"), 67), (("--help",), 0), (("--remove", "--create", "carol"), 64),
    (("--keep-link", "carol"), 64),
])
def test_odd_arguments_are_refused(machine, arguments, status):
    assert machine.run("notify-add-analyst", *arguments, check=False).returncode == status


def test_home_full_of_links_hurts_nobody_else(machine):
    """A folder that is a link leads only where its owner may write."""
    machine.run("useradd", "--create-home", "eve")
    machine.run("ln", "-s", "/etc", "/home/eve/user", user="eve")
    machine.run("notify-add-analyst", "eve")
    until(lambda: machine.user_systemctl("eve", "show", "--property=Result", "notify-runner-folders.service")
          == "Result=exit-code", 20, "eve's own manager fails at it")
    assert not machine.path("/etc/notifications").exists()
    machine.run("notify-add-analyst", "--remove", "eve")


def test_not_root_is_told_so(machine):
    assert machine.run("notify-add-analyst", "carol", user="carol", check=False).returncode == 77


def test_uninstall_keeps_settings_and_data(machine):
    machine.path("/data/notifications/telegram_users.json").write_text("{}")
    machine.user_systemctl("dave", "enable", "--now", "notify-runner@mine.timer")
    own = "/home/dave/.config"
    words = machine.make("uninstall")
    assert "Kept:" in words
    for user in ("carol", "dave"):
        assert f"switched off for {user}; another installation switches it on again" in words
    left = machine.output("find", "/usr/local", "/etc/systemd", "/data", "/etc/sudoers.d", "-name", "*notify*")
    assert left == "/data/notify-bot"  # what the bot keeps, as its data
    # dave lingers of his own accord; nothing of ours fires in what goes on.
    assert not machine.path("/var/lib/systemd/linger/carol").exists()
    assert machine.path("/var/lib/systemd/linger/dave").exists()
    assert machine.user_systemctl("dave", "list-units", "--no-legend", "--state=active", "notify-*") == ""
    assert machine.user_systemctl("dave", "list-timers", "--no-legend", "notify-*") == ""
    assert machine.path(own).exists()
    for kept in ("/etc/notify-bot/telegram-bot-token", "/data/notifications/telegram_users.json",
                 "/home/carol/user/notifications/mine.py"):
        assert machine.path(kept).exists()
    assert machine.output("systemctl", "list-units", "--all", "--no-legend", "notify-*") == ""
    assert not os.path.lexists(machine.path(BOT_SOCKET))
    assert machine.output("find", "/run/notify-bot", "/run/notify-scripts", "-type", "s") == ""
    words = machine.make("install")
    for user in ("carol", "dave"):
        assert f"switched on again for {user}" in words and f"notify-add-analyst {user}" not in words
        assert user_unit(machine, user, "notify-runner.timer")
        assert machine.show(f"notify-scripts@{user}.socket", "ActiveState", "UnitFileState") == {
            "ActiveState": "active", "UnitFileState": "enabled"}
        assert machine.request(user, "GET", "/health")[0] in (200, 503)
    assert user_unit(machine, "dave", "notify-runner@mine.timer")


def test_account_of_the_bot_without_its_group(machine):
    machine.make("uninstall")
    machine.run("usermod", "--gid", "users", "deploy")
    if machine.run("getent", "group", "deploy", check=False).returncode == 0:
        machine.run("groupdel", "deploy")
    machine.make("install")
    assert machine.output("stat", "-c", "%U:%G", "/run/notify-scripts/carol.sock") == "root:deploy"
    assert machine.request("carol", "GET", "/health")[0] in (200, 503)


def test_root_runs_nothing_as_somebody_else():
    for name in ("install.sh", "bin/notify-add-analyst"):
        assert not re.search(r"\b(runuser|sudo|su|setpriv)\s+-", (CHECKOUT / name).read_text())


def make(*arguments):
    done = subprocess.run(["make", "-C", CHECKOUT, "--no-print-directory", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_package_is_built_in_a_folder(tmp_path):
    """With DESTDIR and PREFIX=/usr, as a .deb is made: every path in it is the package's, none is the folder's."""
    make("install", f"DESTDIR={tmp_path}", "PREFIX=/usr")
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {path.relative_to(tmp_path).parts[0] for path in files} == {"usr", "etc", "data"}
    for path in files:
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content, path
        assert b"/usr/local/lib/notify-bot" not in content or path.suffix in (".py", ".pyc"), path
    for name in ("notify-runner", "notify-scripts"):
        link = tmp_path / "usr/bin" / name
        assert not os.path.isabs(os.readlink(link))
        assert link.resolve().stat().st_mode & stat.S_IXUSR
    assert "nothing to do" in make("install", f"DESTDIR={tmp_path}", "PREFIX=/usr")
    make("uninstall", f"DESTDIR={tmp_path}", "PREFIX=/usr")
    left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert left == ["etc/notify-bot/notify-bot.env"]


def test_update_leaves_nothing_of_the_flat_layout(tmp_path):
    def everything():
        return {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}

    install = ("install", f"DESTDIR={tmp_path}", "PREFIX=/usr")
    make(*install)
    fresh = everything()
    lib, doc = tmp_path / "usr/lib/notify-bot", tmp_path / "usr/share/doc/notify-bot"
    old = [lib / f"{name}.py" for name in OLD_MODULES.split()] + [lib / name for name in OLD_FILES] + [
        doc / "web" / name for name in ("apache.conf", "apache2.service.conf", "nginx.conf")]
    bytecode = [lib / f"__pycache__/{name}.cpython-311{level}.pyc" for name in OLD_MODULES.split()
                for level in ("", ".opt-1")]
    for path in old + bytecode:
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    words = make(*install)
    assert {line.removeprefix("removed ") for line in words.splitlines()} == {str(path) for path in old}
    assert everything() == fresh
    assert "nothing to do" in make(*install)


def test_make_alone_explains_itself():
    assert {"make demo", "make test", "make install", "make uninstall"} <= {
        line[:line.index("  ")].strip() for line in make().splitlines() if "  " in line}
