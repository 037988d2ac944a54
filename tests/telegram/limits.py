"""The limits of Telegram that a sender meets: pace, sizes, pictures, keyboards."""

from __future__ import annotations

import math
import struct
import zlib
from collections import deque

from common.markdown import link_entity
from telegram.state import ApiError, Chat, bad_request

MAX_TEXT = 4096
MAX_CAPTION = 1024
MAX_PHOTO_BYTES = 10 << 20
MAX_DOCUMENT_BYTES = 50 << 20
MAX_PHOTO_SIDES = 10_000
MAX_PHOTO_RATIO = 20
MAX_CALLBACK_DATA = 64
MAX_BUTTONS = 100
MAX_KEYBOARD_BYTES = 10_000
CHAT_BURST = 3
OVERALL = (30, 1.0)
GROUP = (20, 60.0)


class Bucket:
    """A token bucket: `burst` at once, then one a second."""

    def __init__(self, burst: int):
        self._burst = burst
        self._tokens = float(burst)
        self._at = None

    def wait(self, now: float) -> float:
        """Seconds until one more may pass."""
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + now - self._at)
        self._at = now
        return max(0.0, 1 - self._tokens)

    def take(self, now: float) -> None:
        self._tokens -= 1


class Window:
    """At most `count` in any `seconds`."""

    def __init__(self, count: int, seconds: float):
        self._count = count
        self._seconds = seconds
        self._taken = deque()

    def wait(self, now: float) -> float:
        while self._taken and self._taken[0] <= now - self._seconds:
            self._taken.popleft()
        return self._taken[0] + self._seconds - now if len(self._taken) >= self._count else 0.0

    def take(self, now: float) -> None:
        self._taken.append(now)


class Rates:
    """About one message a second in a chat, 30 in all, 20 a minute in a group. Callers hold the state's lock."""

    def __init__(self):
        self._overall = Window(*OVERALL)
        self._chats = {}

    def admit(self, chat: Chat, now: float) -> None:
        """Raises ApiError 429 where Telegram would, and then counts nothing."""
        chat_id = chat.info["id"]
        if chat_id not in self._chats:
            self._chats[chat_id] = [Bucket(CHAT_BURST)] + ([Window(*GROUP)] if chat.is_group else [])
        limits = [self._overall, *self._chats[chat_id]]
        wait = max(limit.wait(now) for limit in limits)
        if wait > 0:
            raise too_many_requests(max(1, math.ceil(wait)))
        for limit in limits:
            limit.take(now)


def too_many_requests(seconds: int) -> ApiError:
    return ApiError(429, f"Too Many Requests: retry after {seconds}", {"retry_after": seconds})


def check_photo(content: bytes) -> tuple[int, int]:
    """Width and height of a picture that may be sent as a photo."""
    if len(content) > MAX_PHOTO_BYTES:
        raise bad_request(f"file of size {len(content)} bytes is too big for a photo; "
                          f"the maximum size is {MAX_PHOTO_BYTES} bytes")
    size = picture_size(content)
    if size is None or 0 in size:
        raise bad_request("IMAGE_PROCESS_FAILED")
    if sum(size) > MAX_PHOTO_SIDES or max(size) > MAX_PHOTO_RATIO * min(size):
        raise bad_request("PHOTO_INVALID_DIMENSIONS")
    return size


def check_document(content: bytes) -> None:
    if len(content) > MAX_DOCUMENT_BYTES:
        raise ApiError(413, "Request Entity Too Large")


def picture_size(content: bytes) -> tuple[int, int] | None:
    """Width and height as the file's own headers say; None for what is no whole PNG and no JPEG."""
    try:
        if content.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png_size(content)
        if content.startswith(b"\xff\xd8"):
            return _jpeg_size(content)
    except (struct.error, IndexError):
        return None
    return None


def _png_size(content: bytes) -> tuple[int, int] | None:
    """From IHDR. Every chunk must be whole up to IEND, with picture data among them."""
    size, position, has_data = None, 8, False
    while position < len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        (checksum,) = struct.unpack_from(">I", content, position + 8 + length)
        if checksum != zlib.crc32(content[position + 4:position + 8 + length]):
            return None
        if kind == b"IHDR":
            size = struct.unpack_from(">II", content, position + 8)
        elif kind == b"IDAT":
            has_data = True
        elif kind == b"IEND":
            return size if has_data else None
        position += 12 + length
    return None


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """From the frame header (SOFn), where a scan follows it."""
    size, position = None, 2
    while content[position] == 0xFF:
        marker = content[position + 1]
        if marker == 0xDA:
            return size
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", content, position + 5)
            size = width, height
        position += 2 + struct.unpack_from(">H", content, position + 2)[0]
    return None


def check_keyboard(markup) -> dict | None:
    """The InlineKeyboardMarkup to keep; None for other kinds of markup, which the sandbox does not show."""
    if not isinstance(markup, dict):
        raise bad_request("object expected as reply markup")
    if "inline_keyboard" not in markup:
        return None
    rows = markup["inline_keyboard"]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise bad_request('field "inline_keyboard" of the InlineKeyboardMarkup should be an Array of Arrays')
    buttons = [button for row in rows for button in row]
    for button in buttons:
        _check_button(button)
    size = sum(len(str(value).encode("utf-8", "replace")) for button in buttons for value in button.values())
    if len(buttons) > MAX_BUTTONS or size > MAX_KEYBOARD_BYTES:
        raise bad_request("reply markup is too long")
    return {"inline_keyboard": [row for row in rows if row]} if buttons else None


def _check_button(button) -> None:
    if not isinstance(button, dict) or not isinstance(button.get("text"), str):
        raise bad_request("can't parse inline keyboard button: Can't find field \"text\"")
    url = button.get("url")
    if isinstance(url, str):
        if not link_entity(url):
            raise bad_request(f"inline keyboard button URL '{url}' is invalid")
        return
    data = button.get("callback_data")
    if not isinstance(data, str):
        raise bad_request("can't parse inline keyboard button: Text buttons are unallowed in the inline keyboard")
    if not 1 <= len(data.encode("utf-8", "surrogatepass")) <= MAX_CALLBACK_DATA:
        raise bad_request("BUTTON_DATA_INVALID")
