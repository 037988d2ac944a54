"""Delivery: messages go from the outbox to Telegram, one call at a time in a chat, and every answer has its reaction.

The lane whose turn it is (lanes.py) goes to a worker, who makes one call for the message at its head and then takes
the lane that is next; the scheduler hands out what the time makes ready. A message leaves its lane when the outbox has
written down what became of it.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from contextlib import ExitStack

from lanes import Lane, Lanes
from metrics import Metrics
from notification import LATE_SECONDS, Step, compose, message_ids_of
from outbox import CorruptEntry, Outbox
from receipt import Outcome, Receipt
from telegram_api import TelegramAPI, TelegramError, TelegramUnreachable

log = logging.getLogger("delivery")

MAX_BACKOFF_SECONDS = 60
TOKEN_RETRY_SECONDS = 60
DISK_RETRY_SECONDS = 5
ERROR_RETRY_SECONDS = 60
STUCK_SECONDS = 180
SLACK_SECONDS = 0.001  # two sums of the same times differ in their last digit
LONGEST_REST_SECONDS = 86400
FLOOD_CHATS, FLOOD_SECONDS = 3, 20


class Recipients:
    """What delivery asks and tells of the people behind the chats. The service has the real one."""

    def chat_of(self, user: str, chat_id: int) -> int | Outcome:
        """Where a message for `user` goes now, or why nowhere; `chat_id` is where it was to go when accepted."""
        return chat_id

    def blocked(self, user: str | None, chat_id: int, reason: str) -> None:
        """Telegram delivers nothing to this chat any more."""

    def moved(self, user: str | None, chat_id: int, new_chat_id: int) -> None:
        """The chat has a new id."""

    def delivered(self, entry: dict) -> None:
        """A message is in the chat, whole."""

    def expired(self, user: str) -> None:
        """A message for `user` had grown too old and was given up."""


class Delivery:
    """Delivers what is in the outbox, from `start` until `stop`. After `max_age` seconds a message is given up."""

    def __init__(self, outbox: Outbox, api: TelegramAPI, recipients: Recipients, metrics: Metrics, max_age: float):
        self._outbox, self._api, self._recipients = outbox, api, recipients
        self._metrics, self._max_age = metrics, max_age
        self._changed = threading.Condition()
        self._lanes = Lanes()
        self._wakes_at = 0.0
        self._failures = 0
        self._flooded: dict[int, tuple[float, int]] = {}  # when refused, and the seconds of rest
        self._stopping = False
        self._work: queue.SimpleQueue = queue.SimpleQueue()
        self._workers: list[threading.Thread] = []
        self._receipts: dict[str, Receipt] = {}
        self._of_user: dict[str, int] = {}
        self._queued: dict[str, tuple[float, str | None]] = {}  # since when (monotonic), for whom
        self._unrecorded: dict[str, tuple[bool, list]] = {}  # whether it was the last call, Telegram's message_ids
        self._scheduler = threading.Thread(target=self._schedule, name="delivery", daemon=True)
        self.problem: str | None = None
        self.last_delivery: float | None = None
        self.beat = time.monotonic()

    def start(self) -> None:
        entries = self._outbox.load()
        with self._changed:
            for entry in entries:
                if rest := _rest_left(entry):
                    self._lanes.park(entry["chat_id"], time.monotonic() + rest)
            for entry in entries:
                self._enqueue(entry)
        self._scheduler.start()

    def stop(self, seconds: float) -> bool:
        """Give out no more calls and wait for those under way; False if `seconds` were too few.

        Whoever waits for a receipt learns that the message is still queued."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            finished = self._changed.wait_for(lambda: not self._lanes.under_way, seconds)
            receipts, self._receipts = self._receipts, {}
        for receipt in receipts.values():
            receipt.settle(None)
        return finished

    def queued(self, user: str | None = None) -> int:
        """How many messages are accepted and not delivered, in all or for a user."""
        return len(self._queued) if user is None else self._of_user.get(user, 0)

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
        age = max(0.0, time.time() - entry.get("retried_at", entry["accepted_at"]))
        self._queued[entry["id"]] = (time.monotonic() - age, user)
        if user:
            self._count(user, 1)
        self._lanes.add(entry["chat_id"], entry["id"], entry["reply"])

    def _hand_out(self) -> float:
        """Give each lane whose turn it is to a worker; the seconds until the next turn. Whoever changes something
        does this at once, and only what the time makes ready waits for the scheduler: one thread less to wake."""
        now = time.monotonic()
        while (seconds := self._lanes.seconds_to_next(now)) <= 0:
            self._work.put(self._lanes.take(now))
            self._hire()
        if now + seconds < self._wakes_at - SLACK_SECONDS:
            self._changed.notify_all()
        return seconds

    def _schedule(self) -> None:
        with self._changed:
            while not self._stopping:
                seconds = self._hand_out()
                self.beat = time.monotonic()
                self._wakes_at = self.beat + seconds
                self._changed.wait(seconds)

    def _hire(self) -> None:
        if len(self._workers) < len(self._lanes.under_way):
            worker = threading.Thread(target=self._work_on, name=f"delivery-{len(self._workers)}", daemon=True)
            try:
                worker.start()
            except RuntimeError as error:  # no thread is to be had now; whoever comes next asks again
                log.error("delivery: %s; %d work", error, len(self._workers))
            else:
                self._workers.append(worker)

    def _work_on(self) -> None:
        lane = None
        try:
            while True:
                lane = self._work_once(lane or self._work.get())
        finally:
            # An error of ours has ended this worker, and is logged; another takes its place.
            with self._changed:
                self._workers.remove(threading.current_thread())
                self._hire()

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
        entry_id = lane.head()
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
        """Whether the message still belongs in this chat and is not too old; if not, it is dealt with."""
        if self._age(entry) > self._max_age:
            self._expire(lane, entry)
            return False
        if not entry["user"] or entry["reply"]:
            return True
        where = self._recipients.chat_of(entry["user"], entry["chat_id"])
        if isinstance(where, Outcome):
            self._fail(lane, entry, where.status, where.reason)
        elif where != lane.chat_id:
            self._readdress(lane, entry, where)
        return where == lane.chat_id

    def _age(self, entry: dict) -> float:
        return time.monotonic() - self._queued[entry["id"]][0]

    def _step(self, entry: dict) -> tuple[Step, bool]:
        late = max(self._age(entry), entry.get("retried_at", 0) - entry["accepted_at"]) > LATE_SECONDS
        if entry["part"] == 0 and not entry["reply"] and late:
            entry["late_since"] = entry["accepted_at"]
        try:
            steps = compose(entry["message"], entry["late_since"])
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
            return self._api.call(step.method, {"chat_id": chat_id, **step.params}, files)

    def _succeeded(self, lane: Lane, entry: dict, last: bool, message_ids: list) -> None:
        if self.problem:
            log.warning("Telegram answers again; %d messages are queued", self.queued())
        self.problem = None
        self._failures = lane.failures = 0
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
        log.info("delivered %s to %s in %.1f s", entry["id"], entry["user"] or f"chat {lane.chat_id}", seconds)
        self._finish(lane, entry["id"], Outcome(200))
        self._recipients.delivered(entry)

    def _unreachable(self, lane: Lane, entry: dict, error: TelegramUnreachable) -> None:
        if error.unknown:
            self._metrics.count("unknown")
            log.warning("%s: %s; it may have been delivered and is sent again", entry["id"], error)
        lane.failures += 1
        lane.parked_until = time.monotonic() + _backoff(lane.failures)
        with self._changed:
            if self._failures == 0:
                log.warning("Telegram cannot be reached (%s); %d messages wait", error, self.queued())
            self.problem = f"Telegram cannot be reached: {error}"
            self._failures += 1
            self._lanes.one_at_a_time = True
            self._lanes.pause(time.monotonic() + _backoff(self._failures))

    def _refused(self, lane: Lane, entry: dict, error: TelegramError) -> None:
        if error.retry_after is not None:
            self._slow_down(lane, entry, error.retry_after)
        elif error.code in (401, 404):
            self._pause_for_token(error)
        elif error.migrate_to:
            log.warning("chat %d has become chat %d", lane.chat_id, error.migrate_to)
            self._recipients.moved(entry["user"], lane.chat_id, error.migrate_to)
            self._readdress(lane, entry, error.migrate_to)
        elif _is_gone(error):
            self._recipients.blocked(entry["user"], lane.chat_id, error.description)
            self._fail(lane, entry, 409, error.description)
        else:
            self._fail(lane, entry, 502, error.description)

    def _slow_down(self, lane: Lane, entry: dict, seconds: int) -> None:
        now = time.monotonic()
        self._metrics.count("rate_limited")
        log.warning("Telegram wants %d s of rest for chat %d", seconds, lane.chat_id)
        lane.parked_until = now + seconds + 0.1
        lane.pace.slow_down()
        with self._changed:
            self._flooded = {chat: (when, rest) for chat, (when, rest) in self._flooded.items()
                             if now - when < FLOOD_SECONDS}
            self._flooded[lane.chat_id] = (now, seconds)
            if len(self._flooded) >= FLOOD_CHATS:
                # Several chats at once are refused for what the bot does, not for what one chat got.
                # What they have in common is the least of what they were told; more is a chat's own affair.
                shared = min(rest for _, rest in self._flooded.values())
                self._lanes.pause(now + min(shared, MAX_BACKOFF_SECONDS))
                self._lanes.slow_down()
        try:
            # For the next start: a chat that is tried too early is told to rest for longer.
            self._outbox.save({**entry, "refused_at": time.time(), "retry_after": seconds})
        except OSError as error:
            log.warning("outbox: %s; a restart forgets the rest of chat %d", error, lane.chat_id)

    def _pause_for_token(self, error: TelegramError) -> None:
        problem = f"Telegram refuses the bot token: {error.description}"
        if self.problem != problem:
            log.critical("Telegram refuses the bot token (%s): put the right one in place and restart "
                         "notify-bot.service; %d messages wait", error.description, self.queued())
        self.problem = problem
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
        self._outbox.failed(entry, status, reason)
        log.error("%s for %s failed for good: %s", entry["id"], entry["user"] or f"chat {lane.chat_id}", reason)
        self._finish(lane, entry["id"], Outcome(status, reason))

    def _finish(self, lane: Lane, entry_id: str, outcome: Outcome) -> None:
        with self._changed:
            lane.remove(entry_id)
        self._forget(entry_id, outcome)

    def _forget(self, entry_id: str, outcome: Outcome) -> None:
        with self._changed:
            _, user = self._queued.pop(entry_id)
            if user:
                self._count(user, -1)
            receipt = self._receipts.pop(entry_id, None)
        if receipt:
            receipt.settle(outcome)

    def _count(self, user: str, messages: int) -> None:
        if count := self._of_user.pop(user, 0) + messages:
            self._of_user[user] = count


def _backoff(failures: int) -> float:
    return min(MAX_BACKOFF_SECONDS, 0.5 * 2 ** min(failures, 10)) * random.uniform(0.5, 1)


def _rest_left(entry: dict) -> float:
    """Seconds for which an earlier run was told to send nothing to the chat of this entry."""
    since, seconds = entry.get("refused_at"), entry.get("retry_after")
    if type(since) not in (int, float) or type(seconds) is not int or not 0 < seconds <= LONGEST_REST_SECONDS:
        return 0.0
    # Nor longer than it was told, where the clock was set back meanwhile.
    return max(0.0, min(seconds, seconds - (time.time() - since)))


def _is_gone(error: TelegramError) -> bool:
    return error.code == 403 or "chat not found" in error.description.lower()
