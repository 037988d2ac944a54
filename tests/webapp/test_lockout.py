"""Wrong codes: five lock a login for ten minutes and a hundred lock all, across processes, restarts and clocks."""

import contextlib
import json
import os
import signal
import time

import pytest

from common.problem import Problem
from link_page import CHECKOUT, PEOPLE, LinkPage
from webapp.lockout import MAX_WRONG, MAX_WRONG_OF_ALL, WINDOW_SECONDS, Lockout

pytestmark = pytest.mark.root
# The program, stopped by itself just before it does `where` to a file.
STOPS = """#!/usr/bin/python3 -EsS
import os, runpy, signal, sys
sys.path.insert(0, {src!r})
from common import jsonstore
def stopping(function, name):
    def stop(first, *rest):
        if os.path.basename(getattr(first, "path", first)) == name:
            os.kill(os.getpid(), signal.SIGSTOP)
        return function(first, *rest)
    return stop
{where}
runpy.run_path({src!r} + "/webapp_telegram.py", run_name="__main__")
"""
BEFORE_JUDGING = 'jsonstore.JsonStore.read = stopping(jsonstore.JsonStore.read, "pending_codes.json")'
BEFORE_LINKING = 'jsonstore.write_atomic = stopping(jsonstore.write_atomic, "telegram_users.json")'
BEFORE_USING_UP = 'jsonstore.write_atomic = stopping(jsonstore.write_atomic, "pending_codes.json")'


@pytest.fixture
def page(tmp_path):
    with contextlib.closing(LinkPage(tmp_path)) as page:
        yield page


def stopped(page, where, action, code):
    """A request that has stopped at a point of its work."""
    program = page.folder / "stops.py"
    program.write_text(STOPS.format(src=str(CHECKOUT), where=where))
    program.chmod(0o755)
    process, body = page.start("POST", f"/api/telegram/{action}", {"code": code}, program=program)
    process.stdin.write(body)
    process.stdin.close()
    process.stdin = None
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert process.poll() is None, process.communicate()
    return process


def killed(page, where, action, code):
    """A request that is killed at a point of its work."""
    process = stopped(page, where, action, code)
    process.kill()
    process.communicate()


@pytest.mark.parametrize("action", ["verify", "check"])
def test_five_wrong_codes_lock_a_login_and_no_other(page, action):
    wrong, right = page.wrong_code(), page.code()
    for _ in range(MAX_WRONG):
        answer = page.api(action, {"code": wrong})
        assert answer.status == 400 and "/start" in answer.error
    for code in (wrong, right):
        for either in ("verify", "check"):
            answer = page.api(either, {"code": code})
            assert answer.status == 429 and "10 minutes" in answer.error
            assert 590 <= int(answer.headers["retry-after"]) <= WINDOW_SECONDS
    assert not page.status()["linked"]
    assert page.api("check", {"code": right}, user="bob").status == 200


def test_the_form_is_counted_as_the_api_is(page):
    opened, wrong = page.open(), page.wrong_code()
    for _ in range(MAX_WRONG):
        assert page.press("check", opened, code=wrong).status == 400
    answer = page.press("check", opened, code=wrong)
    assert answer.status == 429 and int(answer.headers["retry-after"]) > 0
    assert "too many wrong codes" in answer.page.words
    assert page.api("verify", {"code": wrong}).status == 429


@pytest.mark.parametrize("code", ["", "12345", "1234567", "12345a", "１２３４５６", "123 456", " 123456", "123456\n",
                                  "-12345", "12345.", 123456, None, True, ["123456"], {"code": "123456"}, "٠١٢٣٤٥"])
def test_what_cannot_be_a_code_is_no_guess(page, code):
    for action in ("verify", "check"):
        answer = page.api(action, {"code": code})
        assert answer.status == 400 and "six digits" in answer.error
    assert page.wrong_codes() == {}


def test_right_codes_are_not_counted_and_forgive_nothing(page):
    for _ in range(MAX_WRONG - 1):
        page.api("check", {"code": page.wrong_code()})
    for _ in range(2 * MAX_WRONG):
        assert page.api("check", {"code": page.code()}).status == 200
    assert page.api("verify", {"code": page.code()}).status == 200
    assert len(page.wrong_codes()["alice"]) == MAX_WRONG - 1
    assert page.api("check", {"code": page.wrong_code()}).status == 400
    assert page.api("check", {"code": page.code()}).status == 429


def test_twenty_processes_at_once_have_five_guesses(page):
    wrong = page.wrong_code()
    answers = page.at_once([(("POST", "/api/telegram/check", {"code": wrong}), {}) for _ in range(20)])
    statuses = [answer.status for answer in answers]
    assert (statuses.count(400), statuses.count(429)) == (MAX_WRONG, 20 - MAX_WRONG)


def test_a_hundred_wrong_codes_lock_everybody(page):
    wrong = page.wrong_code()
    page.path("link_guesses.json").write_text(json.dumps(
        {name: [time.time() - 60] * 4 for name in PEOPLE[:24]}))  # 96
    people = PEOPLE[24:30]
    answers = page.at_once([(("POST", "/api/telegram/check", {"code": wrong}), {"user": name}) for name in people])
    statuses = [answer.status for answer in answers]
    assert (statuses.count(400), statuses.count(429)) == (4, 2)
    answer = page.api("verify", {"code": page.code()})
    assert answer.status == 429 and 500 < int(answer.headers["retry-after"]) <= 540
    assert sum(map(len, page.wrong_codes().values())) == MAX_WRONG_OF_ALL


def test_a_restart_and_a_clock_set_back_change_nothing_for_longer_than_the_window(page):
    """Written an hour in the future, as a clock that was set back finds it."""
    page.path("link_guesses.json").write_text(json.dumps({"alice": [time.time() + 3600 + n for n in range(5)]}))
    answer = page.api("check", {"code": page.code()})
    assert answer.status == 429 and int(answer.headers["retry-after"]) <= WINDOW_SECONDS
    assert max(page.wrong_codes()["alice"]) <= time.time()


def test_the_lock_ends_ten_minutes_after_the_fifth(tmp_path):
    lockout = Lockout(tmp_path)
    for second in (0, 1, 2, 500, 599):
        lockout.begin("alice", 1_000_000 + second)
    for second, left in ((599, 600), (600, 599), (1198, 1)):
        with pytest.raises(Problem) as refused:
            lockout.begin("alice", 1_000_000 + second)
        assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": str(left)})
    for second in range(5):
        lockout.begin("alice", 1_000_000 + 1199 + second)
    with pytest.raises(Problem, match="too many wrong codes"):
        lockout.begin("alice", 1_000_000 + 1204)


def test_wrong_codes_of_more_than_ten_minutes_ago_are_forgotten(tmp_path):
    lockout = Lockout(tmp_path)
    for minute in range(40):  # one every 2.5 minutes is never the fifth in ten
        lockout.begin("alice", 1_000_000 + 150 * minute)
    lockout.begin("bob", 2_000_000)
    assert json.loads((tmp_path / "link_guesses.json").read_text()) == {"bob": [2_000_000]}


def test_what_is_not_ours_in_the_file_is_kept_and_counts_nothing(tmp_path):
    path = tmp_path / "link_guesses.json"
    path.write_text('{"_comment": "x", "alice": [null, "5", true, -5, NaN, [1], 1e999], "bob": {"a": 1}}')
    Lockout(tmp_path).begin("alice", 1_000_000)
    document = json.loads(path.read_text())
    assert (document["_comment"], document["bob"]) == ("x", {"a": 1})
    assert document["alice"] == [1_000_000, 1_000_000]


def test_a_guess_is_counted_before_it_is_judged(page):
    for _ in range(MAX_WRONG):
        killed(page, BEFORE_JUDGING, "check", page.wrong_code())
    assert page.api("check", {"code": page.code()}).status == 429


def test_a_full_disk_tells_nobody_whether_a_code_is_right(page):
    right, wrong = page.code(), page.wrong_code()
    page.as_whom = ("prlimit", "--fsize=0")
    for code in (right, wrong):
        for action in ("check", "verify"):
            answer = page.api(action, {"code": code})
            assert answer.status == 503 and "link_guesses.json" in answer.errors
    page.as_whom = ()
    assert not page.status()["linked"] and page.wrong_codes() == {}
    assert page.api("verify", {"code": right}).status == 200


def test_codes_that_cannot_be_read_cost_no_guess(page):
    page.path("pending_codes.json").write_text("nonsense")
    for _ in range(MAX_WRONG + 1):
        for action in ("check", "verify"):
            assert page.api(action, {"code": "123456"}).status == 503
    assert page.wrong_codes() == {}


def test_killed_between_it_leaves_the_link_made_and_the_code_usable(page):
    code = page.code()
    killed(page, BEFORE_USING_UP, "verify", code)
    assert page.status()["chat"] == "Jana (@jana)"
    assert page.api("verify", {"code": code}).status == 200
    assert page.api("verify", {"code": code}).status == 400


def test_killed_before_it_leaves_the_code_usable_and_no_link(page):
    code = page.code()
    killed(page, BEFORE_LINKING, "verify", code)
    assert page.status() == {"linked": False}
    assert page.api("verify", {"code": code}).status == 200


def test_two_logins_with_one_code_at_once_one_wins(page):
    for number in range(6):
        code = page.code(100 + number)
        answers = page.at_once([(("POST", "/api/telegram/verify", {"code": code}), {"user": user})
                                for user in PEOPLE[2 * number:2 * number + 2]])
        assert sorted(answer.status for answer in answers) == [200, 400]
        winner = PEOPLE[2 * number + (answers[0].status != 200)]
        linked = [user for user, link in page.links.all().items() if link.chat_id == 100 + number]
        assert linked == [winner]


def test_the_lock_is_not_held_by_who_is_stopped_while_judging(page):
    """A request that hangs holds up nobody else's guess."""
    process = stopped(page, BEFORE_JUDGING, "check", page.wrong_code())
    assert page.api("check", {"code": page.code()}, user="bob").status == 200
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=10)
    assert b"400 Bad Request" in output
    assert len(page.wrong_codes()["alice"]) == 1
