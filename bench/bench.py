"""The benchmark: what the service costs, next to what the machine allows and to a service on aiohttp.

    bench.py [--quick] [--rounds N] [--json FILE] [--folder FOLDER] [ROW …]

Whole processes on the system's Python, installed with their bytecode as they are on a host, with the sandbox in
Telegram's place. Prints medians with the lowest and the highest value, the ratio to the floor and to the comparison,
and for each target of the project whether it is met. docs/PERFORMANCE.md explains the rows.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from collections import namedtuple
from pathlib import Path

from processes import Place
from rows import ROWS

Plan = namedtuple("Plan", "rounds count paced messages seconds rest_seconds")
Plan.__doc__ = """Size of the measurements: `rounds`; requests in one of them (`count`; `paced` at Telegram's pace);
`messages` for memory; `seconds` of requests for a rate; `rest_seconds` without work before a service is at rest."""
FULL = Plan(5, 2000, 300, 10_000, 2.0, 2.0)
QUICK = Plan(1, 200, 40, 400, 0.3, 0.2)


def machine(folder):
    """One line about where this was measured."""
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    system = platform.freedesktop_os_release()["PRETTY_NAME"]
    kind = next((line.split()[2] for line in reversed(Path("/proc/mounts").read_text().splitlines())
                 if str(folder).startswith(line.split()[1])), "?")
    return (f"{len(os.sched_getaffinity(0))} cores ({model}), {system}, Linux {platform.release()}, {kind}, "
            f"Python {platform.python_version()}")


def number(value, unit):
    """Three digits, no more."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{0 if unit == '' else digits}f}{f' {unit}' if unit not in ('', 'x') else ''}"


def spread(values, unit):
    if not values:
        return "", ""
    middle = number(statistics.median(values), unit)
    bare = "x" if unit else ""
    return middle, f"{number(min(values), bare)} to {number(max(values), bare)}"


def ratio(figure, against):
    """The median of the ratios of the rounds; None where there is nothing to compare with."""
    others = getattr(figure, against)
    if not others or len(others) != len(figure.ours) or not all(others):
        return None
    return statistics.median(ours / other for ours, other in zip(figure.ours, others, strict=True))


def judge(figure):
    """`[(target, what was found, is it met)]`."""
    verdicts = []
    for against, limit in figure.targets:
        if against == "value":
            found, text = statistics.median(figure.ours), f"<= {limit:g}"
        else:
            found, text = ratio(figure, against), f"<= {limit:g} x {against}"
        verdicts.append((text, round(found, 3), found <= limit))
    return verdicts


def table(figures):
    """The figures as a table in Markdown."""
    rows = [("what", "ours", "spread", "floor", "x", "aiohttp", "x", "target", "")]
    for figure in figures:
        ours, (middle, width) = figure.ours, spread(figure.ours, figure.unit)
        ratios = [f"{found:.2f}" if (found := ratio(figure, against)) and ours else ""
                  for against in ("floor", "comparison")]
        verdicts = judge(figure)
        rows.append((figure.name, middle, width, spread(figure.floor, figure.unit)[0], ratios[0],
                     spread(figure.comparison, figure.unit)[0], ratios[1],
                     ", ".join(text for text, _, _ in verdicts),
                     ", ".join("met" if met else f"MISSED ({found:.2f})" for _, found, met in verdicts)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
             for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def as_json(figures, where):
    return json.dumps({"machine": where, "figures": [
        {**figure._asdict(), "median": statistics.median(figure.ours) if figure.ours else None,
         "over_floor": ratio(figure, "floor"), "over_comparison": ratio(figure, "comparison"),
         "verdicts": judge(figure)} for figure in figures]}, indent=1) + "\n"


def main():
    parser = argparse.ArgumentParser(prog="bench.py", description="What the service costs, next to its floors.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"only these: {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="one short round: shows that it works, says little")
    parser.add_argument("--rounds", type=int, help=f"how often to measure (default: {FULL.rounds})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--folder", default="/var/tmp", help="on the disk to measure on (default: %(default)s)")
    arguments = parser.parse_args()
    if unknown := set(arguments.rows) - ROWS.keys():
        parser.error(f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    plan = QUICK if arguments.quick else FULL
    plan = plan._replace(rounds=arguments.rounds or plan.rounds)
    figures, place, where = [], Place(arguments.folder), machine(arguments.folder)
    try:
        for name in arguments.rows or ROWS:
            print(f"bench: {name}: {ROWS[name].__doc__.strip().splitlines()[0]}", file=sys.stderr, flush=True)
            figures += ROWS[name](plan, place)
    finally:
        place.remove()
    print(f"{where}; {plan.rounds} rounds\n\n{table(figures)}")
    if arguments.json:
        arguments.json.write_text(as_json(figures, where))


if __name__ == "__main__":
    main()
