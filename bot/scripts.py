"""Requests to the analysts' notify-scripts: list scripts, run some at a time; and the report of overdue ones.

Their owner's notify-scripts answers, on a socket that systemd keeps for each account.

    runs.json   {ID: {"user": str, "chat_id": int, "name": str}}   runs in progress

A run that a restart interrupts is reported and not repeated.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import socket
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bot.outbox import OutboxError
from bot.replies import Replies
from common import bounded_json
from common.jsonstore import JsonStore, StoreError
from common.links import Link
from common.markdown import escape
from common.problem import Problem
from common.script_output import ContractError, failure_text, parse_output

log = logging.getLogger("scripts")

CONNECT_SECONDS = 10
LIST_SECONDS = 20
OVERDUE_LIST_SECONDS = 5  # each account that does not answer delays the next one
RUN_ANSWER_SECONDS = 90  # notify_scripts.RUN_SECONDS and TimeoutStartSec= of notify-scripts@.service
OVERDUE_CHECK_SECONDS = 900
MAX_ANSWER_BYTES = 4 << 20  # 1 MiB of output, of which each byte becomes three at most where it is a legal JSON text
MAX_ANSWER_ITEMS = 40_000  # a list has 1001 scripts at the most
MAX_IMAGE_BYTES = 50 << 20
MAX_RUNS_PER_USER = 2
MAX_RUNS, MAX_PAGE_RUNS = 64, 32  # the page leaves room for the chat
MAX_REASON = 300
SHOWN_NAME = 40
SHOWN_OVERDUE = 10


def digest(name: str) -> str:
    """A key for a name of any length, short enough for callback_data, which has 64 bytes."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def short(name: str) -> str:
    """A name, cut to fit on a button."""
    return name if len(name) <= SHOWN_NAME else name[:SHOWN_NAME - 1] + "…"


class Image:
    """The picture that follows an answer: `size` bytes, due before the answer's deadline."""

    def __init__(self, connection: socket.socket, begun: bytes, size: int, deadline: float):
        self._connection, self._begun, self._size, self._deadline = connection, begun, size, deadline

    def copy_to(self, file) -> str:
        """Write the picture to a binary file. Returns the reason it is missing, "" if it is there."""
        if self._size > MAX_IMAGE_BYTES:
            return f"it is over {MAX_IMAGE_BYTES >> 20} MiB"
        left, piece = self._size - len(self._begun), self._begun
        while True:
            file.write(piece)
            if left <= 0:
                break
            try:
                piece = _receive(self._connection, min(left, 1 << 16), self._deadline)
            except OSError:
                break
            if not piece:
                break
            left -= len(piece)
        file.seek(0)
        return "it did not arrive in time" if left else ""


@contextmanager
def ask(directory: Path, user: str, request: dict, seconds: float):
    """Send `request` to the scripts of `user`; yields the answer and the Image that follows it, or None.

    Raises Problem.
    """
    deadline = time.monotonic() + seconds
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        answer, begun = _exchange(connection, directory / f"{user}.sock", request, deadline)
        image = answer.get("image")
        size = image.get("size") if isinstance(image, dict) else None
        yield answer, Image(connection, begun, size, deadline) if type(size) is int and size >= 0 else None


def list_scripts(directory: Path, user: str, seconds: float = LIST_SECONDS) -> list[dict]:
    """The scripts of `user`: `{"name", "schedule", "last_run", "last_sent", "next_run", "last_error", "refused",
    "overdue"}` with times in unix seconds, None for what is not known. Raises Problem."""
    with ask(directory, user, {"do": "list"}, seconds) as (answer, _):
        error, scripts = _error(answer), answer.get("scripts")
    if error or not isinstance(scripts, list):
        raise _unavailable(f"Your scripts cannot be listed: {error or 'the answer is not a list'}.")
    return [_checked(script) for script in scripts if isinstance(script, dict) and isinstance(script.get("name"), str)]


def _checked(script: dict) -> dict:
    """Untrusted: the analyst's account answered. Validates every field."""
    schedule = script.get("schedule")
    return {"name": script["name"], "schedule": schedule[:200] if isinstance(schedule, str) else None,
            **{field: _time(script.get(field)) for field in ("last_run", "last_sent", "next_run")},
            **{field: str(script.get(field) or "")[:MAX_REASON] or None for field in ("last_error", "refused")},
            "overdue": script.get("overdue") is True}


def _time(value) -> int | None:
    return int(value) if type(value) in (int, float) and abs(value) < 1 << 53 else None


def _error(answer: dict) -> str:
    """The error in an answer, without a full stop; "" where the request was carried out."""
    return "" if answer.get("ok") is True else str(answer.get("error") or "the answer is not understood").rstrip(".")


def _unavailable(sentence: str) -> Problem:
    return Problem(503, sentence, {"Retry-After": "30"})


def _exchange(connection: socket.socket, path: Path, request: dict, deadline: float) -> tuple[dict, bytes]:
    try:
        connection.settimeout(CONNECT_SECONDS)
        connection.connect(os.fspath(path))
        connection.sendall(json.dumps(request).encode() + b"\n")
        data, rest = _line(connection, deadline)
        answer = bounded_json.loads(data, MAX_ANSWER_BYTES, MAX_ANSWER_ITEMS)
    except (FileNotFoundError, PermissionError, ConnectionRefusedError):
        raise _unavailable("Your scripts cannot be reached from here. Ask your administrator for "
                           "notify-add-analyst.") from None
    except TimeoutError:
        raise _unavailable("Your scripts did not answer in time. Try again later.") from None
    except (OSError, ValueError):
        raise _unavailable("There was no answer from your scripts. The journal of notify-scripts@ says why.") from None
    if not isinstance(answer, dict):
        raise _unavailable("The answer of your scripts is not understood.")
    return answer, rest


def _line(connection: socket.socket, deadline: float) -> tuple[bytes, bytes]:
    """One line, and the bytes received after it. The deadline bounds all of it: the peer is not trusted to end."""
    data = bytearray()
    while b"\n" not in data[-(1 << 16):] and (piece := _receive(connection, 1 << 16, deadline)):
        data += piece
        if len(data) > MAX_ANSWER_BYTES:
            raise ValueError("the answer is too long")
    line, _, rest = data.partition(b"\n")
    return bytes(line), bytes(rest)


def _receive(connection: socket.socket, most: int, deadline: float) -> bytes:
    """recv(2), which drops passed descriptors: merely closing one may block for ever on a file system that hangs.

    Raises TimeoutError at the deadline.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)
    return connection.recv(most)


class Runs:
    """Runs scripts on request and reports their results in the chat. Thread-safe."""

    def __init__(self, scripts_dir: Path, data_dir: Path, replies: Replies):
        self._scripts_dir, self._replies = scripts_dir, replies
        self._store = JsonStore(data_dir / "runs.json", mode=0o600)
        self._lock = threading.Lock()
        self._running: dict[str, set] = {}

    def running(self, user: str) -> set[str]:
        """The names of the scripts of `user` that are running now."""
        with self._lock:
            return set(self._running.get(user, ()))

    @contextmanager
    def _reserved(self, user: str, name: str, most: int):
        """Reserves one of `most` runs until the end of the block. Raises Problem."""
        with self._lock:
            running = self._running.get(user, set())
            if name in running:
                raise Problem(409, f"{short(name)} is running already.")
            if len(running) >= MAX_RUNS_PER_USER:
                raise _busy(429, f"{len(running)} of your scripts are running already.")
            if sum(map(len, self._running.values())) >= most:
                raise _busy(503, "Too many scripts of others are running now.")
            self._running.setdefault(user, running).add(name)
        try:
            yield
        finally:
            with self._lock:
                running.discard(name)
                if not running:
                    del self._running[user]

    def start(self, link: Link, name: str, run_id: str = "") -> None:
        """Run a script: recorded on return, the result is sent to the chat. A known `run_id` is not run again.

        Raises Problem, StoreError."""
        if self._replies.are_full(link.chat_id):
            raise _busy(429, "Answers to your earlier requests still wait for Telegram.")
        with ExitStack() as place:
            place.enter_context(self._reserved(link.user, name, MAX_RUNS if run_id else MAX_PAGE_RUNS))
            run_id = run_id or secrets.token_hex(10)
            with self._store.update() as runs:
                if run_id in runs or self._replies.has(f"run:{run_id}"):
                    return
                runs[run_id] = {"user": link.user, "chat_id": link.chat_id, "name": name}
            threading.Thread(target=self._run, args=(place.pop_all(), run_id, link, name), name="run",
                             daemon=True).start()

    def _run(self, place: ExitStack, run_id: str, link: Link, name: str) -> None:
        with place:
            self._run_and_tell(link, name, lambda text, **options: self._tell(run_id, link.chat_id, text, **options))

    def _run_and_tell(self, link: Link, name: str, tell) -> None:
        """Run a script and report the result once by `tell(text, **options)`, as Replies.tell."""
        try:
            with ask(self._scripts_dir, link.user, {"do": "run", "name": name}, RUN_ANSWER_SECONDS) as (answer, image):
                self._tell_result(link, name, answer, image, tell)
        except Problem as problem:
            tell(f"{name} could not be run. {problem}", parse_mode="")

    def _tell_result(self, link: Link, name: str, answer: dict, image: Image | None, tell) -> None:
        if error := _error(answer):
            error = error if name in error else f"{name} could not be run: {error}"
            tell(failure_text(name, error, str(answer.get("stderr") or "")))
            return
        try:
            found = parse_output(str(answer.get("output", "")).encode("utf-8", "surrogatepass"))
        except ContractError as breach:
            tell(failure_text(name, f"{name} breaks the contract: {breach}", ""))
            return
        if not found.notify:
            tell(f"{escape(name)} ran and has nothing to report.")
            return
        with tempfile.TemporaryFile(dir=self._store.path.parent) as file:
            missing = answer.get("image_error") or (image.copy_to(file) if image else "")
            text = found.message + (f"\n\n{escape(f'(Its image is missing: {missing})')}" if missing else "")
            tell(text, title=found.title, picture=file if image and not missing else None, user=link.user,
                 script=name, picture_name=os.path.basename(found.image_path or "image"))

    def _tell(self, run_id: str, chat_id: int, text: str, **options) -> None:
        """Report a run, and forget it when that is accepted: until then it is not run again."""
        try:
            self._replies.tell(f"run:{run_id}", chat_id, text, **options)
            self._forget(run_id)
        except (OutboxError, OSError) as error:
            log.error("chat %d is not told of a run: %s", chat_id, error)

    def _forget(self, run_id: str) -> None:
        try:
            with self._store.update() as runs:
                runs.pop(run_id, None)
        except StoreError as error:
            log.error("a run may be reported as interrupted after a restart: %s", error)

    def resume(self) -> None:
        """Report the runs that a restart interrupted, but for those reported already."""
        try:
            for run_id, run in list(self._store.read().items()):
                if isinstance(run, dict) and type(run.get("chat_id")) is int:
                    self._tell(run_id, run["chat_id"], f"The service was restarted while {run.get('name')} ran, so "
                               "its result is not known. Press Run to run it again.", parse_mode="")
                else:
                    self._forget(run_id)
        except StoreError as error:
            log.error("%s", error)


def _busy(status: int, sentence: str) -> Problem:
    return Problem(status, f"{sentence} Try again in a minute.", {"Retry-After": "60"})


class Overdue:
    """Reports scripts that have not run on schedule. The runner reports failures; this covers the runner itself not
    running. Only the owner's systemd knows the schedule, so notify-scripts is asked.

    Checks every OVERDUE_CHECK_SECONDS, from `start` until `stop` is set. `tell(key, chat_id, text)` sends a message, at
    most once a day per key.
    """

    def __init__(self, links, scripts_dir: Path, tell):
        self._links, self._scripts_dir, self._tell = links, scripts_dir, tell
        self._silent: set[str] = set()

    def start(self, stop: threading.Event) -> None:
        threading.Thread(target=self._run, args=(stop,), name="overdue", daemon=True).start()

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(OVERDUE_CHECK_SECONDS):
            try:
                self.check()
            except (StoreError, OutboxError) as error:
                log.error("overdue scripts are not looked for: %s", error)

    def check(self) -> None:
        """Check the scripts of all users with a socket; accounts that did not answer the last time come last."""
        silent, self._silent = self._silent, set()
        for link in sorted(self._links.all().values(), key=lambda link: link.user in silent):
            if link.blocked or not os.path.exists(self._scripts_dir / f"{link.user}.sock"):
                continue
            try:
                scripts = list_scripts(self._scripts_dir, link.user, OVERDUE_LIST_SECONDS)
            except Problem as problem:
                self._silent.add(link.user)
                log.warning("the scripts of %s cannot be listed: %s", link.user, problem)
                continue
            overdue = [script for script in scripts if script["overdue"]]
            if overdue:
                self._report(link, overdue)

    def _report(self, link: Link, overdue: list[dict]) -> None:
        names = [script["name"] for script in overdue]
        log.warning("overdue scripts of %s: %s", link.user, ", ".join(names))
        state = digest("".join(f"{script['name']}\0{script['last_run']}\0" for script in overdue))
        listed = "\n".join(f"• {escape(name)}" for name in names[:SHOWN_OVERDUE])
        more = f"\n… and {len(names) - SHOWN_OVERDUE} more" if len(names) > SHOWN_OVERDUE else ""
        self._tell(f"overdue:{link.user}:{state}", link.chat_id,
                   f"⚠️ Not run when they should have been:\n{listed}{more}\n\n"
                   "See `systemctl --user list-timers` and `journalctl --user -u notify-runner`.")
