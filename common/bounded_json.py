"""JSON reader for untrusted input: bounded in bytes, items and depth before any object is made.

`{"a":1},` takes thirty times its size once parsed, so a limit in bytes alone bounds no memory. An item takes at most
about 100 bytes beside its text.
"""

from __future__ import annotations

import json
import re

MAX_DEPTH = 100

_TO_SKELETON = bytes.maketrans(b"{}", b"[]")
_NOT_SKELETON = bytes(set(range(256)) - set(b'"[]{},:'))


def loads(data: bytes, max_bytes: int, max_items: int, parse_constant=None):
    """The value of `data`, JSON in UTF-8. Raises ValueError for no JSON and over a bound.

    Items are brackets, commas and colons outside strings.
    """
    if len(data) > max_bytes:
        raise ValueError(f"it is over {max_bytes} bytes")
    # Most have too few brackets, commas and colons for either bound, those in strings counted.
    if sum(map(data.count, b"[{")) > MAX_DEPTH or sum(map(data.count, b"[{,:")) > max_items:
        _check(_skeleton(data, max_items), max_items)
    # json.loads would take UTF-16 as well, which has another skeleton.
    return json.loads(data.decode("utf-8-sig"), parse_constant=parse_constant)


def _check(skeleton: bytes, max_items: int) -> None:
    if len(skeleton) - skeleton.count(b"]") > max_items:
        raise ValueError(f"it has over {max_items} brackets, commas and colons")
    if _is_deeper(skeleton, MAX_DEPTH):
        raise ValueError(f"its brackets are nested over {MAX_DEPTH} deep")


def _skeleton(data: bytes, max_items: int) -> bytes:
    """The brackets (all as square ones), commas and colons outside strings."""
    # Without escapes each quote begins or ends a string.
    data = data.replace(rb"\\", b"").replace(rb'\"', b"").translate(_TO_SKELETON, _NOT_SKELETON).replace(b'""', b"")
    if data.count(b'"') // 2 > max_items + 1:  # re.sub needs room for each
        raise ValueError(f"it has over {max_items} strings")
    return re.sub(rb'"[^"]*"?', b"", data)


def _is_deeper(skeleton: bytes, limit: int) -> bool:
    brackets = skeleton.translate(None, b",:")
    for _ in range(limit):
        shorter = brackets.replace(b"[]", b"")
        if shorter == brackets:
            return len(brackets) > limit
        brackets = shorter
    return bool(brackets)
