"""What the client makes of answers that Telegram should not give."""

import threading

import pytest

from lanes import Lanes
from telegram_api import TelegramError, _result


@pytest.mark.parametrize(("wanted", "seconds"), [
    ("34", 34), ('"34"', 34), ("1.5", 1), ("1e400", 1), ("NaN", 1), ("1" + "0" * 400, 1), ("[]", 1), ("null", 1)])
def test_a_rest_is_a_whole_number_of_seconds(wanted, seconds):
    answer = '{"ok": false, "error_code": 429, "parameters": {"retry_after": ' + wanted + "}}"
    with pytest.raises(TelegramError) as refusal:
        _result(429, {}, answer.encode())
    assert refusal.value.retry_after == seconds


def test_a_pause_may_be_longer_than_a_lock_can_wait():
    lanes = Lanes()
    lanes.add(1, "aa", False)
    lanes.pause(float(1 << 62))
    assert 0 < lanes.seconds_to_next(0.0) < threading.TIMEOUT_MAX
