#!/usr/bin/python3 -EsS
"""One pass over the scripts of the account that calls it: `notify-runner [--dry-run] [NAME ...]`.

Runs the scripts side by side, judges each run (runner/report.py) and sends what they found (runner/spool.py). A
script that fails, hangs or prints rubbish costs its owner one message and the other scripts nothing.
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
from common.log import set_up_log
from common.settings import runner_socket, version
from notify_scripts import Account, Run, Script, ScriptsError
from runner.report import Pass, Preview

log = logging.getLogger("runner")

LOCK_SECONDS = 600
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


class Stop:
    """Request to end the pass; `descriptor` becomes readable with it (eventfd(2)), so that a run can be waited for."""

    def __init__(self):
        self.requested = False
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC)

    def request(self, *_) -> None:
        """Signal handler: ask for the end."""
        self.requested = True
        os.eventfd_write(self.descriptor, 1)


def choose(account: Account, names: list[str]) -> list[Script]:
    """The scripts of a pass: those named, or all without a timer of their own. Raises ScriptsError for an unknown name.

    `notify-runner@.service` gives names as systemd.unit(5) escapes them."""
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
            while not stop.requested:
                script = waiting.get_nowait()
                run = Run(b"", "", None, 0) if script.refused else notify_scripts.run_script(
                    account, script, stop=stop.descriptor, record=record)
                ended.put((script, run))
        except queue.Empty:
            pass
        finally:
            ended.put(None)

    working = min(cores, len(scripts))
    for _ in range(working):
        threading.Thread(target=work, daemon=True).start()
    while working:
        if item := ended.get():
            yield item
        else:
            working -= 1


def run_pass(account: Account, names: list[str], stop: Stop) -> int:
    """Do one pass, with the account's lock held. The exit status: 75 where messages still wait."""
    begin = time.monotonic()
    current = Pass(account, runner_socket(os.environ))
    current.spool.post_pending()
    scripts = choose(account, names)
    for script, run in side_by_side(account, scripts, stop, True):
        if not stop.requested:
            _handle(current, script, run)
    log.info("%s", current.summary(len(scripts), time.monotonic() - begin))
    return os.EX_TEMPFAIL if current.spool.pending or stop.requested else os.EX_OK


def _handle(current: Pass, script: Script, run: Run) -> None:
    try:
        current.handle(script, run)
    except OSError as error:  # a disk that fails under one script must not end the pass for the others
        log.error("%s: its report could not be written: %s", script.name, error)


def preview(account: Account, names: list[str], stop: Stop) -> int:
    """Do a dry run: print what would be sent, send and write nothing. The exit status."""
    shown = Preview(account)
    for script, run in side_by_side(account, choose(account, names), stop, False):
        shown.handle(script, run)
    return os.EX_OK


def take_lock(path: Path, seconds: float):
    """Lock of the account's runners, as an open file; None where another holds it for longer than `seconds`."""
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
    """`(dry_run, names)`. argparse would take longer to load than a script to run."""
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
        signal.signal(number, stop.request)
    if dry_run:
        set_up_log()
        return preview(account, names, stop)
    base = account.state.parent
    for folder in (base, account.state, base / "logs"):
        folder.mkdir(0o700, exist_ok=True)
    set_up_log(copy=base / "logs/runner.log")
    lock = take_lock(base / "runner.lock", LOCK_SECONDS if names else 0)
    if lock is None:
        log.info("another runner of this account is active; exiting")
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
