"""The methods of the Bot API that the stand-in has, with their checks and the words of their refusals.

`call(method, args)` does one; `args` holds texts, as the Bot API server sees every argument as text.
"""

from __future__ import annotations

import json
import mimetypes
import re
import time

from telegram import limits, markup
from telegram.state import ApiError, Chat, State, bad_request

MAX_POLL_SECONDS = 50
MAX_ANSWER = 200
ACTIONS = {"typing", "upload_photo", "record_video", "upload_video", "record_voice", "upload_voice", "upload_document",
           "choose_sticker", "find_location", "record_video_note", "upload_video_note"}
FORBIDDEN = {"blocked": "bot was blocked by the user", "deactivated": "user is deactivated",
             "kicked": "bot was kicked from the group chat", "new": "bot can't initiate conversation with a user"}
NOT_MODIFIED = ("message is not modified: specified new message content and reply markup are exactly the same as a "
                "current content and reply markup of the message")
METHODS = ("getMe", "getUpdates", "setWebhook", "deleteWebhook", "getWebhookInfo", "sendMessage", "sendPhoto",
           "sendDocument", "editMessageText", "editMessageReplyMarkup", "deleteMessage", "answerCallbackQuery",
           "sendChatAction", "setMyCommands", "getMyCommands")
_COMMAND = re.compile(r"[a-z0-9_]{1,32}")


class Args:
    """The arguments of a call: texts, and files as (filename, bytes)."""

    def __init__(self, texts: dict, files: dict):
        self.texts = texts
        self.files = files

    def text(self, name: str) -> str:
        return self.texts.get(name, "")

    def number(self, name: str, default: int, least: int, most: int) -> int:
        try:
            return min(max(int(self.texts.get(name, default)), least), most)
        except ValueError:
            return default

    def flag(self, name: str) -> bool:
        return self.text(name).lower() in ("true", "yes", "1")

    def json(self, name: str, what: str):
        """The decoded argument, None where it is absent. Raises ApiError where it is no JSON."""
        if not self.text(name):
            return None
        try:
            return json.loads(self.text(name))
        except (ValueError, RecursionError):
            raise bad_request(f"can't parse {what} JSON object") from None

    def array(self, name: str, what: str) -> list | None:
        value = self.json(name, what)
        if value is not None and not isinstance(value, list):
            raise bad_request(f"expected an Array of {what}")
        return value


class Methods:
    """The bot's side of a State, at Telegram's pace where `paced`."""

    def __init__(self, state: State, paced: bool):
        self.state = state
        self.rates = limits.Rates() if paced else None
        self._names = {name.lower(): name for name in METHODS}

    def name_of(self, method: str) -> str:
        """A method's name as the documentation writes it; names themselves ignore case."""
        return self._names.get(method.lower(), "(unknown)")

    def call(self, method: str, args: Args):
        """The `result` of a method. Raises ApiError."""
        name = self._names.get(method.lower())
        if name is None:
            raise ApiError(404, "Not Found: method not found")
        return getattr(self, name)(args)

    # Getting updates.

    def getMe(self, args: Args) -> dict:
        return {**self.state.bot, "can_join_groups": True, "can_read_all_group_messages": False,
                "supports_inline_queries": False}

    def getUpdates(self, args: Args) -> list:
        return self.state.get_updates(
            args.number("offset", 0, -(1 << 31), (1 << 31) - 1), args.number("limit", 100, 1, 100),
            args.number("timeout", 0, 0, MAX_POLL_SECONDS), args.array("allowed_updates", "allowed_updates"))

    def setWebhook(self, args: Args) -> bool:
        if args.text("url") and not args.text("url").startswith("https://"):
            raise bad_request("bad webhook: An HTTPS URL must be provided for webhook")
        self.state.set_webhook(args.text("url"), args.array("allowed_updates", "allowed_updates"),
                               args.flag("drop_pending_updates"))
        return True

    def deleteWebhook(self, args: Args) -> bool:
        self.state.set_webhook("", None, args.flag("drop_pending_updates"))
        return True

    def getWebhookInfo(self, args: Args) -> dict:
        return {"url": self.state.webhook, "has_custom_certificate": False,
                "pending_update_count": self.state.pending_updates()}

    # Sending.

    def sendMessage(self, args: Args) -> dict:
        if not args.text("text"):
            raise bad_request("message text is empty")
        text, entities = self._text(args, "text", "entities")
        markup = self._keyboard(args)
        with self.state.lock:
            return self._send(args, _shown("text", text, "entities", entities), markup)

    def sendPhoto(self, args: Args) -> dict:
        filename, content, file_id = self._file(args, "photo")
        width, height = limits.check_photo(content)
        caption, entities = self._text(args, "caption", "caption_entities")
        markup = self._keyboard(args)
        with self.state.lock:
            self._open_chat(args)
            mime_type = "image/png" if content.startswith(b"\x89PNG") else "image/jpeg"
            file_id = file_id or self.state.keep_file(filename, mime_type, content)
            photo = {"file_id": file_id, "file_unique_id": file_id[-8:], "width": width, "height": height,
                     "file_size": len(content)}
            return self._send(args, {"photo": [photo], **_shown("caption", caption, "caption_entities", entities)},
                              markup)

    def sendDocument(self, args: Args) -> dict:
        filename, content, file_id = self._file(args, "document")
        limits.check_document(content)
        caption, entities = self._text(args, "caption", "caption_entities")
        markup = self._keyboard(args)
        with self.state.lock:
            self._open_chat(args)
            mime_type = mimetypes.guess_type(filename)[0] or "application/octet-stream"
            file_id = file_id or self.state.keep_file(filename, mime_type, content)
            document = {"file_name": filename, "mime_type": mime_type, "file_id": file_id,
                        "file_unique_id": file_id[-8:], "file_size": len(content)}
            return self._send(args, {"document": document,
                                     **_shown("caption", caption, "caption_entities", entities)}, markup)

    def editMessageText(self, args: Args) -> dict:
        if not args.text("text"):
            raise bad_request("message text is empty")
        text, entities = self._text(args, "text", "entities")
        markup = self._keyboard(args)
        with self.state.lock:
            chat, message = self._own_message(args)
            if "text" not in message:
                raise bad_request("there is no text in the message to edit")
            return self._edit(chat, message, _shown("text", text, "entities", entities), markup)

    def editMessageReplyMarkup(self, args: Args) -> dict:
        markup = self._keyboard(args)
        with self.state.lock:
            chat, message = self._own_message(args)
            kept = {name: message[name] for name in ("text", "entities") if name in message}
            return self._edit(chat, message, kept, markup)

    def deleteMessage(self, args: Args) -> bool:
        with self.state.lock:
            chat = self._chat(args)
            message_id = args.number("message_id", 0, 0, (1 << 31) - 1)
            if message_id not in chat.messages:
                raise bad_request("message to delete not found")
            self.state.delete_message(chat, message_id)
            return True

    def answerCallbackQuery(self, args: Args) -> bool:
        if len(args.text("text")) > MAX_ANSWER:
            raise bad_request("MESSAGE_TOO_LONG")
        query_id = args.text("callback_query_id")
        with self.state.lock:
            chat_id, expires = self.state.queries.get(query_id, (0, 0.0))
            if self.state.elapsed() >= expires:
                raise bad_request("query is too old and response timeout expired or query ID is invalid")
            self.state.add_change(chat_id, "answer", {
                "chat_id": chat_id, "callback_query_id": query_id, "text": args.text("text"),
                "show_alert": args.flag("show_alert"), "url": args.text("url")})
            return True

    def sendChatAction(self, args: Args) -> bool:
        if args.text("action") not in ACTIONS:
            raise bad_request("wrong parameter action in request")
        with self.state.lock:
            chat_id = self._open_chat(args).info["id"]
            self.state.add_change(chat_id, "action", {"chat_id": chat_id, "action": args.text("action")})
            return True

    def setMyCommands(self, args: Args) -> bool:
        commands = args.array("commands", "BotCommand") or []
        if len(commands) > 100:
            raise bad_request("BOT_COMMANDS_TOO_MUCH")
        kept = []
        for command in commands:
            name, description = _command(command)
            kept.append({"command": name, "description": description})
        self.state.commands = kept
        return True

    def getMyCommands(self, args: Args) -> list:
        return self.state.commands

    # What the methods share.

    def _text(self, args: Args, name: str, entities: str) -> tuple[str, list]:
        """The text or caption, read and trimmed; its length is checked when it is known."""
        text, found = markup.formatted(
            args.text(name), args.text("parse_mode"), args.array(entities, "MessageEntity"))
        if name == "text" and not text:
            raise bad_request("text must be non-empty")
        if len(text) > (limits.MAX_TEXT if name == "text" else limits.MAX_CAPTION):
            raise bad_request("message is too long" if name == "text" else "message caption is too long")
        return text, found

    def _keyboard(self, args: Args) -> dict | None:
        markup = args.json("reply_markup", "reply keyboard markup")
        return None if markup is None else limits.check_keyboard(markup)

    def _file(self, args: Args, name: str) -> tuple[str, bytes, str]:
        """Filename, bytes, and the file_id of a file that Telegram has already."""
        reference = args.text(name)
        part = reference.removeprefix("attach://") if reference.startswith("attach://") else name
        if part in args.files:
            filename, content = args.files[part]
            if not content:
                raise bad_request("file must be non-empty")
            return filename, content, ""
        if reference in self.state.files:
            filename, _, content = self.state.files[reference]
            return filename, content, reference
        raise bad_request(f"wrong remote file identifier specified: {reference[:40]}" if reference else
                          f"there is no {name} in the request")

    def _chat(self, args: Args) -> Chat:
        """The chat of `chat_id`, a number or @username."""
        wanted = args.text("chat_id")
        if not wanted:
            raise bad_request("chat_id is empty")
        for chat in self.state.chats.values() if wanted.startswith("@") else ():
            if "@" + chat.info.get("username", "") == wanted:
                return chat
        try:
            return self.state.chats[int(wanted)]
        except (ValueError, KeyError):
            raise bad_request("chat not found") from None

    def _open_chat(self, args: Args) -> Chat:
        """A chat the bot may write to."""
        chat = self._chat(args)
        if chat.migrated_to is not None:
            raise ApiError(400, "Bad Request: group chat was upgraded to a supergroup chat",
                           {"migrate_to_chat_id": chat.migrated_to})
        if chat.state != "open":
            raise ApiError(403, f"Forbidden: {FORBIDDEN[chat.state]}")
        return chat

    def _send(self, args: Args, content: dict, markup: dict | None) -> dict:
        chat = self._open_chat(args)
        self._pace(chat)
        if markup:
            content["reply_markup"] = markup
        said = content.get("text") or content.get("caption") or ""
        self.state.texts[chat.info["id"], said] += 1
        return self.state.add_message(chat, {"from": self.state.bot, "chat": chat.info, "date": int(time.time()),
                                             **content})

    def _own_message(self, args: Args) -> tuple[Chat, dict]:
        chat = self._open_chat(args)
        message = chat.messages.get(args.number("message_id", 0, 0, (1 << 31) - 1))
        if message is None:
            raise bad_request("message to edit not found")
        if message["from"]["id"] != self.state.bot["id"]:
            raise bad_request("message can't be edited")
        return chat, message

    def _edit(self, chat: Chat, message: dict, content: dict, markup: dict | None) -> dict:
        """`content` takes the place of the text; without a markup the keyboard goes."""
        new = {name: value for name, value in message.items() if name not in ("text", "entities", "reply_markup")}
        new = {**new, **content, **({"reply_markup": markup} if markup else {})}
        if new == message:
            raise bad_request(NOT_MODIFIED)
        self._pace(chat)
        new["edit_date"] = int(time.time())
        self.state.put_message(chat, new)
        return new

    def _pace(self, chat: Chat) -> None:
        if self.rates:
            self.rates.admit(chat, self.state.elapsed())


def _shown(name: str, text: str, entities_name: str, entities: list) -> dict:
    shown = {name: text} if text else {}
    if entities:
        shown[entities_name] = entities
    return shown


def _command(command) -> tuple[str, str]:
    if not isinstance(command, dict):
        raise bad_request("expected an Array of BotCommand")
    name, description = command.get("command"), command.get("description")
    if not isinstance(name, str) or not _COMMAND.fullmatch(name.removeprefix("/").lower()):
        raise bad_request("BOT_COMMAND_INVALID")
    if not isinstance(description, str) or not 1 <= len(description) <= 256:
        raise bad_request("BOT_COMMAND_DESCRIPTION_INVALID")
    return name.removeprefix("/").lower(), description
