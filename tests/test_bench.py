"""The benchmark works. What it measures is for `make bench` and docs/PERFORMANCE.md."""

import json
import subprocess

import pytest

from live import PYTHON
from machine import CHECKOUT

BENCH = CHECKOUT / "bench/bench.py"


def test_a_short_round_gives_a_table_and_json(tmp_path):
    done = subprocess.run([PYTHON, BENCH, "--quick", "--json", tmp_path / "figures", "runner"], capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "figures").read_text())
    whole, over_xargs = found["figures"]
    assert "xargs" in over_xargs["name"] and whole["floor"] and whole["ours"] == over_xargs["ours"]
    (target, ratio, met), = whole["verdicts"]
    assert target == "<= 1.3 x floor" and met == (ratio <= 1.3)
    assert ratio == pytest.approx(whole["over_floor"], abs=0.001)
    row = next(line for line in done.stdout.splitlines() if whole["name"] in line)
    assert f"| {whole['over_floor']:.2f} |" in row and ("| met" in row) == met
    assert "cores" in done.stdout and found["machine"] in done.stdout


def test_a_row_that_is_not_there_is_said(tmp_path):
    done = subprocess.run([PYTHON, BENCH, "nonsense"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and "nonsense" in done.stderr and "latency" in done.stderr
