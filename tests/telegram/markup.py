"""Text with its markup as the Bot API takes it: parse_mode or entities in, trimmed text and UTF-16 entities out.

Legacy Markdown is read by `markdown`; MarkdownV2 and HTML here, after `parse_markdown_v2` and `parse_html` in
td/telegram/MessageEntity.cpp. Not read: custom emoji and surrogate halves written as HTML references.
"""

from __future__ import annotations

import re
from bisect import bisect_left

from common import markdown
from common.markdown import SPACE
from telegram.state import bad_request

MAX_SOURCE_BYTES = 1 << 15
MAX_ENTITIES = 100
_TYPES = {"mention", "hashtag", "cashtag", "bot_command", "url", "email", "phone_number", "bold", "italic", "underline",
          "strikethrough", "spoiler", "blockquote", "expandable_blockquote", "code", "pre", "text_link",
          "text_mention", "custom_emoji"}
_HTML_TYPES = {"b": "bold", "strong": "bold", "i": "italic", "em": "italic", "u": "underline", "ins": "underline",
               "s": "strikethrough", "strike": "strikethrough", "del": "strikethrough", "span": "spoiler",
               "tg-spoiler": "spoiler", "a": "text_link", "code": "code", "pre": "pre", "blockquote": "blockquote"}
_V2_NAMES = {"bold": "Bold", "italic": "Italic", "underline": "Underline", "strikethrough": "Strikethrough",
             "spoiler": "Spoiler", "code": "Code", "pre": "Pre", "pre_code": "PreCode", "text_link": "TextUrl",
             "blockquote": "BlockQuote"}
_V2_MARKS = {"bold": "*", "italic": "_", "underline": "__", "strikethrough": "~", "spoiler": "||", "code": "`",
             "pre": "```", "pre_code": "```", "text_link": "]"}
_V2_OPENERS = (("__", "underline"), ("_", "italic"), ("*", "bold"), ("~", "strikethrough"), ("||", "spoiler"),
               ("[", "text_link"), ("```", "pre"), ("`", "code"))
_V2_RESERVED = "_*[]()~`>#+-=|{}.!"
_V2_ESCAPE = re.compile(r"\\([\x01-\x7e])")
_V2_URL = re.compile(r"\(((?:\\[\x01-\x7e]|[^)])*+)\)")


def formatted(text: str, parse_mode: str, entities: list | None) -> tuple[str, list[dict]]:
    """The text as it is shown and its Bot API entities. Raises ApiError where Telegram refuses it."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_SOURCE_BYTES:
        raise bad_request("text is too long")
    mode = parse_mode.lower()
    if text and mode and mode != "none":
        if mode not in PARSERS:
            raise bad_request("unsupported parse_mode")
        try:
            text, found = PARSERS[mode](text)
        except ValueError as error:
            raise bad_request(f"can't parse entities: {error}") from None
    else:
        found = _from_utf16(text, entities or [])
    text, found = _trimmed(text, found)
    found.sort(key=lambda entity: (entity["offset"], -entity["length"]))
    return text, markdown.to_utf16(text, found[:MAX_ENTITIES])


def _from_utf16(text: str, entities: list) -> list[dict]:
    """Entities of the caller, in code points, cut at the end of the text."""
    starts, position = [], 0
    for char in text:
        starts.append(position)
        position += 2 if char > "\uffff" else 1
    found = []
    for entity in entities:
        kept, offset, length = _checked_entity(entity)
        start = bisect_left(starts, offset)
        end = bisect_left(starts, offset + length)
        if start < end:
            found.append({**kept, "offset": start, "length": end - start})
    return found


def _checked_entity(entity) -> tuple[dict, int, int]:
    """The entity without its place, and its offset and length."""
    if not isinstance(entity, dict):
        raise bad_request("can't parse MessageEntity: expected an Object")
    kind, offset, length = entity.get("type"), entity.get("offset"), entity.get("length")
    if type(offset) is not int or type(length) is not int:
        raise bad_request("can't parse MessageEntity: Can't find field \"offset\" or \"length\"")
    if kind not in _TYPES:
        raise bad_request("can't parse MessageEntity: Unsupported type specified")
    kept = {name: entity[name] for name in ("type", "language", "user", "custom_emoji_id") if name in entity}
    if kind == "text_link":
        kept = _checked_link(entity.get("url"))
    return kept, max(offset, 0), length


def _checked_link(url) -> dict:
    if not isinstance(url, str):
        raise bad_request("can't parse MessageEntity: Can't find field \"url\"")
    link = markdown.link_entity(url)
    if not link:
        raise bad_request(f"entity URL '{url}' is invalid")
    return link


def _trimmed(text: str, entities: list[dict]) -> tuple[str, list[dict]]:
    """Without control characters and the white space around it, as Telegram keeps a message."""
    kept = [index for index, char in enumerate(text) if char != "\r"]
    clean = "".join(" " if char < " " and char != "\n" else char for char in text if char != "\r")
    start = len(clean) - len(clean.lstrip(" \n"))
    end = max(start, len(clean.rstrip(" \n")))
    trimmed = []
    for entity in entities:
        first = max(bisect_left(kept, entity["offset"]), start)
        last = min(bisect_left(kept, entity["offset"] + entity["length"]), end)
        if first < last:
            trimmed.append({**entity, "offset": first - start, "length": last - first})
    return clean[start:end], trimmed


class _Open:
    """An entity that has begun: where in the source, where in the text, and what it came with."""

    __slots__ = ("kind", "source", "start", "argument")

    def __init__(self, kind: str, source: int, start: int, argument: str = ""):
        self.kind = kind
        self.source = source
        self.start = start
        self.argument = argument


class _Reader:
    """State that the two parsers share: the source, the plain text so far, the entities open and closed."""

    def __init__(self, source: str):
        self.source = source
        self.at = 0
        self.plain = []
        self.open = []
        self.entities = []

    def byte_offset(self, index: int) -> int:
        return len(self.source[:index].encode("utf-8", "surrogatepass"))

    def fail(self, reason: str, index: int | None = None) -> None:
        where = "" if index is None else f" at byte offset {self.byte_offset(index)}"
        raise ValueError(reason + where)

    def add(self, entity: dict, start: int) -> None:
        if entity and len(self.plain) > start:
            self.entities.append({**entity, "offset": start, "length": len(self.plain) - start})


class _MarkdownV2(_Reader):
    """`parse_markdown_v2`."""

    def __init__(self, source: str):
        super().__init__(source)
        self.quote_may_start = True
        self.in_quote = False

    def read(self) -> tuple[str, list[dict]]:
        while self.at < len(self.source):
            self._step()
        self._finish()
        return "".join(self.plain), self.entities

    def _step(self) -> None:
        escape = _V2_ESCAPE.match(self.source, self.at)
        char = escape[1] if escape else self.source[self.at]
        in_code = bool(self.open) and self.open[-1].kind in ("code", "pre", "pre_code")
        if escape or char not in ("`" if in_code else _V2_RESERVED + "\n"):
            self._put(char)
            self.quote_may_start = self.quote_may_start and (bool(escape) or char == "\r")
            self.at += 2 if escape else 1
        elif not self._close():
            self._begin(char)

    def _put(self, char: str) -> None:
        self.plain.append(char)
        if char != "\r":
            self.quote_may_start = char == "\n"

    def _close(self) -> bool:
        if self.in_quote and self.source[self.at] == "\n" and not self.source.startswith(">", self.at + 1):
            self._end_quote()
            return True
        if not self.open or self.open[-1].kind == "blockquote":
            return False
        entity = self.open[-1]
        mark = _V2_MARKS[entity.kind]
        if not self.source.startswith(mark, self.at):
            return False
        if entity.kind == "italic" and self.source.startswith("__", self.at):
            return False
        self.open.pop()
        self.at += len(mark)
        self._add(entity)
        return True

    def _add(self, entity: _Open) -> None:
        if entity.kind == "text_link":
            self.add(markdown.link_entity(self._url(entity)), entity.start)
        elif entity.kind == "pre_code":
            self.add({"type": "pre", "language": entity.argument}, entity.start)
        else:
            self.add({"type": entity.kind}, entity.start)

    def _url(self, entity: _Open) -> str:
        if not self.source.startswith("(", self.at):
            return "".join(self.plain[entity.start:])
        found = _V2_URL.match(self.source, self.at)
        if not found:
            self.fail("Can't find end of a URL", self.at + 1)
        self.at = found.end()
        return _V2_ESCAPE.sub(r"\1", found[1])

    def _begin(self, char: str) -> None:
        if char == "\n":
            self._put(char)
            self.at += 1
            return
        if char == ">" and self.quote_may_start:
            if not self.in_quote:
                self.in_quote = True
                self.open.append(_Open("blockquote", self.at, len(self.plain)))
            self.at += 1
            return
        for mark, kind in _V2_OPENERS:
            if self.source.startswith(mark, self.at):
                self._open_entity(mark, kind)
                return
        self.fail(f"Character '{char}' is reserved and must be escaped with the preceding '\\'")

    def _open_entity(self, mark: str, kind: str) -> None:
        begin = self.at
        self.at += len(mark)
        argument = ""
        if kind == "pre":
            if language := markdown.LANGUAGE.match(self.source, self.at):
                kind, argument, self.at = "pre_code", language[0], language.end()
            if line_break := markdown.LINE_BREAK.match(self.source, self.at):
                self.at = line_break.end()
        self.open.append(_Open(kind, begin, len(self.plain), argument))

    def _end_quote(self) -> None:
        """At the end of its last line; `||` just before it makes it an expandable one."""
        kind = self._quote_kind()
        quote = self.open.pop()
        self.in_quote = False
        self.plain.append("\n")
        self.at += 1
        self.quote_may_start = True
        self.add({"type": kind}, quote.start)

    def _quote_kind(self) -> str:
        last = self.open[-1]
        if last.kind == "spoiler" and self.source[last.source:self.at].rstrip("\r") == "||" and len(self.open) > 1:
            self.open.pop()
            if self.open[-1].kind == "blockquote":
                return "expandable_blockquote"
        if self.open[-1].kind != "blockquote":
            self._unclosed()
        return "blockquote"

    def _finish(self) -> None:
        if self.in_quote and (self.open[-1].kind == "blockquote" or self.source[self.open[-1].source:] == "||"):
            kind = self._quote_kind()
            self.add({"type": kind}, self.open.pop().start)
        if self.open:
            self._unclosed()

    def _unclosed(self) -> None:
        self.fail(f"Can't find end of {_V2_NAMES[self.open[-1].kind]} entity", self.open[-1].source)


class _Html(_Reader):
    """`parse_html`."""

    _REFERENCE = re.compile(r"&(?:#x([0-9a-fA-F]{1,6})|#([0-9]{1,7})|(lt|gt|amp|quot));?")
    _START = re.compile(rf"<([^{SPACE}>]*)")
    _ATTRIBUTE = re.compile(rf"[{SPACE}]*([^{SPACE}=<>]+)[{SPACE}]*"
                            rf"(?:=[{SPACE}]*(?:\"([^\"]*)\"|'([^']*)'|([a-zA-Z0-9.\-]+)(?=[{SPACE}>])))?")
    _END = re.compile(rf"</([^{SPACE}>]*)[{SPACE}]*>")

    def read(self) -> tuple[str, list[dict]]:
        while self.at < len(self.source):
            if self.source.startswith("</", self.at):
                self._end_tag()
            elif self.source[self.at] == "<":
                self._start_tag()
            else:
                self._text()
        if self.open:
            self.fail(f"Can't find end tag corresponding to start tag \"{self.open[-1].kind}\"")
        return "".join(self.plain), self.entities

    def _text(self) -> None:
        reference = self._REFERENCE.match(self.source, self.at)
        char = _referenced(reference) if reference else None
        self.plain.append(char or self.source[self.at])
        self.at = reference.end() if char else self.at + 1

    def _start_tag(self) -> None:
        begin = self.at
        tag = self._START.match(self.source, begin)
        name = tag[1].lower()
        if tag.end() == len(self.source):
            self.fail("Unclosed start tag", begin)
        if name not in _HTML_TYPES:
            self.fail(f"Unsupported start tag \"{name}\"", begin)
        self.at = tag.end()
        argument = self._attributes(name, begin)
        if name == "span" and argument != "tg-spoiler":
            self.fail("Tag \"span\" must have class \"tg-spoiler\"", begin)
        self.open.append(_Open(name, begin, len(self.plain), argument))

    def _attributes(self, tag: str, begin: int) -> str:
        """The one attribute the tag uses; passes over the rest up to the end of the tag."""
        wanted = {"a": "href", "code": "class", "span": "class", "blockquote": "expandable"}.get(tag)
        argument = ""
        while True:
            while self.source[self.at:self.at + 1] and self.source[self.at] in SPACE:
                self.at += 1
            if self.source.startswith(">", self.at):
                self.at += 1
                return argument
            attribute = self._ATTRIBUTE.match(self.source, self.at)
            if not attribute:
                self.fail(f"Empty attribute name in the tag \"{tag}\"", begin)
            self.at = attribute.end()
            if self.at == len(self.source):
                self.fail(f"Unclosed start tag \"{tag}\"", begin)
            if attribute[1].lower() == wanted:
                value = next((group for group in attribute.groups()[1:] if group is not None), "")
                value = self._REFERENCE.sub(lambda found: _referenced(found) or found[0], value)
                argument = "1" if tag == "blockquote" else value

    def _end_tag(self) -> None:
        if not self.open:
            self.fail("Unexpected end tag", self.at)
        end = self._END.match(self.source, self.at)
        if not end:
            self.fail("Unclosed end tag", self.at)
        name, entity = end[1].lower(), self.open[-1]
        if name and name != entity.kind:
            offset = self.byte_offset(self.at)
            self.fail(f"Unmatched end tag at byte offset {offset}, expected \"</{entity.kind}>\", found \"</{name}>\"")
        self.open.pop()
        self.at = end.end()
        self._add(entity)

    def _add(self, entity: _Open) -> None:
        kind = _HTML_TYPES[entity.kind]
        if kind == "text_link":
            self.add(markdown.link_entity(entity.argument or "".join(self.plain[entity.start:])), entity.start)
        elif kind == "pre" and self._is_whole(entity, "code"):
            self.entities[-1]["type"] = "pre"
        elif kind == "code" and entity.argument.startswith("language-"):
            self.add({"type": "code", "language": entity.argument[9:]}, entity.start)
        elif entity.kind == "blockquote" and entity.argument:
            self.add({"type": "expandable_blockquote"}, entity.start)
        else:
            self.add({"type": kind}, entity.start)

    def _is_whole(self, entity: _Open, kind: str) -> bool:
        """The last entity closed has a language and covers just what this one does: <pre><code class=…>."""
        last = self.entities[-1] if self.entities else {}
        return (last.get("type") == kind and "language" in last and last["offset"] == entity.start
                and last["length"] == len(self.plain) - entity.start)


def _referenced(reference: re.Match) -> str | None:
    if reference[3]:
        return {"lt": "<", "gt": ">", "amp": "&", "quot": '"'}[reference[3]]
    code = int(reference[1], 16) if reference[1] else int(reference[2])
    return chr(code) if 0 < code < 0x10FFFF and not 0xD800 <= code < 0xE000 else None


def _parse_html(text: str) -> tuple[str, list[dict]]:
    text, entities = _Html(text).read()
    for entity in entities:
        if entity["type"] == "code":
            entity.pop("language", None)
    return text, entities


PARSERS = {"markdown": markdown.parse, "markdownv2": lambda text: _MarkdownV2(text).read(), "html": _parse_html}
