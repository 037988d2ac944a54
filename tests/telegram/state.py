"""State of the stand-in: people, chats, messages, the bot's updates, files.

One lock guards it all. A message is never changed in place: an edit replaces the dict, so that what was read can be
encoded without the lock. Each change of a chat has a number (`seq`), which a reader asks the news after.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import Counter, OrderedDict, deque

CALLBACK_SECONDS = 150
MESSAGE_SECONDS = 24 * 3600
SAME_OFFSET_SECONDS = 0.5
MAX_KEPT_BYTES = 512 << 20
CHAT_STATES = ("open", "new", "blocked", "deactivated", "kicked")


class ApiError(Exception):
    """A refusal as the Bot API words it. `parameters` is its ResponseParameters."""

    def __init__(self, code: int, description: str, parameters: dict | None = None):
        super().__init__(description)
        self.code = code
        self.description = description
        self.parameters = parameters


def bad_request(description: str) -> ApiError:
    return ApiError(400, f"Bad Request: {description}")


class Chat:
    """A chat and the person in it. `info` is the Bot API's Chat, `person` its User (in a group who wrote last)."""

    def __init__(self, info: dict, person: dict):
        self.info = info
        self.person = person
        self.state = "new"
        self.migrated_to = None
        self.messages = {}

    @property
    def is_group(self) -> bool:
        return self.info["type"] in ("group", "supergroup")


class State:
    """The whole of it. Methods take the lock themselves."""

    def __init__(self, token: str):
        self.token = token
        self.lock = threading.RLock()
        self.news = threading.Condition(self.lock)  # A chat changed: for the chat page and tests.
        self.updates_came = threading.Condition(self.lock)  # For the bot's poll.
        bot_id = int(token.partition(":")[0])
        self.bot = {"id": bot_id, "is_bot": True, "first_name": "Notification bot", "username": "sandbox_notify_bot"}
        self.chats = {}
        self.files = OrderedDict()
        self.commands = []
        self.webhook = ""
        self.queries = {}
        self.texts = Counter()
        self.closed = False
        self.advanced = 0.0
        self._changes = []
        self._last_message_id = 0
        # As Telegram's, they go on over a restart: a bot keeps its offset, and would take lower ones for read.
        self._last_update_id = int(time.time()) - 1_000_000_000
        self._last_file = 0
        self._kept_bytes = 0
        self._last_query_id = 4_000_000_000_000
        self._updates = deque()
        self._allowed = None
        self._poll = 0
        self._poll_ended_by = ""
        self._last_poll = (None, 0.0)

    # Time: the tests' clock can be put forward.

    def elapsed(self) -> float:
        """Seconds of a clock that only goes forward."""
        return time.monotonic() + self.advanced

    def advance(self, seconds: float) -> None:
        with self.lock:
            self.advanced += seconds

    def close(self) -> None:
        """End every wait."""
        with self.lock:
            self.closed = True
            self.news.notify_all()
            self.updates_came.notify_all()

    # People and chats.

    def create_chat(self, chat_id: int, kind: str, first_name: str, username: str | None) -> Chat:
        """The chat, made or renamed. A private chat starts `new`: the person has not written yet."""
        name = {"username": username} if username else {}
        with self.lock:
            if kind == "private":
                person = {"id": chat_id, "is_bot": False, "first_name": first_name, **name, "language_code": "en"}
                info = {"id": chat_id, "first_name": first_name, **name, "type": kind}
            else:
                person = {"id": abs(chat_id), "is_bot": False, "first_name": first_name, **name}
                info = {"id": chat_id, "title": first_name, "type": kind}
            chat = self.chats.get(chat_id)
            if chat is None:
                chat = self.chats[chat_id] = Chat(info, person)
                chat.state = "new" if kind == "private" else "open"
            chat.info, chat.person = info, person
            return chat

    def set_chat_state(self, chat: Chat, state: str) -> None:
        """Block or unblock the bot as the person; the bot is told as Telegram tells it, by `my_chat_member`."""
        with self.lock:
            old, chat.state = chat.state, state
            if state in ("blocked", "kicked", "open") and old != state:
                member = {True: {"status": "member"}, False: {"status": "kicked", "until_date": 0}}
                self._add_update("my_chat_member", {
                    "chat": chat.info, "from": chat.person, "date": int(time.time()),
                    "old_chat_member": {"user": self.bot, **member[old in ("open", "new")]},
                    "new_chat_member": {"user": self.bot, **member[state == "open"]}}, MESSAGE_SECONDS)

    def say(self, chat: Chat, text: str) -> dict:
        """The person writes; the bot gets a `message`."""
        with self.lock:
            if chat.state == "new":
                chat.state = "open"
            message = {"from": chat.person, "chat": chat.info, "date": int(time.time()), "text": text}
            command = _command_length(text)
            if command:
                message["entities"] = [{"type": "bot_command", "offset": 0, "length": command}]
            message = self.add_message(chat, message)
            self._add_update("message", message, MESSAGE_SECONDS)
            return message

    def press(self, chat: Chat, message_id: int, data: str) -> str:
        """The person presses a button; the bot gets a `callback_query`, whose id is returned."""
        with self.lock:
            self._last_query_id += 1
            query_id = str(self._last_query_id)
            self.queries[query_id] = (chat.info["id"], self.elapsed() + CALLBACK_SECONDS)
            self._add_update("callback_query", {
                "id": query_id, "from": chat.person, "message": chat.messages[message_id],
                "chat_instance": str(chat.info["id"]), "data": data}, CALLBACK_SECONDS)
            return query_id

    # Messages.

    def add_message(self, chat: Chat, message: dict) -> dict:
        with self.lock:
            self._last_message_id += 1
            message = {"message_id": self._last_message_id, **message}
            self.put_message(chat, message)
            return message

    def put_message(self, chat: Chat, message: dict) -> None:
        with self.lock:
            chat.messages[message["message_id"]] = message
            self.add_change(chat.info["id"], "message", message["message_id"])

    def delete_message(self, chat: Chat, message_id: int) -> None:
        with self.lock:
            del chat.messages[message_id]
            self.add_change(chat.info["id"], "deleted", {"chat_id": chat.info["id"], "message_id": message_id})

    def add_change(self, chat_id: int, kind: str, value) -> None:
        with self.lock:
            self._changes.append((len(self._changes) + 1, chat_id, kind, value))
            self.news.notify_all()

    def changes(self, chat_id: int | None, after: int, wait: float) -> dict:
        """News since `after`; waits up to `wait` seconds for some.

        `messages` are as they stand now, `deleted` name what is gone, `answers` are answers to presses, `actions`
        what the bot said it is doing; `seq` is the `after` of the next call.
        """
        with self.lock:
            deadline = time.monotonic() + wait
            while True:
                new = self._changes_after(chat_id, after)
                remaining = deadline - time.monotonic()
                if new or remaining <= 0 or self.closed:
                    return self._as_news(new, after)
                self.news.wait(remaining)

    def _changes_after(self, chat_id: int | None, after: int) -> list:
        first = bisect_right(self._changes, after, key=lambda change: change[0])
        return [change for change in self._changes[first:] if chat_id is None or change[1] == chat_id]

    def _as_news(self, changes: list, after: int) -> dict:
        touched = sorted({(chat_id, value) for _, chat_id, kind, value in changes if kind == "message"},
                         key=lambda key: key[1])
        news = {"ok": True, "seq": max(after, len(self._changes)) if changes else after,
                "messages": [self.chats[chat_id].messages[message_id] for chat_id, message_id in touched
                             if message_id in self.chats[chat_id].messages]}
        for kind, name in (("deleted", "deleted"), ("answer", "answers"), ("action", "actions")):
            news[name] = [value for _, _, what, value in changes if what == kind]
        return news

    # Files.

    def keep_file(self, filename: str, mime_type: str, content: bytes) -> str:
        """Returns its file_id. The oldest are forgotten when they come to more than MAX_KEPT_BYTES."""
        with self.lock:
            self._last_file += 1
            file_id = f"sandboxfile{self._last_file:08d}"
            self.files[file_id] = (filename, mime_type, content)
            self._kept_bytes += len(content)
            while self._kept_bytes > MAX_KEPT_BYTES and len(self.files) > 1:
                _, (_, _, forgotten) = self.files.popitem(last=False)
                self._kept_bytes -= len(forgotten)
            return file_id

    # Updates.

    def _add_update(self, kind: str, content: dict, seconds: float) -> None:
        if self._allowed is not None and kind not in self._allowed:
            return
        self._last_update_id += 1
        update = {"update_id": self._last_update_id, kind: content}
        self._updates.append((self._last_update_id, self.elapsed() + seconds, update))
        self.updates_came.notify_all()

    def pending_updates(self) -> int:
        with self.lock:
            self._forget_updates()
            return len(self._updates)

    def set_webhook(self, url: str, allowed: list | None, drop: bool) -> None:
        with self.lock:
            self.webhook = url
            if allowed is not None:
                self._allowed = allowed or None
            if drop:
                self._updates.clear()
            if url:
                self._end_poll("setWebhook request")

    def _end_poll(self, by: str) -> int:
        """The poll that waits now fails: Telegram ends the older one."""
        self._poll += 1
        self._poll_ended_by = by
        self.updates_came.notify_all()
        return self._poll

    def get_updates(self, offset: int, limit: int, timeout: float, allowed: list | None) -> list:
        """getUpdates: waits up to `timeout` seconds. Raises ApiError 409 when another poll or a webhook takes over."""
        with self.lock:
            if self.webhook:
                raise ApiError(409, "Conflict: can't use getUpdates method while webhook is active; "
                                    "use deleteWebhook to delete the webhook first")
            if allowed is not None:
                self._allowed = allowed or None
            mine = self._end_poll("other getUpdates request; make sure that only one bot instance is running")
            if self._last_poll[0] == offset and self.elapsed() < self._last_poll[1] + SAME_OFFSET_SECONDS:
                limit = 1
            self._last_poll = (offset, self.elapsed())
            self._forget_updates(offset)
            deadline = time.monotonic() + timeout
            while True:
                remaining = deadline - time.monotonic()
                if self._updates or remaining <= 0 or self.closed:
                    return [update for _, _, update in list(self._updates)[:limit]]
                self.updates_came.wait(remaining)
                if self._poll != mine:
                    raise ApiError(409, f"Conflict: terminated by {self._poll_ended_by}")
                self._forget_updates()

    def _forget_updates(self, offset: int = 0) -> None:
        """Updates below `offset` are confirmed; a negative one keeps the last -offset. Old ones expire."""
        while offset < 0 and len(self._updates) > -offset:
            self._updates.popleft()
        now = self.elapsed()
        self._updates = deque(update for update in self._updates if update[0] >= offset and update[1] > now)


def _command_length(text: str) -> int:
    """UTF-16 length of the bot command a text begins with, 0 without one."""
    if not text.startswith("/") or len(text) < 2:
        return 0
    word = text.split()[0]
    return len(word) if word.isascii() and word[1:2].isalnum() else 0
