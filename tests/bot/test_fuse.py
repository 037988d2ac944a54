"""A file system that never answers, as a hung NFS server does: who names a file on it holds up nobody else."""

import contextlib
import ctypes
import os
import threading
from pathlib import Path

import pytest

from live import ME, Bot, png, until

pytestmark = pytest.mark.root
MNT_DETACH = 2


@pytest.fixture
def hung(tmp_path):
    """A mounted file system whose requests nobody reads."""
    folder = tmp_path / "hung"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    if libc.mount(b"hung", os.fsencode(folder), b"fuse", 0, options.encode()):
        os.close(device)
        raise OSError(ctypes.get_errno(), "mount")
    yield folder
    os.close(device)  # whatever waits for an answer gets an error
    libc.umount2(os.fsencode(folder), MNT_DETACH)


def test_a_file_system_that_never_answers_holds_up_its_own_user_alone(hung, tmp_path, telegram):
    bot = Bot(tmp_path, telegram.url)
    telegram.person(77)
    telegram.types(77, "hi")
    bot.users(**{ME: 77})
    bot.start()

    def ask(name):
        with contextlib.suppress(OSError):
            bot.post("/send_photo", json={"photo_path": str(hung / name)})

    stuck = [threading.Thread(target=ask, args=(name,)) for name in ("a.png", "b.png", "c.png")]
    for thread in stuck:
        thread.start()
    until(lambda: blocked(bot.process.pid) == len(stuck), what="the requests wait for the file system")
    assert bot.get("/health").status_code == 200
    picture = bot.post("/send_photo", files={"photo": ("a.png", png())}, data={"wait": "10"})
    assert picture.status_code == 200
    # The kernel ends what waits there with the process.
    assert bot.stop() == 0
    for thread in stuck:
        thread.join(10)
        assert not thread.is_alive()


def blocked(pid):
    """How many threads wait in the file system, as proc(5) says of each."""
    found = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += "fuse" in (task / "stack").read_text() or "fuse" in (task / "wchan").read_text()
    return found
