"""Several texts for one chat as one message: in order, each with its title, its formatting, its time where it is late.

The first line is the number of them. Pictures, replies, texts with buttons of the caller's own, texts that would have
to be cut, and those whose caller wants them `alone` are not joined.
"""

from __future__ import annotations

from bot.message import EMPTY, MAX_ENTITIES, MAX_TEXT, Step, Text, body_of

MAX_JOINED = 100
_BETWEEN = "\n\n"
_HEADING_ROOM = len(f"{MAX_JOINED} notifications\n\n")
# What begins an entity in the markups that only Telegram parses; more are counted than there are.
_MARKS = {"HTML": "<", "MarkdownV2": "*_~|`[>"}


def can_join(entry: dict) -> bool:
    """True for a text that may be part of a joined message."""
    message = entry["message"]
    return not (entry["reply"] or entry["part"] or message.get("photo") or message.get("buttons")
                or message.get("alone"))


class Joined:
    """A joined message in the making; its `entries`."""

    def __init__(self):
        self.entries: list[dict] = []
        self._texts: list[Text] = []
        self._characters, self._entities = _HEADING_ROOM, 1

    def add(self, entry: dict) -> bool:
        """Add a text; False, and nothing is added, where it does not fit."""
        message = entry["message"]
        title, parse_mode = message.get("title") or "", message.get("parse_mode", "Markdown")
        text = body_of(message, entry["late_since"], parse_mode).headed(title, "bold")
        if not text.text.strip():
            text = Text(EMPTY, [])
        characters = self._characters + len(text.text) + len(_BETWEEN)
        entities = self._entities + len(text.entities) + sum(map(text.text.count, _MARKS.get(text.parse_mode, "")))
        if (characters > MAX_TEXT or entities > MAX_ENTITIES or len(self.entries) == MAX_JOINED
                or self._texts and text.parse_mode != self._texts[0].parse_mode):
            return False
        self.entries.append(entry)
        self._texts.append(text)
        self._characters, self._entities = characters, entities
        return True

    def step(self) -> Step:
        """The call that sends all. It rings unless all of them are silent."""
        entities, offset = [], 1
        for text in self._texts:
            entities += [{**entity, "offset": entity["offset"] + offset} for entity in text.entities]
            offset += len(text.text) + len(_BETWEEN)
        whole = Text("\n" + _BETWEEN.join(text.text for text in self._texts), entities, self._texts[0].parse_mode)
        params = whole.headed(f"{len(self._texts)} notifications", "bold").params("text")
        if all(entry["message"].get("silent") for entry in self.entries):
            params["disable_notification"] = True
        return Step("sendMessage", params)
