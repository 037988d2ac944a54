"""Fixtures of all tests: nothing may be left behind; the booted machine, which needs root."""

import ctypes
import gc
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from host import Host
from live import Telegram
from machine import children_of

PR_SET_CHILD_SUBREAPER = 36
LEFT_OUT = pytest.StashKey()


def pytest_configure(config):
    config.stash[LEFT_OUT] = {}
    config.addinivalue_line("markers", "root: acts as several accounts, or boots a machine of its own")
    config.addinivalue_line("markers", "needs(*commands): runs these commands of tests/commands.txt")
    # A process that a test's child leaves behind becomes ours, and is seen, instead of init's.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Ended by a signal, the tests still take down what they started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def debian_packages():
    """The packages of each command that some tests need, between blanks."""
    lines = Path(__file__).with_name("commands.txt").read_text().splitlines()
    return dict(line.split(maxsplit=1) for line in lines if not line.startswith("#"))


def lacks(item, packages):
    """Reason why a test cannot run here: "root", or the commands that are missing, as their Debian packages."""
    if os.geteuid() and ({"bare_machine", "host"} & set(item.fixturenames) or item.get_closest_marker("root")):
        return "root"
    needed = {command: packages[command] for marker in item.iter_markers("needs") for command in marker.args}
    return " ".join(names for command, names in needed.items() if not shutil.which(command))


def pytest_collection_modifyitems(config, items):
    packages = debian_packages()
    left_out = {item: what for item in items if (what := lacks(item, packages))}
    items[:] = [item for item in items if item not in left_out]
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
    config.stash[LEFT_OUT] = left_out


def pytest_terminal_summary(terminalreporter, config):
    lacking = list(config.stash[LEFT_OUT].values())
    if not lacking:
        return
    terminalreporter.section(f"NOT RUN: {len(lacking)} tests", yellow=True)
    if root := lacking.count("root"):
        terminalreporter.line(f"{root} act as several accounts or boot a machine: run make test as root, on Debian")
    if packages := sorted({package for what in lacking if what != "root" for package in what.split()}):
        terminalreporter.line(f"{len(lacking) - root} need commands that are not here; on Debian, as root: "
                              f"apt-get install {' '.join(packages)}")


def descriptors():
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:  # the one that listed them
            continue
    return found


def processes():
    return set(children_of(os.getpid()))


def what_runs():
    return {"threads": set(threading.enumerate()), "processes": processes(), "descriptors": descriptors()}


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """A test fails when a thread, process or descriptor is left that was not there before it."""
    before = what_runs()
    yield
    deadline = time.monotonic() + 5
    while left := {kind: now - before[kind] for kind, now in what_runs().items() if now - before[kind]}:
        gc.collect()
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: {left}")
        time.sleep(0.02)


@pytest.fixture
def telegram(tmp_path):
    """The sandbox in Telegram's place."""
    telegram = Telegram(tmp_path)
    yield telegram
    assert telegram.stop() == 0


@pytest.fixture(scope="session")
def host():
    """A booted Debian with the project installed, a sandbox in Telegram's place, and analysts alice and bob."""
    with Host() as host:
        host.install()
        yield host


@pytest.fixture(scope="module")
def bare_machine():
    """A booted Debian of a module's own with nothing but a copy of the checkout in it."""
    with Host() as machine:
        yield machine
