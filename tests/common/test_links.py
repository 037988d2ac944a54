"""Codes and links: single use, ten minutes, one a chat; what is known of a link dies with it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from common import links
from common.links import LinkError, Links

HALF_REDEEMED = """
import os, signal, sys, pathlib
from common import jsonstore, links
write, calls = jsonstore.write_atomic, []
def stop_at_second(*arguments):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    write(*arguments)
jsonstore.write_atomic = stop_at_second
links.Links(pathlib.Path(sys.argv[1])).redeem(sys.argv[2], "alice", 4711)
"""


@pytest.fixture
def store(tmp_path):
    return Links(tmp_path)


def test_a_code_links_once(store):
    code = store.create_code(42, "Jana (@jana)")
    assert len(code) == 6 and code.isdecimal()
    assert store.peek(code)["chat_name"] == "Jana (@jana)"
    assert store.redeem(code, "alice", 4711) == 42
    assert store.of_user("alice").chat_id == 42
    assert store.of_chat(42).user == "alice"
    with pytest.raises(LinkError, match="not valid"):
        store.redeem(code, "mallory", 4711)
    assert store.of_user("mallory") is None


def test_a_chat_has_one_login_also_where_it_was_linked_since_it_got_its_code(store):
    code = store.create_code(42, "Jana")
    store.link("bob", 4712, 42, "Jana", now=1_000_000)
    store.redeem(code, "alice", 4711)
    assert {user: link.chat_id for user, link in store.all().items()} == {"alice": 42}


def test_a_code_expires_after_ten_minutes(store):
    code = store.create_code(42, "Jana", now=1_000_000)
    assert store.peek(code, now=1_000_599)["chat_id"] == 42
    with pytest.raises(LinkError, match="expired"):
        store.redeem(code, "alice", 4711, now=1_000_600)
    assert store.of_user("alice") is None


def test_a_new_code_voids_the_older_one_of_the_chat_and_no_other(store):
    old, other = store.create_code(42, "Jana"), store.create_code(43, "Petr")
    new = store.create_code(42, "Jana")
    with pytest.raises(LinkError):
        store.peek(old)
    assert (store.peek(new)["chat_id"], store.peek(other)["chat_id"]) == (42, 43)


def test_expired_codes_do_not_pile_up(store, tmp_path):
    for number in range(20):
        store.create_code(number + 1, "x", now=1_000_000 + 700 * number)
    assert len(json.loads((tmp_path / "pending_codes.json").read_text())) == 1


@pytest.mark.parametrize("code", ["", "12345", "nonsense", "000000", "１２３４５６"])
def test_a_code_that_is_none_is_refused(store, code):
    with pytest.raises(LinkError):
        store.redeem(code, "alice", 4711)


def test_codes_of_other_software_are_taken_and_broken_ones_refused(store, tmp_path):
    (tmp_path / "pending_codes.json").write_text(json.dumps({
        "111111": {"chat_id": 7, "created_at": 1_000_000.5}, "222222": {"chat_id": "7", "created_at": 1_000_000},
        "333333": {"chat_id": 7}, "444444": "7", "555555": {"chat_id": True, "created_at": 1_000_000}}))
    for code in ("222222", "333333", "444444", "555555"):
        with pytest.raises(LinkError):
            store.redeem(code, "alice", 4711, now=1_000_001)
    assert store.redeem("111111", "alice", 4711, now=1_000_001) == 7


def test_a_crash_between_leaves_the_link_made_and_the_code_usable(store, tmp_path):
    code = store.create_code(42, "Jana")
    process = subprocess.Popen([sys.executable, "-c", HALF_REDEEMED, str(tmp_path), code],
                               env={**os.environ, "PYTHONPATH": os.path.dirname(links.__file__)})
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert store.of_user("alice").chat_id == 42
    assert store.redeem(code, "alice", 4711) == 42


def test_linking_again_clears_what_was_known_of_the_old_chat(store):
    store.redeem(store.create_code(42, "Jana"), "alice", 4711)
    store.mark_blocked(store.of_user("alice"), "Forbidden: bot was blocked by the user")
    assert store.of_user("alice").blocked == "Forbidden: bot was blocked by the user"
    store.redeem(store.create_code(42, "Jana"), "alice", 4711)
    assert store.of_user("alice").blocked is None


def test_fields_of_other_software_survive_a_new_link(store, tmp_path):
    path = tmp_path / "telegram_users.json"
    path.write_text('{"alice": {"chat_id": 1, "quiet_hours": [22, 7], "blocked": "x"}}')
    store.redeem(store.create_code(43, "Jana"), "alice", 4711)
    record = json.loads(path.read_text())["alice"]
    assert (record["chat_id"], record["quiet_hours"], "blocked" in record) == (43, [22, 7], False)


def test_what_is_learned_of_an_old_chat_is_not_written_to_the_new_one(store):
    store.redeem(store.create_code(42, "Jana"), "alice", 4711)
    old = store.of_user("alice")
    store.redeem(store.create_code(43, "Jana"), "alice", 4711)
    store.mark_blocked(old, "gone")
    store.move_chat(old, 99)
    assert (store.of_user("alice").chat_id, store.of_user("alice").blocked) == (43, None)


def test_unlink(store):
    store.redeem(store.create_code(42, "Jana"), "alice", 4711)
    assert store.unlink("alice") is True
    assert store.unlink("alice") is False
    assert store.of_chat(42) is None


def test_entries_that_are_no_links_are_left_out_and_kept(store, tmp_path):
    path = tmp_path / "telegram_users.json"
    path.write_text('{"alice": {"chat_id": 1, "uid": 4711}, "bob": {"chat_id": "2"}, "carol": 3, "_comment": "x"}')
    assert store.all().keys() == {"alice"}
    store.redeem(store.create_code(5, "D"), "dora", 4711)
    assert json.loads(path.read_text()).keys() == {"alice", "bob", "carol", "_comment", "dora"}


def test_new_links_are_welcomed_once_and_old_ones_never(store, tmp_path):
    (tmp_path / "telegram_users.json").write_text(json.dumps({
        "old": {"chat_id": 1, "linked_at": "2020-01-31T12:00:00Z"}, "strange": {"chat_id": 2, "linked_at": 5}}))
    now = 1_800_000_000
    store.redeem(store.create_code(42, "Jana", now=now), "alice", 4711, now=now)
    new = store.to_welcome(now + 1)
    assert [link.user for link in new] == ["alice"]
    store.mark_welcomed(new, now + 1)
    assert store.to_welcome(now + 2) == []


def test_a_code_made_before_the_clock_was_set_begins_to_age_when_that_is_seen(store):
    code = store.create_code(42, "Jana", now=1000)
    assert store.peek(code, now=1.8e9)["chat_id"] == 42
    store.restamp(1000.0)
    store.restamp(1.8e9)
    assert store.peek(code, now=1.8e9 + 599)["chat_id"] == 42
    with pytest.raises(LinkError, match="expired"):
        store.peek(code, now=1.8e9 + 601)


def test_threads_that_come_at_once_make_one_index(tmp_path, monkeypatch):
    """Each would keep a document of its own in memory."""
    (tmp_path / "telegram_users.json").write_text(json.dumps({"alice": {"chat_id": 7, "uid": os.getuid()}}))
    made, make, all_are_here = [], links._make_index, threading.Barrier(8)

    def slowly(document):
        made.append(document)
        time.sleep(0.1)
        return make(document)

    monkeypatch.setattr(links, "_make_index", slowly)
    store = links.Links(tmp_path)

    def look():
        all_are_here.wait(10)
        assert list(store.on_disk()) == ["alice"]

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(look) for _ in range(8)]:
            done.result()
    assert len(made) == 1
