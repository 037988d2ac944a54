"""The bot's commands, the buttons under its messages, and its news to a person: welcome, moved, expired.

Telegram vouches for the chat of an update, so a linked chat may list and run the scripts of its own login only.
Replies go through the outbox under a key made of the update: an update that is handled twice is answered once.
"""

from __future__ import annotations

import logging
import re
import time
import unicodedata

from bot.invites import Invites
from bot.limits import Limiter
from bot.outbox import OutboxError
from bot.replies import Replies
from bot.scripts import Runs, digest, list_scripts, short
from bot.status import button, status_page
from bot.strangers import Strangers
from bot.telegram import TelegramError, TelegramUnreachable
from common.jsonstore import StoreError
from common.links import CODE_SECONDS, Link, LinkError, Links
from common.markdown import escape
from common.problem import Problem

log = logging.getLogger("chat")

MAX_IN_PROGRESS_PER_CHAT = 2
_AT_SIGNS = "@\N{SMALL COMMERCIAL AT}\N{FULLWIDTH COMMERCIAL AT}"
_BIDI = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # Unicode Annex 9
_COMMAND = re.compile(r"/([A-Za-z0-9_]{1,32})(?:@([A-Za-z0-9_]+))?(?:\s|$)")

COMMANDS = {
    "start": "link this chat, or show its link",
    "status": "your scripts: last run, next run, run one now",
    "test": "see a sample notification",
    "whoami": "the login of this chat",
    "help": "the list of commands",
    "stop": "unlink this chat",
}


class Chat:
    """Handles updates. Thread-safe."""

    def __init__(self, settings, links: Links, invites: Invites, replies: Replies, runs: Runs, api,
                 strangers: Strangers):
        self._strangers = strangers
        self._settings, self._links, self._invites, self._api = settings, links, invites, api
        self._replies, self._runs = replies, runs
        self.username = ""
        self._active = Limiter(MAX_IN_PROGRESS_PER_CHAT)
        self._commands = {"start": self._start, "help": self._help, "whoami": self._whoami, "status": self._status,
                          "test": self._test, "stop": self._stop}
        self._presses = {"run": self._run, "page": self._page, "stop": self._confirm_stop,
                         "invite": self._confirm_invite}

    def introduce(self) -> None:
        """Learn the bot's own name and register its commands. Raises the errors of the API."""
        if not self.username:
            me = self._api.call("getMe")
            if not isinstance(me, dict):
                raise TelegramUnreachable("getMe does not say who this bot is", unknown=False)
            self.username = str(me.get("username", ""))
            log.info("this bot is @%s", self.username)
        self._api.call("setMyCommands", {"commands": [{"command": command, "description": description}
                                                      for command, description in COMMANDS.items()]})

    def stranger(self, update: dict) -> int | None:
        """The chat of an update if it is linked to nobody, 0 for an update without a chat; else None."""
        event = _event(update)
        chat_id = event.chat_id if event else 0
        return chat_id if self._strangers.include(chat_id) else None

    def handle(self, update: dict) -> None:
        """Answer an update."""
        event = _event(update)
        if event is None or self._replies.are_full(event.chat_id):
            return
        with self._active.turn(event.chat_id) as is_free:
            if is_free:
                self._answer(event)
            else:
                self._reply(event, "Still working on your earlier requests; please wait.")

    def _answer(self, event: _Event) -> None:
        try:
            if event.press:
                self._press(event, str(event.press.get("data", "")))
            else:
                self._message(event, str(event.message.get("text", "")))
        except StoreError as error:
            log.error("%s", error)
            self._reply(event, "The service cannot read its own files now. Ask your administrator to look into the "
                               "journal of notify-bot.service.", parse_mode="")
        except Problem as problem:
            if event.press:
                self._answer_press(event, str(problem))
            else:
                self._reply(event, str(problem), parse_mode="")

    def welcome(self, link: Link) -> None:
        """Welcome a chat that has been linked. Raises OutboxError."""
        self._replies.tell(f"welcome:{link.user}:{link.chat_id}:{link.linked_at}", link.chat_id,
                           f"✅ This chat is now linked to `{link.user}` on {escape(self._settings.site_name)}. "
                           "Your scripts' notifications arrive here.\n\n"
                           "/status shows your scripts, /test a sample, /help the rest.")

    def tell_of_move(self, link: Link) -> None:
        """Tell the former chat of a login about the new one, as that may be a theft. Raises OutboxError."""
        site, name = escape(self._settings.site_name), escape(link.name or "another chat")
        self._replies.tell(f"moved:{link.user}:{link.previous}:{link.linked_at}", link.previous,
                           f"Notifications for `{link.user}` on {site} now go to {name}, no longer here. If that was "
                           "not you, link this chat again and tell the administrator.")

    def tell_of_expired(self, link: Link | None, count: int) -> None:
        """Report messages that expired. Raises OutboxError."""
        if link:
            self._replies.tell(f"expired:{link.user}:{time.time_ns()}", link.chat_id,
                               f"{count} notification{'s' if count > 1 else ''} for you could not be delivered in "
                               "time and went to the administrator's list.")

    def _message(self, event: _Event, text: str) -> None:
        command = self._command(text)
        if event.is_group:
            if command:
                self._reply(event, f"I link private chats only. Write to me in one: https://t.me/{self.username}",
                            parse_mode="")
            return
        link = self._link(event)
        if command == "start" and (payload := " ".join(text.split()[1:])):
            self._invited(event, link, payload)
        elif command in self._commands:
            self._commands[command](event, link)
        else:
            _must_be_linked(link)
            self._reply(event, f"This chat is linked to `{link.user}`. /help lists the commands.")

    def _command(self, text: str) -> str | None:
        """The command at the start of a text; None where there is none, or it is for another bot."""
        match = _COMMAND.match(text)
        if match is None:
            return None
        if match[2] and self.username and match[2].lower() != self.username.lower():
            return None
        return match[1].lower()

    def _link(self, event: _Event) -> Link | None:
        link = self._links.of_chat(event.chat_id)
        if link and link.blocked:
            self._links.mark_reachable(link)
            self._reply(event, f"I can write to you again. Earlier messages were not delivered ({link.blocked}); your "
                               "administrator can send them again.", parse_mode="")
        return link

    def _start(self, event: _Event, link: Link | None) -> None:
        if link:
            self._reply(event, f"This chat is already linked as `{link.user}`. /status shows your scripts, "
                               "/stop unlinks it.")
            return
        code = self._links.create_code(event.chat_id, event.chat_name)
        where = escape(self._settings.site_url or f"the dashboard of {self._settings.site_name}")
        self._reply(event, f"Your code is `{code}`\n\nType it in at {where} within {CODE_SECONDS // 60} minutes. "
                           "It links this chat to the login that types it, so do not share it.")

    def _invited(self, event: _Event, link: Link | None, payload: str) -> None:
        """Ask whether to link a chat that a one-press link has opened. Raises LinkError."""
        user = self._invites.user_of(payload)
        if link and link.user == user:
            self._reply(event, f"This chat is already linked as `{user}`.")
            return
        question = f"Link this chat to the login `{user}` on {escape(self._settings.site_name)}?"
        if link:
            question += f"\n\nIt is linked to `{link.user}` now, and that link ends."
        if other := self._links.of_user(user):
            question += f"\n\n`{user}` is linked to another chat now ({escape(other.name or 'of an unknown name')}), " \
                        "which will get no more messages."
        self._reply(event, question, buttons=[[button("Yes, link", f"invite:{payload}:{digest(user)[:12]}"),
                                               button("No", "invite:no")]])

    def _confirm_invite(self, event: _Event, link: Link | None, pressed: str) -> None:
        self._answer_press(event, "")
        payload, _, login = pressed.partition(":")
        if payload == "no":
            self._edit(event, "Nothing was changed.", [])
            return
        try:
            user = self._invites.accept(payload, event.chat_id, event.chat_name)
            log.info("%s is linked to chat %d by a one-press link", user, event.chat_id)
        except LinkError as error:
            # Pressed twice, or handled again after a crash: the first time has linked.
            link = self._links.of_chat(event.chat_id)
            if link is None or digest(link.user)[:12] != login:
                self._edit(event, str(error), [])
                return
            user = link.user
        self._edit(event, f"Linked to {user}.", [])

    def _help(self, event: _Event, link: Link | None) -> None:
        lines = [f"/{command} - {description}" for command, description in COMMANDS.items()]
        self._reply(event, f"I deliver the notifications of your scripts on {self._settings.site_name}.\n\n"
                    + "\n".join(lines) + "\n\nPut a script into ~/user/notifications/ and it runs every five minutes.",
                    parse_mode="")

    def _whoami(self, event: _Event, link: Link | None) -> None:
        if link is None:
            self._reply(event, f"This chat ({event.chat_id}) is linked to nobody. Use /start to link your account.",
                        parse_mode="")
            return
        self._reply(event, f"You are `{link.user}` on {escape(self._settings.site_name)}, linked since "
                           f"{escape(link.linked_at or 'an unknown day')}. This chat is `{event.chat_id}`.")

    def _test(self, event: _Event, link: Link | None) -> None:
        _must_be_linked(link)
        try:
            self._replies.sample(event.key(), link)
        except (OutboxError, OSError) as error:
            log.error("chat %d gets no sample: %s", event.chat_id, error)

    def _stop(self, event: _Event, link: Link | None) -> None:
        _must_be_linked(link)
        self._reply(event, f"Unlink this chat from `{link.user}`? Your scripts go on running, but their notifications "
                           "stop.",
                    buttons=[[button("Yes, unlink", "stop:yes"), button("No, keep it", "stop:no")]])

    def _confirm_stop(self, event: _Event, link: Link | None, answer: str) -> None:
        self._answer_press(event, "")
        if answer != "yes":
            self._edit(event, "Nothing was changed.", [])
        elif link and self._links.unlink(link.user):
            log.info("%s unlinked their chat", link.user)
            self._edit(event, "Unlinked. /start links this chat again.", [])
        else:
            self._edit(event, "This chat was not linked.", [])

    def _status(self, event: _Event, link: Link | None) -> None:
        _must_be_linked(link)
        text, buttons = self._status_page(link, 0)
        self._reply(event, text, parse_mode="", buttons=buttons)

    def _page(self, event: _Event, link: Link | None, number: str) -> None:
        self._answer_press(event, "")
        if link:
            self._edit(event, *self._status_page(link, int(number) if number.isdecimal() else 0))

    def _status_page(self, link: Link, number: int) -> tuple[str, list]:
        try:
            scripts = list_scripts(self._settings.scripts_dir, link.user)
        except Problem as problem:
            return str(problem), []
        return status_page(link.user, scripts, number, time.time())

    def _run(self, event: _Event, link: Link | None, pressed: str) -> None:
        """Run the script of a button. Raises Problem."""
        if link is None:
            raise Problem(404, "This chat is not linked any more.")
        scripts = list_scripts(self._settings.scripts_dir, link.user)
        name = next((script["name"] for script in scripts if digest(script["name"]) == pressed), None)
        if name is None:
            raise Problem(404, "This script is not there any more.")
        self._runs.start(link, name, f"update:{event.update_id}")
        log.info("%s runs %s from the chat", link.user, name)
        self._answer_press(event, f"Running {short(name)} …")

    def _press(self, event: _Event, data: str) -> None:
        action, _, argument = data.partition(":")
        if event.is_group or action not in self._presses:
            self._answer_press(event, "This button does nothing any more.")
            return
        self._presses[action](event, self._link(event), argument)

    def _answer_press(self, event: _Event, text: str) -> None:
        """Stop the button's spinner and show up to 200 characters."""
        self._call("answerCallbackQuery", {"callback_query_id": event.press.get("id"), "text": text[:200]})

    def _edit(self, event: _Event, text: str, buttons: list) -> None:
        self._call("editMessageText", {"chat_id": event.chat_id, "message_id": event.message.get("message_id"),
                                       "text": text, "reply_markup": {"inline_keyboard": buttons}})

    def _call(self, method: str, params: dict) -> None:
        try:
            self._api.call(method, params)
        except (TelegramError, TelegramUnreachable) as error:
            log.info("%s failed: %s", method, error)

    def _reply(self, event: _Event, text: str, **message) -> None:
        try:
            self._replies.tell(event.key(), event.chat_id, text, **message)
        except (OutboxError, OSError) as error:
            log.error("chat %d gets no answer: %s", event.chat_id, error)


class _Event:
    """One update: its chat, its message or pressed button, and the keys of its replies."""

    def __init__(self, update: dict, chat: dict, message: dict, press: dict | None):
        self.update_id = update.get("update_id")
        self.chat_id: int = chat["id"]
        self.is_group = chat.get("type", "private") != "private"
        self.chat_name = _person(chat)
        self.message = message
        self.press = press
        self._answers = 0

    def key(self) -> str:
        self._answers += 1
        return f"update:{self.update_id}:{self._answers}"


def _must_be_linked(link: Link | None) -> None:
    if link is None:
        raise Problem(404, "Use /start to link your account.")


def _event(update: dict) -> _Event | None:
    """The event of an update, None for an update that cannot be answered in a chat."""
    message, press = update.get("message"), update.get("callback_query")
    if isinstance(press, dict):
        message = press.get("message")
    else:
        press = None
    chat = message.get("chat") if isinstance(message, dict) else None
    if not isinstance(chat, dict) or type(chat.get("id")) is not int:
        return None
    return _Event(update, chat, message, press)


def _person(chat: dict) -> str:
    """A chat's name such as `Jana (@jana)`, as the link page shows it. Only a username is unique: a name, which anybody
    may choose, shows no @ and no characters that reorder the text around it."""
    name = " ".join(str(chat[part]) for part in ("first_name", "last_name") if chat.get(part))
    name = "".join(char for char in name if char not in _AT_SIGNS and unicodedata.bidirectional(char) not in _BIDI)
    username = f"@{chat['username']}" if chat.get("username") else ""
    if name and username:
        return f"{name} ({username})"
    return name or username or f"chat {chat['id']}"
