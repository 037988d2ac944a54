"""The polling thread outlives errors of our own, and what it has fetched is handled once."""

import json
import threading
import time
from collections import deque

import pytest

from bot import polling
from bot.polling import Poller
from bot.telegram import TelegramError, TelegramUnreachable
from live import until

FIRST, SECOND, THIRD = ({"update_id": number} for number in (1, 2, 3))


class Telegram:
    """In the API's place: each poll has the next of `polls` as its result, or raises it."""

    def __init__(self, *polls):
        self.polls = deque(polls)
        self.offsets = []
        self.stopped = threading.Event()

    def call(self, method, params, timeout):
        self.offsets.append(params["offset"])
        if not self.polls:
            self.stopped.wait(10)
            raise TelegramUnreachable("shutting down", unknown=False)
        found = self.polls.popleft()
        if isinstance(found, Exception):
            raise found
        return found


class Handler:
    """Handles all updates at once, but for the first, which takes until it is let go."""

    def __init__(self):
        self.handled, self.refusals, self.introduced = [], [], False
        self.may_end = threading.Event()

    def introduce(self):
        if self.refusals:
            raise self.refusals.pop()
        self.introduced = True

    def stranger(self, update):
        return None

    def handle(self, update):
        self.handled.append(update)
        if update == FIRST:
            self.may_end.wait(10)


@pytest.fixture
def errors(monkeypatch):
    """What has ended threads."""
    found = []
    monkeypatch.setattr(threading, "excepthook", lambda error: found.append(error.exc_value))
    return found


@pytest.fixture
def poll(tmp_path):
    """Start a poller; it is stopped at the end."""
    started = []

    def poll(*polls, refusals=()):
        telegram, handler = Telegram(*polls), Handler()
        handler.refusals += refusals
        poller = Poller(telegram, tmp_path, handler)
        poller.start()
        started.append((poller, telegram, handler))
        return poller, handler

    yield poll
    for poller, telegram, handler in started:
        handler.may_end.set()
        telegram.stopped.set()
        assert poller.stop(5)


def test_an_error_of_ours_does_not_end_the_polls(poll, errors):
    poller, handler = poll(AttributeError("ours"), [SECOND])
    until(lambda: "error of the service's own" in (poller.problem or ""))
    assert poller.is_alive() and handler.handled == []
    until(lambda: handler.handled == [SECOND])
    until(lambda: poller.problem is None)
    assert [str(error) for error in errors] == ["ours"]


def test_what_was_fetched_before_the_error_is_handled_once(tmp_path, poll, errors, monkeypatch):
    """The second of three updates gets no thread."""
    start = threading.Thread.start
    refused = []

    def refuse_one(thread):
        if thread.name == "update" and thread._args[0] == SECOND and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_one)
    poller, handler = poll([FIRST, SECOND, THIRD], [])
    until(lambda: len(handler.handled) == 3)
    handler.may_end.set()
    until(lambda: poller.problem is None and json.loads((tmp_path / "polling.json").read_text())["pending"] == {})
    assert sorted(update["update_id"] for update in handler.handled) == [1, 2, 3] and len(errors) == 1


def test_commands_that_are_refused_do_not_make_the_bot_deaf(poll, monkeypatch, caplog):
    monkeypatch.setattr(polling, "INTRODUCE_SECONDS", (0.01, 0.01))
    refusals = [TelegramError(400, "no"), TelegramUnreachable("away", unknown=True)]
    poller, handler = poll([SECOND], refusals=refusals)
    until(lambda: handler.handled == [SECOND] and handler.introduced)
    assert caplog.text.count("list of commands") == 1


def test_polls_that_bring_nothing_are_two_a_second_at_most(poll):
    started = time.monotonic()
    poller, _ = poll(*[[]] * 4, [SECOND])
    until(lambda: poller._offset == 3)
    assert time.monotonic() - started >= 4 * polling.EMPTY_POLL_SECONDS
