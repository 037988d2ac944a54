"""Faults the tests order: Telegram away, slow, overloaded, cut off.

A rule is a dict: `action`, and which calls it strikes: `method`, `chat_id` (both optional), the next `times`, or a
`share` of them drawn with `seed`, or all until the rules are cleared. Actions:

| action | what the bot sees |
|---|---|
| `error` | a refusal: `status`, `description`, `retry_after`, `migrate_to_chat_id`; nothing was done |
| `html` | a front end's page with `status` (502), not JSON; nothing was done |
| `cut_before` | the connection ends before anything was done |
| `cut_within` | the call is carried out, half of the answer arrives |
| `cut_after` | the call is carried out, the connection ends without an answer |
| `delay` | the call is carried out `seconds` late |
| `delay_answer` | the call is carried out at once, its answer comes `seconds` late |
"""

from __future__ import annotations

import random
import threading
from collections import Counter

ACTIONS = ("error", "html", "cut_before", "cut_within", "cut_after", "delay", "delay_answer")


class Faults:
    def __init__(self):
        self._lock = threading.Lock()
        self._rules = []
        self.struck = Counter()

    def add(self, rule: dict) -> None:
        """Raises ValueError for a rule that means nothing."""
        if rule.get("action") not in ACTIONS:
            raise ValueError(f"action must be one of {', '.join(ACTIONS)}")
        if "times" in rule and (type(rule["times"]) is not int or rule["times"] < 1):
            raise ValueError("times must be a whole number from 1")
        share = rule.get("share", 1.0)
        if type(share) not in (int, float) or not 0 < share <= 1:
            raise ValueError("share must be over 0 and at most 1")
        with self._lock:
            self._rules.append({**rule, "draw": random.Random(rule.get("seed", 0))})

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()

    def strike(self, method: str, chat_id: str) -> dict | None:
        """The first rule that strikes this call, None when none does. `method` is in lower case."""
        if not self._rules:
            return None
        with self._lock:
            for rule in self._rules:
                if _concerns(rule, method, chat_id) and rule["draw"].random() < rule.get("share", 1.0):
                    self._use_up(rule)
                    self.struck[rule["action"]] += 1
                    return rule
        return None

    def _use_up(self, rule: dict) -> None:
        if "times" not in rule:
            return
        rule["times"] -= 1
        if not rule["times"]:
            self._rules.remove(rule)


def _concerns(rule: dict, method: str, chat_id: str) -> bool:
    return rule.get("method", method).lower() == method and str(rule.get("chat_id", chat_id)) == chat_id
