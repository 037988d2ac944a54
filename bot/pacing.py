"""Order and pace of calls: a queue for each chat with something to send, the pace of each chat and of the bot.

A chat queue has at most one call in flight, so order holds within a chat and chats do not wait for one another. A
reply goes ahead of the notifications of its own chat. Of the queues that may send now, the one that has waited longest
goes first. A queue waits for its own pace and its delay; all queues wait for the pace of the bot and for a pause.

The queues of strangers (strangers.py) share one pace and a limit of calls in flight, and never go twice in a row while
a linked chat waits. So they take at most half of the bot's capacity, mostly a sixth.

Nothing here locks or reads a clock: the caller holds its lock and passes the time, time.monotonic().
"""

from __future__ import annotations

import heapq
from collections import deque
from itertools import islice

from bot.strangers import STRANGER_SECONDS

# Bot API FAQ, "My bot is hitting limits": 1/s in a chat, 20/min in a group, 30/s in all. Telegram counts a request at
# its arrival, some time before its call ends; so a pace is counted from the end.
CHAT_PACE = (1.02, 3)
GROUP_PACE = (3.05, 1)
BOT_CALLS, BOT_SECONDS = 30, 1.02
SLOW_DOWN, SLOWEST, EASE = 1.5, 4, 0.98
MAX_IN_FLIGHT = 16
MAX_STRANGERS_IN_FLIGHT = 4
# Concurrency grows this slowly: calls that are answered sooner need no second thread, which would only get in the way
# of the first.
RAMP_SECONDS = 0.005
RECHECK_SECONDS = 5.0
IDLE_QUEUES = 1000


class Pace:
    """The generic cell rate algorithm: one in `interval` seconds, with a burst; slower for a while after a refusal."""

    __slots__ = ("_burst", "_current", "_interval", "_next")

    def __init__(self, interval: float, burst: int):
        self._interval = self._current = interval
        self._burst = burst
        self._next = 0.0

    def ready_at(self) -> float:
        return self._next - self._current * (self._burst - 1)

    def at_once(self, now: float) -> int:
        """The number of calls that may be made now, one after another."""
        left = (now - self._next) // self._current if self._current else 0
        return min(self._burst, int(left) + self._burst)

    def take(self, now: float) -> None:
        self._next = max(now, self._next) + self._current
        self._current = max(self._interval, self._current * EASE)

    def slow_down(self) -> None:
        """Lower the rate, which Telegram has refused."""
        self._current = min(self._current * SLOW_DOWN, self._interval * SLOWEST)

    def has_recovered(self, now: float) -> bool:
        return self._next <= now


class Window:
    """At most `count` calls in any `seconds`, fewer for a while after a refusal. A call counts from its start until
    `seconds` after its end."""

    __slots__ = ("_count", "_current", "_ended", "_in_flight", "_seconds")

    def __init__(self, count: int, seconds: float):
        self._count, self._seconds = count, seconds
        self._current = float(count)
        self._in_flight = 0
        self._ended: deque[float] = deque()

    def seconds_to_next(self, now: float) -> float:
        while self._ended and self._ended[0] <= now - self._seconds:
            self._ended.popleft()
        excess = self._in_flight + len(self._ended) - int(self._current)
        if excess < 0:
            return 0.0
        if excess < len(self._ended):
            return self._ended[excess] + self._seconds - now
        return RECHECK_SECONDS

    def begin(self) -> None:
        self._in_flight += 1

    def end(self, now: float) -> None:
        self._in_flight -= 1
        self._ended.append(now)
        self._current = min(self._count, self._current / EASE)

    def slow_down(self) -> None:
        self._current = max(self._count / SLOWEST, self._current / SLOW_DOWN)


class ChatQueue:
    """Message IDs to be sent to one chat, in order. `failures` counts those since the last success."""

    __slots__ = ("chat_id", "counted", "current", "delayed_until", "failures", "notifications", "pace", "replies",
                 "scheduled", "stranger")

    def __init__(self, chat_id: int):
        self.chat_id = chat_id
        self.replies: deque[str] = deque()
        self.notifications: deque[str] = deque()
        self.pace = Pace(*(GROUP_PACE if chat_id < 0 else CHAT_PACE))
        self.delayed_until = 0.0
        self.current: tuple[str, ...] = ()  # messages in flight, which a new reply may have overtaken as the head
        self.failures = 0
        self.stranger = False  # linked to nobody
        self.counted = False  # its call in flight counts as a stranger's
        self.scheduled = False  # waiting for its time, for its turn, or for the end of its call

    def is_empty(self) -> bool:
        return not (self.replies or self.notifications)

    def head(self) -> str:
        return (self.replies or self.notifications)[0]

    def take_along(self, count: int) -> tuple[str, ...]:
        """The notifications behind the one in flight, `count` at most, which are in flight with it from now on."""
        following = tuple(islice(self.notifications, 1, count + 1))
        self.current += following
        return following

    def remove(self, entry_id: str) -> None:
        (self.replies if entry_id in self.replies else self.notifications).remove(entry_id)


class ChatQueues:
    """All chat queues. `in_flight` has the start of each call in flight, by chat."""

    def __init__(self):
        self._queues: dict[int, ChatQueue] = {}
        self._waiting: list[tuple[float, int, ChatQueue]] = []
        self._ready: deque[ChatQueue] = deque()
        self._ready_strangers: deque[ChatQueue] = deque()
        self._strangers_pace = Pace(STRANGER_SECONDS, 1)
        self._strangers_in_flight = 0
        self._was_stranger = False  # the latest turn
        self._turn = 0
        self._window = Window(BOT_CALLS, BOT_SECONDS)
        self._paused_until = 0.0
        self.outage_until = 0.0  # a pause that ends as soon as Telegram answers
        self._one_more_at = 0.0
        self.in_flight: dict[int, float] = {}
        self.one_at_a_time = False  # until it is known that Telegram answers

    def add(self, chat_id: int, entry_id: str, reply: bool, stranger: bool = False) -> None:
        queue = self._queues.get(chat_id)
        if queue is None:
            queue = self._queues[chat_id] = ChatQueue(chat_id)
        was_stranger = queue.stranger
        queue.stranger = stranger and (was_stranger or queue.is_empty())
        if was_stranger and not queue.stranger and queue in self._ready_strangers:  # the chat has been linked
            self._ready_strangers.remove(queue)
            self._ready.append(queue)
        (queue.replies if reply else queue.notifications).append(entry_id)
        self._schedule(queue)

    def replies(self, chat_id: int) -> int:
        """The number of replies that wait for a chat."""
        queue = self._queues.get(chat_id)
        return len(queue.replies) if queue else 0

    def withdraw(self, chat_id: int, entry_id: str) -> bool:
        """Remove a message from its queue; False when it is in flight or not there."""
        queue = self._queues.get(chat_id)
        if queue is None or entry_id in queue.current or entry_id not in (*queue.replies, *queue.notifications):
            return False
        queue.remove(entry_id)
        return True

    def delay(self, chat_id: int, until: float) -> None:
        """Send nothing to a chat before `until`. To be called before a message is added for it."""
        queue = self._queues.setdefault(chat_id, ChatQueue(chat_id))
        queue.delayed_until = max(queue.delayed_until, until)

    def wake(self, is_due) -> None:
        """Schedule queues at once, whatever their delay, where `is_due(id)` of their first reply or notification."""
        self._waiting = [(0.0 if any(is_due(pending[0]) for pending in (queue.replies, queue.notifications) if pending)
                          else at, turn, queue) for at, turn, queue in self._waiting]
        heapq.heapify(self._waiting)

    def pause(self, until: float) -> None:
        """Start no call before `until`."""
        self._paused_until = max(self._paused_until, until)

    def slow_down(self) -> None:
        """Lower the rate of the bot as a whole."""
        self._window.slow_down()

    def seconds_to_next(self, now: float) -> float:
        """Seconds until a queue can be taken, 0 when now; sooner when a message is added or a call ends."""
        while self._waiting and self._waiting[0][0] <= now:
            queue = heapq.heappop(self._waiting)[2]
            (self._ready_strangers if queue.stranger else self._ready).append(queue)
        for ready in (self._ready, self._ready_strangers):
            while ready and ready[0].is_empty():  # its messages have been withdrawn
                ready.popleft().scheduled = False
        if len(self.in_flight) >= (1 if self.one_at_a_time else MAX_IN_FLIGHT):
            return RECHECK_SECONDS
        if not self._ready and not self._ready_strangers:
            self._drop_idle(now)
        seconds = min(self._waiting[0][0] - now if self._waiting else RECHECK_SECONDS,
                      0.0 if self._ready else self._seconds_to_stranger(now))
        # A pause may exceed what a lock can wait for (threading.TIMEOUT_MAX).
        return min(RECHECK_SECONDS, max(seconds, self._window.seconds_to_next(now),
                                        max(self._paused_until, self.outage_until, self._one_more_at) - now))

    def _seconds_to_stranger(self, now: float) -> float:
        if not self._ready_strangers or self._strangers_in_flight >= MAX_STRANGERS_IN_FLIGHT:
            return RECHECK_SECONDS
        return max(0.0, self._strangers_pace.ready_at() - now)

    def take(self, now: float) -> ChatQueue:
        """The queue whose head is to be sent now. The caller reports the end of the call by `ended`."""
        strangers = self._seconds_to_stranger(now) <= 0 and not (self._ready and self._was_stranger)
        queue = (self._ready_strangers if strangers else self._ready).popleft()
        self._was_stranger = strangers
        if strangers:
            self._strangers_pace.take(now)
            self._strangers_in_flight += 1
        self._window.begin()
        self.in_flight[queue.chat_id] = now
        self._one_more_at = now + RAMP_SECONDS
        queue.counted = strangers
        queue.current = (queue.head(),)
        return queue

    def ended(self, queue: ChatQueue, now: float) -> None:
        """End the call in flight of a queue."""
        self._window.end(now)
        queue.pace.take(now)
        del self.in_flight[queue.chat_id]
        self._strangers_in_flight -= queue.counted
        self._one_more_at = now
        queue.current = ()
        queue.scheduled = False
        self._schedule(queue)

    def _schedule(self, queue: ChatQueue) -> None:
        if queue.scheduled or queue.is_empty():
            return
        queue.scheduled = True
        self._turn += 1
        heapq.heappush(self._waiting, (max(queue.pace.ready_at(), queue.delayed_until), self._turn, queue))

    def _drop_idle(self, now: float) -> None:
        """Drop idle queues whose rate limit has recovered."""
        if self._waiting and len(self._queues) < IDLE_QUEUES:
            return
        for chat_id in [chat_id for chat_id, queue in self._queues.items()
                        if not queue.scheduled and queue.pace.has_recovered(now) and queue.delayed_until <= now]:
            del self._queues[chat_id]
