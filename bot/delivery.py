"""Delivery: messages go from the outbox to Telegram, one call at a time in a chat, and every answer has its reaction.

A lane's turn (lanes.py) is a worker's call for the message at its head; the worker then takes the lane that is next.
The scheduler hands out what the time makes ready. A message leaves its lane once its outcome is on disk.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from contextlib import ExitStack

from bot.failures import MAX_BACKOFF_SECONDS, Failures, Floods, backoff, is_gone, rest_left
from bot.message import LATE_SECONDS, Step, compose, message_ids_of
from bot.metrics import Metrics
from bot.outbox import CorruptEntry, Outbox
from bot.pacing import Lane, Lanes
from bot.receipt import Outcome, Receipt
from bot.recipients import Recipients
from bot.strangers import Strangers
from bot.telegram import TelegramAPI, TelegramError, TelegramUnreachable, call_seconds
from bot.workers import Workers
from common.clock import EARLIEST, age

log = logging.getLogger("delivery")

TOKEN_RETRY_SECONDS = 60
DISK_RETRY_SECONDS = 5
EXPIRE_SECONDS = 30  # between two looks for what is parked and too old
ERROR_RETRY_SECONDS = 60
STUCK_SECONDS = 180  # beyond the deadline of a call, or without one
SLACK_SECONDS = 0.001  # two sums of the same times differ in their last digit
MAX_UPLOAD_BYTES = 51 << 20


class Delivery:
    """Delivers what is in the outbox, from `start` until `stop`. After `max_age` seconds a message is given up."""

    def __init__(self, outbox: Outbox, api: TelegramAPI, recipients: Recipients, metrics: Metrics, max_age: float,
                 strangers: Strangers | None = None):
        self._strangers = strangers or Strangers()
        self._outbox, self._api, self._recipients = outbox, api, recipients
        self._metrics, self._max_age = metrics, max_age
        self._changed = threading.Condition()
        self._lanes = Lanes()
        self.replies = self._lanes.replies
        self._wakes_at = 0.0
        self._failures = 0  # of Telegram, in a row
        self._troubles = Failures()
        self._floods = Floods()
        self._stopping = False
        self._workers = Workers(self._work_once)
        self._receipts: dict[str, Receipt] = {}
        self._of_user: Counter[str] = Counter()
        self._queued: dict[str, tuple[float, str | None]] = {}  # since when (monotonic), for whom
        self._unrecorded: dict[str, tuple[bool, list]] = {}  # whether it was the last call, Telegram's message_ids
        self._scheduler = threading.Thread(target=self._schedule, name="delivery", daemon=True)
        self._problem: tuple[float, str] | None = None  # since when (monotonic)
        self.last_delivery: float | None = None
        self.beat = time.monotonic()

    def start(self) -> None:
        entries = self._outbox.load()
        with self._changed:
            for entry in entries:
                if rest := rest_left(entry):
                    self._lanes.park(entry["chat_id"], time.monotonic() + rest)
            for entry in entries:
                self._enqueue(entry)
        self._scheduler.start()

    def stop(self, seconds: float) -> bool:
        """Give out no more calls and wait for those under way; False if `seconds` were too few. Receipts get None."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            finished = self._changed.wait_for(lambda: not self._lanes.under_way, seconds)
            receipts, self._receipts = self._receipts, {}
        for receipt in receipts.values():
            receipt.settle(None)
        return finished

    @property
    def problem(self) -> str | None:
        """Why Telegram takes nothing now; None once a call of any kind has succeeded since."""
        problem = self._problem
        return problem[1] if problem and problem[0] > self._api.succeeded_at else None

    def queued(self, user: str | None = None) -> int:
        """How many messages are accepted and not delivered, in all or for a user."""
        return len(self._queued) if user is None else self._of_user[user]

    def oldest_age(self) -> float:
        """Seconds since the oldest message of the queue was accepted; 0 when it is empty."""
        with self._changed:
            oldest = min((since for since, _ in self._queued.values()), default=None)
        return 0.0 if oldest is None else time.monotonic() - oldest

    def is_alive(self) -> bool:
        """Whether the scheduler comes round and no call has been under way for longer than a call can take."""
        now = time.monotonic()
        with self._changed:
            oldest = min(self._lanes.under_way.values(), default=now)
        return self._scheduler.is_alive() and now - self.beat < STUCK_SECONDS and now - oldest < STUCK_SECONDS

    def submit(self, entry: dict) -> Receipt:
        """Deliver an accepted entry."""
        receipt = Receipt()
        with self._changed:
            self._enqueue(entry)
            if self._stopping:
                receipt.settle(None)
            else:
                self._receipts[entry["id"]] = receipt
                self._hand_out()
        return receipt

    def watch(self, entry_id: str) -> Receipt | None:
        """The receipt of an entry that was submitted before; None when it is not queued any more."""
        with self._changed:
            return self._receipts.setdefault(entry_id, Receipt()) if entry_id in self._queued else None

    def drop(self, entry: dict) -> bool:
        """Take a queued entry back; False when it is being sent at this moment, or is not queued. Raises OSError."""
        with self._changed:
            if not self._lanes.withdraw(entry["chat_id"], entry["id"]):
                return False
        try:
            self._outbox.discard(entry["id"])
        except OSError:
            with self._changed:
                self._lanes.add(entry["chat_id"], entry["id"], entry["reply"])
                self._hand_out()
            raise
        self._forget(entry["id"], Outcome(410, "the administrator dropped it"))
        return True

    def _enqueue(self, entry: dict) -> None:
        user = None if entry["reply"] else entry["user"]
        # The time of day is asked once: set forward by a day, it would make everything that waits too old.
        # A message that was retried by hand is as old as that.
        since = time.monotonic() - age(entry.get("retried_at", entry["accepted_at"]), time.time())
        self._queued[entry["id"]] = (since, user)
        if user:
            self._of_user[user] += 1
        stranger = entry["reply"] and self._strangers.include(entry["chat_id"])
        if stranger:
            self._strangers.hold(entry["id"], entry["chat_id"])
        self._lanes.add(entry["chat_id"], entry["id"], entry["reply"], stranger)

    def _hand_out(self) -> float:
        """Give each lane whose turn it is to a worker, without the scheduler; the seconds until the next turn."""
        now = time.monotonic()
        while (seconds := self._lanes.seconds_to_next(now)) <= 0:
            self._workers.give(self._lanes.take(now), len(self._lanes.under_way))
        if now + seconds < self._wakes_at - SLACK_SECONDS:
            self._changed.notify_all()
        return seconds

    def _schedule(self) -> None:
        with self._changed:
            expired = time.monotonic()
            while not self._stopping:
                if time.monotonic() - expired >= EXPIRE_SECONDS:
                    expired = time.monotonic()
                    self._lanes.wake(self._is_too_old)
                seconds = self._hand_out()
                self.beat = time.monotonic()
                self._wakes_at = self.beat + seconds
                self._changed.wait(seconds)

    def _work_once(self, lane: Lane) -> Lane | None:
        """Send from a lane; the lane that is next, where there is one now."""
        pause = ERROR_RETRY_SECONDS
        try:
            self._deliver(lane)
            pause = 0
        except OSError as error:
            log.error("outbox: %s; trying again in %d s", error, DISK_RETRY_SECONDS)
            pause = DISK_RETRY_SECONDS
        finally:
            if pause:
                lane.parked_until = time.monotonic() + pause
            with self._changed:
                following = self._follow(lane)
        return following

    def _follow(self, lane: Lane) -> Lane | None:
        now = time.monotonic()
        self._lanes.give_back(lane, now)
        if self._stopping:
            self._changed.notify_all()
            return None
        following = self._lanes.take(now) if self._lanes.seconds_to_next(now) <= 0 else None
        self._hand_out()
        return following

    def _deliver(self, lane: Lane) -> None:
        """One call for the message at the head of a lane."""
        entry_id = lane.current
        if self._expire_old(lane):
            return
        try:
            entry = self._outbox.read(entry_id)
            if entry_id in self._unrecorded:
                self._record(lane, entry)
                return
            if not self._is_addressed(lane, entry):
                return
            step, last = self._step(entry)
            message_ids = message_ids_of(self._call(step, lane.chat_id, entry_id))
        except CorruptEntry as error:
            self._outbox.set_aside(entry_id, str(error))
            self._finish(lane, entry_id, Outcome(502, "the stored message is damaged"))
        except TelegramUnreachable as error:
            self._unreachable(lane, entry, error)
        except TelegramError as error:
            self._refused(lane, entry, error)
        else:
            self._succeeded(lane, entry, last, message_ids)

    def _is_addressed(self, lane: Lane, entry: dict) -> bool:
        """Whether the message still belongs in this chat; if not, it is dealt with."""
        if not entry["user"] or entry["reply"]:
            return True
        where = self._recipients.chat_of(entry)
        if isinstance(where, Outcome):
            self._fail(lane, entry, where.status, where.reason)
        elif where != lane.chat_id:
            self._readdress(lane, entry, where)
        return where == lane.chat_id

    def _expire_old(self, lane: Lane) -> bool:
        """Give up what has grown too old, wherever it stands; whether there was any. All a parked lane is taken for."""
        with self._changed:
            old = [entry_id for entry_id in (*lane.replies, *lane.notifications)
                   if self._is_too_old(entry_id) and entry_id not in self._unrecorded]
        for entry_id in old:
            try:
                self._expire(lane, self._outbox.read(entry_id))
            except CorruptEntry as error:
                self._outbox.set_aside(entry_id, str(error))
                self._finish(lane, entry_id, Outcome(502, "the stored message is damaged"))
        return bool(old)

    def _is_too_old(self, entry_id: str) -> bool:
        return time.monotonic() - self._queued[entry_id][0] > self._max_age

    def _age(self, entry: dict) -> float:
        return time.monotonic() - self._queued[entry["id"]][0]

    def _step(self, entry: dict) -> tuple[Step, bool]:
        waited = self._age(entry)
        if entry["accepted_at"] >= EARLIEST:
            waited = max(waited, entry.get("retried_at", 0) - entry["accepted_at"])
        if entry["part"] == 0 and not entry["reply"] and waited > LATE_SECONDS:
            entry["late_since"] = time.time() - waited
        try:
            steps = compose(entry["message"], entry["late_since"], entry.get("text_first") is True)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # Only a file that somebody else wrote can have fields of other types than those the send API takes.
            raise CorruptEntry(f"its message cannot be composed: {error!r}") from error
        part = min(entry["part"], len(steps) - 1)
        return steps[part], part == len(steps) - 1

    def _call(self, step: Step, chat_id: int, entry_id: str):
        try:
            return self._send(step, chat_id, entry_id)
        except TelegramError as error:
            other = step.other_way(error.code, error.description)
            if other is None:
                raise
            log.info("%s: Telegram says %s; sent another way", entry_id, error.description)
            return self._call(other, chat_id, entry_id)

    def _send(self, step: Step, chat_id: int, entry_id: str):
        files = None
        with ExitStack() as opened:
            if step.attachment:
                parameter, filename, content = step.attachment
                content = opened.enter_context(self._outbox.photo(entry_id)) if content is None else content
                files = {parameter: (filename, content)}
                with self._changed:  # a call that is large may take long, and is not stuck
                    self._lanes.under_way[chat_id] += call_seconds(MAX_UPLOAD_BYTES)
            return self._api.call(step.method, {"chat_id": chat_id, **step.params}, files)

    def _succeeded(self, lane: Lane, entry: dict, last: bool, message_ids: list) -> None:
        if self._problem:
            log.warning("Telegram answers again; %d messages are queued", self.queued())
        self._problem = None
        self._failures = lane.failures = 0
        with self._changed:
            self._troubles.succeeded(entry["id"], time.monotonic())
        self._lanes.one_at_a_time = False
        self.last_delivery = time.time()
        self._unrecorded[entry["id"]] = (last, message_ids)
        self._record(lane, entry)

    def _record(self, lane: Lane, entry: dict) -> None:
        """Write down that a call was carried out. Until that succeeds the call is not made again: on a disk that
        is full every new attempt would be one more copy in the chat."""
        last, message_ids = self._unrecorded[entry["id"]]
        message_ids = entry.get("message_ids", []) + message_ids
        if last:
            self._outbox.delivered(entry, message_ids)
        else:
            self._outbox.save({**entry, "part": entry["part"] + 1, "message_ids": message_ids})
        del self._unrecorded[entry["id"]]
        if last:
            self._delivered(lane, entry)

    def _delivered(self, lane: Lane, entry: dict) -> None:
        seconds = self._age(entry)
        self._metrics.count("delivered")
        self._metrics.observe(seconds)
        log.log(logging.DEBUG if lane.stranger else logging.INFO, "delivered %s to %s in %.1f s", entry["id"],
                entry["user"] or f"chat {lane.chat_id}", seconds)
        self._finish(lane, entry["id"], Outcome(200))
        self._recipients.delivered(entry)

    def _unreachable(self, lane: Lane, entry: dict, error: TelegramUnreachable) -> None:
        if error.unknown:
            self._metrics.count("unknown")
            log.warning("%s: %s; it may have been delivered and is sent again", entry["id"], error)
        lane.failures += 1
        lane.parked_until = (now := time.monotonic()) + backoff(lane.failures)
        with self._changed:
            # A connection that cannot be made says nothing of the message; of strangers' chats nobody knows anything.
            general = not error.unknown or (
                not lane.stranger
                and self._troubles.failed(entry["id"], lane.chat_id, now, self._api.succeeded_at))
            if general:
                self._pause_for_telegram(now, error)
            else:
                self._failures, self._lanes.one_at_a_time = 0, False
        if not general:
            self._fails_alone(lane, entry, error)

    def _pause_for_telegram(self, now: float, error: TelegramUnreachable) -> None:
        if self._failures == 0:
            log.warning("Telegram cannot be reached (%s); %d messages wait", error, self.queued())
        self._problem = now, f"Telegram cannot be reached: {error}"
        self._failures += 1
        self._lanes.one_at_a_time = True
        self._lanes.pause(now + backoff(self._failures))

    def _fails_alone(self, lane: Lane, entry: dict, error: TelegramUnreachable) -> None:
        """A message that Telegram cannot take while it takes others: its text goes ahead of its picture, and in the
        end it is given up."""
        if self._troubles.is_hopeless(entry["id"], time.monotonic()):
            self._fail(lane, entry, 502, f"Telegram takes other messages and not this one: {error}")
        elif (entry["message"].get("photo") and entry["part"] == 0 and not entry.get("text_first")
              and self._troubles.wants_text_first(entry["id"])):
            log.warning("%s: its text is sent ahead of its picture, which fails: %s", entry["id"], error)
            self._outbox.save({**entry, "text_first": True})

    def _refused(self, lane: Lane, entry: dict, error: TelegramError) -> None:
        if error.retry_after is not None:
            self._slow_down(lane, entry, error.retry_after)
        elif error.code in (401, 404):
            self._refused_by_token(lane, entry, error)
        elif error.migrate_to:
            log.warning("chat %d has become chat %d", lane.chat_id, error.migrate_to)
            self._recipients.moved(entry["user"], lane.chat_id, error.migrate_to)
            self._readdress(lane, entry, error.migrate_to)
        elif is_gone(error):
            self._recipients.blocked(entry["user"], lane.chat_id, error.description)
            self._fail(lane, entry, 409, error.description)
        else:
            self._fail(lane, entry, 502, error.description)

    def _slow_down(self, lane: Lane, entry: dict, seconds: int) -> None:
        now = time.monotonic()
        self._metrics.count("rate_limited")
        lane.parked_until = now + seconds + 0.1
        lane.pace.slow_down()
        with self._changed:
            # Anybody can have a stranger's chat refused, so it says nothing of the whole.
            if not lane.stranger and (shared := self._floods.refused(lane.chat_id, seconds, now)):
                self._lanes.pause(now + min(shared, MAX_BACKOFF_SECONDS))
                self._lanes.slow_down()
        try:
            # For the next start: a chat that is tried too early is told to rest for longer.
            self._outbox.save({**entry, "refused_at": time.time(), "retry_after": seconds})
        except OSError as error:
            log.warning("outbox: %s; a restart forgets the rest of chat %d", error, lane.chat_id)
        log.warning("Telegram wants %d s of rest for chat %d", seconds, lane.chat_id)

    def _refused_by_token(self, lane: Lane, entry: dict, error: TelegramError) -> None:
        """A wrong token is refused for every method (Bot API, "Making requests"), so another one is asked."""
        try:
            self._api.call("getMe")
        except (TelegramError, TelegramUnreachable):
            self._pause_for_token(error)
        else:
            self._fail(lane, entry, 502, error.description)

    def _pause_for_token(self, error: TelegramError) -> None:
        problem = f"Telegram refuses the bot token: {error.description}"
        if self._problem is None or self._problem[1] != problem:
            log.critical("Telegram refuses the bot token (%s): put the right one in place and restart "
                         "notify-bot.service; %d messages wait", error.description, self.queued())
        self._problem = time.monotonic(), problem
        with self._changed:
            self._lanes.one_at_a_time = True
            self._lanes.pause(time.monotonic() + TOKEN_RETRY_SECONDS)

    def _readdress(self, lane: Lane, entry: dict, chat_id: int) -> None:
        entry["chat_id"] = chat_id
        entry.pop("retry_after", None)  # which was the other chat's
        self._outbox.save(entry)
        with self._changed:
            lane.remove(entry["id"])
            self._lanes.add(chat_id, entry["id"], entry["reply"])

    def _fail(self, lane: Lane, entry: dict, status: int, reason: str) -> None:
        self._give_up(lane, entry, status, reason)
        self._metrics.count("refused")

    def _expire(self, lane: Lane, entry: dict) -> None:
        self._give_up(lane, entry, 504, f"it could not be delivered within {self._max_age:.0f} s")
        self._metrics.count("expired")
        if entry["user"] and not entry["reply"]:
            self._recipients.expired(entry["user"])

    def _give_up(self, lane: Lane, entry: dict, status: int, reason: str) -> None:
        if lane.stranger:
            self._outbox.discard(entry["id"])  # anybody could fill the disk with refusals
        else:
            self._outbox.failed(entry, status, reason)
            log.error("%s for %s failed for good: %s", entry["id"], entry["user"] or f"chat {lane.chat_id}", reason)
        self._finish(lane, entry["id"], Outcome(status, reason))

    def _finish(self, lane: Lane, entry_id: str, outcome: Outcome) -> None:
        with self._changed:
            lane.remove(entry_id)
            self._troubles.forget(entry_id)
        self._forget(entry_id, outcome)

    def _forget(self, entry_id: str, outcome: Outcome) -> None:
        with self._changed:
            _, user = self._queued.pop(entry_id)
            if user:
                self._of_user[user] -= 1
            receipt = self._receipts.pop(entry_id, None)
        self._strangers.leave(entry_id)
        if receipt:
            receipt.settle(outcome)
