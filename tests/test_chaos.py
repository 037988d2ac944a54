"""The campaigns, short and side by side: most of their time they wait. `make chaos` runs them long."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from chaos import Result
from chaos.calls import Call, in_flight
from chaos.load import judge
from machine import CHECKOUT

SEED = "1"
ALONE = os.getuid() != 0  # only root may send in the name of others, so without root one person sends
NEEDS_GCC = pytest.mark.needs("gcc")  # for faults.c


def start(name):
    path = os.pathsep.join(str(CHECKOUT / folder) for folder in (".", "tests", "tests/support"))
    return subprocess.Popen([sys.executable, "-m", "chaos", name, "--seed", SEED], stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path})


@pytest.fixture(scope="module")
def campaigns(request):
    """All that are to run, as processes."""
    processes = {item.callspec.params["name"]: None for item in request.session.items
                 if item.path == request.path and "campaigns" in item.fixturenames}
    try:
        for name in processes:
            processes[name] = start(name)
            if name == "crowd":
                processes[name].wait(60)  # which looks at how long it takes
        yield processes
    finally:
        for process in filter(None, processes.values()):
            process.terminate()
            process.communicate()


@pytest.mark.parametrize(("name", "wanted"), [
    ("crowd", lambda figures: figures["slow_clients"] == 200),
    ("kill", lambda figures: figures["kills"] == 15 and figures["accepted"] > (10 if ALONE else 50)),
    pytest.param("outage", lambda figures: figures["faults"] > 0 and figures["accepted"] > (3 if ALONE else 12),
                 marks=NEEDS_GCC),
    pytest.param("clock", lambda figures: figures["jumps"] == 3 and figures["accepted"] > 12, marks=NEEDS_GCC),
    pytest.param("disk", lambda figures: figures["refused"] == 3 * figures["faults"] >= 15, marks=NEEDS_GCC),
    ("hostile", lambda figures: figures["requests"] == 2000 and figures["sets_of_files"] == 8),
    pytest.param("power", lambda figures: figures["power_cuts"] == 2, marks=pytest.mark.root),
])
def test_a_campaign_loses_nothing(campaigns, name, wanted):
    line = campaigns[name].communicate(timeout=300)[0]
    assert campaigns[name].returncode == 0, line
    figures = json.loads(line)
    assert figures["passed"] and not figures.get("lost") and not figures.get("overtaken"), figures
    assert wanted(figures), figures


@pytest.mark.parametrize(("statuses", "arrived", "in_flight", "problem"), [
    ((200, 202, "unknown"), "1 2", "", None),
    ((200, 202, "unknown"), "1 1 2 3", "1", None),
    ((200, 202, "unknown"), "1 1 1 2 3 3", "1 1 2 3", None),
    ((200, 202, "unknown"), "1 3", "", "accepted and lost"),
    ((200, 202, "unknown"), "2 1", "", "the order"),
    ((200, 202, "unknown"), "1 2 1", "1", "the order"),
    ((200, 202, "unknown"), "1 1 2", "", "not in flight"),
    ((200, 202, "unknown"), "1 1 2", "2", "not in flight"),
    ((200, 202, "unknown"), "1 1 1 2", "1", "not in flight"),
    ((200, 202), "1 2 9", "", "nobody sent"),
    ((200, 502), "1", "", "refused with"),
    ((), "", "", "nothing was accepted"),
])
def test_the_sums_are_right(statuses, arrived, in_flight, problem):
    def texts(numbers):
        return [f"jana {number}" for number in numbers.split()]

    tried = {f"jana {number}": {"key": False, "status": status} for number, status in enumerate(statuses, 1)}
    result = Result("sums", 1)
    judge(result, tried, {"jana": texts(arrived)}, Counter(texts(in_flight)))
    assert [problem in found for found in result.problems] == [True] if problem else not result.problems


@pytest.mark.parametrize(("calls", "found"), [
    ([], []),
    ([("a", 10.0)], ["a"]),  # perhaps not written down
    ([("a", None)], ["a"]),
    ([("a", 20.1)], ["a"]),  # its answer was read by nobody
    ([("a", 5.0)], []),
    ([("a", 9.99), ("b", None)], ["b"]),  # a was written down, or b would not have been called
    ([("a", None), ("b", 9.99)], ["b"]),
])
def test_what_was_in_flight_is_the_last_call_of_a_chat(calls, found):
    other = [Call(2, "x", 1.0), Call(3, "y", None)]
    calls = [other[0], *(Call(1, *call) for call in calls), other[1]]
    assert [call.text for call in in_flight(calls, 10.1)] == [*found, "y"]
