"""The project's documents, taken apart: their fenced blocks, tables and names."""

import re
from collections import namedtuple
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
NAMES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/notifications.md", "docs/telegram_bot.md",
         "docs/ARCHITECTURE.md", "docs/link_page.md", "docs/PERFORMANCE.md", "docs/RELIABILITY.md")

Block = namedtuple("Block", "document section language marks text")
Block.__doc__ = """A fenced block: `marks` are the words after its language, `{"machine": "alice"}`."""


def text_of(name):
    return (CHECKOUT / name).read_text()


def blocks(name, language=None, section=None):
    """The fenced blocks of a document, of one language, below one heading."""
    found, heading, fence = [], "", None
    for line in text_of(name).splitlines():
        if fence is not None:
            if line == "```":
                found.append(fence._replace(text="\n".join(fence.text) + "\n"))
                fence = None
            else:
                fence.text.append(line)
        elif line.startswith("```"):
            kind, *words = line[3:].split() or [""]
            marks = dict(word.partition("=")[::2] for word in words)
            fence = Block(name, heading, kind, marks, [])
        elif line.startswith("#"):
            heading = line.lstrip("# ")
    assert fence is None, f"{name} has a block without an end"
    return [block for block in found if language in (None, block.language) and section in (None, block.section)]


def prose(name):
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(name), flags=re.M | re.S)


def commands(block):
    """The commands of a console block: `(prompt, command)`, `#` for root and `$` for everybody."""
    return [(line[0], line[2:]) for line in block.text.splitlines() if line[:2] in ("# ", "$ ")]


def tables(name):
    """The rows of every table, without their headings: lists of cells."""
    lines = text_of(name).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    ruled = [set("".join(row)) == {"-"} for row in rows]
    return [row for row, rule, below in zip(rows, ruled, [*ruled[1:], False], strict=True) if not rule and not below]


def code_spans(text):
    """Texts in `backticks`."""
    return [span.strip() for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)]
