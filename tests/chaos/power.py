"""The power of the booted machine is cut while people send, and it comes up again on the disk as it lies.

The kernel ends every process of the machine at once, its init included, as reboot(2) without a shutdown does. The
page cache is the host's and survives: what was written and never synced is not lost here, as it could be on metal.
"""

import itertools
import json
import os
import random
import time
from collections import Counter

from chaos.calls import Call, in_flight
from chaos.load import judge, read_ledger
from host import Host
from machine import PROJECT, until
from outbox_files import waiting

SHORT_ROUNDS, LONG_ROUNDS = 2, 40
FIRST_CHAT = 5001
USERS = [f"u{number}" for number in range(12)]
FOLDER = "/var/lib/chaos"
PORT = 8081
UNIT = """[Unit]
After=notify-bot.socket

[Service]
ExecStart=/usr/bin/python3 -B {program}
Restart=always
RestartSec=100ms
TimeoutStopSec=60

[Install]
WantedBy=multi-user.target
"""
# What is in the queue when the machine comes up again, before the bot does anything with it.
QUEUED = f"""[Unit]
Before=notify-bot.service

[Service]
ExecStartPre=-/bin/sh -c 'd={FOLDER}/queued/$$(date +%%s%%N); mkdir -p $$d; cp -r /data/notify-bot/outbox/journal $$d'
"""
CUT = "import ctypes; ctypes.CDLL(None).reboot(0x1234567)"


def run(result, folder, rounds):
    if os.getuid():
        result.problems.append("only root can boot a machine")
        return
    chance = random.Random(result.seed)
    with Host() as host:
        install(host, result.seed)
        cuts = []
        for _ in range(rounds):
            written = ledger_size(host)
            until(lambda written=written: ledger_size(host) > written, 60, "people send")
            time.sleep(chance.uniform(0, 4))
            cuts.append(time.monotonic())
            cut(host)
            result.count(power_cuts=1)
        finish(host)
        boots = calls(host)
        judge(result, read_ledger(host.path(f"{FOLDER}/ledger")), delivered(boots),
              at_the_cuts(result, boots, queued(host), cuts))
        log = host.journal("-u", "notify-bot.service")
        result.expect("Traceback" not in log, "a traceback is in the journal")
        for place in ("failed", "corrupt"):
            result.expect(not os.listdir(host.path(f"/data/notify-bot/outbox/{place}")), f"some are in {place}")


def install(host, seed):
    host.make("install")
    host.write("/etc/hosts", "127.0.0.1 localhost\n")
    host.write("/etc/notify-bot/telegram-bot-token", "123456789:AAtestTESTtestTESTtestTESTtestTEST00\n", 0o600)
    host.write("/etc/notify-bot/notify-bot.env", f"TELEGRAM_API_URL=http://127.0.0.1:{PORT}\n", 0o600)
    host.path(FOLDER).mkdir(parents=True)
    programs = {"telegram": f"telegram.py {PORT} {FOLDER}/delivered",
                "people": f"load.py /run/notify-bot/bot.sock {FOLDER}/ledger {seed} {' '.join(USERS)}"}
    for name, program in programs.items():
        host.write(f"/etc/systemd/system/{name}.service", UNIT.format(program=f"{PROJECT}/tests/chaos/{program}"))
    host.write("/etc/systemd/system/telegram.service.d/queued.conf", QUEUED)
    links = {user: {"chat_id": FIRST_CHAT + number, "linked_at": "", "uid": 4711} for number, user in enumerate(USERS)}
    host.write("/data/notifications/telegram_users.json", json.dumps(links), 0o660)
    host.run("chown", "deploy:data-ops", "/data/notifications/telegram_users.json")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "enable", "--now", "telegram.service", "people.service")
    host.run("systemctl", "restart", "notify-bot.service")


def cut(host):
    before = host._init()
    host.run("/usr/bin/python3", "-c", CUT, check=False)
    until(lambda: host._init() not in (None, before), 60, "the machine has a new init")
    host._wait_until_up()


def finish(host):
    host.run("systemctl", "stop", "people.service", timeout=90)
    until(lambda: not waiting(host.path("/data/notify-bot/outbox")), 300, "the queue is empty")


def ledger_size(host):
    path = host.path(f"{FOLDER}/ledger")
    return path.stat().st_size if path.exists() else 0


def calls(host):
    """Messages that Telegram took, by the time between two cuts."""
    boots = []
    for line in host.path(f"{FOLDER}/delivered").read_text().splitlines():
        entry = json.loads(line)
        if "started" in entry:
            boots.append([])
        elif "answered" in entry:
            message = entry["chat"], entry["text"]
            call = next(call for call in reversed(boots[-1]) if (call.chat, call.text) == message)
            call.answered = entry["answered"]
        else:
            boots[-1].append(Call(entry["chat"], entry["text"]))
    return boots


def delivered(boots):
    texts = {user: [] for user in USERS}
    for call in itertools.chain(*boots):
        texts[USERS[call.chat - FIRST_CHAT]] += call.texts
    return texts


def queued(host):
    """The texts in the queue at each start of Telegram."""
    starts = sorted(host.path(f"{FOLDER}/queued").iterdir())
    return [{entry["message"]["text"] for entry in waiting(start).values()} for start in starts]


def at_the_cuts(result, boots, queues, cuts):
    """How often each text was in flight when the power was cut."""
    if not result.expect(len(boots) == len(queues) == len(cuts) + 1, f"Telegram was started {len(boots)} times"):
        return Counter()
    # The clock is the kernel's, which the machine shares with us.
    return Counter(text for boot, left, cut in zip(boots, queues[1:], cuts, strict=False)
                   for call in in_flight(boot, cut) for text in call.texts if text in left)
