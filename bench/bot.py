"""Starts the installed bot for a measurement: bot.py MODULES_FOLDER unpaced|paced

`unpaced`: as fast as it can, because 10,000 messages at Telegram's 29 a second would take six minutes. Whoever measures
may send in every name, as root may.
"""

import grp
import os
import sys

sys.path.insert(0, sys.argv[1])

import notify_bot  # noqa: E402
from bot import pacing, send_api  # noqa: E402

if sys.argv[2] == "unpaced":
    pacing.CHAT_PACE = (0.0, 1)
    pacing.BOT_CALLS, pacing.BOT_SECONDS = 1000, 0.0
send_api.TRUSTED_GROUP = grp.getgrgid(os.getgid()).gr_name
sys.exit(notify_bot.main([]))
