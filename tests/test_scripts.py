"""notify-scripts: what it lists, what it refuses, and how it ends what it started."""

import fcntl
import grp
import json
import os
import re
import signal
import socket
import struct
import subprocess
import time
from contextlib import ExitStack

import pytest

from analyst import AS_OWNER, OWNER, Analyst, ask, now, processes
from live import PYTHON, until

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
OTHER_GROUP = next(group.gr_name for group in grp.getgrall()
                   if group.gr_gid not in (OWNER.pw_gid, *os.getgroups()) and OWNER.pw_name not in group.gr_mem)


@pytest.fixture
def analyst():
    analyst = Analyst()
    yield analyst
    analyst.remove()


def listed(analyst, name):
    return next(entry for entry in json.loads(analyst.helper("list")) if entry["name"] == name)


def test_list_says_what_is_known(analyst):
    analyst.script("sales", {"notify": False})
    analyst.script("broken", "raise SystemExit(3)")
    analyst.script(".hidden", "")
    analyst.file("user/notifications/notes.txt", b"")
    nothing = dict.fromkeys(("last_run", "last_sent", "next_run", "schedule", "last_error", "refused"))
    assert json.loads(analyst.helper("list")) == [{"name": "broken.py", "stem": "broken", "overdue": False, **nothing},
                                                  {"name": "sales.py", "stem": "sales", "overdue": False, **nothing}]
    begin = now()
    assert json.loads(analyst.helper("run", "sales.py")) == {"notify": False}
    assert "broken.py ended with exit status 3" in analyst.helper("run", "broken", code=os.EX_SOFTWARE)
    analyst.set_state("sales", last_sent=1700000000.5)
    assert begin <= listed(analyst, "sales.py")["last_run"] <= now()
    assert listed(analyst, "sales.py")["last_sent"] == 1700000000
    assert listed(analyst, "sales.py")["last_error"] is None
    assert listed(analyst, "broken.py")["last_error"] == "ended with exit status 3"


def test_list_is_empty_without_a_folder(analyst):
    analyst.scripts.rmdir()
    assert json.loads(analyst.helper("list")) == []


@pytest.mark.parametrize("state", [b"", b"[]", b'{"last_sent": "x", "last_run": true}', b"[" * 100_000, b"\xff"])
def test_list_survives_any_state(analyst, state):
    analyst.script("sales", {"notify": False})
    analyst.file(".notifications/state/sales.json", state)
    analyst.file(".notifications/state/sales.run", state)
    assert listed(analyst, "sales.py")["last_sent"] is None
    assert listed(analyst, "sales.py")["last_run"] is None


def make_link(analyst):
    (analyst.scripts / "x.py").symlink_to("/usr/lib/python3/dist-packages/x.py")


def make_link_to_own_file(analyst):
    analyst.file("elsewhere.py", b"print(1)")
    (analyst.scripts / "x.py").symlink_to("../../elsewhere.py")


def make_folder(analyst):
    (analyst.scripts / "x.py").mkdir()


def make_fifo(analyst):
    os.mkfifo(analyst.scripts / "x.py")


def make_world_writable(analyst):
    analyst.script("x", "print(1)").chmod(0o646)


REFUSED = [(make_link, "a link that leaves the folder"), (make_link_to_own_file, "a link that leaves the folder"),
           (make_folder, "not a regular file"), (make_fifo, "not a regular file"),
           (make_world_writable, "everybody can write")]


@pytest.mark.parametrize("make, reason", REFUSED)
def test_files_that_are_refused(analyst, make, reason):
    make(analyst)
    analyst.own(analyst.home)
    assert reason in listed(analyst, "x.py")["refused"]
    assert reason in analyst.helper("run", "x.py", code=os.EX_NOPERM)


@pytest.mark.parametrize("name", ["a\nb.py", "a\x1b[31m.py", "a..b.py", b"a\xff.py", "a" * 220 + ".py"])
def test_names_that_are_refused(analyst, name):
    (analyst.scripts / os.fsdecode(name)).write_text("print(1)")
    analyst.own(analyst.home)
    [entry] = json.loads(analyst.helper("list"))
    assert entry["refused"].startswith("its name")
    assert "its name" in analyst.helper("run", entry["name"], code=os.EX_NOPERM)


@pytest.mark.parametrize("name", ["../x.py", "/etc/passwd", "sub/x.py", "./sales.py", "", "..", "sales.py\0", "*"])
def test_a_script_is_an_entry_of_the_list_and_no_path(analyst, name):
    analyst.script("sales", {"notify": False})
    (analyst.scripts.parent / "x.py").write_text("print(1)")
    source = f"""
import notify_scripts as n
try:
    n.find_script(n.this_account(), {name!r})
except n.ScriptsError as error:
    print(error.code, error)
"""
    assert analyst.python(source).startswith(f"{os.EX_NOINPUT} no script")


def test_a_folder_that_others_can_write_to_is_refused(analyst):
    analyst.script("sales", {"notify": False})
    analyst.scripts.chmod(0o777)
    assert "everybody can write" in analyst.helper("list", code=os.EX_NOPERM)
    assert "everybody can write" in analyst.helper("run", "sales", code=os.EX_NOPERM)


def test_a_folder_of_somebody_else_is_refused(analyst):
    analyst.scripts.rmdir()
    analyst.scripts.symlink_to("/usr/lib")  # root's
    assert "not owned by" in analyst.helper("list", code=os.EX_NOPERM)


def test_a_script_of_somebody_else_or_of_a_group_is_refused(analyst):
    """Judged by the function the folder is judged by, as only root can make such files."""
    source = """
import os, stat, notify_scripts as n
account = n.this_account()
def judge(uid, gid, mode):
    return n._others_can_write(account, "/", os.stat_result((stat.S_IFREG | mode, 0, 0, 1, uid, gid, 0, 0, 0, 0)))
for case in (account.uid, 0, 0o640), (account.uid + 1, 0, 0o644), (account.uid, 0, 0o664), (account.uid, 0, 0o646):
    print(judge(*case))
"""
    assert analyst.python(source).splitlines() == [
        "None", f"it is not owned by {OWNER.pw_name}", "its group can write to it; chmod g-w",
        "everybody can write to it; chmod go-w"]


def test_of_too_many_scripts_the_first_are_taken(analyst):
    for number in range(1003):
        (analyst.scripts / f"s{number:04}.py").write_text("print('{}')")
    analyst.own(analyst.scripts)
    scripts = json.loads(analyst.helper("list"))
    assert [script["name"] for script in scripts] == [f"s{number:04}.py" for number in range(1001)]
    assert {script["refused"] for script in scripts[:1000]} == {None}
    assert scripts[1000]["refused"] == "the folder has 1003 scripts, and only the first 1000 are taken"
    assert json.loads(analyst.helper("run", "s0999.py")) == {}
    assert "only the first 1000" in analyst.helper("run", "s1000.py", code=os.EX_NOPERM)
    assert "no script" in analyst.helper("run", "s1001.py", code=os.EX_NOINPUT)


def test_root_is_refused(analyst):
    analyst.script("sales", {"notify": False})
    as_root = [] if os.getuid() == 0 else ["unshare", "--map-root-user"]
    for program in ("notify_scripts.py", "notify_runner.py"):
        run = subprocess.run([*as_root, PYTHON, "-EsS", analyst.programs / program,
                              *(["list"] if "scripts" in program else [])],
                             env=analyst.environment, capture_output=True, text=True, timeout=20)
        assert run.returncode == os.EX_NOPERM, run.stderr
        assert "not as root" in run.stderr
    assert not analyst.private.exists()


@pytest.mark.parametrize("group, reason", [(OTHER_GROUP, "is not in group"), ("no-such-group", "no group")])
def test_who_is_no_analyst_is_refused(analyst, group, reason):
    errors = analyst.helper("list", code=os.EX_NOPERM, NOTIFY_ANALYST_GROUP=group)
    assert reason in errors and "notify-add-analyst" in errors


def test_an_analyst_is_taken(analyst):
    own = grp.getgrgid(OWNER.pw_gid).gr_name
    assert json.loads(analyst.helper("list", NOTIFY_ANALYST_GROUP=own)) == []


def test_through_sudo_the_environment_decides_nothing(analyst):
    source = """
import os, notify_scripts as n
os.environ.update(SUDO_UID="1000", HOME="/tmp", NOTIFY_ANALYST_GROUP="")
try:
    print(n.this_account().home)
    n.check_member(n.this_account())
except n.ScriptsError as error:
    print(error)
"""
    lines = analyst.python(source).splitlines()
    assert lines[0] == OWNER.pw_dir
    assert "group dataread" in lines[1]


def test_what_a_script_finds_itself_in(analyst):
    analyst.script("look", """
import json, os, sys
print(json.dumps({"cwd": os.getcwd(), "stdin": sys.stdin.read(), "environment": dict(os.environ),
                  "python": sys.executable, "leader": os.getpid() == os.getsid(0),
                  "descriptors": sorted(map(int, os.listdir("/proc/self/fd")))}))""")
    seen = json.loads(analyst.helper("run", "look", LISTEN_FDS="1", WATCHDOG_USEC="1", SUDO_COMMAND="x",
                                     CREDENTIALS_DIRECTORY="/x", MY_OWN="kept", HOME="/elsewhere"))
    environment = seen["environment"]
    assert seen["cwd"] == environment["HOME"] == str(analyst.home)
    assert environment["USER"] == environment["LOGNAME"] == OWNER.pw_name
    assert environment["MY_OWN"] == "kept"
    assert not [name for name in environment if re.match("NOTIFY_|LISTEN_|SUDO_|WATCHDOG_|CRED|PYTHON", name)]
    assert seen["stdin"] == "" and seen["leader"]
    assert seen["descriptors"] == [0, 1, 2, 3]  # 3 is the listing's own
    assert seen["python"] == "/usr/bin/python3"


def test_the_virtual_environment_is_used(analyst):
    analyst.script("sales", "does not matter")
    python = analyst.file(".venv/bin/python", b'#!/bin/sh\necho "{\\"ran\\": \\"$1\\"}"\n')
    python.chmod(0o755)
    assert json.loads(analyst.helper("run", "sales")) == {"ran": str(analyst.scripts / "sales.py")}


def driver(stem, timeout=1):
    return f"""
import json, notify_scripts as n
account = n.this_account()
run = n.run_script(account, n.find_script(account, {stem!r}), timeout={timeout})
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([run.error, len(run.stdout), run.stderr, run.seconds, peak]))"""


def drive(analyst, stem, timeout=1):
    return json.loads(analyst.python(driver(stem, timeout)))


def test_a_script_that_hangs_is_ended_with_its_children(analyst):
    marker = f"sleep 98.{os.getpid()}"
    analyst.script("hang", f"import subprocess, sys; print('here', file=sys.stderr, flush=True)\n"
                           f"subprocess.run('{marker} & {marker}', shell=True)")
    error, _, stderr, seconds, _ = drive(analyst, "hang")
    assert error == "did not finish within 1 s" and stderr == "here"
    assert 1 <= seconds < 3
    until(lambda: not processes(marker.replace(" ", "\0")), 5, "no child is left")


def test_a_child_that_holds_the_output_delays_nobody_and_is_ended(analyst):
    marker = f"97.{os.getpid()}"
    analyst.script("leave", f"import subprocess; subprocess.Popen(['sleep', '{marker}']); print('x' * 300)")
    error, size, _, seconds, _ = drive(analyst, "leave", 30)
    assert error is None and size == 301
    assert seconds < 5
    until(lambda: not processes(marker), 5, "no child is left")


def test_output_without_end_costs_no_memory(analyst):
    analyst.script("flood", "import sys\nfor _ in range(200): sys.stdout.write('x' * (1 << 20))")
    error, size, _, _, rss = drive(analyst, "flood", 30)
    assert error == "printed more than 1 MiB"
    assert size <= (1 << 20) + (64 << 10)
    assert rss < 40_000  # KiB, the interpreter's own 15,000 among them


def test_stderr_without_end_keeps_its_tail(analyst):
    analyst.script("chatty", "import sys\nfor n in range(2000): sys.stderr.write('x' * 10000)\nprint('end', "
                             "file=sys.stderr)\nsys.exit(1)")
    error, _, stderr, _, rss = drive(analyst, "chatty", 30)
    assert error == "ended with exit status 1"
    assert len(stderr) <= 4096 and stderr.endswith("xend")
    assert rss < 40_000


def test_output_at_the_limit_is_taken_whole(analyst):
    analyst.script("full", "import sys; sys.stdout.write('x' * (1 << 20))")
    assert drive(analyst, "full", 30)[:2] == [None, 1 << 20]


def test_what_was_printed_last_is_read_though_the_script_is_gone(analyst):
    """A pipe of the largest size holds it all; the script ends before a tenth has been read."""
    analyst.script("burst", "import fcntl, os\nfcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 1 << 20)\n"
                            "os.write(1, b'x' * 900000)\nos._exit(0)")
    assert [drive(analyst, "burst", 30)[:2] for _ in range(8)] == [[None, 900_000]] * 8


@pytest.mark.parametrize("source, error", [
    ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was killed by Segmentation fault (signal 11)"),
    ("syntax error", "ended with exit status 1"),
    ("import os; os.close(1); os.close(2); os._exit(7)", "ended with exit status 7"),
])
def test_how_a_script_can_fail(analyst, source, error):
    analyst.script("bad", source)
    assert drive(analyst, "bad", 30)[0] == error


def test_a_script_that_closes_its_output_still_has_its_time(analyst):
    analyst.script("quiet", "import os, time; os.close(1); os.close(2); time.sleep(30)")
    assert drive(analyst, "quiet")[0] == "did not finish within 1 s"


def test_sync_status(analyst):
    assert json.loads(analyst.helper("sync-status")) == {
        "synced": False, "elapsed_seconds": None, "elapsed_display": None}
    (analyst.home / "server").mkdir()
    for elapsed, display in [(5, "5 s"), (600, "10 min"), (7800, "2 h 10 min"), (100_000, "1 d 3 h"), (-900, "0 s")]:
        os.utime(analyst.home / "server", (0, time.time() - elapsed))
        status = json.loads(analyst.helper("sync-status"))
        assert status["synced"] and abs(status["elapsed_seconds"] - max(0, elapsed)) <= 3
        if elapsed > 60:
            assert status["elapsed_display"] == display


def test_a_timer_of_its_own(analyst):
    source = """
import notify_scripts as n
account = n.this_account()
print([n.own_timer(account, stem) for stem in ("sales", "daily-sales", "ünï", "other")])
"""
    wanted = ".config/systemd/user/timers.target.wants/notify-runner@"
    for instance in ("sales", r"daily\x2dsales", r"\xc3\xbcn\xc3\xaf"):
        analyst.file(f"{wanted}{instance}.timer", b"")
    assert analyst.python(source).strip() == repr([
        "notify-runner@sales.timer", r"notify-runner@daily\x2dsales.timer",
        r"notify-runner@\xc3\xbcn\xc3\xaf.timer", None])


SHOWN = """\
TimersCalendar={ OnCalendar=*-*-* *:00/5:00 ; next_elapse=Sun 2026-11-22 19:55:00 UTC }
NextElapseUSecRealtime=Sun 2026-11-22 19:55:19 UTC
NextElapseUSecMonotonic=0
LastTriggerUSec=Sun 2026-11-22 19:50:10 UTC
Id=notify-runner.timer

TimersMonotonic={ OnUnitActiveUSec=1h 30min ; next_elapse=0 }
TimersMonotonic={ OnActiveUSec=400d ; next_elapse=400d 16.114855s }
NextElapseUSecRealtime=
NextElapseUSecMonotonic=400d 20.860650s
LastTriggerUSec=
Id=notify-runner@mono.timer

Id=notify-runner@nothing.timer
"""


def test_timers_are_read_as_systemctl_shows_them(analyst):
    source = f"""
import json, time, notify_scripts as n
found = n._parse_timers({SHOWN!r})
print(json.dumps(found))
print(int(time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)))
"""
    found, boot = map(json.loads, analyst.python(source).splitlines())
    assert found.pop("notify-runner.timer") == [1795377319, "OnCalendar=*-*-* *:00/5:00", 1795377010]
    next_run, schedule, last_trigger = found.pop("notify-runner@mono.timer")
    assert abs(next_run - boot - 400 * 86400 - 20) <= 2
    assert (schedule, last_trigger) == ("OnUnitActiveSec=1h 30min; OnActiveSec=400d", None)
    assert found == {}


@pytest.mark.parametrize(("timer", "last_run", "overdue"), [
    ("n.Timer(now + 200, '', now - 100)", 100, False),  # all is well, every five minutes
    ("n.Timer(now + 200, '', now - 100)", 4000, True),  # the timer fires, and the runner does not come to it
    ("n.Timer(now + 80000, '', now - 6400)", 6400, False),  # all is well, once a day
    ("n.Timer(now + 80000, '', now - 6400)", 90000, True),  # it has fired, and nothing ran
    ("n.Timer(now + 85000, '', now - 1400)", 90000, False),  # it may still be waiting for the runner's lock
    ("n.Timer(now + 80000, '', None)", 90000, False),  # it has not fired since it was made
    ("n.NO_TIMER", 1700, False), ("n.NO_TIMER", 1900, True), ("None", 90000, False)])
def test_when_a_script_is_overdue(analyst, timer, last_run, overdue):
    """The answer of the user manager is given by the test; test_runner_on_machine.py has a real one."""
    source = f"""
import os, time, notify_scripts as n
account, now = n.this_account(), int(time.time())
timer = {timer}
n._timers = lambda account, units: timer and dict.fromkeys(units, timer)
n.record_run(account, "own", now - {last_run}, None)
changed = os.stat
class Old:
    def __init__(self, status): self.status = status
    def __getattr__(self, name): return 0 if name == "st_ctime" else getattr(self.status, name)
n.os.stat = lambda path, *rest, **options: Old(changed(path, *rest, **options))
print([script["overdue"] for script in n.listing(account)])
n.os.stat = changed
print([script["overdue"] for script in n.listing(account)])
"""
    analyst.script("own", {"notify": False})
    # The second time the file is as new as it is, and a script that was just put there has time to run.
    assert analyst.python(source).split() == [f"[{overdue}]", "[False]"]


def test_help_version_and_usage(analyst):
    assert "sync-status" in analyst.helper("--help")
    assert analyst.helper("--version") == f"notify-scripts {(analyst.programs / 'VERSION').read_text().strip()}\n"
    assert "usage:" in analyst.helper("fly", code=os.EX_USAGE)
    assert "no socket was passed" in analyst.helper("serve", code=os.EX_USAGE)


class Service:
    """notify-scripts serve, with the socket that systemd would pass and a manager to tell."""

    def __init__(self, analyst, *arguments):
        self.path = analyst.folder / "scripts.sock"
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(analyst.folder / "manager.sock"))
        os.chmod(analyst.folder / "manager.sock", 0o666)
        self.manager.settimeout(20)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.path))
            self.path.chmod(0o666)
            listener.listen(32)
            self.process = self._start(analyst, arguments, listener.fileno())
        assert self.manager.recv(100) == b"READY=1"

    @staticmethod
    def _start(analyst, arguments, descriptor):
        # A shell puts the socket where sd_listen_fds(3) wants it, under the pid the service will have.
        free = fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10)
        command = f'export LISTEN_PID=$$; exec "$@" 3<&{free} {free}<&-'
        environment = analyst.environment | {"LISTEN_FDS": "1",
                                             "NOTIFY_SOCKET": str(analyst.folder / "manager.sock")}
        try:
            return subprocess.Popen(["bash", "-c", command, "-", PYTHON, "-IS",
                                     analyst.programs / "notify_scripts.py", "serve", *arguments],
                                    env=environment, pass_fds=[free], stderr=subprocess.PIPE, text=True, **AS_OWNER)
        finally:
            os.close(free)

    def ask(self, request):
        return ask(self.path, request)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self, seconds=20):
        try:
            errors = self.process.communicate(timeout=seconds)[1]
            assert "Traceback" not in errors, errors
            return self.process.returncode
        finally:
            self.process.kill()
            self.process.wait()
            self.manager.close()


@pytest.fixture
def service(analyst):
    me = [] if os.getuid() != 0 else ["--bot-user", "root"]
    service = Service(analyst, *me)
    yield service
    if service.process.returncode is None:
        assert service.stop() == 0


def test_the_socket_lists_and_runs(analyst, service):
    analyst.script("sales", {"notify": True, "message": "ü"})
    analyst.script("bad", "import sys; sys.exit('boo')")
    answer, _ = service.ask({"do": "list"})
    assert answer == {"ok": True, "scripts": json.loads(analyst.helper("list"))}
    answer, image = service.ask({"do": "run", "name": "sales.py"})
    assert json.loads(answer["output"]) == {"notify": True, "message": "ü"}
    assert answer["ok"] and answer["name"] == "sales.py" and 0 < answer["elapsed_seconds"] < 30 and not image
    answer, _ = service.ask({"do": "run", "name": "bad.py"})
    assert answer == {"ok": False, "error": "bad.py ended with exit status 1", "stderr": "boo"}
    answer, _ = service.ask({"do": "sync-status"})
    assert answer == {"ok": True, "synced": False, "elapsed_seconds": None, "elapsed_display": None}


def test_the_image_follows_the_answer(analyst, service):
    path = analyst.file("chart.png", PNG)
    analyst.script("chart", {"notify": True, "message": "m", "image_path": str(path)})
    answer, image = service.ask({"do": "run", "name": "chart.py"})
    assert image == PNG
    assert answer["image"] == {"name": "chart.png", "size": len(PNG)}


@pytest.mark.parametrize("make, reason", [
    (lambda path: None, "No such file"), (lambda path: path.symlink_to("/etc/passwd"), "is a link"),
    (os.mkfifo, "not a regular file"), (lambda path: path.mkdir(), "not a regular file"),
    (lambda path: (path.touch(), os.truncate(path, (50 << 20) + 1)), "over 50 MiB"),
])
def test_an_image_that_cannot_be_given(analyst, service, make, reason):
    path = analyst.home / "chart.png"
    make(path)
    analyst.own(analyst.home)
    analyst.script("chart", {"notify": True, "message": "m", "image_path": str(path)})
    answer, image = service.ask({"do": "run", "name": "chart.py"})
    assert answer["ok"] and reason in answer["image_error"] and "image" not in answer and not image


@pytest.mark.parametrize("request_line, error", [
    (b"\n", "not one line of JSON"), (b"{}\n", '"do"'), (b"[]\n", "object"), (b'{"do": "run"}\n', '"do"'),
    (b'{"do": "run", "name": 5}\n', '"do"'), (b'{"do": "run", "name": "../x"}\n', "no script"),
    (b"[" * 60_000 + b"\n", "JSON"), (b"x" * 70_000, "JSON"), (b"\xff\xfe\n", "JSON"), (b'{"do": null}\n', '"do"'),
    (b'{"do": "run", "name": "\\ud800"}\n', "no script"),
])
def test_requests_that_make_no_sense(service, request_line, error):
    answer, _ = service.ask(request_line)
    assert answer["ok"] is False and error in answer["error"]
    assert service.ask({"do": "sync-status"})[0]["ok"]


def test_clients_do_not_wait_for_one_another(analyst, service):
    """One says nothing, one runs a script that waits for a file, and a third is served."""
    analyst.script("slow", "import os, time\nwhile not os.path.exists('go'): time.sleep(0.05)\nprint('{}')")
    with socket.socket(socket.AF_UNIX) as mute, socket.socket(socket.AF_UNIX) as slow:
        mute.connect(str(service.path))
        slow.connect(str(service.path))
        slow.settimeout(30)
        slow.sendall(b'{"do": "run", "name": "slow.py"}\n')
        begin = time.monotonic()
        assert service.ask({"do": "list"})[0]["ok"]
        assert time.monotonic() - begin < 3
        analyst.file("go", b"")
        assert json.loads(slow.recv(65536))["output"] == "{}\n"
        mute.settimeout(20)
        assert "no request came" in json.loads(mute.recv(65536))["error"]


def test_a_crowd_is_refused_and_the_service_goes_on(analyst, service):
    analyst.script("slow", "import os, time\nwhile not os.path.exists('go'): time.sleep(0.05)\nprint('{}')")
    with ExitStack() as stack:
        crowd = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(40)]
        for number, client in enumerate(crowd):
            client.connect(str(service.path))
            client.settimeout(30)
            if number < 8:
                client.sendall(b'{"do": "run", "name": "slow.py"}\n')
        until(lambda: len(processes("slow.py")) == 8)
        assert "try again later" in service.ask({"do": "list"})[0]["error"]
        analyst.file("go", b"")
        assert [json.loads(client.recv(65536))["ok"] for client in crowd[:8]] == [True] * 8
        assert service.ask({"do": "list"})[0]["ok"]


def test_sigterm_ends_the_service_and_what_it_runs(analyst, service):
    marker = f"96.{os.getpid()}"
    analyst.script("hang", f"import subprocess; subprocess.run(['sleep', '{marker}'])")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(service.path))
        client.settimeout(20)
        client.sendall(b'{"do": "run", "name": "hang.py"}\n')
        until(lambda: processes(marker))
        assert service.stop() == 0
        assert json.loads(client.recv(65536))["error"] == "hang.py was stopped"
    assert not processes(marker)


def test_the_service_ends_when_idle(analyst):
    begin = time.monotonic()
    service = Service(analyst, "--idle", "1", "--bot-user", OWNER.pw_name)
    assert service.manager.recv(100) == b"STOPPING=1"
    assert service.ended() == 0
    assert 1 <= time.monotonic() - begin < 10


def test_nobody_else_is_answered(analyst):
    """Not the owner, because the service is told of another one; not the bot, because there is none."""
    analyst.script("sales", {"notify": False})
    source = f"""
import os, socket, threading, notify_scripts as n
listener = socket.socket(socket.AF_UNIX); listener.bind("\\0analyst-test-{os.getpid()}"); listener.listen()
account = n.this_account()._replace(uid=os.getuid() + 1)
server = n.Server(listener, account, "no-such-account")
threading.Thread(target=server.serve, args=(30,)).start()
client = socket.socket(socket.AF_UNIX); client.connect(listener.getsockname())
client.sendall(b'{{"do": "list"}}\\n')
print(client.recv(1000).decode())
server.stop()
"""
    assert json.loads(analyst.python(source)) == {
        "ok": False, "error": "only the bot and the owner are answered here", "stderr": ""}


def test_a_bot_that_goes_away_harms_nothing(analyst, service):
    analyst.script("big", "print('{\"message\": \"' + 'x' * 900000 + '\"}')")
    for _ in range(5):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(service.path))
            client.sendall(b'{"do": "run", "name": "big.py"}\n')
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    answer, _ = service.ask({"do": "run", "name": "big.py"})
    assert len(answer["output"]) > 900000
