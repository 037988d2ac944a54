"""The disk is full, has no inodes left, takes no larger files, is read-only, fails to sync; then it is well again."""

import contextlib
import errno
import os
import random
import resource
import subprocess

from chaos.faults import Faults
from chaos.kill import check_log, drained
from live import ME, Bot, Telegram, png, until
from outbox_files import waiting

SHORT_ROUNDS, LONG_ROUNDS = 1, 20
CHAT = 5001
NEW_FILES = {"no_inodes", "sync_of_names_fails"}  # faults that only what needs a new file meets


class Disk:
    """Ways in which the disk under `bot` fails; each is a context in which it does."""

    def __init__(self, bot, faults):
        self.bot, self.faults = bot, faults
        self.folder = bot.state

    def ways(self):
        ways = [self.larger_files_are_refused, self.read_only, self.sync_fails, self.sync_of_names_fails,
                self.quota_exceeded]
        return ways + ([self.full, self.no_inodes] if os.getuid() == 0 else [])

    @contextlib.contextmanager
    def full(self):
        path = self.folder / "filler"
        with open(path, "wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))
        try:
            yield
        finally:
            path.unlink()

    @contextlib.contextmanager
    def no_inodes(self):
        fillers = self.folder / "fillers"
        fillers.mkdir()
        count = 0
        with contextlib.suppress(OSError):
            while True:
                (fillers / str(count)).touch()
                count += 1
        try:
            yield
        finally:
            for number in range(count):
                (fillers / str(number)).unlink()
            fillers.rmdir()

    @contextlib.contextmanager
    def larger_files_are_refused(self):
        soft, hard = resource.prlimit(self.bot.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.bot.process.pid, resource.RLIMIT_FSIZE, (0, hard))
        try:
            yield
        finally:
            resource.prlimit(self.bot.process.pid, resource.RLIMIT_FSIZE, (soft, hard))

    def read_only(self):
        return self._ordered(change=errno.EROFS)

    def quota_exceeded(self):
        return self._ordered(change=errno.EDQUOT)

    def sync_fails(self):
        return self._ordered(sync=errno.EIO)

    def sync_of_names_fails(self):
        return self._ordered(sync_names=errno.EIO)

    @contextlib.contextmanager
    def _ordered(self, **orders):
        self.faults.order(**orders)
        try:
            yield
        finally:
            self.faults.order()


@contextlib.contextmanager
def small_disk(path):
    """A disk of 24 MiB with 400 inodes; without root, a folder."""
    path.mkdir()
    if os.getuid():
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,nr_inodes=400,mode=0700", "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def run(result, folder, rounds):
    chance = random.Random(result.seed)
    telegram = Telegram(folder)
    try:
        telegram.person(CHAT)
        telegram.control("unblock", chat_id=CHAT)
        with small_disk(folder / "state"):
            faults = Faults(folder, folder / "state")
            bot = Bot(folder, telegram.url, **faults.environment)
            bot.users(**{ME: CHAT})
            try:
                campaign(result, telegram, bot, Disk(bot, faults), chance, rounds)
            finally:
                bot.stop()
                faults.close()
    finally:
        telegram.stop()


def campaign(result, telegram, bot, disk, chance, rounds):
    bot.start()
    accepted = []
    for number in range(rounds):
        ways = disk.ways()
        chance.shuffle(ways)
        for way in ways:
            one_way(result, telegram, bot, way, f"{number} {way.__name__}", accepted)
            result.count(faults=1)
    drained(bot, 60)
    # What was refused must not turn up when the outbox is read again.
    bot.kill()
    bot.start()
    assert bot.send("the end", wait=20).status_code == 200
    texts = telegram.texts(CHAT)
    result.count(accepted=len(accepted), delivered=len(set(texts) & set(accepted)),
                 lost=len(set(accepted) - set(texts)), duplicates=len(texts) - len(set(texts)))
    result.expect(texts == [*accepted, "the end"], f"wanted {accepted}, got {texts}")
    result.expect(not bot.outbox("failed") and not list((bot.state / "outbox" / "corrupt").iterdir()),
                  "messages failed or were set aside")
    check_log(result, bot)


def one_way(result, telegram, bot, way, name, accepted):
    """A message is waiting when the disk fails. It is delivered once, nothing is accepted, and then all is well."""
    telegram.control("faults", action="cut_before", method="sendMessage")
    assert bot.send(f"{name} before", wait=0).status_code == 202
    accepted.append(f"{name} before")
    outbox = bot.state / "outbox"
    with way():
        for attempt in range(3):
            text = f"{name} in the meantime {attempt}"
            if way.__name__ in NEW_FILES:  # a text needs none
                result.expect(bot.send(text, wait=0).status_code == 202, f"{name}: a text is refused")
                accepted.append(text)
                answer = bot.post("/send_photo", files={"photo": ("a.png", png())}, data={"caption": text, "wait": "0"})
            else:
                answer = bot.send(text, wait=0)
            result.count(refused=1)
            result.expect(answer.status_code == 503 and "Retry-After" in answer.headers,
                          f"{name}: {answer.status_code} {answer.text}")
        left = {entry["message"]["text"] for entry in waiting(outbox).values()}
        result.expect(left <= set(accepted), f"{name}: left {left - set(accepted)}")
        telegram.control_delete("faults")
        until(lambda: f"{name} before" in telegram.texts(CHAT), 30, f"{name}: what was queued is delivered")
    until(lambda: bot.send(f"{name} after", wait=20).status_code == 200, 20, f"{name}: it works again")
    accepted.append(f"{name} after")
