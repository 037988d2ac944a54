"""Scripts that have not run when their schedule says they should have: their owner is told in the chat.

The runner tells of scripts that fail; this is for the case in which the runner itself does not come. Whether a
script is overdue only its owner's systemd can tell, so notify-scripts is asked, as for /status.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading

from bot.outbox import OutboxError
from bot.scripts import ScriptsError, list_scripts
from common.jsonstore import StoreError
from common.markdown import escape

log = logging.getLogger("overdue")

LOOK_SECONDS = 900
ANSWER_SECONDS = 5  # nobody waits, but everybody whose turn comes later
SHOWN_SCRIPTS = 10


class Overdue:
    """Looks every LOOK_SECONDS, from `start` until `stop` is set. `tell(key, chat_id, text)` sends a message, once a
    day for the same key."""

    def __init__(self, links, scripts_dir, tell):
        self._links, self._scripts_dir, self._tell = links, scripts_dir, tell
        self._silent: set[str] = set()

    def start(self, stop: threading.Event) -> None:
        threading.Thread(target=self._run, args=(stop,), name="overdue", daemon=True).start()

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(LOOK_SECONDS):
            try:
                self.look()
            except (StoreError, OutboxError) as error:
                log.error("overdue scripts are not looked for: %s", error)

    def look(self) -> None:
        """Ask for the scripts of everyone who has a socket for them, and tell of those that are overdue. Accounts that
        did not answer the last time come last."""
        silent, self._silent = self._silent, set()
        for link in sorted(self._links.all().values(), key=lambda link: link.user in silent):
            if link.blocked or not os.path.exists(self._scripts_dir / f"{link.user}.sock"):
                continue
            try:
                scripts = list_scripts(self._scripts_dir, link.user, ANSWER_SECONDS)
            except ScriptsError as error:
                self._silent.add(link.user)
                log.warning("the scripts of %s cannot be listed: %s", link.user, error)
                continue
            overdue = [script for script in scripts if script.get("overdue") is True]
            if overdue:
                self._report(link, overdue)

    def _report(self, link, overdue: list[dict]) -> None:
        names = [script["name"] for script in overdue]
        log.warning("overdue scripts of %s: %s", link.user, ", ".join(names))
        state = "".join(f"{script['name']}\0{script.get('last_run')}\0" for script in overdue)
        digest = hashlib.sha256(state.encode("utf-8", "surrogatepass")).hexdigest()
        listed = "\n".join(f"• {escape(name)}" for name in names[:SHOWN_SCRIPTS])
        more = f"\n… and {len(names) - SHOWN_SCRIPTS} more" if len(names) > SHOWN_SCRIPTS else ""
        self._tell(f"overdue:{link.user}:{digest}", link.chat_id,
                   f"⚠️ Not run when they should have been:\n{listed}{more}\n\n"
                   "See `systemctl --user list-timers` and `journalctl --user -u notify-runner`.")
