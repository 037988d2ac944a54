"""The calls under `/sandbox/`, for the chat page and for tests. sandbox.py documents them."""

from __future__ import annotations

from collections import Counter

from telegram.faults import Faults
from telegram.state import CHAT_STATES, Chat, State

MAX_WAIT_SECONDS = 50
KINDS = {"private", "group", "supergroup"}


class ControlError(Exception):
    """The caller asked for what cannot be; `status` is that of HTTP."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Control:
    """`calls` and `refusals` count by method, and by method and code; `revoke` makes the token invalid."""

    def __init__(self, state: State, faults: Faults):
        self.state = state
        self.faults = faults
        self.calls = Counter()
        self.refusals = Counter()
        self.revoked = False
        self._routes = {
            "POST chats": self._create_chat, "GET chats": self._chats,
            "POST messages": self._say, "GET messages": self._messages,
            "POST press": self._press, "POST block": self._block, "POST unblock": self._unblock,
            "POST migrate": self._migrate, "POST faults": self._add_fault, "DELETE faults": self._clear_faults,
            "GET stats": self._stats, "POST clock": self._advance, "POST revoke": self._revoke}

    def call(self, method: str, name: str, values: dict) -> dict:
        """Answer one call; `values` are its JSON body or its query. Raises ControlError."""
        route = self._routes.get(f"{method} {name}")
        if route is None:
            raise ControlError(404, f"there is no {method} /sandbox/{name}")
        return {"ok": True, **(route(values) or {})}

    def file(self, file_id: str) -> tuple[str, str, bytes]:
        """Name, MIME type and bytes."""
        try:
            return self.state.files[file_id]
        except KeyError:
            raise ControlError(404, "there is no such file") from None

    def count_refusal(self, method: str, code: int) -> None:
        with self.state.lock:
            self.refusals[method, code] += 1

    def count_call(self, method: str) -> None:
        with self.state.lock:
            self.calls[method] += 1

    def _create_chat(self, values: dict) -> dict:
        chat_id = _whole(values, "id")
        kind = values.get("type", "private" if chat_id > 0 else "group")
        if kind not in KINDS or (kind == "private") != (chat_id > 0):
            raise ControlError(400, "type must be private (id over 0), group or supergroup (id below 0)")
        first_name, username = values.get("first_name", "Person"), values.get("username")
        if not isinstance(first_name, str) or not isinstance(username, str | None):
            raise ControlError(400, "first_name and username must be text")
        return {"chat": self.state.create_chat(chat_id, kind, first_name, username).info}

    def _chats(self, values: dict) -> dict:
        with self.state.lock:
            chats = [{**chat.info, "state": chat.state} for chat in self.state.chats.values()]
        return {"chats": chats, "bot": self.state.bot, "commands": self.state.commands}

    def _say(self, values: dict) -> dict:
        chat_id, text = _whole(values, "chat_id"), values.get("text")
        if not isinstance(text, str) or not text:
            raise ControlError(400, "text must be text")
        with self.state.lock:
            chat = self.state.chats.get(chat_id) or self.state.create_chat(chat_id, "private", "Person", None)
            if chat.state not in ("open", "new"):
                raise ControlError(409, f"the chat is {chat.state}")
            if isinstance(values.get("from"), dict):
                chat.person = {"is_bot": False, **values["from"]}
            return {"message": self.state.say(chat, text)}

    def _messages(self, values: dict) -> dict:
        chat_id = _whole(values, "chat_id") if "chat_id" in values else None
        wait = min(_whole(values, "wait", 0), MAX_WAIT_SECONDS)
        return self.state.changes(chat_id, _whole(values, "after", 0), wait)

    def _press(self, values: dict) -> dict:
        with self.state.lock:
            chat = self._chat(values)
            message = chat.messages.get(_whole(values, "message_id"))
            if message is None:
                raise ControlError(404, "there is no such message")
            button = _button(message, values)
            return {"callback_query_id": self.state.press(chat, message["message_id"], button["callback_data"])}

    def _block(self, values: dict) -> None:
        state = values.get("state", "blocked")
        if state not in CHAT_STATES:
            raise ControlError(400, f"state must be one of {', '.join(CHAT_STATES)}")
        self.state.set_chat_state(self._chat(values), state)

    def _unblock(self, values: dict) -> None:
        self.state.set_chat_state(self._chat(values), "open")

    def _migrate(self, values: dict) -> None:
        to = _whole(values, "to")
        with self.state.lock:
            chat = self._chat(values)
            chat.migrated_to = to
            self.state.create_chat(to, "supergroup", chat.info.get("title", "Group"), None)

    def _add_fault(self, values: dict) -> None:
        try:
            self.faults.add(values)
        except ValueError as error:
            raise ControlError(400, str(error)) from None

    def _clear_faults(self, values: dict) -> None:
        self.faults.clear()

    def _stats(self, values: dict) -> dict:
        with self.state.lock:
            refusals = {}
            for (method, code), count in self.refusals.items():
                refusals.setdefault(method, {})[str(code)] = count
            duplicates = [{"chat_id": chat_id, "text": text, "count": count}
                          for (chat_id, text), count in self.state.texts.items() if count > 1 and text]
            return {"calls": dict(self.calls), "refusals": refusals, "faults": dict(self.faults.struck),
                    "sent": sum(self.state.texts.values()), "duplicates": duplicates}

    def _advance(self, values: dict) -> None:
        self.state.advance(_whole(values, "advance"))

    def _revoke(self, values: dict) -> None:
        self.revoked = True

    def _chat(self, values: dict) -> Chat:
        chat = self.state.chats.get(_whole(values, "chat_id"))
        if chat is None:
            raise ControlError(404, "there is no such chat")
        return chat


def _whole(values: dict, name: str, default: int | None = None) -> int:
    value = values.get(name, default)
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ControlError(400, f"{name} must be a whole number") from None


def _button(message: dict, values: dict) -> dict:
    """The button with that `data`, or that `text`."""
    rows = message.get("reply_markup", {}).get("inline_keyboard", [])
    for button in (button for row in rows for button in row if "callback_data" in button):
        if values.get("data", button["callback_data"]) == button["callback_data"] \
                and values.get("text", button["text"]) == button["text"]:
            return button
    raise ControlError(404, "the message has no such button")
