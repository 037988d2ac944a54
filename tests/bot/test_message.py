"""What a message becomes in Telegram: whole, in order, with its formatting, within every limit."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.message import MAX_CAPTION, MAX_PARTS, MAX_TEXT, PARSE_MODES, compose, photo_name, split

ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=300)
LONG_TEXT = st.builds(lambda piece, times, end: (piece * times)[:70_000] + end,
                      st.text(alphabet="abc _*`[]()\n\\😀é", min_size=1, max_size=40), st.integers(1, 3000), ANY_TEXT)


def texts(steps):
    return [step.params["text"] for step in steps]


def marked(text, entities, kind):
    """The pieces of a text that entities (UTF-16) of a kind cover."""
    data = text.encode("utf-16-le")
    return [data[2 * e["offset"]:2 * (e["offset"] + e["length"])].decode("utf-16-le") for e in entities
            if e["type"] == kind]


@given(LONG_TEXT | ANY_TEXT, st.integers(1, 5000))
@settings(max_examples=300, deadline=None)
def test_parts_joined_give_the_text(text, limit):
    cuts = split(text, limit)
    assert "".join(text[start:end] for start, end in cuts) == text
    assert all(end - start <= limit for start, end in cuts)


def test_a_text_is_cut_after_a_line_else_a_word_else_anywhere():
    assert [(s, e) for s, e in split("one two\nthree four five", 12)] == [(0, 8), (8, 19), (19, 23)]
    assert split("T\n" + "x" * 10 + " " + "y" * 20, 20) == [(0, 13), (13, 33)]
    assert split("aaaa bbbb cccc", 6) == [(0, 5), (5, 10), (10, 14)]
    assert split("a" * 10, 4) == [(0, 4), (4, 8), (8, 10)]


@given(LONG_TEXT, ANY_TEXT, st.sampled_from(PARSE_MODES), st.none() | st.just("c.png"), st.none() | st.just(1.8e9))
@settings(max_examples=300, deadline=None)
def test_every_call_is_within_the_limits(text, title, parse_mode, photo, late):
    steps = compose({"text": text, "title": title, "parse_mode": parse_mode, "photo": photo}, late)
    for step in steps:
        assert len(step.params.get("text", "")) <= MAX_TEXT
        assert len(step.params.get("caption", "")) <= MAX_CAPTION
        assert step.method != "sendMessage" or step.params["text"].strip()
        for entity in step.params.get("entities", []):
            assert entity["length"] > 0
        assert len(step.params.get("entities", [])) <= 100
    assert len(steps) <= MAX_PARTS + 1


def test_a_long_text_arrives_numbered_and_whole():
    lines = [f"line {number} of *many* with net\\_sales 😀\n" for number in range(400)]
    steps = compose({"text": "".join(lines), "title": "Report"})
    parts = texts(steps)
    assert len(parts) > 2
    assert parts[0].endswith(f"\n(1/{len(parts)})")
    assert [part.partition("\n")[0] for part in parts[1:]] == [f"({n}/{len(parts)})" for n in range(2, len(parts) + 1)]
    joined = parts[0].removesuffix(f"(1/{len(parts)})") + "".join(part.partition("\n")[2] for part in parts[1:])
    assert joined == "Report\n" + "".join(lines).replace("*", "").replace("\\", "")
    bold = [piece for step in steps for piece in marked(step.params["text"], step.params["entities"], "bold")]
    assert bold == ["Report"] + ["many"] * 400


def test_an_entity_goes_on_across_the_cut():
    steps = compose({"text": "`" + "x y " * 2000 + "`"})
    code = [marked(step.params["text"], step.params["entities"], "code") for step in steps]
    assert all(len(pieces) == 1 for pieces in code)
    assert "".join(pieces[0] for pieces in code) == "x y " * 2000


def test_more_entities_than_telegram_keeps_are_spread_over_parts():
    words = [f"*w{number}*" for number in range(350)]
    steps = compose({"text": " ".join(words), "title": "T"})
    bold = [piece for step in steps for piece in marked(step.params["text"], step.params["entities"], "bold")]
    assert bold == ["T"] + [f"w{number}" for number in range(350)]
    assert all(len(step.params["entities"]) <= 100 for step in steps) and len(steps) == 4
    photo, *rest = compose({"text": " ".join(words[:101]), "photo": "c.png"})
    assert "caption_entities" not in photo.params and len(rest) == 2


@pytest.mark.parametrize("text", ["*a*" * 349_000, "`a` " * 260_000, "_a_\n" * 260_000, "*a*" * 16_000 + "b" * 900_000,
                                  "\\_" * 500_000, "*" + "a b" * 349_000 + "*"])
def test_a_hostile_text_is_composed_in_little_time(text):
    started = time.process_time()
    (step,) = compose({"text": text, "title": "T"})
    assert step.method == "sendDocument"
    assert time.process_time() - started < 10


def test_too_long_for_parts_is_a_file():
    text = "a line\n" * 20_000
    (step,) = compose({"text": text, "title": "Log"})
    assert (step.method, step.params["caption"]) == ("sendDocument", "Log")
    assert step.attachment == ("document", "message.txt", text.encode())


@pytest.mark.parametrize("title", [
    "snake_case_name", "2*3", "*", "a**b", "C:\\temp\\", "[x](http://e.com)", "`", "😀 <b>"])
def test_a_title_is_bold_whatever_characters_it_has(title):
    (step,) = compose({"text": "*fine* text", "title": title})
    assert step.params["text"] == f"{title}\nfine text"
    assert marked(step.params["text"], step.params["entities"], "bold") == [title, "fine"]
    assert "parse_mode" not in step.params


@pytest.mark.parametrize("text", ["net_sales fell", "5 * 3", "a `b", "[x"])
def test_what_is_not_legal_markdown_arrives_as_it_was_written(text):
    (step,) = compose({"text": text})
    assert step.params == {"text": text}


def test_other_markup_is_passed_on_with_the_title_in_it_and_can_become_plain():
    (step,) = compose({"text": "<i>x</i>", "title": "a<b", "parse_mode": "HTML"})
    assert step.params == {"text": "<b>a&lt;b</b>\n<i>x</i>", "parse_mode": "HTML"}
    (step,) = compose({"text": "_x_", "title": "a.b*", "parse_mode": "MarkdownV2"})
    assert step.params == {"text": "*a\\.b\\**\n_x_", "parse_mode": "MarkdownV2"}
    assert step.plain().params == {"text": "*a\\.b\\**\n_x_"}
    assert step.plain().plain() is None


def test_a_photo_takes_a_short_text_as_its_caption_and_a_long_one_behind_it():
    (short,) = compose({"text": "*x*", "title": "T", "photo": "c.png", "buttons": [[{"text": "b", "url": "https://e"}]]})
    assert (short.method, short.params["caption"], short.attachment) == ("sendPhoto", "T\nx", ("photo", "c.png", None))
    photo, text = compose({"text": "y " * 1000, "title": "T", "photo": "c.png", "silent": True,
                           "buttons": [[{"text": "b", "url": "https://e"}]]})
    assert (photo.params["caption"], "reply_markup" in photo.params) == ("T", False)
    assert text.params["text"] == "y " * 1000 and text.params["reply_markup"]
    assert photo.params["disable_notification"] and text.params["disable_notification"]


def test_a_photo_that_is_too_large_goes_as_a_file_at_once():
    (step,) = compose({"text": "x", "photo": "c.png", "photo_size": 11 << 20})
    assert (step.method, step.attachment[0]) == ("sendDocument", "document")
    (step,) = compose({"text": "x", "photo": "c.png", "photo_size": 10 << 20})
    assert step.method == "sendPhoto"
    assert step.as_document().attachment == ("document", "c.png", None)


def test_a_late_message_says_so_in_front():
    (step,) = compose({"text": "x", "title": "T"}, late_since=1_800_000_000)
    assert re.fullmatch(r"T\nDelivered late, written 2027-01-15 \d\d:\d\d\nx", step.params["text"])


def test_a_message_of_nothing_is_said_to_be_empty():
    assert texts(compose({"text": " \n "})) == ["(empty message)"]


def test_the_name_of_a_picture_is_safe_and_fits_its_bytes():
    assert photo_name(b"\x89PNG\r\n\x1a\n...", 'a/b"c\n.jpg') == "abc.png"
    assert photo_name(b"\xff\xd8\xff\xe0", "a.b.png") == "a.b.jpg"
    assert photo_name(b"GIF89a", "x.png") is None
