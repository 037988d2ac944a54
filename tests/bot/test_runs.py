"""Runs on request, where the report of one cannot be queued, and where many run at once."""

import json
import threading

import pytest

from bot import accounts, scripts
from bot.accounts import Accounts
from bot.limits import Limiter
from bot.outbox import OutboxError
from bot.scripts import Runs
from common.links import Link
from common.problem import Problem
from live import until

LINK = Link("alice", {"chat_id": 7, "uid": 4711})


class Replies:
    """Keeps what is told by key; `problem` is raised in its place."""

    def __init__(self):
        self.told, self.problem = {}, None

    def are_full(self, chat_id):
        return False

    def has(self, key):
        return key in self.told

    def tell(self, key, chat_id, text, **options):
        if self.problem:
            raise self.problem
        self.told[key] = text


@pytest.fixture
def replies():
    return Replies()


def kept(folder):
    return json.loads((folder / "runs.json").read_text())


def test_an_interrupted_run_is_kept_until_it_was_reported(tmp_path, replies):
    (tmp_path / "runs.json").write_text(json.dumps({"r1": {"user": "alice", "chat_id": 7, "name": "a.py"}, "r2": []}))
    replies.problem = OutboxError("the disk is nearly full")
    Runs(tmp_path, tmp_path, replies).resume()
    assert kept(tmp_path).keys() == {"r1"}
    # Its press, handled again, runs nothing.
    runs = Runs(tmp_path, tmp_path, replies)
    runs.start(LINK, "a.py", "r1")
    assert threading.active_count() == 1
    replies.problem = None
    runs.resume()
    assert replies.told.keys() == {"run:r1"} and "is not known" in replies.told["run:r1"] and kept(tmp_path) == {}


def test_the_page_leaves_runs_for_the_chat(tmp_path, replies, monkeypatch):
    monkeypatch.setattr(scripts, "MAX_PAGE_RUNS", 0)
    runs = Runs(tmp_path, tmp_path, replies)
    with pytest.raises(Problem, match="Too many scripts of others") as raised:
        runs.start(LINK, "a.py")
    assert raised.value.status == 503
    runs.start(LINK, "a.py", "update:1")
    until(lambda: replies.told and kept(tmp_path) == {} and not runs.running("alice"))
    assert "could not be run" in replies.told["run:update:1"]
    monkeypatch.setattr(scripts, "MAX_RUNS", 0)
    with pytest.raises(Problem, match="Too many scripts of others"):
        runs.start(LINK, "a.py", "update:2")


def test_the_bytes_of_a_message_that_changes_are_free_at_no_moment():
    least = []

    class Watched(Limiter):
        def give_back(self, key, amount=1):
            super().give_back(key, amount)
            least.append(self.used(key))

    kept_on_disk = Accounts()
    kept_on_disk.bytes = Watched(accounts.MAX_BYTES)
    entry = {"id": "ab", "user": "alice", "sequence": 1, "accepted_at": 1.0}
    kept_on_disk.keep(entry, 500, 1)
    kept_on_disk.keep(entry, 520, None)
    assert least == [520] and kept_on_disk.bytes.used("alice") == 520
