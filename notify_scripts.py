#!/usr/bin/python3 -IS
"""List and run the scripts of one account, as that account, within limits; say when they last ran and are overdue.

This file is the privilege boundary between the bot and an analyst's processes, so it imports nothing of the project
and nothing from the environment. It gains no privilege and needs none: sudo or systemd (notify-scripts@USER.service)
starts it as the owner of the scripts. Its rules:

- It does not work as root, nor for an account outside the analysts' group.
- The home is the one in the account database; a caller can set $HOME.
- A script is an entry of ~/user/notifications, never a path, and a file that only its owner can change.
- A script's process group ends with the script, after a time, or when it prints too much.
- On the socket only the bot's account and the owner are answered; the bytes of a picture follow the answer.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import json
import os
import pwd
import re
import selectors
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections import namedtuple
from contextlib import ExitStack, suppress
from pathlib import Path

USAGE = """notify-scripts list
       notify-scripts run NAME
       notify-scripts sync-status
       notify-scripts serve [--idle SECONDS] [--bot-user ACCOUNT]
       notify-scripts --help | --version"""
ANALYST_GROUP = "dataread"
RUN_SECONDS = 60
MAX_OUTPUT = 1 << 20
STDERR_TAIL = 4 << 10
MAX_IMAGE = 50 << 20
MAX_SCRIPTS = 1000
MAX_NAME_BYTES = 200  # leaves room in NAME_MAX for the names of the state files
MAX_REQUEST = 64 << 10
REQUEST_SECONDS = 5
ANSWER_SECONDS = 10
MAX_REQUESTS = 8  # served at a time
MAX_CLIENTS = 64  # connected
SYSTEMCTL_SECONDS = 5
OVERDUE_SECONDS = 1800  # more than a run may wait for the runner's lock and take
_CHUNK = 64 << 10
_KILL_SECONDS = 5
# Meant for this process; a script gets the account's environment without the service's variables.
_PRIVATE = ("NOTIFY_", "LISTEN_", "SUDO_", "WATCHDOG_", "CREDENTIALS_DIRECTORY", "TELEGRAM_BOT_TOKEN")
_SHARED_TIMER = "notify-runner.timer"

Account = namedtuple("Account", "uid name home scripts state")
Account.__doc__ = """Owner of scripts: `home`, the folder of scripts and the folder of their state, as Path."""
Script = namedtuple("Script", "name stem path refused")
Script.__doc__ = """An entry of the folder; `refused` is None, or the reason for not running it."""
Run = namedtuple("Run", "stdout stderr error seconds")
Run.__doc__ = """Result of a run: stdout as bytes, the end of stderr as text, `error` None or a predicate."""


Timer = namedtuple("Timer", "next_run schedule last_trigger")
Timer.__doc__ = """A timer of the user manager: unix seconds or None; the schedule as its unit has it."""
NO_TIMER = Timer(None, None, None)


class ScriptsError(Exception):
    """Nothing was done; the message says what to do. `code`: exit status (sysexits(3)); `stderr`: a tail."""

    def __init__(self, message: str, code: int, stderr: str = ""):
        super().__init__(message)
        self.code = code
        self.stderr = stderr


def this_account(environment=os.environ) -> Account:
    """The account this process runs as. Raises ScriptsError for root.

    NOTIFY_HOME replaces the home for a demonstration or a test. Callers could run the same files without it, except
    through sudo, where it is ignored.
    """
    uid = os.getuid()
    if 0 in (uid, os.geteuid()) or uid != os.geteuid():
        raise ScriptsError("not as root: run it as the owner of the scripts (sudo -u USER …)", os.EX_NOPERM)
    own_home = "" if "SUDO_UID" in environment else environment.get("NOTIFY_HOME", "")
    try:
        entry = pwd.getpwuid(uid)
        name, home = entry.pw_name, Path(own_home or entry.pw_dir)
    except KeyError:
        if not own_home:
            raise ScriptsError(f"uid {uid} has no account on this host", os.EX_NOUSER) from None
        name, home = str(uid), Path(own_home)
    return Account(uid, name, home, home / "user/notifications", home / ".notifications/state")


def check_member(account: Account, environment=os.environ) -> None:
    """Raise ScriptsError unless the process is in the analysts' group.

    NOTIFY_ANALYST_GROUP names another group, or none when empty, for hosts without one; not through sudo.
    """
    group = ANALYST_GROUP
    if "SUDO_UID" not in environment:
        group = environment.get("NOTIFY_ANALYST_GROUP", group)
    if not group:
        return
    advice = f"as root: notify-add-analyst {account.name}"
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        raise ScriptsError(f"this host has no group {group}; {advice}", os.EX_NOPERM) from None
    if gid not in (os.getgid(), *os.getgroups()):
        raise ScriptsError(f"{account.name} is not in group {group}; {advice}", os.EX_NOPERM)


def list_scripts(account: Account) -> list[Script]:
    """The scripts by name, refused ones too. Raises ScriptsError where the folder cannot be trusted.

    After MAX_SCRIPTS one more is listed, as refused with that reason, and the others are left out.
    """
    try:
        folder = os.path.realpath(account.scripts)
        names = os.listdir(folder)
        reason = _others_can_write(account, folder, os.stat(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ScriptsError(f"{account.scripts} cannot be read: {error.strerror}", os.EX_NOPERM) from error
    if reason:
        raise ScriptsError(f"{account.scripts} is refused: {reason}", os.EX_NOPERM)
    names = sorted(name for name in names if name.endswith(".py") and not name.startswith("."))
    scripts = [_script(account, folder, name) for name in names[:MAX_SCRIPTS + 1]]
    if len(scripts) > MAX_SCRIPTS:
        too_many = f"the folder has {len(names)} scripts, and only the first {MAX_SCRIPTS} are taken"
        scripts[-1] = scripts[-1]._replace(refused=too_many)
    return scripts


def find_script(account: Account, name: str) -> Script:
    """The script of that name, with or without `.py`. Raises ScriptsError where none is or it is refused."""
    scripts = list_scripts(account)
    for script in scripts:
        if name in (script.name, script.stem):
            if script.refused:
                raise ScriptsError(f"{script.name} is refused: {script.refused}", os.EX_NOPERM)
            return script
    present = ", ".join(script.name for script in scripts) or "none"
    shown = name.encode("unicode_escape").decode()
    raise ScriptsError(f"no script {shown} in {account.scripts}; there are: {present}", os.EX_NOINPUT)


def _script(account: Account, folder: str, name: str) -> Script:
    path = Path(folder, name)
    if not name.isprintable() or ".." in name or len(os.fsencode(name)) > MAX_NAME_BYTES:
        shown = name.encode("unicode_escape").decode()
        return Script(shown, shown[:-3], path, "its name is too long or has characters that are not taken")
    try:
        refused = _refusal(account, folder, path)
    except OSError as error:
        refused = f"it cannot be read: {error.strerror}"
    return Script(name, name[:-3], path, refused)


def _refusal(account: Account, folder: str, path: Path) -> str | None:
    target = os.path.realpath(path)
    if not target.startswith(folder + "/"):
        return "it is a link that leaves the folder; copy the file instead"
    status = os.stat(target)
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    return _others_can_write(account, target, status)


def _others_can_write(account: Account, path: str, status: os.stat_result) -> str | None:
    if status.st_uid != account.uid:
        return f"it is not owned by {account.name}"
    if status.st_mode & stat.S_IWOTH:
        return "everybody can write to it; chmod go-w"
    if status.st_mode & stat.S_IWGRP and not _private_group(account, status.st_gid):
        return "its group can write to it; chmod g-w"
    if status.st_mode & stat.S_IWGRP and _has_acl(path):
        return "others can write to it by its ACL; setfacl -b"
    return None


def _has_acl(path: str) -> bool:
    """True if the group's bits are the mask of an access control list, so for other accounts too (acl(5))."""
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise


def _private_group(account: Account, gid: int) -> bool:
    try:
        group = grp.getgrgid(gid)
        primary = pwd.getpwuid(account.uid).pw_gid
    except KeyError:
        return False
    return primary == gid and group.gr_name == account.name and set(group.gr_mem) <= {account.name}


class _Output:
    """Output of a script: stdout up to the limit and one read more, the end of stderr."""

    def __init__(self):
        self.stdout = bytearray()
        self.stderr = bytearray()

    def read(self, stream, kept: bytearray) -> int:
        """Read once; 0 at the end of the stream. Raises BlockingIOError."""
        data = os.read(stream.fileno(), _CHUNK)
        kept += data
        if kept is self.stderr:
            del kept[:-STDERR_TAIL]
        return len(data)

    def too_much(self) -> bool:
        return len(self.stdout) > MAX_OUTPUT

    def tail(self) -> str:
        return bytes(self.stderr).decode("utf-8", "replace").strip()


def run_script(account: Account, script: Script, timeout: float = RUN_SECONDS, stop: int | None = None,
               record: bool = True) -> Run:
    """Run a script to its end, at most `timeout` seconds, and end its process group with it.

    `stop` is a descriptor that ends the run when it becomes readable (eventfd(2)). The run is recorded in the
    account's state unless `record` is false. A failure of the script is in the result, not raised.
    """
    started, begin = time.time(), time.monotonic()
    output = _Output()
    try:
        error = _run(account, script, output, begin + timeout, stop)
    except TimeoutError:
        error = f"did not finish within {timeout:g} s"
    except OSError as problem:
        error = f"could not be run: {problem.strerror}"
    if record:
        record_run(account, script.stem, started, error)
    return Run(bytes(output.stdout), output.tail(), error, time.monotonic() - begin)


def _run(account: Account, script: Script, output: _Output, deadline: float, stop: int | None) -> str | None:
    venv = account.home / ".venv/bin/python"
    python = venv if os.access(venv, os.X_OK) else "/usr/bin/python3"
    process = subprocess.Popen([python, script.path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, bufsize=0, cwd=account.home, start_new_session=True,
                               env=_environment(account))
    with ExitStack() as stack:
        stack.callback(process.stdout.close)
        stack.callback(process.stderr.close)
        pidfd = os.pidfd_open(process.pid)
        stack.callback(os.close, pidfd)
        stack.callback(_end_group, process, pidfd)
        error = _attend(process, pidfd, output, deadline, stop)
    return error or _exit_error(process)


def _environment(account: Account) -> dict:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}
    kept.setdefault("PATH", "/usr/local/bin:/usr/bin:/bin")
    return kept | {"HOME": str(account.home), "USER": account.name, "LOGNAME": account.name}


def _attend(process, pidfd: int, output: _Output, deadline: float, stop: int | None) -> str | None:
    """Read until the script has ended, even if others hold its pipes; or return the reason to end it."""
    streams = {process.stdout: output.stdout, process.stderr: output.stderr}
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ)
        for descriptor in (pidfd, stop):
            if descriptor is not None:
                selector.register(descriptor, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            ready = {key.fileobj for key, _ in selector.select(left)}
            if stop in ready:
                return "was stopped"
            for stream in ready & streams.keys():
                if not output.read(stream, streams[stream]):
                    selector.unregister(stream)
            if pidfd in ready:
                _drain(streams, output)
            if output.too_much():
                return f"printed more than {MAX_OUTPUT >> 20} MiB"
            if pidfd in ready:
                return None


def _drain(streams: dict, output: _Output) -> None:
    """Read the content of the pipes. A child may go on writing, so the largest size of a pipe (pipe(7)) bounds it."""
    for stream, kept in streams.items():
        with suppress(BlockingIOError):
            for _ in range(MAX_OUTPUT // _CHUNK + 1):
                if not output.read(stream, kept):
                    break


def _end_group(process, pidfd: int) -> None:
    # Until wait(2) the id of the leader, dead or not, cannot become another group's.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with selectors.DefaultSelector() as selector:
        selector.register(pidfd, selectors.EVENT_READ)
        if selector.select(_KILL_SECONDS):
            process.wait()


def _exit_error(process) -> str | None:
    status = process.returncode
    if status is None:
        return "could not be killed"
    if status < 0:
        return f"was killed by {signal.strsignal(-status) or 'signal'} (signal {-status})"
    return f"ended with exit status {status}" if status else None


def record_run(account: Account, stem: str, when: float, error: str | None) -> None:
    """Write STEM.run: `{"last_run": unix seconds, "error": str|null}`.

    Not durable: a power cut may lose it, and a full disk does not stop a script.
    """
    path = account.state / f"{stem}.run"
    try:
        for folder in (account.state.parent, account.state):
            folder.mkdir(0o700, exist_ok=True)
        with open(account.state / ".run.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            temporary = account.state / ".run.tmp"
            temporary.write_text(json.dumps({"last_run": int(when), "error": error}))
            os.replace(temporary, path)
    except OSError as problem:
        _say(4, f"the run could not be recorded in {path}: {problem.strerror}")


def open_image(path: str) -> tuple[int, int]:
    """Open a picture for reading: `(descriptor, size)`. Raises ScriptsError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise ScriptsError(f"{path} cannot be opened: {reason}", os.EX_NOINPUT) from None
    except ValueError:
        raise ScriptsError("the path of the image holds a NUL", os.EX_DATAERR) from None
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_IMAGE:
        return descriptor, status.st_size
    os.close(descriptor)
    kind = f"over {MAX_IMAGE >> 20} MiB" if stat.S_ISREG(status.st_mode) else "not a regular file"
    raise ScriptsError(f"{path} is {kind}", os.EX_DATAERR)


def own_timer(account: Account, stem: str) -> str | None:
    """The enabled timer that runs this script alone, None where it runs with all the others.

    Its instance is the stem, escaped as systemd.unit(5) has it or written as it stands.
    """
    wanted = account.home / ".config/systemd/user/timers.target.wants"
    for instance in (_unit_escape(stem), stem):
        unit = f"notify-runner@{instance}.timer"
        if os.path.lexists(wanted / unit):
            return unit
    return None


def _unit_escape(stem: str) -> str:
    escaped = re.sub(rb"[^A-Za-z0-9:_.]|^\.", lambda match: b"\\x%02x" % match[0][0], os.fsencode(stem))
    return escaped.decode()


def listing(account: Account) -> list[dict]:
    """Output of `list`: an object a script, times in unix seconds, null for unknown values."""
    scripts = list_scripts(account)
    units = {script.stem: own_timer(account, script.stem) or _SHARED_TIMER for script in scripts}
    known = _timers(account, sorted(set(units.values()))) if scripts else {}
    return [_listed(account, script, None if known is None else known.get(units[script.stem], NO_TIMER))
            for script in scripts]


def _listed(account: Account, script: Script, timer: Timer | None) -> dict:
    run = {} if script.refused else _read_json(account.state / f"{script.stem}.run")
    state = {} if script.refused else _read_json(account.state / f"{script.stem}.json")
    last_run, error = unix_time(run.get("last_run")), run.get("error")
    shown = NO_TIMER if script.refused or timer is None else timer
    return {"name": script.name, "stem": script.stem, "last_run": last_run,
            "last_sent": unix_time(state.get("last_sent")), "next_run": shown.next_run,
            "schedule": shown.schedule, "last_error": error if isinstance(error, str) else None,
            "overdue": not script.refused and timer is not None and _is_overdue(script, timer, last_run),
            "refused": script.refused}


def _is_overdue(script: Script, timer: Timer, last_run: int | None) -> bool:
    """True if a script has missed its timer, counted from the last change of its file."""
    try:
        since = max(last_run or 0, os.stat(script.path).st_ctime)
    except OSError:
        return False
    limit = time.time() - OVERDUE_SECONDS
    if timer.next_run is None:
        return since < limit
    if timer.last_trigger is None:
        return False
    period = timer.next_run - timer.last_trigger
    return since < timer.last_trigger < limit or (period <= OVERDUE_SECONDS and since < limit - period)


def _read_json(path: Path) -> dict:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def unix_time(value) -> int | None:
    """A time from a state file, None where it is none."""
    return int(value) if type(value) in (int, float) and abs(value) < 1 << 53 else None


def _timers(account: Account, units: list[str]) -> dict[str, Timer] | None:
    """Timers of the user manager, by unit: NO_TIMER without a user manager; None if it does not answer."""
    runtime = f"/run/user/{account.uid}"
    if not os.path.exists(f"{runtime}/systemd/private"):
        return dict.fromkeys(units, NO_TIMER)
    command = ["/usr/bin/systemctl", "--user", "show", "--property=Id,TimersCalendar,TimersMonotonic,"
               "NextElapseUSecRealtime,NextElapseUSecMonotonic,LastTriggerUSec", "--", *units]
    try:
        shown = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            timeout=SYSTEMCTL_SECONDS, env={"XDG_RUNTIME_DIR": runtime, "LC_ALL": "C.UTF-8", "TZ": "UTC"}).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return _parse_timers(shown.decode("utf-8", "replace"))


def _parse_timers(shown: str) -> dict[str, Timer]:
    found = {}
    for block in shown.split("\n\n"):
        lines = [line.partition("=") for line in block.splitlines()]
        values = {name: value for name, _, value in lines}
        schedule = [value.strip("{ }").split(" ; ")[0].replace("USec=", "Sec=") for name, _, value in lines
                    if name in ("TimersCalendar", "TimersMonotonic")]
        if schedule:
            found[values.get("Id")] = Timer(_next_elapse(values), "; ".join(schedule),
                                            _timestamp(values.get("LastTriggerUSec", "")))
    return found


def _next_elapse(values: dict) -> int | None:
    times = [_timestamp(values.get("NextElapseUSecRealtime", ""))]
    monotonic = _timespan(values.get("NextElapseUSecMonotonic", ""))
    if monotonic:
        times.append(int(time.time() + monotonic - time.clock_gettime(time.CLOCK_MONOTONIC)))
    return min((elapse for elapse in times if elapse is not None), default=None)


def _timestamp(text: str) -> int | None:
    """Unix seconds of a time as systemctl prints it with TZ=UTC (systemd.time(7))."""
    from calendar import timegm  # the runner rarely needs it
    try:
        return timegm(time.strptime(text, "%a %Y-%m-%d %H:%M:%S UTC"))
    except ValueError:
        return None


def _timespan(text: str) -> float:
    """Seconds of a time span as systemctl prints it (systemd.time(7)), such as "1h 2min 3.5s"; 0 for none."""
    units = {"y": 31557600, "month": 2629800, "w": 604800, "d": 86400, "h": 3600, "min": 60, "s": 1,
             "ms": 1e-3, "us": 1e-6}
    return sum(float(number) * units.get(unit, 0) for number, unit in re.findall(r"([\d.]+)([a-z]+)", text))


def sync_status(account: Account) -> dict:
    """Age of ~/server/ by its mtime: seconds, and the same for a person."""
    try:
        elapsed = max(0, int(time.time() - os.stat(account.home / "server/").st_mtime))
    except OSError:
        return {"synced": False, "elapsed_seconds": None, "elapsed_display": None}
    return {"synced": True, "elapsed_seconds": elapsed, "elapsed_display": _duration(elapsed)}


def _duration(seconds: int) -> str:
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds} s"


class Server:
    """Answers on the listening socket: one line of JSON each way, a thread a client, both bounded.

    Requests: `{"do": "list"}`, `{"do": "run", "name": …}`, `{"do": "sync-status"}`. Answers:
    `{"ok": true, …}` or `{"ok": false, "error": a sentence, "stderr": a tail}`. The answer to a run has its
    `output`, and where that names an image either `image` with its `size`, the bytes of which follow the line, or
    `image_error`. No descriptor is passed: reading or closing one may block for ever (FUSE, NFS).
    """

    def __init__(self, listener: socket.socket, account: Account, bot_user: str):
        self._listener = listener
        self._account = account
        self._peers = {account.uid, *_uid_of(bot_user)}
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._clients: set[threading.Thread] = set()
        self._turns = threading.BoundedSemaphore(MAX_REQUESTS)
        self._served = time.monotonic()

    def stop(self) -> None:
        """End `serve` and every script it runs; may be called from a signal handler."""
        os.eventfd_write(self._stop, 1)

    def serve(self, idle: float) -> None:
        """Serve until stopped, or until `idle` seconds have passed without a request."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._stop, selectors.EVENT_READ)
            while True:
                left = idle if self._clients else self._served + idle - time.monotonic()
                ready = {key.fileobj for key, _ in selector.select(max(0, left))}
                if self._stop in ready or (left <= 0 and not ready):
                    break
                if self._listener in ready:
                    self._accept()
        for client in list(self._clients):
            client.join(_KILL_SECONDS)

    def _accept(self) -> None:
        try:
            connection = self._listener.accept()[0]
        except OSError as error:
            _say(4, f"a connection was lost: {error.strerror}")
            return
        self._served = time.monotonic()
        if len(self._clients) >= MAX_CLIENTS:
            connection.close()
            return
        thread = threading.Thread(target=self._client, args=(connection,), daemon=True)
        self._clients.add(thread)
        thread.start()

    def _client(self, connection: socket.socket) -> None:
        descriptors = []
        try:
            with connection:
                try:
                    answer = self._answer(connection, descriptors)
                except ScriptsError as error:
                    answer = {"ok": False, "error": str(error), "stderr": error.stderr}
                _send_line(connection, answer, descriptors)
        except OSError as error:
            _say(4, f"an answer was not taken: {error}")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            self._served = time.monotonic()
            self._clients.discard(threading.current_thread())

    def _answer(self, connection: socket.socket, descriptors: list[int]) -> dict:
        uid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        request = _receive_line(connection)  # a client that is still sending may lose an answer
        if uid not in self._peers:
            _say(4, f"refused uid {uid} on the socket")
            raise ScriptsError("only the bot and the owner are answered here", os.EX_NOPERM)
        if not self._turns.acquire(blocking=False):
            raise ScriptsError(f"{MAX_REQUESTS} requests are being served; try again later", os.EX_TEMPFAIL)
        try:
            return self._serve(request, descriptors)
        finally:
            self._turns.release()

    def _serve(self, request: dict, descriptors: list[int]) -> dict:
        match request.get("do"):
            case "list":
                return {"ok": True, "scripts": listing(self._account)}
            case "sync-status":
                return {"ok": True, **sync_status(self._account)}
            case "run" if isinstance(request.get("name"), str):
                return self._run(request["name"], descriptors)
        raise ScriptsError('"do" is "list", "sync-status", or "run" with a "name"', os.EX_USAGE)

    def _run(self, name: str, descriptors: list[int]) -> dict:
        script = find_script(self._account, name)
        run = run_script(self._account, script, stop=self._stop)
        document = checked_output(script, run)
        answer = {"ok": True, "name": script.name, "output": run.stdout.decode(),
                  "elapsed_seconds": round(run.seconds, 3)}
        path = document.get("image_path")
        if isinstance(path, str) and path.startswith("/"):
            try:
                descriptor, size = open_image(path)
                descriptors.append(descriptor)
                answer["image"] = {"name": os.path.basename(path), "size": size}
            except ScriptsError as error:
                answer["image_error"] = str(error)
        return answer


def checked_output(script: Script, run: Run) -> dict:
    """The JSON object that a run printed. Raises ScriptsError for a failure and for other output."""
    if run.error:
        raise ScriptsError(f"{script.name} {run.error}", os.EX_SOFTWARE, run.stderr)
    try:
        document = json.loads(run.stdout.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ScriptsError(f"{script.name}: output is not one JSON object and nothing else: {error}",
                           os.EX_DATAERR, run.stderr) from None
    if not isinstance(document, dict):
        raise ScriptsError(f"{script.name}: output is JSON, but not an object", os.EX_DATAERR, run.stderr)
    return document


def _receive_line(connection: socket.socket) -> dict:
    deadline = time.monotonic() + REQUEST_SECONDS
    line = b""
    try:
        while b"\n" not in line and len(line) <= MAX_REQUEST:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            data = connection.recv(_CHUNK)
            if not data:
                break
            line += data
        request = json.loads(line.partition(b"\n")[0])
    except TimeoutError:
        raise ScriptsError(f"no request came within {REQUEST_SECONDS} s", os.EX_PROTOCOL) from None
    except (ValueError, RecursionError):
        raise ScriptsError("the request is not one line of JSON", os.EX_PROTOCOL) from None
    if not isinstance(request, dict):
        raise ScriptsError("the request is not a JSON object", os.EX_PROTOCOL)
    return request


def _send_line(connection: socket.socket, answer: dict, descriptors: list[int]) -> None:
    line = json.dumps(answer).encode() + b"\n"
    connection.settimeout(ANSWER_SECONDS)
    connection.sendall(line)
    for descriptor in descriptors:
        with open(descriptor, "rb", closefd=False) as image:
            connection.sendfile(image, 0, answer["image"]["size"])


def _uid_of(name: str) -> list[int]:
    try:
        return [pwd.getpwnam(name).pw_uid]
    except KeyError:
        _say(4, f"this host has no account {name}: only the owner is answered")
        return []


def _listener() -> socket.socket:
    """The socket systemd passed, as sd_listen_fds(3) has it."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        raise ScriptsError("no socket was passed: notify-scripts@USER.socket starts serve", os.EX_USAGE)
    listener = socket.socket(fileno=3)
    listener.set_inheritable(False)
    return listener


def _notify_manager(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def _say(priority: int, text: str) -> None:
    prefix = f"<{priority}>" if "JOURNAL_STREAM" in os.environ else "notify-scripts: "
    print(prefix + text, file=sys.stderr, flush=True)


def _serve(account: Account, options) -> None:
    server = Server(_listener(), account, options.bot_user)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    _notify_manager("READY=1")
    server.serve(options.idle)
    _notify_manager("STOPPING=1")


def _print_run(account: Account, options) -> None:
    script = find_script(account, options.name)
    run = run_script(account, script)
    checked_output(script, run)
    sys.stdout.buffer.write(run.stdout)


def _options(arguments: list[str]):
    import argparse  # the runner imports this module and does without

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            self.exit(os.EX_USAGE, f"{self.format_usage()}notify-scripts: {message}\n")

    parser = Parser(prog="notify-scripts", usage=USAGE, description="List and run scripts as their owner.")
    version = Path(os.path.realpath(__file__)).with_name("VERSION").read_text().strip()
    parser.add_argument("--version", action="version", version=f"notify-scripts {version}")
    commands = parser.add_subparsers(dest="command", required=True, prog="notify-scripts")
    commands.add_parser("list", help="the scripts and what is known of them, as a JSON array")
    run = commands.add_parser("run", help="run one script and print its output")
    run.add_argument("name", help="a name from the list, with or without .py")
    commands.add_parser("sync-status", help="how old ~/server/ is, as a JSON object")
    serve = commands.add_parser("serve", help="answer on the socket systemd passes (notify-scripts@.service)")
    serve.add_argument("--bot-user", default="deploy", help="the account that is answered besides the owner")
    serve.add_argument("--idle", type=float, default=30, help="seconds without a client after which it ends")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    try:
        account = this_account()
        check_member(account)
        match options.command:
            case "list":
                print(json.dumps(listing(account), indent=1))
            case "sync-status":
                print(json.dumps(sync_status(account)))
            case "run":
                _print_run(account, options)
            case "serve":
                _serve(account, options)
        sys.stdout.flush()
    except ScriptsError as error:
        if error.stderr:
            print(error.stderr, file=sys.stderr)
        _say(3, str(error))
        return error.code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter reports it once more
        return os.EX_IOERR
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
