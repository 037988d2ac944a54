"""Legacy Markdown against TDLib itself (the library the Bot API server is built on), on random texts."""

from __future__ import annotations

import json
import os
import random
import re
import time

import pytest
import tdjson

from common import markdown

TEXTS = int(os.environ.get("NOTIFY_ORACLE", "20000"))
ATOMS = ["*", "_", "`", "```", "[", "]", "(", ")", "](", "\\", "\\\\", "\n", "\r", "\r\n", "\n\r",
    " ", "\t", "\0", "\v", "\f", "a", "Z", "7", "word", "snake_case", "é", "ß", "\u00a0", "\u202e",
    "漢", "😀", "👩‍👩‍👧", "\U0010ffff", "\uffff", "```py\n", "```C++ x", "```\r\n", "```é\n", "\n```",
    "\\_", "\\*", "\\`", "\\[", "*b*", "_i_", "`c`"]
SCHEMES = ["", "", "http://", "https://", "HTTP://", "hTTps://", "tg:", "tg://", "TG://", "ton://",
    "tonsite://", "ftp://", "://", "//", "tg:http://", "tg://https://", "mailto:", "javascript:",
    " http://"]
USERINFOS = ["", "", "", "", "", "u@", "u:p@", "a@b@", "@", "ü:%@", "[@", ":@"]
HOSTS = ["e.com", "E.Com", "localhost", "user", "USER", "a-b_c.d", ".", "..", "", "[::1]", "[::1",
    "::1]", "[1:2::F]", "[::ffff:1.2.3.4]", "[::1%eth0]", "[z]", "[]", "[1.2.3.4]", "1.2.3.4",
    "münchen.de", "😀.ws", "a%20b.c", "a%2", "a%zz.b", "a%2F.com", "a b.com", "a\\b.com", "a'(b.c",
    "a*b.c", "a,b;c.d", "x\"y.z", "a.b\n", "K.com", "user.a"]
PORTS = ["", "", "", "", ":80", ":0", ":00443", ":65535", ":65536", ":", ":-1", ":+5", ":x",
    ":99999999999", ":８"]
QUERIES = ["", "", "/", "/a_b?c=d#e", "?x", "#y", "/%7e%zz", "/ ", "/a b\n", "?id=7", "/?id=12",
    "?ID=12", "/a?id=7", "?id=0", "?id=-1", "?id=01", "?id=1099511627775", "?id=1099511627776",
    "?id=99999999999999999999", "?id=1x", "?a=b&id=5", "?id=5&id=6", "?id=5#x", "#?id=5", "?id",
    "?id=", "?id=３", "/é😀", "\0", "\v", "\f", "/\\", "/[", "/]"]
# TDLib aborts when it writes a url cut inside a character, as `[text]` without a url can make of such text.
UNSPEAKABLE = re.compile(r"\[[^\]]*[^\x00-\x7f][^\]]*\](?!\()")
URL_PARTS = (SCHEMES, USERINFOS, HOSTS, PORTS, QUERIES)


def execute(request: dict) -> dict:
    return json.loads(tdjson.td_execute(json.dumps(request).encode()))


execute({"@type": "setLogVerbosityLevel", "new_verbosity_level": 0})

TYPES = {"Bold": "bold", "Italic": "italic", "Code": "code", "Pre": "pre", "PreCode": "pre",
         "TextUrl": "text_link", "MentionName": "text_mention"}


def oracle(text: str):
    """TDLib's reading of the text: (plain, Bot API entities), or its error."""
    answer = execute({"@type": "parseTextEntities", "text": text,
                      "parse_mode": {"@type": "textParseModeMarkdown", "version": 1}})
    if answer["@type"] == "error":
        return answer["message"].removeprefix("Can't parse entities: ")
    return answer["text"], [from_oracle(entity) for entity in answer["entities"]]


def from_oracle(entity: dict) -> dict:
    kind = entity["type"]
    result = {"type": TYPES[kind["@type"].removeprefix("textEntityType")],
              "offset": entity["offset"], "length": entity["length"]}
    if "user_id" in kind:
        result["user"] = {"id": kind["user_id"]}
    return result | {name: kind[name] for name in ("url", "language") if name in kind}


def ours(text: str):
    try:
        plain, entities = markdown.parse(text)
    except ValueError as error:
        return str(error)
    return plain, markdown.to_utf16(plain, entities)


def random_url(rng: random.Random) -> str:
    url = "".join(rng.choice(part) if rng.random() < 0.5 else part[0] for part in URL_PARTS)
    if rng.random() < 0.3:
        cut = rng.randrange(len(url) + 1)
        url = url[:cut] + rng.choice(ATOMS + list("%@:/?#&=~^|")) + url[cut:]
    return url


def random_text(rng: random.Random) -> str:
    parts = []
    for _ in range(rng.choice((1, 2, 3, 5, 8, 13))):
        if rng.random() < 0.25:
            label = rng.choice(["x", "a_b", "😀", "*", "\\", "http://e.com", ""])
            parts.append(f"[{label}]({random_url(rng)})" if rng.random() < 0.8 else f"[{random_url(rng)}]")
        else:
            parts.append(rng.choice(ATOMS))
    text = "".join(parts)
    return random_text(rng) if UNSPEAKABLE.search(text) else text


def test_random_texts_are_read_as_tdlib_reads_them():
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}, {TEXTS} texts")
    rng = random.Random(seed)
    errors = entities = 0
    for _ in range(TEXTS):
        text = random_text(rng)
        expected = oracle(text)
        assert ours(text) == expected, f"seed {seed}, text {text!r}"
        if isinstance(expected, str):
            errors += 1
        else:
            entities += len(expected[1])
    # The texts are only worth something when they reach both outcomes often.
    assert errors > TEXTS // 10 and entities > TEXTS // 5


def test_random_links_are_read_as_tdlib_reads_them():
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}, {TEXTS} links")
    rng = random.Random(seed)
    linked = 0
    for _ in range(TEXTS):
        text = f"[x]({random_url(rng)})"
        expected = oracle(text)
        assert ours(text) == expected, f"seed {seed}, text {text!r}"
        linked += not isinstance(expected, str) and bool(expected[1])
    assert linked > TEXTS // 10


@pytest.mark.parametrize("text, error", [
    ("net_sales fell", 3), (r"*a\*b*", 5), ("*a", 0), ("é*a", 2), ("😀`a", 4), ("```py\nx``", 0),
    ("a [b", 2), ("_a_ _", 4)])
def test_unclosed_entity_names_its_byte_offset(text, error):
    with pytest.raises(ValueError) as caught:
        markdown.parse(text)
    assert str(caught.value) == f"Can't find end of the entity starting at byte offset {error}"
    assert oracle(text) == str(caught.value)


@pytest.mark.parametrize("source, plain", [
    ("*snake_case_name*", "snake_case_name"), (r"*2*\**3*", "2*3"), (r"\*", "*"), (r"*a*\*", "a*"),
    (r"*a*\*\**b*", "a**b"), ("*C:\\temp\\*", "C:\\temp\\"), ("*[x](http://e.com)*", "[x](http://e.com)")])
def test_bold_titles_of_any_characters(source, plain):
    assert markdown.parse(source)[0] == plain
    assert ours(source) == oracle(source)


def test_offsets_are_code_points_and_become_utf16():
    plain, entities = markdown.parse("😀*é😀*[x](tg://user?id=42)")
    assert (plain, entities) == ("😀é😀x", [{"type": "bold", "offset": 1, "length": 2},
                                           {"type": "text_mention", "offset": 3, "length": 1, "user_id": 42}])
    assert markdown.to_utf16(plain, entities) == [
        {"type": "bold", "offset": 2, "length": 3},
        {"type": "text_mention", "offset": 5, "length": 1, "user": {"id": 42}}]


def test_escaped_text_is_read_back():
    rng = random.Random(7)
    for _ in range(5000):
        text = random_text(rng)
        assert markdown.parse(markdown.escape(text)) == (text, [])


def test_half_a_surrogate_pair_is_kept():
    assert markdown.parse("\ud800*b*") == ("\ud800b", [{"type": "bold", "offset": 1, "length": 1}])
    with pytest.raises(ValueError, match="byte offset 3"):
        markdown.parse("\ud800*")


MEBI = 1 << 20
HOSTILE = {
    "nothing": "a" * MEBI,
    "stars": "*" * MEBI,
    "backslashes": "\\" * MEBI,
    "escapes": r"\_" * (MEBI // 2),
    "brackets": "[" * MEBI,
    "empty links": "[]()" * (MEBI // 4),
    "bare links": "[a.b]" * (MEBI // 5),
    "unclosed url": "[a](" + "(" * MEBI,
    "fences": "```a" * (MEBI // 4),
    "language": "```" + "a" * MEBI + "```",
    "backticks": "`" * MEBI,
    "bold emoji": "*😀*" * (MEBI // 6),
    "host": "[x](" + "%41" * (MEBI // 3) + "%)",
    "port": "[x](a:" + "0" * MEBI + ")",
    "userinfo": "[x](" + "@" * MEBI + ")",
    "colons": "[x](" + ":" * MEBI + ")",
    "spaces": "[x](a.b/" + " " * MEBI + "x)",
    "parameters": "[x](tg://user?" + "&" * MEBI + ")",
    "user id": "[x](tg:user?id=" + "9" * MEBI + ")",
    "scheme": "[x](" + "h" * MEBI + ")",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_takes_linear_time(name):
    """A mebibyte takes a second or two; a quadratic reader would take many minutes."""
    started = time.process_time()
    result = ours(HOSTILE[name])
    assert time.process_time() - started < 5
    assert result
