"""The power of the booted machine is cut while people send, and it comes up again on the disk as it lies.

The kernel ends every process of the machine at once, its init included, as reboot(2) without a shutdown does. The
page cache is the host's and survives: what was written and never synced is not lost here, as it could be on metal.
"""

import json
import os
import random
import time

from chaos.load import judge, read_ledger
from host import Host
from machine import PROJECT, until

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
CUT = "import ctypes; ctypes.CDLL(None).reboot(0x1234567)"


def run(result, folder, rounds):
    if os.getuid():
        result.problems.append("only root can boot a machine")
        return
    chance = random.Random(result.seed)
    with Host() as host:
        install(host, result.seed)
        for _ in range(rounds):
            written = ledger_size(host)
            until(lambda written=written: ledger_size(host) > written, 60, "people send")
            time.sleep(chance.uniform(0, 4))
            cut(host)
            result.count(power_cuts=1)
        finish(host)
        judge(result, read_ledger(host.path(f"{FOLDER}/ledger")), delivered(host), rounds)
        log = host.journal("-u", "notify-bot.service")
        result.expect("Traceback" not in log, "a traceback is in the journal")
        for place in ("failed", "corrupt"):
            result.expect(not os.listdir(host.path(f"/data/notifications/outbox/{place}")), f"some are in {place}")


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
    links = {user: {"chat_id": FIRST_CHAT + number, "linked_at": ""} for number, user in enumerate(USERS)}
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
    queue = host.path("/data/notifications/outbox/queue")
    until(lambda: not list(queue.glob("*.json")), 300, "the queue is empty")


def ledger_size(host):
    path = host.path(f"{FOLDER}/ledger")
    return path.stat().st_size if path.exists() else 0


def delivered(host):
    texts = {user: [] for user in USERS}
    for line in host.path(f"{FOLDER}/delivered").read_text().splitlines():
        message = json.loads(line)
        texts[USERS[message["chat"] - FIRST_CHAT]].append(message["text"].split("\n")[-1])
    return texts
