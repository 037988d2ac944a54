"""What a request to the link page costs, beside the bare interpreter that imports the same.

As a program it prints the table that docs/link_page.md has.
"""

import contextlib
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from link_page import SRC, LinkPage
from test_webapp_hostile import Other, http

pytestmark = pytest.mark.root
ROUNDS = 15
LIMIT = 1.5
SCRIPT = {"name": "disk_use.py", "schedule": "every 5 minutes", "last_run": 1700000000, "next_run": 1700000300,
          "running": False, "can_run": True, "problem": None}
CARD = {"ok": True, "bot": "my_bot", "health": None, "scripts_error": None, "scripts": [SCRIPT] * 10,
        "notifications": [{"at": 1700000000, "title": "Disk", "script": "disk_use.py", "state": "delivered"}] * 10}


def requests_of(page):
    """The requests to measure: a name, and a function that makes one."""
    return {
        "GET status": lambda: page.get("/api/telegram/status"),
        "POST check, a wrong code": lambda: forgetting(page, lambda: page.api("check", {"code": page.wrong_code()})),
        "POST verify": lambda: page.api("verify", {"code": page.code()}),
        "GET page, ten scripts": lambda: page.get("/telegram"),
    }


def forgetting(page, request):
    page.path("link_guesses.json").unlink(missing_ok=True)
    return request()


def imported_by(page, request):
    """What a process has imported or tried to when it ends, in that order."""
    program = page.folder / "imports.py"
    program.write_text(f"#!/bin/sh\nexec /usr/bin/python3 -EsS -X importtime {SRC}/webapp_telegram.py\n")
    program.chmod(0o755)
    start = page.start
    page.start = lambda *arguments, **environment: start(*arguments, program=program, **environment)
    try:
        errors = request().errors
    finally:
        del page.start
    return re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", errors, re.M)


def cost(action):
    """Seconds of a processor, and seconds by the clock, of the processes that `action` waits for."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    action()
    after, elapsed = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, elapsed


def bare(page, names):
    """The interpreter, started as a request is, that imports and does nothing more."""
    code = (f"import sys\nsys.path.insert(0, {str(SRC)!r})\nfor name in {names}:\n"
            " try: __import__(name)\n except ImportError: pass")
    subprocess.run(["nsenter", "-t", str(page.namespace.pid), "--mount", "/usr/bin/python3", "-EsS", "-c", code],
                   check=True, env={"PATH": "/usr/bin:/bin"}, stdin=subprocess.DEVNULL)


def measure(page, rounds):
    """Rows of name and, for a request, for the interpreter with the same imports and for the interpreter, what `cost`
    says: the least of so many rounds, because what is more was something else on the machine."""
    for name, request in requests_of(page).items():
        names = imported_by(page, request)
        costs = [(cost(request), cost(lambda names=names: bare(page, names)), cost(lambda: bare(page, [])))
                 for _ in range(rounds)]
        yield name, *([min(both) for both in zip(*column, strict=True)] for column in zip(*costs, strict=True))


@contextlib.contextmanager
def measured_page(folder):
    with contextlib.closing(LinkPage(folder)) as page, \
            contextlib.closing(Other(folder / "web.sock", http(200, CARD))):
        page.links.redeem(page.code(), "alice")
        yield page


def test_a_request_costs_little_more_than_its_imports(tmp_path):
    with measured_page(tmp_path) as page:
        for name, (request, _), (floor, _), _ in measure(page, ROUNDS):
            assert request <= LIMIT * floor, f"{name}: {request * 1e3:.1f} ms, its imports alone {floor * 1e3:.1f} ms"


def test_status_loads_nothing_that_only_the_bot_needs(tmp_path):
    with measured_page(tmp_path) as page:
        names = imported_by(page, requests_of(page)["GET status"])
        assert "links" in names
        assert not {"socket", "webapp_bot", "webapp_page", "http.client", "segno", "site"} & set(names)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, measured_page(Path(folder)) as measured:
        sys.stdout.write("| request, ms of processor (by the clock) | whole | its imports alone | ratio | interpreter "
                         "alone |\n" + "|---" * 5 + "|\n")
        for row, *columns in measure(measured, 60):
            whole, floor, start = (f"{cpu * 1e3:.1f} ({clock * 1e3:.1f})" for cpu, clock in columns)
            ratio = columns[0][0] / columns[1][0]
            sys.stdout.write(f"| {row} | {whole} | {floor} | {ratio:.2f} | {start} |\n")
