"""Script contract: the JSON object that a script prints, its cooldown, and the text that reports a failed run.

A script prints one JSON object in UTF-8:

    notify      bool, required; false says that all is well
    title       string
    message     string, required and not blank when notify is true; legacy Markdown
    image_path  string, absolute: a PNG or JPEG file
    cooldown    "<n>m", "<n>h" or "<n>d"; default "1h"
    data        object, passed on

Every field is checked in every run, so that a mistake shows before the day of the alert. A null field counts as left
out, unknown fields are ignored.
"""

from __future__ import annotations

from collections import namedtuple

from common import bounded_json

DEFAULT_COOLDOWN = "1h"
_UNIT_SECONDS = {"m": 60, "h": 3600, "d": 86400}
_MAX_COOLDOWN_DIGITS = 5
_MAX_BYTES = 1 << 20
_MAX_ITEMS = 100_000

_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpg"}

Notification = namedtuple("Notification", "notify title message image_path cooldown data")
Notification.__doc__ = """Output of a script: `cooldown` in seconds; "" and {} for missing fields."""


class ContractError(ValueError):
    """A breach of the contract: `field` is a field's name or "output", `reason` what is wrong with it."""

    def __init__(self, field: str, reason: str):
        super().__init__(f"{field} {reason}")
        self.field = field
        self.reason = reason


def parse_output(stdout: bytes) -> Notification:
    """The notification in a script's output. Raises ContractError."""
    document = _document(stdout)
    if document.get("notify") is None:
        raise ContractError("notify", "is missing: print true or false")
    notify = _field(document, "notify", bool, "true or false", False)
    message = _text(document, "message")
    if notify and not message.strip():
        raise ContractError("message", "is missing or blank, and is needed when notify is true")
    image_path = _text(document, "image_path")
    if image_path and (not image_path.startswith("/") or "\0" in image_path):
        raise ContractError("image_path", "is not an absolute path")
    cooldown = parse_cooldown(_field(document, "cooldown", str, "a string", DEFAULT_COOLDOWN))
    data = _field(document, "data", dict, "an object", {})
    return Notification(notify, _text(document, "title"), message, image_path, cooldown, data)


def parse_cooldown(text: str) -> int:
    """Seconds of a cooldown such as "30m", "6h" or "2d". Raises ContractError."""
    number, unit = text[:-1], text[-1:]
    countable = number.isascii() and number.isdigit() and len(number) <= _MAX_COOLDOWN_DIGITS
    if not countable or unit not in _UNIT_SECONDS:
        raise ContractError("cooldown", f"is {text[:40]!r}, not a number with m, h or d, such as 30m or 2d")
    return int(number) * _UNIT_SECONDS[unit]


def cooldown_over(last_sent: float | None, cooldown: int, now: float) -> bool:
    """True if a message is due again. All times in unix seconds; `last_sent` None if nothing was sent yet.

    A `last_sent` in the future was written before the clock was set back, and does not silence the script.
    """
    return last_sent is None or last_sent > now or now - last_sent >= cooldown


def image_kind(head: bytes) -> str | None:
    """The kind of an image that begins with `head`: "png", "jpg", or None for what Telegram takes as no photo."""
    return next((kind for signature, kind in _SIGNATURES.items() if head.startswith(signature)), None)


def failure_text(name: str, error: str, stderr: str) -> str:
    """The message to the owner of a failing script, in legacy Markdown. `error`: a sentence without a full stop."""
    from common.markdown import escape  # most passes of the runner send nothing and do without
    lines = [escape(f"{error}.")]
    if stderr:
        lines.append("```\n" + stderr.replace("```", "'''") + "\n```")
    lines.append(escape(f"To see what it does: notify-runner --dry-run {name}"))
    return "\n".join(lines)


def _document(stdout: bytes) -> dict:
    if not stdout.strip():
        raise ContractError("output", "is empty: print one JSON object")
    try:
        # Python's json.dumps writes NaN, which is not JSON; a missing figure should not stop an alert.
        document = bounded_json.loads(stdout, _MAX_BYTES, _MAX_ITEMS, parse_constant=lambda name: None)
    except UnicodeDecodeError as error:
        raise ContractError("output", f"is not UTF-8 at byte {error.start}") from None
    except ValueError as error:
        raise ContractError("output", f"is not one JSON object and nothing else: {error}") from None
    if not isinstance(document, dict):
        raise ContractError("output", f"is a JSON {_kind(document)}, not an object")
    return document


def _field(document: dict, name: str, kind: type, expected: str, default):
    value = document.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise ContractError(name, f"is {_kind(value)}, not {expected}")
    return value


def _text(document: dict, name: str) -> str:
    text = _field(document, name, str, "a string", "")
    # A half of a surrogate pair ("\ud83d" alone) has no bytes in UTF-8 and would stop the message later on.
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _kind(value) -> str:
    names = {list: "array", dict: "object", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
