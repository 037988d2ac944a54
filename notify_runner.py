#!/usr/bin/python3 -EsS
"""One pass over the scripts of the account that calls it: `notify-runner [--dry-run] [NAME ...]`.

Runs the scripts side by side and hands what they found to the bot. A script that fails, hangs or prints
rubbish costs its owner one message and the other scripts nothing. What the bot did not take stays on disk and
goes first at the next pass (handover.py); the state of a script changes when the bot took a message about it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import re
import signal
import sys
import threading
import time
from pathlib import Path

import notify_scripts
from common import script_output
from common.jsonstore import JsonStore, StoreError
from common.log import set_up_log
from common.settings import runner_socket, version
from notify_scripts import Account, Run, Script, ScriptsError, unix_time
from runner.spool import Handover, Message, picture

log = logging.getLogger("runner")

LOCK_SECONDS = 600
DAY = 86400
USAGE = "usage: notify-runner [--dry-run] [NAME ...]"
HELP = f"""{USAGE}
       notify-runner --help | --version

Run your notification scripts and send what they find. Without a NAME: all scripts of
~/user/notifications that have no timer of their own.

  --dry-run   run them and print what would be sent; send nothing, record nothing
  --help      print this
  --version   print the version

See notify-runner(1).
"""


class Failing(Exception):
    """A script did not do its part; the message is a predicate: "did not finish within 60 s"."""


class Stop:
    """A wish to end, which a running script can be waited for together with (eventfd(2))."""

    def __init__(self):
        self.wished = False
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC)

    def wish(self, *_) -> None:
        self.wished = True
        os.eventfd_write(self.descriptor, 1)


class Pass:
    """What comes of each run: a message, a cooldown that holds one back, or a script that fails."""

    def __init__(self, account: Account, bot_socket: str):
        self._account = account
        self.handover = Handover(account.state.parent / "unsent", bot_socket, self._record)
        self.silent = self.held = self.failed = 0

    def handle(self, script: Script, run: Run) -> None:
        """Judge one run and hand over what is to be said of it."""
        try:
            notification = judge(script, run)
        except Failing as failing:
            if not (script.refused or run.error):
                notify_scripts.record_run(self._account, script.stem, time.time() - run.seconds, str(failing))
            self._fails(script, str(failing), run.stderr)
            return
        state, usable = self._state(script.stem)
        self._works(script, state)
        if notification.notify:
            self._notify(script, notification, state, usable)
        else:
            self.silent += 1

    def summary(self, scripts: int, seconds: float) -> str:
        """The line the log has of each pass."""
        return (f"{scripts} scripts in {seconds:.1f} s: {self.handover.sent} sent, {self.silent} silent, "
                f"{self.held} held by their cooldown, {self.failed} failed, "
                f"{len(self.handover.pending)} kept for the next pass")

    def _notify(self, script: Script, notification, state: dict, usable: bool) -> None:
        now = time.time()
        waiting = [message.created for message in self.handover.pending
                   if message.stem == script.stem and message.kind == "alert"]
        last_sent = max(waiting, default=unix_time(state.get("last_sent")))
        if not script_output.cooldown_over(last_sent, notification.cooldown, now):
            self.held += 1
            return
        self._send(script, "alert", notification.title, notification.message, notification.cooldown, usable,
                   image_path=notification.image_path)

    def _fails(self, script: Script, reason: str, stderr: str) -> None:
        self.failed += 1
        log.error("%s %s", script.name, reason)
        now = time.time()
        state, usable = self._state(script.stem)
        trouble = self._trouble(script.stem, state)
        if trouble and trouble[1] <= now < trouble[1] + DAY:
            return
        self._send(script, "failing", f"{script.name} fails", failure_text(script.name, reason, stderr), DAY,
                   usable, since=trouble[0] if trouble else now)

    def _works(self, script: Script, state: dict) -> None:
        trouble = self._trouble(script.stem, state)
        if trouble:
            since = time.strftime("%Y-%m-%d %H:%M", time.localtime(trouble[0]))
            self._send(script, "works", f"{script.name} works again", f"It had failed since {since}.", DAY, True)

    def _send(self, script: Script, kind: str, title: str, text: str, period: int, usable: bool,
              since: float = 0, image_path: str = "") -> None:
        """Where nothing can be recorded the same key for a `period` keeps the message from going out each pass."""
        now = time.time()
        spare = _key(script.stem, kind, now, period)
        message = Message("", _new_key() if usable else spare, script.stem, script.name, kind, title, text, "",
                          now, since)
        self.handover.send(message, spare, image_path)

    def _trouble(self, stem: str, state: dict) -> tuple | None:
        """Since when the script fails and when its owner was told; None where there is no trouble known."""
        for message in reversed(self.handover.pending):
            if message.stem == stem and message.kind in ("failing", "works"):
                return (message.since, message.created) if message.kind == "failing" else None
        failing = state.get("failing")
        if not isinstance(failing, dict):
            return None
        return unix_time(failing.get("since")) or 0, unix_time(failing.get("told")) or 0

    def _store(self, stem: str) -> JsonStore:
        return JsonStore(self._account.state / f"{stem}.json", 0o600)

    def _state(self, stem: str) -> tuple[dict, bool]:
        try:
            return self._store(stem).read(), True
        except StoreError as error:
            log.error("%s", error)
            return {}, False

    def _record(self, message: Message) -> None:
        now = int(time.time())
        with self._store(message.stem).update() as state:
            if message.kind == "alert":
                state["last_sent"] = now
            elif message.kind == "failing":
                state["failing"] = {"since": int(message.since), "told": now}
            else:
                state.pop("failing", None)


class Preview:
    """What a pass would do, printed; nothing is sent and nothing is written."""

    def __init__(self, account: Account):
        self._account = account

    def handle(self, script: Script, run: Run) -> None:
        """Print what would come of one run."""
        try:
            notification = judge(script, run)
        except Failing as failing:
            print(f"{script.name} fails: it {failing}")
        else:
            print(f"{script.name}: " + (self._would_send(script, notification) if notification.notify
                                        else "nothing to send (notify is false)"))
        if run.stderr:
            print(_indented("stderr", run.stderr))
        sys.stdout.flush()

    def _would_send(self, script: Script, notification) -> str:
        lines = ["would send now"]
        try:
            last_sent = JsonStore(self._account.state / f"{script.stem}.json").read().get("last_sent")
            if not script_output.cooldown_over(unix_time(last_sent), notification.cooldown, time.time()):
                due = time.strftime("%Y-%m-%d %H:%M", time.localtime(last_sent + notification.cooldown))
                lines = [f"would send this, but its cooldown holds it until {due}"]
        except StoreError as error:
            lines = [f"would send now, without knowing when it was last sent: {error}"]
        lines += [_indented("title", notification.title), _indented("message", notification.message)]
        if notification.image_path:
            lines.append(_indented("image", _judged_image(notification.image_path)))
        return "\n".join(line for line in lines if line)


def judge(script: Script, run: Run) -> script_output.Notification:
    """What a run says. Raises Failing."""
    if script.refused:
        raise Failing(f"is refused: {script.refused}")
    if run.error:
        raise Failing(run.error)
    try:
        return script_output.parse_output(run.stdout)
    except script_output.ContractError as breach:
        raise Failing(f"breaks the contract: {breach.field} {breach.reason}") from breach


def failure_text(name: str, reason: str, stderr: str) -> str:
    """What the owner of a failing script is told, as legacy Markdown."""
    from common.markdown import escape
    lines = [escape(f"It {reason}.")]
    if stderr:
        lines.append("```\n" + stderr.replace("```", "'''") + "\n```")
    lines.append(escape(f"To see what it does: notify-runner --dry-run {name}"))
    return "\n".join(lines)


def _judged_image(path: str) -> str:
    try:
        descriptor, size = picture(path)
    except ScriptsError as error:
        return f"none, and a line that says so: {error}"
    os.close(descriptor)
    return f"{path} ({size} bytes)"


def _indented(label: str, text: str) -> str:
    first, *rest = text.splitlines() or [""]
    return "\n".join([f"  {label + ':':9}{first}", *(" " * 11 + line for line in rest)])


def _new_key() -> str:
    return os.urandom(16).hex()


def _key(stem: str, kind: str, now: float, period: int) -> str:
    import hashlib
    text = f"{stem}\0{kind}\0{now // period if period else now}"
    return hashlib.sha256(text.encode()).hexdigest()


def choose(account: Account, names: list[str]) -> list[Script]:
    """The scripts of a pass: those named, or all without a timer of their own. Raises ScriptsError for a name
    that is none; `notify-runner@.service` gives names as they stand in a unit's (systemd.unit(5))."""
    scripts = notify_scripts.list_scripts(account)
    if not names:
        return [script for script in scripts if not notify_scripts.own_timer(account, script.stem)]
    known = {script.stem: script for script in scripts} | {script.name: script for script in scripts}
    chosen = {}
    for name in names:
        script = known.get(name) or known.get(_unit_unescape(name))
        if script is None:
            present = ", ".join(script.name for script in scripts) or "none"
            raise ScriptsError(f"no script {name!r} in {account.scripts}; there are: {present}",
                               os.EX_NOINPUT)
        chosen[script.name] = script
    return list(chosen.values())


def _unit_unescape(name: str) -> str:
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), os.fsencode(name))
    return os.fsdecode(raw)


def side_by_side(account: Account, scripts: list[Script], stop: Stop, record: bool):
    """Run the scripts, as many at a time as there are cores, and yield `(script, run)` as they end."""
    cores = len(os.sched_getaffinity(0))
    waiting, ended = queue.SimpleQueue(), queue.Queue(cores)
    for script in scripts:
        waiting.put(script)

    def work():
        try:
            while not stop.wished:
                script = waiting.get_nowait()
                if script.refused:
                    run = Run(b"", "", None, 0)
                else:
                    run = notify_scripts.run_script(account, script, stop=stop.descriptor, record=record)
                ended.put((script, run))
        except queue.Empty:
            pass
        finally:
            ended.put(None)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(cores, len(scripts)))]
    for thread in threads:
        thread.start()
    working = len(threads)
    while working:
        if item := ended.get():
            yield item
        else:
            working -= 1


def run_pass(account: Account, names: list[str], stop: Stop) -> int:
    """One pass, alone among the runners of the account. The exit status: 75 where messages still wait."""
    begin = time.monotonic()
    bot_socket = runner_socket(os.environ)
    current = Pass(account, bot_socket)
    current.handover.post_pending()
    scripts = choose(account, names)
    for script, run in side_by_side(account, scripts, stop, True):
        if not stop.wished:
            _handle(current, script, run)
    log.info("%s", current.summary(len(scripts), time.monotonic() - begin))
    return os.EX_TEMPFAIL if current.handover.pending or stop.wished else os.EX_OK


def _handle(current: Pass, script: Script, run: Run) -> None:
    try:
        current.handle(script, run)
    except OSError as error:  # a disk that fails under one script must not end the pass for the others
        log.error("%s: what it found could not be dealt with: %s", script.name, error)


def preview(account: Account, names: list[str], stop: Stop) -> int:
    """Run without sending, printing, or writing. The exit status."""
    shown = Preview(account)
    for script, run in side_by_side(account, choose(account, names), stop, False):
        shown.handle(script, run)
    return os.EX_OK


def take_lock(path: Path, seconds: float):
    """The lock of the account's runners, None where another holds it for longer than `seconds`."""
    lock = open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600))
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() >= deadline:
                lock.close()
                return None
            time.sleep(0.1)


def _arguments(arguments: list[str]) -> tuple[bool, list[str]]:
    """`(dry_run, names)`. By hand: argparse would take longer to load than a script to run."""
    options = arguments[:arguments.index("--")] if "--" in arguments else arguments
    names = arguments[len(options) + 1:] + [name for name in options if not name.startswith("-")]
    options = {option for option in options if option.startswith("-")}
    if options & {"--help", "-h"}:
        print(HELP, end="")
        sys.exit(os.EX_OK)
    if "--version" in options:
        print(f"notify-runner {version()}")
        sys.exit(os.EX_OK)
    if unknown := options - {"--dry-run"}:
        print(f"notify-runner: unknown option {min(unknown)}\n{USAGE}", file=sys.stderr)
        sys.exit(os.EX_USAGE)
    return "--dry-run" in options, names


def _run(dry_run: bool, names: list[str]) -> int:
    account = notify_scripts.this_account()
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop.wish)
    if dry_run:
        set_up_log()
        return preview(account, names, stop)
    base = account.state.parent
    for folder in (base, account.state, base / "logs"):
        folder.mkdir(0o700, exist_ok=True)
    set_up_log(copy=base / "logs/runner.log")
    lock = take_lock(base / "runner.lock", LOCK_SECONDS if names else 0)
    if lock is None:
        log.info("another runner of this account is at work; this one leaves")
        return os.EX_TEMPFAIL if names else os.EX_OK
    with lock:
        return run_pass(account, names, stop)


def main(arguments: list[str]) -> int:
    dry_run, names = _arguments(arguments)
    try:
        return _run(dry_run, names)
    except ScriptsError as error:
        log.error("%s", error)
        return error.code
    except OSError as error:
        log.error("%s", error)
        return os.EX_IOERR


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
