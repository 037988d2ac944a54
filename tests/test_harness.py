"""The tests' own net: what is left behind is found, and the machine goes away however the tests end."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from machine import CHECKOUT, children_of, until

LEAKS = {
    "process": "import subprocess\ndef test_it(): subprocess.Popen(['sleep', '60'])",
    "orphan": "import subprocess\ndef test_it(): subprocess.run(['sh', '-c', 'sleep 60 & exit 0'])",
    "thread": "import threading\ndef test_it(): threading.Thread(target=threading.Event().wait, daemon=True).start()",
    "descriptor": "import os\ndef test_it(): os.dup(1)",
}
MACHINE = """
import pathlib, signal
def test_it(bare_machine, tmp_path):
    pathlib.Path(__file__).with_name("root").write_text(str(bare_machine.root))
    pathlib.Path(__file__).with_name("ready").write_text("")
    signal.pause()
"""
# Where systemd-nspawn and the machine's init keep what belongs to a running machine.
REMAINS = ("/run/systemd", "/sys/fs/cgroup", "/var/log/journal", "/var/tmp")


def pytest_command(*arguments):
    return [sys.executable, "-m", "pytest", "-p", "conftest", "--noconftest", "-p", "no:cacheprovider", *arguments]


def environment():
    return os.environ | {"PYTHONPATH": f"{CHECKOUT / 'tests'}:{CHECKOUT / 'src'}"}


@pytest.mark.parametrize("kind", LEAKS)
def test_leak_fails_the_test(tmp_path, kind):
    (tmp_path / "test_leak.py").write_text(LEAKS[kind])
    before = set(children_of(os.getpid()))
    with open(tmp_path / "output", "w+") as output:
        done = subprocess.run(pytest_command("test_leak.py"), cwd=tmp_path, env=environment(), stdout=output)
    # What it left behind is ours now, see conftest.
    for pid in set(children_of(os.getpid())) - before:
        os.kill(pid, signal.SIGKILL)
    assert done.returncode == 1
    assert "left behind" in (tmp_path / "output").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.root
def test_machine_goes_with_the_tests(tmp_path, number):
    (tmp_path / "test_machine_is_up.py").write_text(MACHINE)
    # Whoever runs this in the background of a shell ignores SIGINT, and so would its children.
    command = ["env", "--default-signal=INT", *pytest_command("test_machine_is_up.py")]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until((tmp_path / "ready").exists, 240, "the machine is up")
        root = (tmp_path / "root").read_text()
        assert os.path.isdir(f"{root}/usr")
        assert running_on(root)
        process.send_signal(number)
        process.wait(60)
        until(lambda: not os.path.exists(root), 60, f"{root} is gone")
        assert running_on(root) == []
        name = os.path.basename(root)
        assert [place for place in REMAINS if list(Path(place).rglob(name))] == []
    finally:
        process.kill()
        process.wait()


def running_on(root):
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                command = file.read().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if f"--directory={root}" in command:
            found.append(pid)
    return found


def test_without_root_what_is_left_out_is_named():
    nobody = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_two.py").write_text("def test_one(): pass\ndef test_on_a_machine(host): pass\n")
        os.chmod(folder, 0o755)
        done = subprocess.run(pytest_command("test_two.py"), cwd=folder, env=environment(), capture_output=True,
                              text=True, **nobody)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 1 deselected" in done.stdout
    assert "NOT RUN" in done.stdout and "test_two.py::test_on_a_machine" in done.stdout
