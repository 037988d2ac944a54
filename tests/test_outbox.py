"""The outbox on its own: what an error leaves behind."""

import errno
import os

import pytest

import jsonstore
from outbox import Outbox, OutboxError

FIELDS = {"user": "jana", "chat_id": 1, "message": {"text": "m"}}


def test_what_was_refused_is_not_delivered_by_the_next_start(tmp_path, monkeypatch):
    """Not even where all was written but the folder could not be synced."""
    def fails(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(jsonstore, "sync_directory", fails)
    outbox = Outbox(tmp_path / "outbox")
    with pytest.raises(OutboxError, match="Input/output error"), outbox.upload() as (file, path):
        file.write(b"a picture")
        outbox.add("aa", FIELDS, path)
    assert outbox.load() == []
    assert list((tmp_path / "outbox" / "queue").iterdir()) == []
    outbox.close()
