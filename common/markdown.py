"""Telegram's legacy Markdown, read as TDLib reads it (`parse_markdown` in td/telegram/MessageEntity.cpp).

Outside an entity a backslash escapes only `_ * [` and the backtick. Inside one there are no escapes and no
nesting: the first closing delimiter ends it. An entity without an end fails the whole text; a bad link is
plain text.

An entity is a dict: `type` (bold, italic, code, pre, text_link, text_mention), `offset` and `length` in code
points, and where it has one `url`, `language` or `user_id`. They are in order and do not overlap.
"""

from __future__ import annotations

import re
from bisect import bisect_left

from common.settings import without_case

SPACE = " \t\r\n\0\v"
_MAX_USER_ID = (1 << 40) - 1
_TYPES = {"*": "bold", "_": "italic", "`": "code"}
_SPECIAL = re.compile(r"\\[_*`\[]|[_*`\[]")
LANGUAGE = re.compile(rf"[^{SPACE}`]++(?=[{SPACE}])")
LINE_BREAK = re.compile(r"\r\n|\n\r|\r|\n")
_PROTOCOL = re.compile(r"([^:/?#@\[\]]*)://")
_PORT = re.compile(r":([^:@\]]*)\Z")
_HOST = re.compile(r"(?:[a-z0-9.\-_!$,~*'();&+=]|%[0-9a-f]{2}|[^\x00-\x7f])++")
_USERINFO = re.compile(r"(?:[A-Za-z0-9.\-_!$,~*'();&+=:]|%[0-9A-Fa-f]{2}|[^\x00-\x7f])*+")
_IPV6_HOST = re.compile(r"\[[0-9a-f:.]*\]")
_TG_LINK = re.compile(r"(tg|ton|tonsite):(?://)?", re.IGNORECASE | re.ASCII)
_USER_LINK = re.compile(r"tg:(?://)?user/?\?([^#]*)")
_ESCAPABLE = re.compile(r"([_*`\[])")


def parse(text: str) -> tuple[str, list[dict]]:
    """The text without its markup, and its entities. Raises ValueError, with Telegram's description, where an entity
    does not end."""
    parser = _Parser(text)
    position = 0
    while special := _SPECIAL.search(text, position):
        parser.emit(text[position:special.start()])
        if special[0][0] == "\\":
            parser.emit(special[0][1])
            parser.removed += 1
            position = special.end()
        else:
            position = parser.entity(special.start())
    parser.emit(text[position:])
    return "".join(parser.pieces), parser.entities


def escape(text: str) -> str:
    """The text such that `parse` gives it back, wherever it stands outside an entity."""
    return _ESCAPABLE.sub(r"\\\1", text)


def to_utf16(plain: str, entities: list[dict]) -> list[dict]:
    """The entities as the Bot API takes them: offsets in UTF-16 code units, a mention's user as an object."""
    wide = [] if plain.isascii() else [index for index, char in enumerate(plain) if char > "\uffff"]
    return [_to_utf16(entity, wide) for entity in entities]


def _to_utf16(entity: dict, wide: list[int]) -> dict:
    start, end = entity["offset"], entity["offset"] + entity["length"]
    start, end = start + bisect_left(wide, start), end + bisect_left(wide, end)
    converted = {**entity, "offset": start, "length": end - start}
    if "user_id" in converted:
        converted["user"] = {"id": converted.pop("user_id")}
    return converted


def _size(text: str) -> int:
    """Length in UTF-8; half a surrogate pair takes three bytes."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


class _Parser:
    """Text read so far: pieces of plain text, their length in code points, bytes of markup removed."""

    def __init__(self, text: str):
        self.text = text
        self.pieces = []
        self.entities = []
        self.length = 0
        self.removed = 0

    def emit(self, piece: str) -> None:
        self.pieces.append(piece)
        self.length += len(piece)

    def entity(self, begin: int) -> int:
        """Read the entity whose delimiter is at `begin`; returns where the text goes on."""
        if self.text.startswith("```", begin):
            return self._pre(begin)
        if self.text[begin] == "[":
            return self._link(begin)
        content, end = self._content(begin, begin + 1, self.text[begin])
        self._add(content, {"type": _TYPES[self.text[begin]]})
        self.removed += 2
        return end

    def _content(self, begin: int, start: int, closing: str) -> tuple[str, int]:
        end = self.text.find(closing, start)
        if end < 0:
            offset = _size(self.text[:begin])
            raise ValueError(f"Can't find end of the entity starting at byte offset {offset}")
        return self.text[start:end], end + len(closing)

    def _add(self, content: str, entity: dict) -> None:
        if content and entity:
            self.entities.append({**entity, "offset": self.length, "length": len(content)})
        self.emit(content)

    def _pre(self, begin: int) -> int:
        entity = {"type": "pre"}
        start = begin + 3
        if language := LANGUAGE.match(self.text, start):
            entity["language"] = language[0]
            start = language.end()
        if line_break := LINE_BREAK.match(self.text, start):
            start = line_break.end()
        content, end = self._content(begin, start, "```")
        self._add(content, entity)
        self.removed += _size(self.text[begin:start]) + 3
        return end

    def _link(self, begin: int) -> int:
        content, end = self._content(begin, begin + 1, "]")
        after = end
        if content and self.text.startswith("(", end):
            closing = self.text.find(")", end)
            stop = closing if closing >= 0 else len(self.text)
            url, after = self.text[end + 1:stop], stop + (closing >= 0)
        else:
            url = self._bare_url(content)
        self._add(content, link_entity(url))
        self.removed += 2 + _size(self.text[end:after])
        return after

    def _bare_url(self, content: str) -> str:
        """The url of `[text]` alone. TDLib means the text, but reads it after moving it left over the markup.

        Where that cuts a character in half, TDLib has no url that could be sent, so there is none.
        """
        raw = content.encode("utf-8", "surrogatepass")
        moved = min(self.removed + 1, len(raw))
        try:
            return (raw[moved:] + raw[len(raw) - moved:]).decode("utf-8")
        except UnicodeDecodeError:
            return ""


def link_entity(url: str) -> dict:
    """Entity of a link's text, {} for a url that is no link."""
    user_id = _mentioned_user(url)
    if user_id:
        return {"type": "text_mention", "user_id": user_id}
    checked = _checked_link(url)
    return {"type": "text_link", "url": checked} if checked else {}


def _mentioned_user(url: str) -> int | None:
    """The id in `tg://user?id=N` (LinkManager::get_link_user_id)."""
    link = _USER_LINK.match(without_case(url))
    if not link:
        return None
    for parameter in link[1].split("&"):
        key, _, value = parameter.partition("=")
        if key == "id":
            return _user_id(value)
    return None


def _user_id(value: str) -> int | None:
    if not re.fullmatch(r"[1-9][0-9]{0,12}", value) or int(value) > _MAX_USER_ID:
        return None
    return int(value)


def _checked_link(link: str) -> str | None:
    """The link as Telegram writes it, None when it is none (LinkManager::get_checked_link)."""
    scheme = _TG_LINK.match(link)
    if scheme:
        return _checked_tg_link(without_case(scheme[1]), link[scheme.end():])
    url = _parse_url(link)
    if not url or ("." not in url.host and not url.host.startswith("[")):
        return None
    userinfo = f"{url.userinfo}@" if url.userinfo else ""
    port = f":{url.port}" if url.port else ""
    return f"{url.protocol}://{userinfo}{url.host}{port}{url.query}"


def _checked_tg_link(scheme: str, link: str) -> str | None:
    url = _parse_url(link)
    if not url or without_case(link).startswith("http://") or url.protocol == "https" or url.userinfo or url.port:
        return None
    if not re.fullmatch("[a-z0-9_.-]+" if scheme == "tonsite" else "[a-z0-9_-]+", url.host):
        return None
    query = url.query[1:] if url.query.startswith("/?") else url.query
    return f"{scheme}://{url.host}{query}"


class _Url:
    __slots__ = ("protocol", "userinfo", "host", "port", "query")

    def __init__(self, protocol: str, userinfo: str, host: str, port: int, query: str):
        self.protocol = protocol
        self.userinfo = userinfo
        self.host = host
        self.port = port
        self.query = query


def _parse_url(url: str) -> _Url | None:
    """TDLib's `parse_url`: None where it gives an error; port 0 where none is named."""
    protocol = "http"
    if scheme := _PROTOCOL.match(url):
        protocol = without_case(scheme[1])
        url = url[scheme.end():]
    if protocol not in ("http", "https"):
        return None
    query_at = re.search(r"[/?#]|\Z", url).start()
    authority, port = _split_port(url[:query_at])
    userinfo, _, host = authority.rpartition("@")
    host = without_case(host)
    if port is None or not _host_is_valid(host, userinfo):
        return None
    return _Url(protocol, userinfo, host, port, _query(url[query_at:]))


def _split_port(authority: str) -> tuple[str, int | None]:
    """The authority without its port, and the port; None for a wrong one."""
    found = _PORT.search(authority, 1)
    if not found:
        return authority, 0
    digits = found[1].lstrip("0")
    valid = re.fullmatch(r"[0-9]{1,5}", digits) and int(digits) <= 65535
    return authority[:found.start()], int(digits) if valid else None


def _host_is_valid(host: str, userinfo: str) -> bool:
    """The userinfo is judged beside a name only; beside an IPv6 address TDLib takes any."""
    if host.startswith("[") and host.endswith("]"):
        return bool(_IPV6_HOST.fullmatch(host)) and _is_ipv6(host[1:-1])
    return host != "." and bool(_HOST.fullmatch(host)) and bool(_USERINFO.fullmatch(userinfo))


def _is_ipv6(address: str) -> bool:
    import socket

    try:
        socket.inet_pton(socket.AF_INET6, address)
    except OSError:
        return False
    return True


def _query(query: str) -> str:
    query = query.rstrip(SPACE)
    if not query.startswith("/"):
        query = "/" + query
    return re.sub(r"[\x00-\x20]", lambda found: f"%{ord(found[0]):02X}", query)
