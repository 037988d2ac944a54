"""The tests' own net: what is left behind is found, and the machine goes away however the tests end."""

import os
import shutil
import signal
import subprocess
import sys
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
    return os.environ | {"PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'tests'}:{CHECKOUT / 'tests/support'}"}


def test_leak_fails_the_test(tmp_path):
    """Each in a run of its own; side by side, for each waits out its deadline."""
    before = set(children_of(os.getpid()))
    runs = {}
    for kind, test in LEAKS.items():
        (tmp_path / f"test_{kind}.py").write_text(test)
        with open(tmp_path / kind, "w") as output:
            runs[kind] = subprocess.Popen(pytest_command(f"test_{kind}.py"), cwd=tmp_path, env=environment(),
                                          stdout=output)
    statuses = {kind: run.wait(60) for kind, run in runs.items()}
    # What they left behind is ours now, see conftest.
    for pid in set(children_of(os.getpid())) - before:
        os.kill(pid, signal.SIGKILL)
    for kind, status in statuses.items():
        assert status == 1 and "left behind" in (tmp_path / kind).read_text(), kind


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


@pytest.fixture
def plain_user(tmp_path):
    """Runs commands in a folder without root, and without what is in tests/commands.txt."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("cat", "cmp", "dirname", "env", "id", "sed", "sh"):
        (commands / name).symlink_to(shutil.which(name))
    # Root in a user namespace that knows nobody is nobody, who may still enter the folder that the checkout is in.
    nobody = [shutil.which("unshare"), "--user"] if os.geteuid() == 0 else []

    def run(*command, **variables):
        return subprocess.run([*nobody, *command], cwd=tmp_path, capture_output=True, text=True,
                              env=variables | {"PATH": str(commands)})
    return run


def test_what_is_left_out_is_said_in_three_lines(tmp_path, plain_user):
    (tmp_path / "test_some.py").write_text("""
import pytest
def test_here(): pass
def test_on_a_machine(host): pass
@pytest.mark.root
@pytest.mark.needs("gcc")
def test_as_others(): pass
@pytest.mark.needs("curl", "gcc")
def test_with_commands(): raise AssertionError
@pytest.mark.needs("gcc")
def test_with_a_command(): raise AssertionError
""")
    done = plain_user(*pytest_command("test_some.py"), **environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 4 deselected" in done.stdout
    report = done.stdout[done.stdout.index("NOT RUN: 4 tests"):].splitlines()[1:3]
    assert report[0].startswith("2 ") and "as root" in report[0]
    assert report[1].startswith("2 ") and report[1].endswith("apt-get install curl gcc libc6-dev")


@pytest.fixture
def prepare(tmp_path, plain_user):
    """Runs prepare.sh in a folder of its own, whose virtual environment is ready."""
    (tmp_path / "tests").mkdir()
    for name in ("prepare.sh", "commands.txt", "requirements.txt"):
        shutil.copy(CHECKOUT / "tests" / name, tmp_path / "tests")
    python = tmp_path / ".venv-test/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/usr/bin/python3")
    version = subprocess.run([python, "-VV"], capture_output=True, text=True, check=True).stdout
    (tmp_path / ".venv-test/stamp").write_text(version + (tmp_path / "tests/requirements.txt").read_text())

    def prepare(python="/usr/bin/python3", **variables):
        return plain_user("tests/prepare.sh", PYTHON=python, **variables)
    return prepare


ALL_OF_THEM = "curl gcc libc6-dev man-db nodejs npm shellcheck strace tinyproxy-bin"


def test_all_that_is_missing_is_named_at_once(prepare):
    done = prepare()
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines() == [
        f"make test: not everything is here; on Debian, as root: apt-get install {ALL_OF_THEM}"]


@pytest.mark.parametrize("python", ["/usr/bin/python3", "python3"], ids=["without venv", "not there"])
def test_without_a_python_that_can_make_it_nothing_runs(tmp_path, prepare, python):
    (tmp_path / ".venv-test/stamp").unlink()
    (tmp_path / "ensurepip.py").write_text("raise ImportError")  # as on Debian without python3-venv
    done = prepare(python, PYTHONPATH=str(tmp_path))
    assert done.returncode == 69
    lines = done.stderr.splitlines()
    assert lines[0] == ("make test: not everything is here; on Debian, as root: apt-get install python3-venv "
                        f"{ALL_OF_THEM}")
    assert lines[-1] == f"make test: {python} cannot make a virtual environment without the package python3-venv"
