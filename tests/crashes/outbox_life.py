"""A life of the outbox: outbox_life.py CHECKOUT FOLDER MARKS TURNS

A mark before and after each step that changes where a message is: `begin ID STATE` and `end ID STATE`; `synced` when
what was delivered before is durable.
"""

import functools
import os
import sys
import time

sys.path.insert(0, sys.argv[1])

from pathlib import Path  # noqa: E402

from bot import journal, outbox  # noqa: E402

journal.SEGMENT_BYTES = 2048
DAY = 86_400

marks = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
box = outbox.Outbox(Path(sys.argv[2]), 3, 30)
box.load()


def mark(text):
    os.write(marks, text.encode() + b"\n")


def step(entry_id, state, change):
    mark(f"begin {entry_id} {state}")
    change()
    mark(f"end {entry_id} {state}")


def accept(entry_id, picture=b"", text="m"):
    fields = {"user": "jana", "chat_id": 1, "message": {"text": f"{text} {entry_id}",
                                                        **({"photo": "a.png"} if picture else {})}}

    def add():
        if not picture:
            box.add(entry_id, fields)
            return
        with box.upload("jana") as file:
            file.write(picture)
            file.flush()
            os.fsync(file.fileno())
            box.add(entry_id, fields, file)
    step(entry_id, "queued", add)


def deliver(*entry_ids):
    """One call, then a record for each."""
    for entry_id in entry_ids:
        step(entry_id, "sent", lambda entry_id=entry_id: box.delivered(box.read(entry_id), [7]))


def sync():
    box.sync()
    mark("synced")


def progress(entry_id, part):
    box.save({**box.read(entry_id), "part": part})


def fail(entry_id, code):
    step(entry_id, "failed", lambda: box.failed(box.read(entry_id), code, "no"))


ids = iter(f"{number:04x}" for number in range(1, 1000))
for turn in range(int(sys.argv[4])):
    a, b, c, d, e, f, g = (next(ids) for _ in range(7))
    accept(a)
    accept(b, b"\x89PNG picture of " + b.encode())
    accept(c, text="x" * 700)
    deliver(a)
    progress(c, 1)
    accept(d)
    sync()
    progress(c, 2)
    deliver(b)
    fail(c, 502)
    accept(e, b"\x89PNG another")
    accept(f)
    sync()
    deliver(d, f)
    fail(e, 502)
    step(c, "queued", lambda: box.requeue(c))  # noqa: B023
    progress(c, 3)
    accept(g, b"\x89PNG third")
    sync()
    fail(g, 409)
    step(g, "absent", lambda: box.discard(g))  # noqa: B023
    accept(g + "ff")
    step(g + "ff", "absent", lambda: box.discard(g + "ff"))  # noqa: B023
    step(e, "queued", lambda: box.requeue(e))  # noqa: B023
    deliver(e, c)
    if turn == 1:
        time.time = functools.partial(float, time.time() + DAY)
    box.expire(time.time())
    sync()
box.close()
