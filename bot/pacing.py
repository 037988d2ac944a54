"""Whose turn it is: a lane for each chat with something to send, and the pace of each and of the bot.

A lane has at most one call under way, so order holds within a chat and chats do not wait for one another. A reply
goes ahead of the notifications in its own chat. Of the lanes that may send now the one goes that has waited longest.
A lane waits for its own pace, and while it is parked; all wait for the pace of the bot and while there is a pause.

Lanes of strangers (strangers.py) have a pace and a number of calls under way in common, and while a linked chat waits
never two turns one after the other. So they take at most half of what there is from the others, and mostly a sixth.

Nothing here locks or looks at a clock: the caller holds its lock and passes the time, time.monotonic().
"""

from __future__ import annotations

import heapq
from collections import deque

from bot.strangers import STRANGER_SECONDS

# Bot API FAQ, "My bot is hitting limits": 1/s in a chat, 20/min in a group, 30/s in all. What counts is when a request
# arrives, which is some time before its call ends; so a pace is counted from the end.
CHAT_PACE = (1.02, 3)
GROUP_PACE = (3.05, 1)
BOT_CALLS, BOT_SECONDS = 30, 1.02
SLOW_DOWN, SLOWEST, EASE = 1.5, 4, 0.98
MAX_UNDER_WAY = 16
MAX_STRANGERS_UNDER_WAY = 4
# One more call at once only every so often: calls that are answered sooner need no second thread, which would only
# get in the way of the first.
RAMP_SECONDS = 0.005
LOOK_AGAIN_SECONDS = 5.0
RESTED_LANES = 1000


class Pace:
    """The generic cell rate algorithm: one in `interval` seconds, with a burst; slower for a while after a refusal."""

    __slots__ = ("_burst", "_current", "_interval", "_next")

    def __init__(self, interval: float, burst: int):
        self._interval = self._current = interval
        self._burst = burst
        self._next = 0.0

    def ready_at(self) -> float:
        return self._next - self._current * (self._burst - 1)

    def take(self, now: float) -> None:
        self._next = max(now, self._next) + self._current
        self._current = max(self._interval, self._current * EASE)

    def slow_down(self) -> None:
        """Telegram has refused at this pace, so it is not the right one now."""
        self._current = min(self._current * SLOW_DOWN, self._interval * SLOWEST)

    def is_rested(self, now: float) -> bool:
        return self._next <= now


class Window:
    """At most `count` calls in any `seconds`, fewer for a while after a refusal. A call counts from its beginning
    until so long after its end."""

    __slots__ = ("_count", "_current", "_ended", "_seconds", "_under_way")

    def __init__(self, count: int, seconds: float):
        self._count, self._seconds = count, seconds
        self._current = float(count)
        self._under_way = 0
        self._ended: deque[float] = deque()

    def seconds_to_next(self, now: float) -> float:
        while self._ended and self._ended[0] <= now - self._seconds:
            self._ended.popleft()
        excess = self._under_way + len(self._ended) - int(self._current)
        if excess < 0:
            return 0.0
        if excess < len(self._ended):
            return self._ended[excess] + self._seconds - now
        return LOOK_AGAIN_SECONDS

    def begin(self) -> None:
        self._under_way += 1

    def end(self, now: float) -> None:
        self._under_way -= 1
        self._ended.append(now)
        self._current = min(self._count, self._current / EASE)

    def slow_down(self) -> None:
        self._current = max(self._count / SLOWEST, self._current / SLOW_DOWN)


class Lane:
    """What is to be sent to one chat: IDs, in order. `failures` counts those since the last success."""

    __slots__ = ("chat_id", "counted", "current", "failures", "notifications", "pace", "parked_until", "replies",
                 "scheduled", "stranger")

    def __init__(self, chat_id: int):
        self.chat_id = chat_id
        self.replies: deque[str] = deque()
        self.notifications: deque[str] = deque()
        self.pace = Pace(*(GROUP_PACE if chat_id < 0 else CHAT_PACE))
        self.parked_until = 0.0
        self.current: str | None = None  # whose call is under way; a reply may stand before it meanwhile
        self.failures = 0
        self.stranger = False  # linked to nobody
        self.counted = False  # its call is one of the strangers'
        self.scheduled = False  # waiting for its time, for its turn, or for the end of its call

    def is_empty(self) -> bool:
        return not (self.replies or self.notifications)

    def head(self) -> str:
        return (self.replies or self.notifications)[0]

    def remove(self, entry_id: str) -> None:
        (self.replies if entry_id in self.replies else self.notifications).remove(entry_id)


class Lanes:
    """All lanes. `under_way` has when each call that is under way began, by chat."""

    def __init__(self):
        self._lanes: dict[int, Lane] = {}
        self._waiting: list[tuple[float, int, Lane]] = []
        self._ready: deque[Lane] = deque()
        self._ready_strangers: deque[Lane] = deque()
        self._strangers_pace = Pace(STRANGER_SECONDS, 1)
        self._strangers_under_way = 0
        self._was_stranger = False  # the latest turn
        self._turn = 0
        self._window = Window(BOT_CALLS, BOT_SECONDS)
        self._paused_until = 0.0
        self._one_more_at = 0.0
        self.under_way: dict[int, float] = {}
        self.one_at_a_time = False  # while it is not known whether Telegram answers

    def add(self, chat_id: int, entry_id: str, reply: bool, stranger: bool = False) -> None:
        lane = self._lanes.get(chat_id)
        if lane is None:
            lane = self._lanes[chat_id] = Lane(chat_id)
        was_stranger = lane.stranger
        lane.stranger = stranger and (was_stranger or lane.is_empty())
        if was_stranger and not lane.stranger and lane in self._ready_strangers:  # the chat has been linked
            self._ready_strangers.remove(lane)
            self._ready.append(lane)
        (lane.replies if reply else lane.notifications).append(entry_id)
        self._schedule(lane)

    def replies(self, chat_id: int) -> int:
        """How many replies wait for a chat."""
        lane = self._lanes.get(chat_id)
        return len(lane.replies) if lane else 0

    def withdraw(self, chat_id: int, entry_id: str) -> bool:
        """Take a message out of its lane; False when its call is under way, or it is not there."""
        lane = self._lanes.get(chat_id)
        if lane is None or lane.current == entry_id:
            return False
        for pending in (lane.replies, lane.notifications):
            if entry_id in pending:
                pending.remove(entry_id)
                return True
        return False

    def park(self, chat_id: int, until: float) -> None:
        """Send nothing to a chat before `until`. To be called before there is something for it."""
        lane = self._lanes.setdefault(chat_id, Lane(chat_id))
        lane.parked_until = max(lane.parked_until, until)

    def wake(self, is_due) -> None:
        """Let lanes take their turn whatever rest they owe, where `is_due(id)` of what is first in them."""
        self._waiting = [(0.0 if any(is_due(pending[0]) for pending in (lane.replies, lane.notifications) if pending)
                          else at, turn, lane) for at, turn, lane in self._waiting]
        heapq.heapify(self._waiting)

    def pause(self, until: float) -> None:
        """Give out no call before `until`."""
        self._paused_until = max(self._paused_until, until)

    def slow_down(self) -> None:
        """The bot as a whole is too fast."""
        self._window.slow_down()

    def seconds_to_next(self, now: float) -> float:
        """How long until there is a call to take, 0 when now; sooner when something is added or given back."""
        while self._waiting and self._waiting[0][0] <= now:
            lane = heapq.heappop(self._waiting)[2]
            (self._ready_strangers if lane.stranger else self._ready).append(lane)
        for ready in (self._ready, self._ready_strangers):
            while ready and ready[0].is_empty():  # what was in it has been withdrawn
                ready.popleft().scheduled = False
        if len(self.under_way) >= (1 if self.one_at_a_time else MAX_UNDER_WAY):
            return LOOK_AGAIN_SECONDS
        if not self._ready and not self._ready_strangers:
            self._forget_rested(now)
        seconds = min(self._waiting[0][0] - now if self._waiting else LOOK_AGAIN_SECONDS,
                      0.0 if self._ready else self._seconds_to_stranger(now))
        # A pause may be longer than a lock can wait (threading.TIMEOUT_MAX): it is looked at again.
        return min(LOOK_AGAIN_SECONDS, max(seconds, self._window.seconds_to_next(now),
                                           max(self._paused_until, self._one_more_at) - now))

    def _seconds_to_stranger(self, now: float) -> float:
        if not self._ready_strangers or self._strangers_under_way >= MAX_STRANGERS_UNDER_WAY:
            return LOOK_AGAIN_SECONDS
        return max(0.0, self._strangers_pace.ready_at() - now)

    def take(self, now: float) -> Lane:
        """The lane whose head is to be sent now; to be given back when the call has ended."""
        strangers = self._seconds_to_stranger(now) <= 0 and not (self._ready and self._was_stranger)
        lane = (self._ready_strangers if strangers else self._ready).popleft()
        self._was_stranger = strangers
        if strangers:
            self._strangers_pace.take(now)
            self._strangers_under_way += 1
        self._window.begin()
        self.under_way[lane.chat_id] = now
        self._one_more_at = now + RAMP_SECONDS
        lane.counted = strangers
        lane.current = lane.head()
        return lane

    def give_back(self, lane: Lane, now: float) -> None:
        """The call has ended."""
        self._window.end(now)
        lane.pace.take(now)
        del self.under_way[lane.chat_id]
        self._strangers_under_way -= lane.counted
        self._one_more_at = now
        lane.current = None
        lane.scheduled = False
        self._schedule(lane)

    def _schedule(self, lane: Lane) -> None:
        if lane.scheduled or lane.is_empty():
            return
        lane.scheduled = True
        self._turn += 1
        heapq.heappush(self._waiting, (max(lane.pace.ready_at(), lane.parked_until), self._turn, lane))

    def _forget_rested(self, now: float) -> None:
        """Lanes that owe their chat no rest any more are as good as new ones."""
        if self._waiting and len(self._lanes) < RESTED_LANES:
            return
        for chat_id in [chat_id for chat_id, lane in self._lanes.items()
                        if not lane.scheduled and lane.pace.is_rested(now) and lane.parked_until <= now]:
            del self._lanes[chat_id]
