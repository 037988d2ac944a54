"""The outbox on its own: what an error, a kill and a power cut leave behind; what was sent; room for each user."""

import contextlib
import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bot import outbox as outbox_module
from bot.history import History
from bot.journal import OPEN, Journal
from bot.outbox import OutboxError
from live import CHECKOUT, PYTHON, until
from outbox_files import entry, waiting, write_failed, write_waiting

Outbox = functools.partial(outbox_module.Outbox, sent_days=3, failed_days=30)
FIELDS = {"user": "jana", "chat_id": 1, "message": {"text": "m"}}


class Disk:
    """os.fdatasync, but that it can be held and fail; it counts the calls."""

    def __init__(self, fails=False, held=False):
        self.fails, self.syncs = fails, 0
        self.go = threading.Event()
        if not held:
            self.go.set()

    def __call__(self, descriptor, fdatasync=os.fdatasync):
        self.syncs += 1
        assert self.go.wait(10)
        if self.fails and self.syncs > 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fdatasync(descriptor)


@pytest.mark.parametrize("fails", [False, True])
def test_those_who_come_during_a_sync_share_the_next_one_and_its_error(tmp_path, monkeypatch, fails):
    outbox = Outbox(tmp_path / "outbox")
    disk = Disk(held=True)
    monkeypatch.setattr(os, "fdatasync", disk)
    with ThreadPoolExecutor(10) as threads:
        first = threads.submit(outbox.add, "ff", FIELDS)
        until(lambda: disk.syncs == 1)
        others = [threads.submit(outbox.add, f"{number}", FIELDS) for number in range(9)]
        until(lambda: len(waiting(tmp_path / "outbox")) == 10)
        assert not any(future.done() for future in (first, *others))
        disk.fails = fails
        disk.go.set()
    found = [future.exception() for future in others]
    assert all(isinstance(error, OutboxError) for error in found) if fails else found == [None] * 9
    assert disk.syncs < 6  # ten when nothing is shared
    assert len(waiting(tmp_path / "outbox")) == (1 if fails else 10)
    disk.fails = False
    outbox.close()


def test_what_was_refused_is_not_delivered_by_the_next_start(tmp_path, monkeypatch):
    """Not even where all was written and could not be made durable."""
    outbox = Outbox(tmp_path / "outbox")
    outbox.add("aa", FIELDS)
    with monkeypatch.context() as patched:
        disk = Disk(fails=True)
        disk.syncs = 1
        patched.setattr(os, "fdatasync", disk)
        with pytest.raises(OutboxError, match="Input/output error"), outbox.upload("jana") as file:
            file.write(b"a picture")
            outbox.add("bb", FIELDS, file)
        # What comes later does not share the fate of that segment.
        disk.fails = False
        outbox.add("cc", FIELDS)
    outbox.close()
    assert len(list((tmp_path / "outbox/journal").iterdir())) == 2
    outbox = Outbox(tmp_path / "outbox")
    assert [head["id"] for head in outbox.load()] == ["aa", "cc"]
    assert list((tmp_path / "outbox/pictures").iterdir()) == []
    outbox.close()


def test_a_full_disk_leaves_no_half_line_that_a_later_one_completes(tmp_path, monkeypatch):
    outbox = Outbox(tmp_path / "outbox")
    outbox.add("aa", FIELDS)

    def half(descriptor, data, start, pwrite=os.pwrite):
        if len(data) > 100 and data[:1] != b"\n":
            return pwrite(descriptor, data[:50], start)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", half)
        with pytest.raises(OutboxError, match="No space left"):
            outbox.add("bb", FIELDS)
    outbox.add("cc", FIELDS)
    outbox.close()
    outbox = Outbox(tmp_path / "outbox")
    assert [head["id"] for head in outbox.load()] == ["aa", "cc"]
    (half_line,) = (tmp_path / "outbox/corrupt").iterdir()
    assert len(half_line.read_bytes().rstrip(b"\n")) == 100
    outbox.close()


def test_a_segment_goes_when_nothing_in_it_waits_and_texts_go_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr("bot.journal.SEGMENT_BYTES", 4096)
    outbox = Outbox(tmp_path / "outbox")
    outbox.load()
    journal = tmp_path / "outbox/journal"
    for number in range(60):
        outbox.add(f"{number:x}", FIELDS)
    outbox.add("ffff", {**FIELDS, "message": {"text": "x" * 10_000}})
    segments = sorted(journal.iterdir())
    assert len(segments) > 3 and {path.stat().st_size for path in segments[:-1]} == {4096}
    assert segments[-1].stat().st_size > 10_000
    for number in range(1, 60):
        outbox.delivered(outbox.read(f"{number:x}"), [number])
    outbox.sync()
    assert sorted(journal.iterdir()) == [segments[0], segments[-1]]
    outbox.delivered(outbox.read("ffff"), [1])
    outbox.expire(time.time())
    assert sorted(journal.iterdir()) == [segments[0]] and outbox.read("0")["message"] == {"text": "m"}
    outbox.close()
    outbox = Outbox(tmp_path / "outbox")
    assert [head["id"] for head in outbox.load()] == ["0"]
    outbox.add("1", FIELDS)
    assert len(list(journal.iterdir())) == 2  # nothing is appended to what an earlier run left
    outbox.close()


def test_of_two_lines_of_a_message_the_later_one_counts(tmp_path):
    """A power cut may bring the earlier one back."""
    write_waiting(tmp_path / "outbox", entry("aa", "jana", part=0), entry("bb", "jana"), entry("aa", "jana", part=1))
    write_failed(tmp_path / "outbox", entry("bb", "jana", reason="no"))
    write_failed(tmp_path / "outbox", entry("cc", "jana", reason="no"))
    write_waiting(tmp_path / "outbox", entry("cc", "jana", sequence=2))
    outbox = Outbox(tmp_path / "outbox")
    assert [head["id"] for head in outbox.load()] == ["aa", "cc"]
    assert outbox.read("aa")["part"] == 1 and outbox.failed_ids() == ["bb"]
    assert sorted(waiting(tmp_path / "outbox")) == ["aa", "cc"]
    outbox.close()


@pytest.fixture
def outbox(tmp_path):
    outbox = Outbox(tmp_path / "outbox")
    outbox.load()
    yield outbox
    outbox.close()


def add(outbox, entry_id, photo=b"", user="jana", **fields):
    fields = {"user": user, "chat_id": 1, "message": {"text": "m", **({"photo": "a.png"} if photo else {})}, **fields}
    if not photo:
        return outbox.add(entry_id, fields)
    with outbox.upload(user) as file:
        file.write(photo)
        file.flush()
        return outbox.add(entry_id, fields, file)


# One step of the outbox, and a kill before the Nth call of those that change a folder. Its status is 0 when there are
# fewer than N.
KILLED = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[1])
folder, step, left = pathlib.Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
from bot.outbox import Outbox
outbox = Outbox(folder, 3, 30)
outbox.load()
def killing(call):
    def wrapped(*arguments, **options):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return call(*arguments, **options)
    return wrapped
for name in ("rename", "unlink", "write", "pwrite", "fsync", "fdatasync"):
    setattr(os, name, killing(getattr(os, name)))
if step == "failed":
    outbox.failed(outbox.read("aa"), 502, "no")
elif step == "chat gone":
    outbox.failed(outbox.read("aa"), 409, "no")
elif step == "retry":
    outbox.requeue("aa")
elif step == "delivered":
    outbox.delivered(outbox.read("aa"), [7])
outbox.sync()
"""


@pytest.mark.parametrize("step", ["failed", "chat gone", "retry", "delivered"])
def test_a_kill_between_any_two_steps_loses_no_message_and_no_picture(tmp_path, step):
    outbox = Outbox(tmp_path / "before")
    outbox.load()
    add(outbox, "aa", b"a picture")
    picture = outbox.read("aa")["picture"]
    if step == "retry":
        outbox.failed(outbox.read("aa"), 502, "no")
    outbox.close()
    status, number = None, 0
    while status != 0:
        shutil.copytree(tmp_path / "before", tmp_path / "outbox")
        status = subprocess.run([PYTHON, "-c", KILLED, CHECKOUT, tmp_path / "outbox", step, str(number)], timeout=20,
                                check=False).returncode
        assert status in (0, -signal.SIGKILL)
        outbox = Outbox(tmp_path / "outbox")
        queued = outbox.load()
        if queued:
            assert outbox.photo(outbox.read("aa")).read() == b"a picture", number
            assert outbox.failed_ids() == [] and not list((tmp_path / "outbox/failed").iterdir())
        elif step == "delivered":
            assert outbox.find("aa") == "sent"
        else:
            assert outbox.failed_ids() == ["aa"] and outbox.failure("aa") == (409 if step == "chat gone" else 502, "no")
            left = [path.name for path in (tmp_path / "outbox/pictures").iterdir()]
            assert left == ([] if step == "chat gone" else [picture])
            assert outbox.requeue("aa")["message"]["text"] == (
                "m\n\nIts picture was not kept" if step == "chat gone" else "m")
        assert not list((tmp_path / "outbox/corrupt").iterdir())
        outbox.close()
        shutil.rmtree(tmp_path / "outbox")
        number += 1
    assert number > 2


def test_a_key_of_an_earlier_day_names_another_message_while_the_old_one_is_here(tmp_path):
    outbox = Outbox(tmp_path / "outbox")
    outbox.load()
    with outbox.claim("key") as (failed, found):
        assert found is None
        add(outbox, failed)
    outbox.failed(outbox.read(failed), 502, "no")
    path = tmp_path / f"outbox/failed/{failed}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"accepted_at": time.time() - 90_000}))
    outbox.close()
    outbox = Outbox(tmp_path / "outbox")
    outbox.load()
    with outbox.claim("key") as (queued, found):
        assert found is None and queued != failed
        add(outbox, queued)
    with outbox.claim("key") as found:
        assert found == (queued, "queued")
    outbox.requeue(failed)
    assert {entry["id"] for _, entry in outbox.listing()} == {queued, failed}
    outbox.close()


def test_delivering_costs_one_append_and_one_byte(outbox, monkeypatch):
    for entry_id in ("aa", "bb"):
        add(outbox, entry_id)
    outbox.delivered(outbox.read("aa"), [7])  # the first of a day makes its file
    entry, calls = outbox.read("bb"), []

    def noting(name, call):
        def noted(*arguments):
            calls.append(name)
            return call(*arguments)
        return noted
    for name in ("rename", "unlink", "write", "pwrite", "fsync", "fdatasync"):
        monkeypatch.setattr(os, name, noting(name, getattr(os, name)))
    outbox.delivered(entry, [8, 9])
    assert calls == ["write", "pwrite"]
    outbox.sync()
    assert calls[2:] == ["fdatasync", "fdatasync"]
    outbox.sync()
    assert len(calls) == 4


def test_a_message_that_was_sent_before_a_power_cut_undid_its_removal_is_not_sent_again(tmp_path):
    outbox = Outbox(tmp_path / "outbox")
    outbox.load()
    for entry_id in ("aa", "bb"):
        add(outbox, entry_id)
    kept = {entry_id: outbox.read(entry_id) for entry_id in ("aa", "bb")}
    for sent in kept.values():
        outbox.delivered(sent, [7])
    outbox.close()
    # The key of the other one was used again since.
    write_waiting(tmp_path / "outbox", kept["aa"], kept["bb"] | {"accepted_at": time.time() + 1})
    outbox = Outbox(tmp_path / "outbox")
    assert [entry["id"] for entry in outbox.load()] == ["bb"]
    assert list(waiting(tmp_path / "outbox")) == ["bb"]
    outbox.close()


def line(entry_id, user="jana", when=None, **fields):
    return {"id": entry_id, "accepted_at": when or time.time(), "user": user, "chat_id": 1,
            "message": {"title": entry_id}, **fields}


def test_half_a_line_is_cut_off_and_a_damaged_one_skipped(tmp_path, caplog):
    history = History(tmp_path)
    for entry_id in ("aa", "bb", "cc"):
        history.append(line(entry_id), [1])
    history.close()
    (path,) = tmp_path.iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\0" * len(lines[1]) + b"\n" + lines[2] + lines[1][:30])
    history = History(tmp_path)
    history.load({}, time.time())
    assert [history.has(entry_id, time.time()) for entry_id in ("aa", "bb", "cc")] == [True, False, True]
    assert [record.getMessage() for record in caplog.records] == [f"{path}: 1 damaged lines are skipped"]
    history.append(line("dd"), [2])
    assert [fields["id"] for fields in history.newest("jana", None, 9)] == ["dd", "cc", "aa"]
    assert path.read_bytes().endswith(b"\n") and lines[1][:30] not in path.read_bytes()
    history.close()


def test_a_key_holds_for_a_day_and_lists_and_files_for_theirs(tmp_path):
    history, now = History(tmp_path), time.time()
    history.append(line("aa", when=now - 86_000, script="s" * 1000), [1])
    history.append(line("bb", user="é"), [])
    assert history.has("aa", now) and not history.has("aa", now + 1000)
    assert history.newest("jana", None, 9)[0]["script"] == "s" * 200 and len(history.newest("é", None, 9)) == 1
    history.expire(now + 1000, 3)
    assert not history.has("aa", now) and history.has("bb", now)
    old = tmp_path / time.strftime("%Y-%m-%d.jsonl", time.gmtime(now - 4 * 86_400))
    old.write_text("")
    history.expire(now, 4)
    assert old.exists()
    history.expire(now, 3)
    assert not old.exists() and len(list(tmp_path.iterdir())) == 1
    history.close()


MILLION = r"""
import re, sys, time
sys.path.insert(0, sys.argv[1])
import pathlib
from bot.history import History
from bot.journal import OPEN, Journal
began = time.process_time()
history = History(pathlib.Path(sys.argv[2]))
history.load({}, time.time())
assert history.has(sys.argv[3], time.time())
# ru_maxrss would be that of the tests, from which this process was forked.
peak = re.search(r"VmHWM:[^0-9]+([0-9]+)", pathlib.Path("/proc/self/status").read_text())[1]
print(peak, time.process_time() - began)
"""


def write_million(folder, count=1_000_000):
    """Lines as this module writes them, of today; the last ID."""
    when, ids = time.time(), (os.urandom(10).hex() for _ in range(count))
    with open(folder / time.strftime("%Y-%m-%d.jsonl", time.gmtime(when)), "w") as file:
        for number, entry_id in enumerate(ids):
            file.write(f'{{"id":"{entry_id}","accepted_at":{when - number % 3600},"user":"user{number % 50}",'
                       f'"chat_id":{1_000_000_000 + number % 50},"script":"sales_report.py",'
                       f'"title":"Sales of region {number % 7} fell","delivered_at":{round(when, 3)},'
                       f'"message_ids":[{number}]}}\n')
    return entry_id


def test_a_million_messages_a_day_are_one_file_of_250_mb_and_little_memory(tmp_path):
    last = write_million(tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size < 250e6
    done = subprocess.run([PYTHON, "-c", MILLION, CHECKOUT, tmp_path, last], capture_output=True, text=True, timeout=60,
                          check=True)
    kilobytes, seconds = done.stdout.split()
    assert int(kilobytes) < 64 << 10, f"{kilobytes} KiB, {seconds} s of CPU"


def test_an_account_is_over_uploads_the_queue_and_what_failed(outbox):
    outbox._accounts.bytes.of_key = 1100
    add(outbox, "aa", b"x" * 500)
    with pytest.raises(OutboxError, match="are kept for 'jana'"), outbox.upload("jana") as file:
        for _ in range(100):
            file.write(b"x" * 20)
    with outbox.upload("jana") as file:
        file.write(b"x" * 100)
        with pytest.raises(OutboxError):
            outbox.check_room("jana", 300)
    outbox.check_room("jana", 300)
    add(outbox, "bb", b"x" * 500, user="bob")
    outbox.failed(outbox.read("aa"), 502, "no")
    with pytest.raises(OutboxError):  # what failed goes for it, and it is too much all the same
        add(outbox, "cc", b"x" * 1000)
    assert outbox.failed_ids() == [] and outbox.find("aa") is None
    add(outbox, "dd", b"x" * 500)
    outbox.sync()
    assert sorted(waiting(outbox.directory)) == ["bb", "dd"] and len(list(outbox.directory.glob("pictures/*"))) == 2


def test_of_failed_messages_a_user_has_a_bounded_number(outbox, monkeypatch):
    monkeypatch.setattr("bot.outbox.MAX_FAILED", 3)
    for number in range(5):
        add(outbox, f"{number}")
        outbox.failed(outbox.read(f"{number}"), 502, "no")
    add(outbox, "9", user="bob")
    outbox.failed(outbox.read("9"), 502, "no")
    assert outbox.failed_ids() == ["2", "3", "4", "9"]


@pytest.mark.parametrize("other", ["link", "pipe", pytest.param("owner", marks=pytest.mark.root)])
def test_a_picture_is_a_regular_file_of_the_bot_s_own(outbox, tmp_path, other):
    from bot.entries import CorruptEntry
    add(outbox, "aa", b"a picture")
    waits = outbox.read("aa")
    path, secret = tmp_path / "outbox/pictures" / waits["picture"], tmp_path / "secret"
    secret.write_text("secret")
    if other == "owner":
        os.chown(path, 65534, -1)
    else:
        path.unlink()
        path.symlink_to(secret) if other == "link" else os.mkfifo(path)
    with pytest.raises(CorruptEntry, match="is no regular file"):
        outbox.photo(waits)


def test_a_clock_that_is_set_late_forgets_no_key_and_no_failure(tmp_path, monkeypatch):
    outbox = Outbox(tmp_path / "outbox")
    now, names = time.time(), ("a1", "a2", "a3")
    monkeypatch.setattr(time, "time", lambda: 100.0)
    waits, sent, failed = (outbox.add(name, FIELDS) for name in names)
    outbox.delivered(sent, [1])
    outbox.failed(failed, 502, "no")
    monkeypatch.setattr(time, "time", lambda: now)
    stat_of = type(tmp_path).stat
    early = type("Early", (), {"st_ctime": 100.0})
    monkeypatch.setattr(type(tmp_path), "stat", lambda path, **options: early if path.parent.name == "failed" else
                        stat_of(path, **options))
    assert (outbox.find("a1"), outbox.find("a2")) == ("queued", "sent")
    outbox.expire(now)
    assert (outbox.find("a1"), outbox.find("a2")) == ("queued", "sent")
    assert [state for state, _ in outbox.listing()] == ["queued", "failed"]
    monkeypatch.setattr(time, "time", lambda: now + 86401)
    assert outbox.find("a2") is None
    outbox.close()


def test_what_was_delivered_on_a_full_disk_keeps_its_key(tmp_path, monkeypatch):
    outbox = Outbox(tmp_path / "outbox")
    with outbox.claim("key") as (entry_id, _):
        entry = outbox.add(entry_id, FIELDS)

    def full(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        outbox.delivered(entry, [1])
    with outbox.claim("key") as (_, found):
        assert found == "sent"
    outbox.close()


def test_a_message_that_is_retried_twice_at_once_is_queued_once(tmp_path, monkeypatch):
    outbox = Outbox(tmp_path / "outbox")
    outbox.failed(outbox.add("aa", FIELDS), 502, "no")
    both, append = threading.Barrier(2, timeout=1), outbox._journal.append

    def append_together(line):
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait()
        return append(line)
    monkeypatch.setattr(outbox._journal, "append", append_together)
    with ThreadPoolExecutor(2) as threads:
        retried = [threads.submit(outbox.requeue, "aa") for _ in range(2)]
    assert sorted(type(future.exception()).__name__ for future in retried) == ["CorruptEntry", "NoneType"]
    outbox.close()


def test_a_login_as_long_as_other_software_likes_spoils_no_line(tmp_path):
    outbox = Outbox(tmp_path / "outbox")
    for entry_id, user in (("aa", "jana"), ("bb", "x" * 100_000), ("cc", "jana")):
        outbox.delivered(outbox.add(entry_id, {**FIELDS, "user": user}), [1])
        outbox.close()
        outbox = Outbox(tmp_path / "outbox")
        outbox.load()
        assert outbox.find(entry_id) == "sent"
    assert outbox.find("aa") == "sent"
    outbox.close()


def test_what_could_not_be_read_is_kept_as_long_as_what_failed(outbox, tmp_path):
    add(outbox, "aa", b"x")
    outbox.set_aside("aa", "odd")
    kept = tmp_path / "outbox/corrupt"
    outbox.expire(time.time() + 29 * 86_400)
    assert len(list(kept.iterdir())) == 2
    outbox.expire(time.time() + 31 * 86_400)
    assert not list(kept.iterdir())


def test_keys_of_a_clock_that_was_not_set_hold_over_a_restart(tmp_path, monkeypatch):
    real, unset = time.time, 1000.0
    monkeypatch.setattr(time, "time", lambda: unset)
    history = History(tmp_path)
    history.append(line("aa", when=unset), [1])
    history.close()
    monkeypatch.setattr(time, "time", real)
    path, = tmp_path.iterdir()
    os.utime(path, (unset, unset))
    history = History(tmp_path)
    history.load({}, real())
    history.expire(real(), 3)
    assert path.exists() and history.has("aa", real())
    history.close()
    again = History(tmp_path)
    again.load({}, real())
    assert again.has("aa", real())
    again.expire(real() + 5 * 86_400, 3)
    assert not path.exists()
    again.close()


def test_a_line_is_closed_once(tmp_path):
    """Closed twice, its segment would go with a message that waits in it."""
    journal = Journal(tmp_path)
    first, second = journal.append(OPEN + b'"id":"aa"}\n'), journal.append(OPEN + b'"id":"bb"}\n')
    for _ in range(2):
        journal.close_line(first)
    journal.remove_closed(begin_anew=True)
    assert journal.read(second) == OPEN + b'"id":"bb"}\n'
    journal.close_line(second)
    journal.remove_closed()
    assert not list(tmp_path.iterdir())
    journal.close_line(second)
    journal.close()


def test_a_message_that_changes_its_place_is_found_at_every_moment(outbox, monkeypatch):
    """Its key would be accepted again meanwhile."""
    monkeypatch.setattr(outbox._accounts, "drop", lambda entry_id: pytest.fail("it is in no account now"))
    add(outbox, "aa")
    outbox.save({**outbox.read("aa"), "part": 1})
    outbox.failed(outbox.read("aa"), 502, "no")
    assert outbox.requeue("aa")["part"] == 1 and outbox.find("aa") == "queued"
    monkeypatch.undo()
    assert len(waiting(outbox.directory)) == 1


def test_what_is_gone_is_set_aside_without_harm(outbox):
    add(outbox, "aa")
    assert outbox.discard("aa") and not outbox.discard("aa")
    outbox.set_aside("aa", "odd")
    assert not list((outbox.directory / "corrupt").iterdir())


def test_an_error_of_the_disk_is_that_of_all_whose_lines_it_may_have_lost(tmp_path, monkeypatch):
    """The kernel reports it once, perhaps to who makes closings durable: the next fdatasync(2) finds nothing wrong."""
    outbox = Outbox(tmp_path / "outbox")
    outbox.load()
    add(outbox, "aa")
    place = outbox._journal.append(OPEN + b'"id":"bb"}\n')
    outbox.delivered(outbox.read("aa"), [1])
    disk = Disk(fails=True)
    disk.syncs = 1
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", disk)
        with pytest.raises(OSError, match="Input/output"):
            outbox._journal.remove_closed()
    with pytest.raises(OSError, match="Input/output"):
        outbox._journal.sync(place)
    outbox._journal.clear_line(place, OPEN + b'"id":"bb"}\n')
    add(outbox, "cc")
    outbox.close()
    outbox = Outbox(tmp_path / "outbox")
    assert [head["id"] for head in outbox.load()] == ["cc"]
    outbox.close()


def test_segments_are_removed_by_one_thread_at_a_time(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    for _ in range(3):
        journal.close_line(journal.append(OPEN + b'"id":"aa"}\n'))
        with journal._lock:
            journal._current = None
    disk = Disk(held=True)
    monkeypatch.setattr(os, "fdatasync", disk)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(journal.remove_closed)
        until(lambda: disk.syncs == 1)
        second = threads.submit(journal.remove_closed)
        time.sleep(0.1)  # in which the second must not get past the first
        assert not second.done()
        disk.go.set()
        assert first.result(10) is second.result(10) is None
    assert not list(tmp_path.iterdir())
    journal.close()


def test_a_damaged_line_on_a_full_disk_stops_no_start(tmp_path, monkeypatch, caplog):
    write_waiting(tmp_path / "outbox", entry("aa", "jana"), OPEN + b'"id":"half\n')
    write_failed(tmp_path / "outbox", entry("bb", "jana", reason="no"))
    (tmp_path / "outbox/failed/bb.json").chmod(0)

    def full(path, data, mode):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr("bot.entries.write_atomic", full)
    outbox = Outbox(tmp_path / "outbox")
    assert [head["id"] for head in outbox.load()] == ["aa"]
    outbox.close()
    monkeypatch.undo()
    assert "cannot be set aside" in caplog.text
    outbox = Outbox(tmp_path / "outbox")
    assert [head["id"] for head in outbox.load()] == ["aa"]
    assert len(list((tmp_path / "outbox/corrupt").iterdir())) == 1
    outbox.close()


def test_a_failed_message_that_is_retried_while_it_is_given_up_is_not_lost(outbox, monkeypatch):
    add(outbox, "aa")
    outbox.failed(outbox.read("aa"), 502, "no")
    disk = Disk(held=True)
    with ThreadPoolExecutor(2) as threads, monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", disk)
        gone = threads.submit(outbox.discard, "aa")
        until(lambda: disk.syncs == 1)
        again = threads.submit(outbox.requeue, "aa")
        disk.go.set()
        assert gone.result(10) and type(again.exception(10)).__name__ == "CorruptEntry"
    assert outbox.find("aa") is None and waiting(outbox.directory) == {}
