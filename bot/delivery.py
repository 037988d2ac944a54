"""Delivers messages from the outbox, one call at a time in a chat; handles each response; gives up what is too old.

A worker calls Telegram for the message at the head of a chat queue (pacing.py), then takes the next queue. The
scheduler dispatches chats whose delay has expired. A message leaves its queue once its outcome is on disk.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress

from bot.calls import Calls, next_step
from bot.failures import MAX_BACKOFF_SECONDS, Failures, Floods, backoff, delay_left, is_gone
from bot.joined import MAX_JOINED, Joined, can_join
from bot.metrics import Metrics
from bot.outage import Outage
from bot.outbox import CorruptEntry, Outbox
from bot.pacing import ChatQueue, ChatQueues
from bot.receipt import Outcome, Receipt
from bot.recipients import Recipients
from bot.strangers import Strangers
from bot.telegram import TelegramAPI, TelegramError, TelegramUnreachable
from bot.waiting import Waiting
from bot.workers import Workers

log = logging.getLogger("delivery")

DISK_RETRY_SECONDS = 5
JOIN_SECONDS = 0.5  # a text that has waited so long takes those behind it along
EXPIRE_SECONDS = 30  # between two checks of delayed chats for messages that are too old
ERROR_RETRY_SECONDS = 60
STUCK_SECONDS = 180  # beyond the deadline of a call, or of a scheduler that does not come round
SLACK_SECONDS = 0.001  # rounding errors of sums


class Delivery:
    """Delivers the messages of the outbox, from `start` until `stop`. A message expires after `max_age` seconds; texts
    that have to wait are joined if it `joins`."""

    def __init__(self, outbox: Outbox, api: TelegramAPI, recipients: Recipients, metrics: Metrics, max_age: float,
                 strangers: Strangers | None = None, joins: bool = True):
        self._strangers = strangers or Strangers()
        self._outbox, self._api, self._recipients = outbox, api, recipients
        self._metrics, self._max_age = metrics, max_age
        self._changed = threading.Condition()
        self._queues = ChatQueues()
        self.replies = self._queues.replies
        self._wakes_at = 0.0
        self._outage = Outage(self._queues, api)
        self._failures = Failures()
        self._floods = Floods()
        self._stopping = False
        self._workers = Workers("delivery", self._work_once)
        self._calls = Calls(outbox, api, self._extend)
        self._joins = joins
        self._alone: set[str] = set()  # what was refused in a joined message
        self._waiting = Waiting()
        self.queued = self._waiting.count
        self._unrecorded: dict[str, tuple[bool, list]] = {}  # was it the last call, Telegram's message_ids
        self._scheduler = threading.Thread(target=self._schedule, name="delivery", daemon=True)
        self.last_delivery: float | None = None
        self.beat = time.monotonic()

    def start(self) -> None:
        entries = self._outbox.load()
        with self._changed:
            for entry in entries:
                if seconds := delay_left(entry):
                    self._queues.delay(entry["chat_id"], time.monotonic() + seconds)
            for entry in entries:
                self._enqueue(entry)
        self._scheduler.start()

    def stop(self, seconds: float) -> bool:
        """Start no more calls and wait for those in flight; False if `seconds` were too few. Receipts get None."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            finished = self._changed.wait_for(lambda: not self._queues.in_flight, seconds)
            self._waiting.stop()
        return finished

    @property
    def problem(self) -> str | None:
        """The reason Telegram takes nothing now."""
        return self._outage.problem

    def oldest_age(self) -> float:
        """Seconds since the oldest message of the queue was accepted; 0 when it is empty."""
        with self._changed:
            return self._waiting.oldest_age()

    def is_alive(self) -> bool:
        """True while the scheduler comes round and no call has been in flight for longer than its deadline."""
        now = time.monotonic()
        with self._changed:
            oldest = min(self._queues.in_flight.values(), default=now)
        return self._scheduler.is_alive() and now - self.beat < STUCK_SECONDS and now - oldest < STUCK_SECONDS

    def submit(self, entry: dict) -> Receipt:
        """Deliver an accepted entry."""
        with self._changed:
            self._enqueue(entry)
            if self._stopping:
                receipt = Receipt()
                receipt.settle(None)
            else:
                receipt = self._waiting.receipt(entry["id"])
                self._dispatch()
        return receipt

    def watch(self, entry_id: str) -> Receipt | None:
        """The receipt of an entry that was submitted before; None when it is not queued any more."""
        with self._changed:
            return self._waiting.receipt(entry_id) if entry_id in self._waiting and not self._stopping else None

    def drop(self, entry: dict) -> bool:
        """Remove a queued entry; False when it is in flight or not queued. Raises OSError."""
        with self._changed:
            if not self._queues.withdraw(entry["chat_id"], entry["id"]):
                return False
        try:
            self._outbox.discard(entry["id"])
        except OSError:
            with self._changed:
                self._queues.add(entry["chat_id"], entry["id"], entry["reply"])
                self._dispatch()
            raise
        self._forget(entry["id"], Outcome(410, "the administrator dropped it"))
        return True

    def _enqueue(self, entry: dict) -> None:
        self._waiting.add(entry)
        stranger = entry["reply"] and self._strangers.include(entry["chat_id"])
        if stranger:
            self._strangers.hold(entry["id"], entry["chat_id"])
        self._queues.add(entry["chat_id"], entry["id"], entry["reply"], stranger)

    def _dispatch(self) -> float:
        """Give each queue that may send now to a worker. Returns the seconds until the next one may."""
        now = time.monotonic()
        while (seconds := self._queues.seconds_to_next(now)) <= 0:
            self._workers.give(self._queues.take(now), len(self._queues.in_flight))
        if now + seconds < self._wakes_at - SLACK_SECONDS:
            self._changed.notify_all()
        return seconds

    def _schedule(self) -> None:
        expired, probes_in = time.monotonic(), float("inf")
        while not self._stopping:
            if probes_in <= 0:
                self._outage.probe()
            with self._changed:
                if time.monotonic() - expired >= EXPIRE_SECONDS:
                    expired = time.monotonic()
                    self._queues.wake(self._is_too_old)
                probes_in = self._outage.seconds_to_probe()
                seconds = min(probes_in, self._dispatch())
                self.beat = time.monotonic()
                self._wakes_at = self.beat + seconds
                if seconds > 0 and not self._stopping:
                    self._changed.wait(seconds)

    def _work_once(self, queue: ChatQueue) -> ChatQueue | None:
        """Send from a queue. Returns the next queue, if one may send now."""
        delay = ERROR_RETRY_SECONDS
        try:
            self._deliver(queue)
            delay = 0
        except OSError as error:
            log.error("outbox: %s; trying again in %d s", error, DISK_RETRY_SECONDS)
            delay = DISK_RETRY_SECONDS
        finally:
            if delay:
                queue.delayed_until = time.monotonic() + delay
            with self._changed:
                following = self._follow(queue)
        return following

    def _follow(self, queue: ChatQueue) -> ChatQueue | None:
        now = time.monotonic()
        self._queues.ended(queue, now)
        if self._stopping:
            self._changed.notify_all()
            return None
        following = self._queues.take(now) if self._queues.seconds_to_next(now) <= 0 else None
        self._dispatch()
        return following

    def _deliver(self, queue: ChatQueue) -> None:
        """Make one call for the head of a queue: a message, or several texts as one."""
        entry_id = queue.current[0]
        if self._expire_old(queue):
            return
        try:
            entry = self._outbox.read(entry_id)
            if entry_id in self._unrecorded:
                self._record(queue, entry)
                return
            if not self._is_addressed(queue, entry):
                return
            entries, last = [entry], True
            if joined := self._join(queue, entry):
                entries = joined.entries
                message_ids = self._calls.make_as_is(joined.step(), queue.chat_id, entry)
            else:
                self._waiting.mark_late(entry)
                step, last = next_step(entry)
                message_ids = self._calls.make(step, queue.chat_id, entry)
        except CorruptEntry as error:
            self._set_aside(queue, entry_id, error)
        except TelegramUnreachable as error:
            self._unreachable(queue, entries, error)
        except TelegramError as error:
            self._refused(queue, entries, error)
        else:
            self._succeeded(queue, entries, last, message_ids)

    def _join(self, queue: ChatQueue, first: dict) -> Joined | None:
        """The joined message that begins with an entry: texts that cannot go out at once, as many as fit. None where
        the entry goes alone."""
        if not self._joins or not self._may_join(queue, first):
            return None
        with self._changed:
            at_once = queue.pace.at_once(time.monotonic())
            if len(queue.notifications) <= at_once and self._waiting.age(first["id"]) < JOIN_SECONDS:
                return None
            following = queue.take_along(MAX_JOINED - 1)
        joined, entry = Joined(), first
        # What cannot be read or composed is set aside at its own turn.
        with suppress(OSError, CorruptEntry, AttributeError, KeyError, TypeError, ValueError):
            for entry_id in (*following, None):
                self._waiting.mark_late(entry)
                if not joined.add(entry) or entry_id is None:
                    break
                entry = self._outbox.read(entry_id)
                if not self._may_join(queue, entry):
                    break
        with self._changed:
            queue.current = tuple(entry["id"] for entry in joined.entries) or (first["id"],)
        return joined if len(joined.entries) > 1 else None

    def _may_join(self, queue: ChatQueue, entry: dict) -> bool:
        return (can_join(entry) and entry["id"] not in self._alone and entry["id"] not in self._unrecorded
                and self._recipients.chat_of(entry) == queue.chat_id)

    def _is_addressed(self, queue: ChatQueue, entry: dict) -> bool:
        """True if the message still belongs in this chat; if not, it is failed or moved."""
        if not entry["user"] or entry["reply"]:
            return True
        where = self._recipients.chat_of(entry)
        if isinstance(where, Outcome):
            self._fail(queue, entry, where.status, where.reason)
        elif where != queue.chat_id:
            self._readdress(queue, entry, where)
        return where == queue.chat_id

    def _expire_old(self, queue: ChatQueue) -> bool:
        """Give up the messages of a queue that are too old; True if there were any."""
        with self._changed:
            old = [entry_id for entry_id in (*queue.replies, *queue.notifications)
                   if self._is_too_old(entry_id) and entry_id not in self._unrecorded]
        for entry_id in old:
            try:
                entry = self._outbox.read(entry_id)
                self._fail(queue, entry, 504, f"it could not be delivered within {self._max_age:.0f} s", "expired")
                if entry["user"] and not entry["reply"]:
                    self._recipients.expired(entry["user"])
            except CorruptEntry as error:
                self._set_aside(queue, entry_id, error)
        return bool(old)

    def _set_aside(self, queue: ChatQueue, entry_id: str, error: CorruptEntry) -> None:
        self._outbox.set_aside(entry_id, str(error))
        self._finish(queue, entry_id, Outcome(502, "the stored message is damaged"))

    def _is_too_old(self, entry_id: str) -> bool:
        return self._waiting.age(entry_id) > self._max_age

    def _extend(self, chat_id: int, seconds: float) -> None:
        """A large call may take long and is not stuck."""
        with self._changed:
            self._queues.in_flight[chat_id] += seconds

    def _succeeded(self, queue: ChatQueue, entries: list, last: bool, message_ids: list) -> None:
        queue.failures = 0
        with self._changed:
            self._outage.delivered(self.queued())
            for entry in entries:
                self._failures.succeeded(entry["id"], time.monotonic())
        self.last_delivery = time.time()
        self._unrecorded.update({entry["id"]: (last, message_ids) for entry in entries})
        self._record_all(queue, entries)

    def _record_all(self, queue: ChatQueue, entries: list) -> None:
        """Record each, though another cannot be. Raises OSError."""
        failed = None
        for entry in entries:
            try:
                self._record(queue, entry)
            except OSError as error:
                failed = error
        if failed:
            raise failed

    def _record(self, queue: ChatQueue, entry: dict) -> None:
        """Record a successful call. Until that succeeds the call is not repeated: on a full disk each attempt would be
        one more copy in the chat."""
        last, message_ids = self._unrecorded[entry["id"]]
        message_ids = entry.get("message_ids", []) + message_ids
        if last:
            self._outbox.delivered(entry, message_ids)
        else:
            self._outbox.save({**entry, "part": entry["part"] + 1, "message_ids": message_ids})
        del self._unrecorded[entry["id"]]
        if last:
            self._delivered(queue, entry)

    def _delivered(self, queue: ChatQueue, entry: dict) -> None:
        seconds = self._waiting.age(entry["id"])
        self._metrics.count("delivered")
        self._metrics.observe(seconds)
        log.log(logging.DEBUG if queue.stranger else logging.INFO, "delivered %s to %s in %.1f s", entry["id"],
                entry["user"] or f"chat {queue.chat_id}", seconds)
        self._finish(queue, entry["id"], Outcome(200))
        self._recipients.delivered(entry)

    def _unreachable(self, queue: ChatQueue, entries: list, error: TelegramUnreachable) -> None:
        entry = entries[0]
        if error.unknown:
            self._metrics.count("unknown")
            log.warning("%s: %s; it may have been delivered and is sent again", entry["id"], error)
            queue.failures += 1
            queue.delayed_until = time.monotonic() + backoff(queue.failures)
        now = time.monotonic()
        with self._changed:
            # A failed connection is no sign of a bad message, and calls to strangers are no sign of anything.
            general = not error.unknown or (
                not queue.stranger
                and self._failures.failed(entry["id"], queue.chat_id, now, self._api.succeeded_at))
            if general:
                self._outage.unreachable(error, self.queued())
                self._changed.notify_all()
            else:
                self._outage.not_general()
        if not general:
            self._fails_alone(queue, entries, error)

    def _fails_alone(self, queue: ChatQueue, entries: list, error: TelegramUnreachable) -> None:
        """Handle a message that fails while others succeed: send its text ahead of its picture, give it up at last."""
        entry = entries[0]
        if (self._failures.wants_text_first(entry["id"]) if len(entries) > 1
                else self._failures.is_hopeless(entry["id"], time.monotonic())):
            self._give_up(queue, entries, f"Telegram takes other messages and not this one: {error}")
        elif (entry["message"].get("photo") and entry["part"] == 0 and not entry.get("text_first")
              and self._failures.wants_text_first(entry["id"])):
            log.warning("%s: its text is sent ahead of its picture, which fails: %s", entry["id"], error)
            self._outbox.save({**entry, "text_first": True})

    def _refused(self, queue: ChatQueue, entries: list, error: TelegramError) -> None:
        entry = entries[0]
        if error.retry_after is not None:
            self._slow_down(queue, entry, error.retry_after)
        elif error.code in (401, 404):
            self._refused_by_token(queue, entries, error)
        elif error.migrate_to:
            log.warning("chat %d has become chat %d", queue.chat_id, error.migrate_to)
            self._recipients.moved(queue.chat_id, error.migrate_to)
            self._readdress(queue, entry, error.migrate_to)
        elif is_gone(error):
            self._recipients.blocked(queue.chat_id, error.description)
            self._fail(queue, entry, 409, error.description)
        else:
            self._give_up(queue, entries, error.description)

    def _give_up(self, queue: ChatQueue, entries: list, reason: str) -> None:
        """Fail a message that Telegram does not take. Joined ones go alone: one of them may be bad, and harms no
        other."""
        if len(entries) > 1:
            log.info("%d joined messages go alone: %s", len(entries), reason)
            self._alone.update(entry["id"] for entry in entries)
        else:
            self._fail(queue, entries[0], 502, reason)

    def _slow_down(self, queue: ChatQueue, entry: dict, seconds: int) -> None:
        now = time.monotonic()
        self._metrics.count("rate_limited")
        queue.delayed_until = now + seconds + 0.1
        queue.pace.slow_down()
        with self._changed:
            # Anybody can provoke refusals in a stranger's chat, so they must not slow the others down.
            if not queue.stranger and (shared := self._floods.refused(queue.chat_id, seconds, now)):
                self._queues.pause(now + min(shared, MAX_BACKOFF_SECONDS))
                self._queues.slow_down()
        try:
            # For the next start: Telegram extends the delay of a chat that is tried too early.
            self._outbox.save({**entry, "refused_at": time.time(), "retry_after": seconds})
        except OSError as error:
            log.warning("outbox: %s; a restart forgets the delay of chat %d", error, queue.chat_id)
        log.warning("Telegram wants %d s of rest for chat %d", seconds, queue.chat_id)

    def _refused_by_token(self, queue: ChatQueue, entries: list, error: TelegramError) -> None:
        """Tell a wrong token from a refused message by calling getMe: a wrong one is refused for every method."""
        try:
            self._api.call("getMe")
        except (TelegramError, TelegramUnreachable):
            with self._changed:
                self._outage.wrong_token(error, self.queued())
        else:
            self._give_up(queue, entries, error.description)

    def _readdress(self, queue: ChatQueue, entry: dict, chat_id: int) -> None:
        entry["chat_id"] = chat_id
        entry.pop("retry_after", None)  # of the other chat
        self._outbox.save(entry)
        with self._changed:
            queue.remove(entry["id"])
            self._queues.add(chat_id, entry["id"], entry["reply"])

    def _fail(self, queue: ChatQueue, entry: dict, status: int, reason: str, counter: str = "refused") -> None:
        """Give a message up for good, counted by `counter` of the metrics."""
        if queue.stranger:
            self._outbox.discard(entry["id"])  # otherwise anybody could fill the disk with refusals
        else:
            self._outbox.failed(entry, status, reason)
            log.error("%s for %s failed for good: %s", entry["id"], entry["user"] or f"chat {queue.chat_id}", reason)
        self._finish(queue, entry["id"], Outcome(status, reason))
        self._metrics.count(counter)

    def _finish(self, queue: ChatQueue, entry_id: str, outcome: Outcome) -> None:
        with self._changed:
            queue.remove(entry_id)
        self._forget(entry_id, outcome)

    def _forget(self, entry_id: str, outcome: Outcome) -> None:
        with self._changed:
            self._waiting.remove(entry_id, outcome)
            self._failures.forget(entry_id)
            self._alone.discard(entry_id)
            self._unrecorded.pop(entry_id, None)
        self._strangers.leave(entry_id)
