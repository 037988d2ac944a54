"""make install, uninstall and notify-add-analyst, on a bare Debian and into a folder."""

import os
import stat
import subprocess

import pytest

from host import BOT_SOCKET
from live import TOKEN
from machine import CHECKOUT, PROJECT
from service import Settings

WEB_SOCKET = str(Settings({}).web_socket)
LIB = "/usr/local/lib/notify-bot"
PLACES = ("/usr/local", "/etc", "/data", "/home", "/var/lib/systemd/linger")


@pytest.fixture(scope="module")
def machine(bare_machine):
    bare_machine.first_words = bare_machine.make("install")
    return bare_machine


def snapshot(machine):
    """Every file, folder and link that an installation touches, with what tells whether it was written again."""
    listing = machine.output("find", *PLACES, "-printf", "%p %y %i %m %u:%g %T@ %l\\n")
    return {line.split(" ", 1)[0]: line for line in listing.splitlines()}


def invocations(machine):
    """Which run of each unit this is."""
    units = ("notify-bot.socket", "notify-bot-web.socket", "notify-bot.service", "notify-scripts@carol.socket",
             "systemd-journald.service")
    return {unit: machine.show(unit, "InvocationID")["InvocationID"] for unit in units}


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
    (f"{LIB}/jsonstore.py", "644", "root:root"),
])
def test_owners_and_modes(machine, place, mode, owner):
    assert machine.output("stat", "-c", "%a %U:%G", place) == f"{mode} {owner}"


def test_accounts_and_groups(machine):
    groups = {name: set(machine.output("id", "-nG", name).split()) for name in ("deploy", "www-data")}
    assert groups == {"deploy": {"deploy", "data-ops"}, "www-data": {"www-data", "data-ops"}}
    assert machine.output("getent", "passwd", "deploy").endswith("nologin")


def test_commands_tell_their_version(machine):
    version = (CHECKOUT / "src/VERSION").read_text().strip()
    for command in ("notify-runner", "notify-scripts", "notify-add-analyst", f"{LIB}/notify_bot.py"):
        assert machine.output(command, "--version").split()[-1] == version


def test_modules_are_compiled(machine):
    compiled = {path.name.split(".")[0] for path in machine.path(f"{LIB}/__pycache__").glob("*.pyc")}
    assert compiled == {path.stem for path in (CHECKOUT / "src").glob("*.py")}


def test_second_install_changes_nothing(machine):
    machine.write("/etc/notify-bot/telegram-bot-token", TOKEN, 0o600)
    machine.run("systemctl", "restart", "notify-bot.service")
    machine.run("notify-add-analyst", "carol")
    before = snapshot(machine), invocations(machine)
    assert "nothing to do" in machine.make("install")
    after = snapshot(machine), invocations(machine)
    running = {"/data/notifications/bot.log", "/data/notify-bot/polling.json"}
    assert {path for path in before[0] if before[0][path] != after[0].get(path)} <= running
    assert set(after[0]) - running == set(before[0]) - running
    assert after[1] == before[1]


def test_only_what_changed_is_restarted(machine):
    before = invocations(machine)
    machine.write(f"{PROJECT}/src/links.py", machine.path(f"{PROJECT}/src/links.py").read_text() + "\n")
    assert f"installed {LIB}/links.py" in machine.make("install").splitlines()
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
    assert machine.request("carol", "GET", "/health")[1]["linked"] == 0
    assert machine.user_systemctl("carol", "is-enabled", "notify-runner.timer") == "enabled"
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


def test_removed_analyst_keeps_the_files(machine):
    machine.script("carol", "mine.py", "print('{}')\n")
    assert "are kept" in machine.output("notify-add-analyst", "--remove", "carol")
    assert machine.path("/home/carol/user/notifications/mine.py").exists()
    assert "dataread" not in machine.output("id", "-nG", "carol").split()
    assert not machine.path("/var/lib/systemd/linger/carol").exists()
    assert machine.show("notify-scripts@carol.socket", "ActiveState", "UnitFileState") == {
        "ActiveState": "inactive", "UnitFileState": "disabled"}
    assert machine.output("find", "/run/notify-scripts", "-name", "carol*") == ""
    assert not list(machine.path("/home/carol/.config/systemd/user").glob("timers.target.wants/*"))
    assert machine.request("carol", "GET", "/health")[0] == "PermissionError"
    assert machine.run("notify-add-analyst", "--remove", "carol").returncode == 0
    assert "carol is ready" in machine.output("notify-add-analyst", "carol")


@pytest.mark.parametrize(("arguments", "status"), [
    ((), 64), (("--purge", "carol"), 64), (("carol", "dave"), 64), (("",), 65), (("root",), 65), (("deploy",), 65),
    (("www-data",), 65), (("nobody",), 65), (("../carol",), 65), (("a b",), 65), (("-",), 64), (("x" * 33,), 65),
    (("carol@home",), 65), (("--remove", "nosuchuser"), 67), (("--help",), 0),
])
def test_odd_arguments_are_refused(machine, arguments, status):
    assert machine.run("notify-add-analyst", *arguments, check=False).returncode == status


def test_home_full_of_links_hurts_nobody_else(machine):
    """A folder that is a link leads only where its owner may write."""
    machine.run("useradd", "--create-home", "eve")
    machine.run("ln", "-s", "/etc", "/home/eve/user", user="eve")
    done = machine.run("notify-add-analyst", "eve", check=False)
    assert done.returncode == 71
    assert not machine.path("/etc/notifications").exists()


def test_not_root_is_told_so(machine):
    assert machine.run("notify-add-analyst", "carol", user="carol", check=False).returncode == 77


def test_uninstall_keeps_settings_and_data(machine):
    machine.path("/data/notifications/telegram_users.json").write_text("{}")
    words = machine.make("uninstall")
    assert "Kept:" in words
    assert "switched off for carol; after another installation it takes this again: notify-add-analyst carol" in words
    left = machine.output("find", "/usr/local", "/etc/systemd", "/data", "/etc/sudoers.d", "-name", "*notify*")
    assert left == ""
    for kept in ("/etc/notify-bot/telegram-bot-token", "/data/notifications/telegram_users.json",
                 "/home/carol/user/notifications/mine.py"):
        assert machine.path(kept).exists()
    assert machine.output("systemctl", "list-units", "--all", "--no-legend", "notify-*") == ""
    assert not os.path.lexists(machine.path(BOT_SOCKET))
    assert machine.output("find", "/run/notify-bot", "/run/notify-scripts", "-type", "s") == ""
    assert not list(machine.path("/home/carol/.config/systemd/user").glob("timers.target.wants/*"))
    words = machine.make("install")
    assert "Installed." in words and "       notify-add-analyst carol     (a member of dataread" in words
    machine.run("notify-add-analyst", "carol")
    assert machine.request("carol", "GET", "/health")[0] in (200, 503)


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


def test_make_alone_explains_itself():
    assert {"make demo", "make test", "make install", "make uninstall"} <= {
        line[:line.index("  ")].strip() for line in make().splitlines() if "  " in line}
