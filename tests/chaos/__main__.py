"""python -m chaos [NAME …] [--long] [--rounds N] [--seed N]: run campaigns, and print their results as a table.

A line of JSON for each goes to standard output, the table to standard error; the status is 1 where one failed.
"""

import argparse
import importlib
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from chaos import Result

NAMES = ("kill", "power", "outage", "disk", "clock", "hostile", "crowd")


def campaign(name, seed, rounds=None, long=False):
    """Run one campaign: its Result. `rounds` is its size; by default that of a short or a long one."""
    module = importlib.import_module(f"chaos.{name}")
    result = Result(name, seed)
    rounds = rounds or (module.LONG_ROUNDS if long else module.SHORT_ROUNDS)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="notify-chaos-") as folder:
        try:
            module.run(result, Path(folder), rounds)
        except (AssertionError, OSError) as error:
            result.problems.append(f"{error!r}"[-2000:])
    result.figures["seconds"] = round(time.monotonic() - started)
    return result


def main():
    parser = argparse.ArgumentParser(prog="python -m chaos", description="Campaigns against the service.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--long", action="store_true", help="hundreds of rounds, for the better part of an hour")
    parser.add_argument("--rounds", type=int, help="how much of each campaign")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no campaign {', '.join(sorted(unknown))}")
    # Ended by a signal, a campaign still takes down what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results = []
    for name in options.names or NAMES:
        result = campaign(name, options.seed, options.rounds, options.long)
        print(json.dumps({"campaign": name, "seed": options.seed, "passed": not result.problems,
                          "problems": result.problems, **result.figures}), flush=True)
        results.append(result)
    for result in results:
        print(result.line(), file=sys.stderr)
    return int(any(result.problems for result in results))


if __name__ == "__main__":
    sys.exit(main())
