"""Report of a run: judges it, and decides what its owner is told; a dry run prints it.

A run comes to a message, to one that its cooldown holds back, or to nothing. A script that fails costs its owner one
message a day, and another when it works again. The state of a script changes when the bot took a message about it.
"""

from __future__ import annotations

import logging
import os
import sys
import time

import notify_scripts
from common import script_output
from common.jsonstore import JsonStore, StoreError
from common.script_output import ContractError, Notification, failure_text
from notify_scripts import Account, Run, Script, ScriptsError, unix_time
from runner.spool import Message, Spool, picture

log = logging.getLogger("runner")

DAY = 86400


def judge(script: Script, run: Run) -> tuple[Notification | None, str]:
    """The notification of a run and ""; or None and the failure as a predicate: "did not finish within 60 s"."""
    if script.refused:
        return None, f"is refused: {script.refused}"
    if run.error:
        return None, run.error
    try:
        return script_output.parse_output(run.stdout), ""
    except ContractError as breach:
        return None, f"breaks the contract: {breach.field} {breach.reason}"


class Pass:
    """The reports of one pass, sent through the spool."""

    def __init__(self, account: Account, bot_socket: str):
        self._account = account
        self.spool = Spool(account.state.parent / "unsent", bot_socket, self._record)
        self._silent = self._held = self._failed = 0

    def handle(self, script: Script, run: Run) -> None:
        """Judge one run and send what is to be said of it."""
        notification, failure = judge(script, run)
        if failure and not (script.refused or run.error):
            notify_scripts.record_run(self._account, script.stem, time.time() - run.seconds, failure)
        try:
            state, usable = self._store(script.stem).read(), True
        except StoreError as error:
            log.error("%s", error)
            state, usable = {}, False
        if failure:
            self._fails(script, failure, run.stderr, state, usable)
            return
        self._works(script, state)
        if notification.notify:
            self._notify(script, notification, state, usable)
        else:
            self._silent += 1

    def summary(self, scripts: int, seconds: float) -> str:
        """The line the log has of each pass."""
        return (f"{scripts} scripts in {seconds:.1f} s: {self.spool.sent} sent, {self._silent} silent, "
                f"{self._held} held by their cooldown, {self._failed} failed, "
                f"{len(self.spool.pending)} kept for the next pass")

    def _notify(self, script: Script, notification: Notification, state: dict, usable: bool) -> None:
        waiting = [message.created for message in self.spool.pending
                   if message.stem == script.stem and message.kind == "alert"]
        last_sent = max(waiting, default=unix_time(state.get("last_sent")))
        if not script_output.cooldown_over(last_sent, notification.cooldown, time.time()):
            self._held += 1
            return
        self._send(script, "alert", notification.title, notification.message, notification.cooldown, usable,
                   image_path=notification.image_path)

    def _fails(self, script: Script, failure: str, stderr: str, state: dict, usable: bool) -> None:
        self._failed += 1
        log.error("%s %s", script.name, failure)
        now = time.time()
        since, told = self._trouble(script.stem, state) or (now, 0)
        if not told <= now < told + DAY:
            self._send(script, "failing", f"{script.name} fails",
                       failure_text(script.name, f"It {failure}", stderr), DAY, usable, since)

    def _works(self, script: Script, state: dict) -> None:
        if trouble := self._trouble(script.stem, state):
            since = time.strftime("%Y-%m-%d %H:%M", time.localtime(trouble[0]))
            self._send(script, "works", f"{script.name} works again", f"It had failed since {since}.", DAY, True)

    def _send(self, script: Script, kind: str, title: str, text: str, period: int, usable: bool,
              since: float = 0, image_path: str = "") -> None:
        """Send a message. Without a usable state its key, the same for a `period`, stops repetitions."""
        import hashlib  # most passes send nothing and do without
        now = time.time()
        period_key = f"{script.stem}\0{kind}\0{now // period if period else now}"
        spare = hashlib.sha256(period_key.encode()).hexdigest()
        key = os.urandom(16).hex() if usable else spare
        message = Message("", key, script.stem, script.name, kind, title, text, "", now, since)
        self.spool.send(message, spare, image_path)

    def _trouble(self, stem: str, state: dict) -> tuple | None:
        """`(since, told)`: the times the script began to fail and its owner was told; None where it works."""
        for message in reversed(self.spool.pending):
            if message.stem == stem and message.kind in ("failing", "works"):
                return (message.since, message.created) if message.kind == "failing" else None
        failing = state.get("failing")
        if not isinstance(failing, dict):
            return None
        return unix_time(failing.get("since")) or 0, unix_time(failing.get("told")) or 0

    def _store(self, stem: str) -> JsonStore:
        return JsonStore(self._account.state / f"{stem}.json", 0o600)

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
    """The reports of a dry run, printed; nothing is sent and nothing is written."""

    def __init__(self, account: Account):
        self._account = account

    def handle(self, script: Script, run: Run) -> None:
        """Judge one run and print what would be sent."""
        notification, failure = judge(script, run)
        if failure:
            print(f"{script.name} fails: it {failure}")
        elif notification.notify:
            self._print(script, notification)
        else:
            print(f"{script.name}: nothing to send (notify is false)")
        if run.stderr:
            print(_indented("stderr", run.stderr))
        sys.stdout.flush()

    def _print(self, script: Script, notification: Notification) -> None:
        verdict = "would send now"
        try:
            last_sent = JsonStore(self._account.state / f"{script.stem}.json").read().get("last_sent")
            if not script_output.cooldown_over(unix_time(last_sent), notification.cooldown, time.time()):
                due = time.strftime("%Y-%m-%d %H:%M", time.localtime(last_sent + notification.cooldown))
                verdict = f"would send this, but its cooldown holds it until {due}"
        except StoreError as error:
            verdict = f"would send now, without knowing when it was last sent: {error}"
        print(f"{script.name}: {verdict}", _indented("title", notification.title),
              _indented("message", notification.message), sep="\n")
        if notification.image_path:
            print(_indented("image", _image(notification.image_path)))


def _image(path: str) -> str:
    """The image as it would be sent, or the reason why it would not."""
    try:
        descriptor, size = picture(path)
    except ScriptsError as error:
        return f"none, and a line that says so: {error}"
    os.close(descriptor)
    return f"{path} ({size} bytes)"


def _indented(label: str, text: str) -> str:
    first, *rest = text.splitlines() or [""]
    return "\n".join([f"  {label + ':':9}{first}", *(" " * 11 + line for line in rest)])
