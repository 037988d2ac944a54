"""Which calls were in flight when the bot was interrupted, as Telegram has seen it: only they may be made twice."""

from dataclasses import dataclass

from live import parts_of

# Within which the bot has written down that a call was answered, on a machine that does much else: ten times what was
# seen there, and half of the time until the next call of a chat that is always served.
RECORDED_SECONDS = 0.5


@dataclass
class Call:
    """A call that carries a text, perhaps of several messages. `answered` is when its answer had been written whole
    (time.monotonic)."""

    chat: int
    text: str
    answered: float | None = None

    @property
    def texts(self):
        """What was sent: below a title or the time of a late message."""
        return [part.split("\n")[-1] for part in parts_of(self.text)]


def in_flight(calls, interrupted):
    """Of the calls up to an end of the bot at `interrupted`, in the order in which they came: those that may not have
    been written down. They are the last in their chats, for the bot makes a call after it wrote down the one before."""
    last = {call.chat: call for call in calls}
    return [call for call in last.values()
            if call.answered is None or call.answered > interrupted - RECORDED_SECONDS]
