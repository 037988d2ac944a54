"""A Debian machine with its own init for the tests: built once, kept as an archive, booted with systemd-nspawn.

Run as a program this file is the machine's keeper: it builds, unpacks and boots, and takes everything down when its
standard input ends, which it does however the tests end. The keeper has a session of its own, so that Ctrl-C and
signals meant for the tests do not reach it.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "python3", "make", "sudo", "acl",
    "man-db", "procps",
    # The web servers of docs/link_page.md, and what their tests make a certificate with.
    "apache2", "libapache2-mod-auth-openidc", "nginx-light", "fcgiwrap", "openssl", "python3-segno",
)
# Installed, but started by the tests that use them alone.
AT_REST = ("apache2.service", "apache-htcacheclean.service", "nginx.service", "fcgiwrap.service", "fcgiwrap.socket")
SUITE = "bookworm"
PROJECT = "/usr/src/notify-bot"
CHECKOUT = Path(__file__).resolve().parents[2]
NOT_COPIED = shutil.ignore_patterns(".git", ".venv-test", ".cache", "__pycache__", ".*_cache", ".hypothesis")
REBOOTS = 133  # the exit status of systemd-nspawn --keep-unit when the machine wants to come up again
CLONE_NEWNET = 0x40000000  # linux/sched.h
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


class Machine:
    """The booted machine, as root at its console. Commands are lists; they run inside with a plain environment."""

    def __init__(self):
        self._keeper = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, start_new_session=True)
        try:
            words = self._keeper.stdout.readline().split(maxsplit=1)
            assert words[:1] == ["root"], "the machine could not be made; the reason is above"
            self.root = Path(words[1].strip())
            self._wait_until_up()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._keeper.stdin.close()
        self._keeper.stdout.close()
        self._keeper.wait()

    def start(self, *command, user=None, **options):
        """A process inside, as subprocess.Popen."""
        home = {"HOME": "/root"}
        if user:
            home = {"HOME": f"/home/{user}", "XDG_RUNTIME_DIR": f"/run/user/{self.uid(user)}", "USER": user}
            command = ["runuser", "-u", user, "--", *command]
        return subprocess.Popen(
            ["nsenter", "-t", str(self._init()), "-m", "-u", "-i", "-n", "-p", "-C", "--", *map(str, command)],
            env=ENVIRONMENT | home, **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True} | options)

    def run(self, *command, user=None, input="", check=True, timeout=60):
        """The finished process, with its output as text. Raises AssertionError with it unless the status is 0."""
        with self.start(*command, user=user, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                stdout, stderr = process.communicate(input, timeout)
            finally:
                process.kill()
        done = subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
        if check:
            assert done.returncode == 0, f"{command} ended with {done.returncode}\n{stdout}{stderr}"
        return done

    def output(self, *command, **arguments):
        return self.run(*command, **arguments).stdout.strip()

    def python(self, code, *arguments, **options):
        """Output of a Python program that is run inside."""
        return self.output("/usr/bin/python3", "-", *arguments, input=code, **options)

    def uid(self, user):
        for line in self.path("/etc/passwd").read_text().splitlines():
            if line.startswith(f"{user}:"):
                return int(line.split(":")[2])
        raise AssertionError(f"the machine has no account {user}")

    def path(self, inside):
        """Place of a file of the machine's disk, for the tests; /run, /tmp and mounts are not on it."""
        return self.root / inside.lstrip("/")

    def write(self, inside, text, mode=0o644, owner=None):
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        if owner:
            self.run("chown", f"{owner}:", inside)

    def journal(self, *arguments):
        return self.output("journalctl", "--no-pager", "-o", "short-precise", *arguments)

    def reboot(self):
        before = self._init()
        self.run("systemctl", "--no-block", "reboot")
        until(lambda: self._init() not in (None, before), 60, "the machine has a new init")
        self._wait_until_up()

    def copy_checkout(self):
        shutil.copytree(CHECKOUT, self.path(PROJECT), ignore=NOT_COPIED, dirs_exist_ok=True)

    @contextlib.contextmanager
    def network(self):
        """Put connections and processes of this thread into the machine's network, with the host's own files."""
        libc = ctypes.CDLL(None, use_errno=True)

        def enter(namespace):
            if libc.setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

        with open("/proc/thread-self/ns/net") as ours, open(f"/proc/{self._init()}/ns/net") as theirs:
            enter(theirs)
            try:
                yield
            finally:
                enter(ours)

    def _init(self):
        """The pid of the machine's init outside, None while it boots or reboots."""
        assert self._keeper.poll() is None, "the machine is gone"
        for supervisor in children_of(self._keeper.pid):
            for child in children_of(supervisor):
                return child
        return None

    def _wait_until_up(self):
        def state():
            if self._init() is None:
                return False
            return self.run("systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded")
        until(state, 60, "the machine is up")


def children_of(pid):
    """The children of a process that have not ended."""
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            # The name, in parentheses, may hold anything; what follows the last one may not.
            state, parent, *_ = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            if int(parent) == pid and state != "Z":
                yield int(entry)


def until(condition, seconds, what):
    """The first true value of `condition()`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return value


class Ended(Exception):
    """The tests are over, or were killed."""


def attend(command, **options):
    """Run `command` to its end. Raises Ended, and ends it, when standard input ends before."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **options) as process:
        try:
            watch(process)
        except BaseException:
            end(process)
            raise
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}")


def watch(process):
    pidfd = os.pidfd_open(process.pid)
    try:
        if sys.stdin.fileno() in select.select([sys.stdin.fileno(), pidfd], [], [])[0]:
            raise Ended
    finally:
        os.close(pidfd)


def end(process):
    """End a process and what it started: by request, so that it can remove what it made, then by force."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def host_sources():
    """The host's own Debian sources, so that a mirror or proxy set up there is used here too."""
    for name in ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"):
        path = Path(name)
        if path.is_file() and SUITE in path.read_text():
            return [name]
    return []


def image():
    """The archive of the machine's disk, built when there is none for this list of packages."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "/var/cache")) / "notify-bot-tests"
    cache.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(" ".join((SUITE, *PACKAGES, *AT_REST)).encode()).hexdigest()[:16]
    archive = cache / f"{key}.tar"
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            build(archive)
    return archive


def build(archive):
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix="building-") as work:
        os.chmod(work, 0o755)  # apt inside drops to an account of its own
        attend(["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}",
                f"--customize-hook=chroot \"$1\" systemctl --quiet disable {' '.join(AT_REST)}", SUITE,
                f"{work}/disk.tar", *host_sources()], stdout=sys.stderr, env=os.environ | {"TMPDIR": work})
        os.rename(f"{work}/disk.tar", archive)


def boot(root):
    """Boot the machine on `root`, again when it reboots, and stay until the tests are over or it was switched off."""
    command = ["systemd-nspawn", "--quiet", f"--directory={root}", "--register=no", "--keep-unit", "--boot",
               "--console=pipe", "--private-network", "--link-journal=no"]
    status = REBOOTS
    while status == REBOOTS:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              start_new_session=True) as supervisor:
            try:
                watch(supervisor)
            finally:
                switch_off(supervisor, root)
        status = supervisor.returncode


def switch_off(supervisor, root):
    """End it by force, since nothing on its disk is kept. The supervisor then clears up after the machine's init."""
    for init in children_of(supervisor.pid):
        os.kill(init, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        supervisor.wait(10)
    supervisor.kill()
    # Which it does not dare to remove where /run is on a disk, as in a container.
    shutil.rmtree(Path("/run/systemd/nspawn/propagate", Path(root).name), ignore_errors=True)


@contextlib.contextmanager
def own_control_group(name):
    """A control group `name` below the present one: the machine makes its own in it and leaves them there."""
    folders = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "name=systemd"):
            hierarchy = "systemd" if controllers else "unified"
            mount = Path("/sys/fs/cgroup", hierarchy)
            folders.append((mount if mount.is_dir() else mount.parent) / path.lstrip("/"))
    try:
        for folder in folders:
            (folder / name).mkdir()
            (folder / name / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        for folder in folders:
            (folder / "cgroup.procs").write_text(str(os.getpid()))
            until(lambda folder=folder: remove_control_group(folder / name), 10, f"{folder / name} is empty")


def remove_control_group(folder):
    """True when the group is gone. Remaining processes are killed: an init outlives its systemd-nspawn."""
    for members in folder.rglob("cgroup.procs"):
        for pid in members.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    try:
        for place, _, _ in os.walk(folder, topdown=False):
            os.rmdir(place)
    except OSError:
        return False
    return True


def keep():
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    archive = image()
    root = tempfile.mkdtemp(prefix="notify-machine-", dir="/var/tmp")
    try:
        attend(["tar", "-x", "--numeric-owner", "--xattrs", "-f", archive, "-C", root])
        os.chmod(root, 0o755)
        with own_control_group(Path(root).name):
            print("root", root, flush=True)
            boot(root)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    with contextlib.suppress(Ended, KeyboardInterrupt, BrokenPipeError):
        keep()
