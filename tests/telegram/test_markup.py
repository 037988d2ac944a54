"""MarkdownV2 and HTML as the sandbox reads them, against TDLib itself, on random texts."""

from __future__ import annotations

import os
import random
import time

import pytest
from test_markdown import execute

from common import markdown
from telegram import markup

TEXTS = int(os.environ.get("NOTIFY_ORACLE", "20000")) // 4
PIECES = {
    "markdownv2": ["*", "_", "__", "~", "||", "`", "```", "```py\n", "[", "](http://e.com)", "](", "\\", "\\_", "\\*",
                   "\n", ">", "\n>", "a", "😀", " ", "é", ".", "! ", "||\n", "word", "\r", "tg://user?id=5)", "[http://e.com]"],
    "html": ["<b>", "</b>", "<i>", "</i>", '<a href="http://e.com">', "<a href='e.com'>", "</a>", "<code>", "</code>",
             "<pre>", "</pre>", '<code class="language-py">', "&lt;", "&amp;", "&#65;", "&#x41;", "&quot;", "&x;", "< ",
             "&", "<u>", "</u>", "<s>", "</s>", '<span class="tg-spoiler">', "</span>", "<x>", "</>", "a", "😀", " ",
             "\n", "<blockquote>", "</blockquote>", "<blockquote expandable>", "<b >", "http://e.com",
             '<pre><code class="language-c">', "</code></pre>"]}
MODES = {"markdownv2": {"@type": "textParseModeMarkdown", "version": 2}, "html": {"@type": "textParseModeHTML"}}
TYPES = {"TextUrl": "text_link", "MentionName": "text_mention", "PreCode": "pre", "BlockQuote": "blockquote",
         "ExpandableBlockQuote": "expandable_blockquote"}


def oracle(text: str, mode: str):
    answer = execute({"@type": "parseTextEntities", "text": text, "parse_mode": MODES[mode]})
    if answer["@type"] == "error":
        return answer["message"].removeprefix("Can't parse entities: ")
    entities = []
    for entity in answer["entities"]:
        kind = entity["type"].pop("@type").removeprefix("textEntityType")
        extra = {"user": {"id": entity["type"]["user_id"]}} if "user_id" in entity["type"] else entity["type"]
        entities.append({"type": TYPES.get(kind, kind.lower()), "offset": entity["offset"],
                         "length": entity["length"], **extra})
    return answer["text"], in_order(entities)


def ours(text: str, mode: str):
    try:
        plain, entities = markup.PARSERS[mode](text)
    except ValueError as error:
        return str(error)
    return plain, in_order(markdown.to_utf16(plain, entities))


def in_order(entities: list) -> list:
    """Those that cover the same text have no order that is told."""
    return sorted(entities, key=lambda entity: (entity["offset"], -entity["length"], entity["type"]))


@pytest.mark.parametrize("mode", PIECES)
def test_random_texts_are_read_as_tdlib_reads_them(mode):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}, {TEXTS} texts")
    rng = random.Random(seed)
    understood = 0
    for _ in range(TEXTS):
        text = "".join(rng.choice(PIECES[mode]) for _ in range(rng.choice((1, 2, 3, 4, 6, 9))))
        expected = oracle(text, mode)
        assert ours(text, mode) == expected, f"seed {seed}, text {text!r}"
        understood += not isinstance(expected, str)
    assert TEXTS // 20 < understood < TEXTS * 9 // 10


@pytest.mark.parametrize("mode, text", [
    ("markdownv2", "[x](" + r"\a" * 10_000), ("markdownv2", "*_" * 8_000), ("markdownv2", "[" * 30_000),
    ("markdownv2", ">" + "[*" * 8_000), ("html", "<b " + 'a="' * 10_000), ("html", "<a " + "x" * 30_000),
    ("html", "<b>" * 10_000), ("html", "&" * 30_000)])
def test_hostile_text_is_read_at_once(mode, text):
    started = time.process_time()
    assert ours(text, mode)
    assert time.process_time() - started < 2
