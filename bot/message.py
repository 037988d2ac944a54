"""Bot API calls of a message: they show it whole, with its formatting.

A message is a dict with `text` and, where they are wanted, `title` (shown bold, taken literally), `parse_mode`
(`Markdown` when absent, `MarkdownV2`, `HTML`, `""`), `photo` (its file name), `photo_size` (bytes), `silent`,
`buttons` (rows of Bot API InlineKeyboardButton), `alone` (in no joined message). Legacy Markdown becomes entities here:
then Telegram cannot refuse the text, and it can be cut anywhere. Lengths are in code points, as Telegram counts them.
"""

from __future__ import annotations

import html
import re
import time
from bisect import bisect_left

from common import markdown
from common.script_output import image_kind

MAX_TEXT = 4096
MAX_CAPTION = 1024
MAX_PARTS = 20
MAX_ENTITIES = 100  # Telegram silently drops any more in a message
MAX_DELIMITERS = 100_000
MAX_SENDPHOTO_BYTES = 10 << 20  # a larger picture goes by sendDocument
EMPTY = "(empty message)"
PARSE_MODES = ("Markdown", "MarkdownV2", "HTML", "")
_NUMBER_ROOM = len("(20/20)\n")
_NOT_A_PHOTO = ("PHOTO_INVALID_DIMENSIONS", "IMAGE_PROCESS_FAILED", "is too big for a photo", "PHOTO_EXT_INVALID")


def photo_name(head: bytes, name: str) -> str | None:
    """The file name of a picture that begins with `head`, for Telegram; None where it is no PNG or JPEG."""
    kind = image_kind(head)
    stem = "".join(c for c in name.rpartition(".")[0] or name if c.isprintable() and c not in '/"\\')
    return kind and f"{stem[:100] or 'photo'}.{kind}"


class Step:
    """One Bot API call: `method`, its `params` but for the chat, and the file it carries.

    `attachment` is `(parameter, filename, content)`; a content of None stands for the photo of the message.
    """

    __slots__ = ("method", "params", "attachment")

    def __init__(self, method: str, params: dict, attachment: tuple | None = None):
        self.method = method
        self.params = params
        self.attachment = attachment

    def other_way(self, code: int, description: str) -> Step | None:
        """A call that may succeed after Telegram refused this one with `code`; None if there is none."""
        if code == 413 or any(text in description for text in _NOT_A_PHOTO):
            return self.as_document()
        if code == 400 and "can't parse" in description:
            return self.plain()
        return None

    def plain(self) -> Step | None:
        """The same call without markup; None if it has none."""
        markup = {"parse_mode", "entities", "caption_entities"}
        if not markup & self.params.keys():
            return None
        params = {name: value for name, value in self.params.items() if name not in markup}
        return Step(self.method, params, self.attachment)

    def as_document(self) -> Step | None:
        """The same call with its photo as a file; None without a photo."""
        if self.method != "sendPhoto":
            return None
        return Step("sendDocument", self.params, ("document", *self.attachment[1:]))


def compose(message: dict, late_since: float | None = None, text_first: bool = False) -> list[Step]:
    """The calls that deliver a message, in order. `late_since`: the unix time of its acceptance, shown in the text;
    `text_first`: the text goes ahead of the picture."""
    title = message.get("title") or ""
    body = body_of(message, late_since, message.get("parse_mode", "Markdown"))
    if body.parse_mode and len(body.headed(title, "bold").text) > MAX_TEXT:
        # Only Telegram parses these markups, so a long text cannot be cut and goes as plain text.
        body = body_of(message, late_since, "")
    steps = _photo_steps(message, title, body, text_first) if message.get("photo") else _text_steps(title, body)
    if message.get("silent"):
        for step in steps:
            step.params["disable_notification"] = True
    if message.get("buttons"):
        steps[-1].params["reply_markup"] = {"inline_keyboard": message["buttons"]}
    return steps


def whole(text: str) -> str:
    """The text with lone surrogates replaced: JSON can escape them, UTF-8 cannot encode them."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def message_ids_of(result) -> list[int]:
    """Telegram's IDs of the messages a call has made: one, or those of an album."""
    messages = result if isinstance(result, list) else [result]
    found = [message.get("message_id") for message in messages if isinstance(message, dict)]
    return [message_id for message_id in found if type(message_id) is int]


class Text:
    """A text with its entities (offsets in code points), or with a `parse_mode` that only Telegram parses."""

    __slots__ = ("text", "entities", "parse_mode")

    def __init__(self, text: str, entities: list, parse_mode: str = ""):
        self.text = text
        self.entities = entities
        self.parse_mode = parse_mode

    def headed(self, heading: str, kind: str) -> Text:
        """The text below a heading, which is taken literally."""
        if not heading:
            return self
        if self.parse_mode == "HTML":
            tag = {"bold": "b", "italic": "i"}[kind]
            return Text(f"<{tag}>{html.escape(heading, quote=False)}</{tag}>\n{self.text}", [], "HTML")
        if self.parse_mode == "MarkdownV2":
            mark = {"bold": "*", "italic": "_"}[kind]
            escaped = re.sub(r"([_*\[\]()~`>#+\-=|{}.!\\])", r"\\\1", heading)
            return Text(f"{mark}{escaped}{mark}\n{self.text}", [], "MarkdownV2")
        shift = len(heading) + 1
        moved = [{**entity, "offset": entity["offset"] + shift} for entity in self.entities]
        return Text(f"{heading}\n{self.text}" if self.text else heading,
                     [{"type": kind, "offset": 0, "length": len(heading)}, *moved])

    def cut(self, start: int, end: int) -> Text:
        kept = []
        for entity in self.entities:
            first, last = max(entity["offset"], start), min(entity["offset"] + entity["length"], end)
            if first < last:
                kept.append({**entity, "offset": first - start, "length": last - first})
        return Text(self.text[start:end], kept)

    def params(self, name: str) -> dict:
        """As parameters of a call: `name` is `text` or `caption`."""
        params = {name: self.text}
        if self.parse_mode:
            params["parse_mode"] = self.parse_mode
        elif self.entities:
            params["entities" if name == "text" else "caption_entities"] = \
                markdown.to_utf16(self.text, self.entities)
        return params


def body_of(message: dict, late_since: float | None, parse_mode: str) -> Text:
    """The text of a message below the time of its acceptance, where that is given (unix seconds)."""
    text = message.get("text") or ""
    if parse_mode == "Markdown" and sum(map(text.count, "*_`[")) > MAX_DELIMITERS:
        # No number of parts can show as many entities, and each takes memory.
        body = Text(text, [])
    elif parse_mode == "Markdown":
        try:
            body = Text(*markdown.parse(text))
        except ValueError:
            body = Text(text, [])
    else:
        body = Text(text, [], parse_mode)
    if late_since is None:
        return body
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(late_since))
    return body.headed(f"Delivered late, written {when}", "italic")


def _text_steps(title: str, body: Text) -> list[Step]:
    whole = body.headed(title, "bold")
    if not whole.text.strip():
        whole = Text(EMPTY, [])
    if len(whole.text) <= MAX_TEXT and len(whole.entities) <= MAX_ENTITIES:
        return [Step("sendMessage", whole.params("text"))]
    starts = [entity["offset"] for entity in whole.entities]
    cuts = split(whole.text, MAX_TEXT - _NUMBER_ROOM, starts)
    if len(cuts) > MAX_PARTS:
        return [_as_file(title, body, whole)]
    pieces = [whole.cut(start, end) for start, end in cuts]
    return [Step("sendMessage", _numbered(piece, number, len(pieces)).params("text"))
            for number, piece in enumerate(pieces, 1)]


def _numbered(piece: Text, number: int, total: int) -> Text:
    """A part with its number, placed so that Telegram does not trim an indentation at the cut."""
    mark = f"({number}/{total})"
    if number == 1:
        return Text(piece.text + ("" if piece.text.endswith("\n") else "\n") + mark, piece.entities)
    shift = len(mark) + 1
    return Text(f"{mark}\n{piece.text}", [{**entity, "offset": entity["offset"] + shift}
                                           for entity in piece.entities])


def _as_file(title: str, body: Text, whole: Text) -> Step:
    if len(title) <= MAX_CAPTION:
        caption, content = Text("", []).headed(title, "bold"), body.text
    else:
        caption, content = Text("", []), whole.text
    return Step("sendDocument", caption.params("caption"), ("document", "message.txt", content.encode()))


def _photo_steps(message: dict, title: str, body: Text, text_first: bool) -> list[Step]:
    whole = body.headed(title, "bold")
    fits = len(whole.text) <= MAX_CAPTION and len(whole.entities) <= MAX_ENTITIES
    caption = whole if fits else Text("", []).headed(title if len(title) <= MAX_CAPTION else "", "bold")
    photo = Step("sendPhoto", {} if text_first else caption.params("caption"), ("photo", message["photo"], None))
    if message.get("photo_size", 0) > MAX_SENDPHOTO_BYTES:
        photo = photo.as_document()
    if text_first:
        return [*_text_steps(title, body), photo]
    if fits:
        return [photo]
    return [photo, *_text_steps(title if len(title) > MAX_CAPTION else "", body)]


def split(text: str, limit: int, entities: list[int] = ()) -> list[tuple[int, int]]:
    """Cut a text into parts `(start, end)` of at most `limit` code points: after a line, else a word, else anywhere.

    `entities` has the offset of each entity, in order; a part has at most MAX_ENTITIES of them."""
    parts, start = [], 0
    while (end := _end(len(text), start, limit, entities)) < len(text):
        # Not after a line that ends early: a title would be a part of its own.
        early = start + (end - start) // 4
        cut = text.rfind("\n", early, end) + 1 or text.rfind(" ", early, end) + 1 or end
        parts.append((start, cut))
        start = cut
    return [*parts, (start, len(text))]


def _end(length: int, start: int, limit: int, entities: list[int]) -> int:
    """The furthest end of a part from `start`, before which one entity may have begun."""
    first_too_many = bisect_left(entities, start) + MAX_ENTITIES - 1
    end = entities[first_too_many] if first_too_many < len(entities) else length
    return min(end, start + limit)
