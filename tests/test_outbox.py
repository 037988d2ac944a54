"""The outbox on its own: what an error leaves behind."""

import errno
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from live import until
from outbox import Outbox, OutboxError

FIELDS = {"user": "jana", "chat_id": 1, "message": {"text": "m"}}


class Disk:
    """os.fsync, but that it can hold and fail the syncing of folders; it counts them."""

    def __init__(self, fails=False, held=False):
        self.fails, self.folders = fails, 0
        self.go = threading.Event()
        if not held:
            self.go.set()

    def __call__(self, descriptor, fsync=os.fsync):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self.folders += 1
            assert self.go.wait(10)
            if self.fails:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)


@pytest.mark.parametrize("fails", [False, True])
def test_those_who_come_while_the_folder_is_synced_share_the_next_time_and_its_error(tmp_path, monkeypatch, fails):
    outbox = Outbox(tmp_path / "outbox")
    disk = Disk(held=True)
    monkeypatch.setattr(os, "fsync", disk)
    with ThreadPoolExecutor(10) as threads:
        first = threads.submit(outbox.add, "first", FIELDS)
        until(lambda: disk.folders == 1)
        others = [threads.submit(outbox.add, f"other{number}", FIELDS) for number in range(9)]
        until(lambda: len(list((tmp_path / "outbox" / "queue").glob("*.json"))) == 10)
        assert not any(future.done() for future in (first, *others))
        disk.fails = fails
        disk.go.set()
    found = [future.exception() for future in others]
    assert all(isinstance(error, OutboxError) for error in found) if fails else found == [None] * 9
    assert disk.folders < 6  # ten when nothing is shared
    assert len(outbox.load()) == (0 if fails else 10)
    outbox.close()


def test_what_was_refused_is_not_delivered_by_the_next_start(tmp_path, monkeypatch):
    """Not even where all was written but the folder could not be synced."""
    monkeypatch.setattr(os, "fsync", Disk(fails=True))
    outbox = Outbox(tmp_path / "outbox")
    with pytest.raises(OutboxError, match="Input/output error"), outbox.upload() as (file, path):
        file.write(b"a picture")
        outbox.add("aa", FIELDS, path)
    assert outbox.load() == []
    assert list((tmp_path / "outbox" / "queue").iterdir()) == []
    outbox.close()
