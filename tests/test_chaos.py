"""The campaigns, short and side by side: most of their time they wait. `make chaos` runs them long."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chaos import Result
from chaos.load import judge

CAMPAIGNS = ("kill", "outage", "disk", "clock", "hostile", "crowd")
SEED = "1"


def start(name):
    path = os.pathsep.join(str(Path(__file__).parents[folder] / part) for folder, part in ((0, "."), (1, "src")))
    return subprocess.Popen([sys.executable, "-m", "chaos", name, "--seed", SEED], stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path})


def passes(process):
    line = process.communicate(timeout=300)[0]
    assert process.returncode == 0, line
    figures = json.loads(line)
    assert figures["passed"] and not figures.get("lost") and not figures.get("overtaken"), figures
    return figures


def test_campaigns_lose_nothing():
    processes = {name: start(name) for name in CAMPAIGNS}
    try:
        figures = {name: passes(process) for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
    assert figures["kill"]["kills"] == 15 and figures["kill"]["accepted"] > 50
    assert figures["outage"]["faults"] > 0 and figures["outage"]["unknown"] >= figures["outage"]["duplicates"]
    assert figures["disk"]["refused"] == 3 * figures["disk"]["faults"] >= 15
    assert figures["clock"]["jumps"] == 3
    assert figures["hostile"]["requests"] == 2000
    assert figures["crowd"]["slow_clients"] == 200


@pytest.mark.root
def test_a_power_cut_loses_nothing():
    process = start("power")
    try:
        assert passes(process)["power_cuts"] == 2
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("statuses", "arrived", "problem"), [
    ((200, 202, "unknown"), "1 2", None),
    ((200, 202, "unknown"), "1 1 2 3", None),
    ((200, 202, "unknown"), "1 3", "accepted and lost"),
    ((200, 202, "unknown"), "2 1", "the order"),
    ((200, 202, "unknown"), "1 2 1", "the order"),
    ((200, 202, "unknown"), "1 1 1 2", "more copies"),
    ((200, 202), "1 2 9", "nobody sent"),
    ((200, 502), "1", "refused with"),
    ((), "", "nothing was accepted"),
])
def test_the_sums_are_right(statuses, arrived, problem):
    tried = {f"jana {number}": {"key": False, "status": status} for number, status in enumerate(statuses, 1)}
    result = Result("sums", 1)
    judge(result, tried, {"jana": [f"jana {number}" for number in arrived.split()]}, interruptions=1)
    assert [problem in found for found in result.problems] == [True] if problem else not result.problems
