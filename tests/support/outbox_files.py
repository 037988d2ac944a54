"""The files of an outbox, as a test looks at them, and as an earlier run may have left them."""

import contextlib
import json
import time

OPEN = b'{"open":1,'


def entry(entry_id, user, **fields):
    """A message as the outbox writes one."""
    return {"id": entry_id, "sequence": 1, "accepted_at": time.time(), "chat_id": 1, "user": user, "reply": False,
            "picture": None, "part": 0, "late_since": None, "message": {"text": "x"}, **fields}


def line(fields):
    return OPEN + json.dumps(fields, ensure_ascii=False).encode()[1:] + b"\n"


def waiting(outbox):
    """`{id: entry}` of the lines of the journal that are open."""
    segments, before, data = sorted((outbox / "journal").glob("*.jsonl")), None, b""
    while segments != before:  # a message may be written anew in a segment that was not there before
        with contextlib.suppress(FileNotFoundError):
            data = b"".join(path.read_bytes() for path in segments)
        before, segments = segments, sorted((outbox / "journal").glob("*.jsonl"))
    entries = [json.loads(line) for line in data.splitlines() if line.startswith(OPEN)]
    return {entry["id"]: entry for entry in entries}


def write_waiting(outbox, *entries):
    """Messages that wait; bytes are a line as they are. The service is not running."""
    (outbox / "journal").mkdir(parents=True, exist_ok=True)
    number = len(list((outbox / "journal").iterdir())) + 90_000
    (outbox / "journal" / f"{number:08}.jsonl").write_bytes(
        b"".join(fields if isinstance(fields, bytes) else line(fields) for fields in entries) + b"\n" * 100)


def change_waiting(outbox, change):
    """Replace each message that waits by `change(entry)`, an entry or bytes. The service is not running."""
    entries = [change(fields) for fields in waiting(outbox).values()]
    for path in (outbox / "journal").iterdir():
        path.unlink()
    write_waiting(outbox, *entries)


def write_failed(outbox, fields):
    (outbox / "failed").mkdir(parents=True, exist_ok=True)
    (outbox / "failed" / f"{fields['id']}.json").write_text(json.dumps(fields))


def write_picture(outbox, name, size):
    (outbox / "pictures").mkdir(parents=True, exist_ok=True)
    with open(outbox / "pictures" / name, "wb") as picture:
        picture.truncate(size)
