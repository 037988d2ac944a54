"""JSON from somebody else: bounded before it becomes an object, and no legal message is refused for its text."""

import json
import random
import re
import subprocess

import pytest

from common import bounded_json
from live import CHECKOUT, PYTHON

ITEMS = 10_000


def items(value):
    inside = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else None
    if inside is None:
        return 0
    return 1 + max(0, len(value) - 1) + len(value) * isinstance(value, dict) + sum(map(items, inside))


def some_value(chance, depth=0):
    kind = chance.random()
    if depth > 4 or kind < 0.5:
        return "".join(chance.choice('ab"\\[]{},:\n\u2222\u2241é\0') for _ in range(chance.randrange(6)))
    if kind < 0.75:
        return [some_value(chance, depth + 1) for _ in range(chance.randrange(5))]
    return {some_value(chance, 9): some_value(chance, depth + 1) for _ in range(chance.randrange(5))}


@pytest.mark.parametrize("seed", range(20))
def test_items_are_counted_outside_strings(seed):
    chance = random.Random(seed)
    for _ in range(200):
        value = some_value(chance)
        data = json.dumps(value, ensure_ascii=chance.random() < 0.5, indent=chance.choice((None, 1))).encode()
        count = items(value)
        assert bounded_json.loads(data, len(data), count) == value
        with pytest.raises(ValueError, match="over"):
            bounded_json.loads(data, len(data) - 1, count)
        if count:
            with pytest.raises(ValueError, match="over"):
                bounded_json.loads(data, len(data), count - 1)


@pytest.mark.parametrize("pair", [b"[]", b"{}"])
def test_depth_is_bounded_and_brackets_in_a_text_are_not_counted(pair):
    opening, closing = (b"[", b"]") if pair == b"[]" else (b'{"a":', b"}")
    bounded_json.loads(opening * 99 + pair + closing * 99, 1 << 20, ITEMS)
    for data in (opening * 100 + pair + closing * 100, opening * 101, b"[" * 100_000):
        with pytest.raises(ValueError, match="over"):
            bounded_json.loads(data, 1 << 20, ITEMS)
    text = pair[:1] * 100_000
    assert bounded_json.loads(b'{"text": "%s"}' % text, 1 << 20, 2) == {"text": text.decode()}


@pytest.mark.parametrize("data", [b"", b"{", b'"', b'{"a": "\\', b"[}", b"]" * 101, b"}" * 101, b"\xff",
                                  "[]".encode("utf-16"), b"9" * 5000, '"\ud83d"'.encode("utf-8", "surrogatepass")])
def test_what_is_no_json_in_utf_8_is_an_error(data):
    with pytest.raises(ValueError):
        bounded_json.loads(data, 1 << 20, ITEMS)


MEASURE = """
import sys
sys.path.insert(0, sys.argv[1])
from common import bounded_json
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
data = sys.stdin.buffer.read()
before = peak()
try:
    value = bounded_json.loads(data, len(data), 10_000)
except ValueError:
    pass
print(peak() - before)
"""


@pytest.mark.parametrize("piece", [b"{},", b"[],", b'"a",', b'"ab",', b'"[",', b"1.5,", b"999,", b'{"a":1},', b'"',
                                   b'\\"', b"\\\\", b"[", rb'\ud83d'], ids=repr)
@pytest.mark.parametrize("around", [b"[%s]", b'{"text": "%s"}', b'["\xf0\x9f\x98\x80", %s]'], ids=repr)
def test_one_mebibyte_takes_at_most_ten(piece, around):
    data = around % (piece * ((1 << 20) // len(piece)))
    done = subprocess.run([PYTHON, "-c", MEASURE, CHECKOUT], input=data, capture_output=True, timeout=60)
    assert re.fullmatch(rb"\d+\n", done.stdout), done.stderr
    assert int(done.stdout) < 10 << 10


def test_nobody_parses_json_without_bounds():
    """The exceptions read files of their own: the bot its state, an analyst's program the analyst's files."""
    own = {"bounded_json", "notify_scripts", "spool", "entries", "outbox", "history", "commands"}
    folders = [CHECKOUT, *(CHECKOUT / name for name in ("bot", "runner", "webapp", "common"))]
    modules = [path for folder in folders for path in folder.glob("*.py")]
    assert len(modules) > 30
    for path in modules:
        if path.stem not in own:
            assert not re.search(r"json\.loads?\(", path.read_text().replace("bounded_json.loads(", "")), path
