"""crashes [--turns N] [--without N] [--seed N]: builds every state in which a crash can leave the outbox.

Starts it there and judges it. Exit status 1 where an accepted message is lost, or a delivered one comes back.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from bot.outbox import CorruptEntry, Outbox, OutboxError
from crashes import disk

LIFE = Path(__file__).with_name("outbox_life.py")
CHECKOUT = Path(__file__).parents[2]
FOLDERS = ("", "/journal", "/pictures", "/failed", "/sent", "/corrupt")


class Story:
    """Steps of each message: `(first call, last call, call from which it is durable, state after it)`."""

    def __init__(self, calls):
        self.steps = defaultdict(list)
        unsynced = []
        for number, call in enumerate(calls, 1):
            if call.kind != "mark":
                continue
            word, *names = call.data.split()
            if word == "begin":
                self.steps[names[0]].append([number, None, None, names[1]])
            elif word == "end":
                found = self.steps[names[0]][-1]
                found[1] = number
                if names[1] == "sent":
                    unsynced.append(found)
                else:
                    found[2] = number
            else:
                for found in unsynced:
                    found[2] = number
                unsynced = []

    def allowed(self, entry_id, made, power_cut):
        """States of a message after so many calls."""
        states = {"absent"}
        for begin, end, durable, state in self.steps[entry_id]:
            certain = durable if power_cut else end
            if certain is not None and certain <= made:
                states = {state}
            elif begin <= made:
                states.add(state)
        return states


def build(tree, folder, at):
    shutil.rmtree(at, ignore_errors=True)
    for name in FOLDERS:
        Path(str(at) + name).mkdir()
    for path, data in tree.items():
        Path(str(at) + path.removeprefix(folder)).write_bytes(data)


def found_in(at):
    """`{ID: state}` of what an outbox has; `problems` of what it cannot show."""
    states, problems = {}, []
    outbox = Outbox(at, 3, 30)
    try:
        for head in outbox.load():
            states[head["id"]] = "queued"
        for entry_id in outbox.failed_ids():
            states[entry_id] = "failed"
        for state, entry in outbox.listing():
            if not entry["message"]["text"].split("\n")[0].endswith(entry["id"]):
                problems.append(f"{entry['id']} has another text")
            try:
                if entry["picture"] and not outbox.photo(entry).read().startswith(b"\x89PNG "):
                    problems.append(f"{entry['id']}, {state}, has another picture")
            except CorruptEntry as error:
                problems.append(f"{entry['id']}, {state}: {error}")
        return states, problems, outbox.find
    finally:
        outbox.close()


def judge(story, made, power_cut, at):
    """What is wrong in one state, as sentences."""
    try:
        states, problems, find = found_in(at)
    except (OutboxError, ValueError, KeyError, TypeError) as error:
        return [f"it does not start: {error!r}"]
    wrong = []
    for entry_id in story.steps:
        allowed = story.allowed(entry_id, made, power_cut)
        state = states.get(entry_id) or ("sent" if find(entry_id) == "sent" else "absent")
        # A message that was sent stays so: its line may go after days, or with a full disk.
        if state not in allowed and (state, "sent" in allowed) != ("absent", True):
            wrong.append(f"{entry_id} is {state} and may be {', '.join(sorted(allowed))}")
    known = [entry_id for entry_id in story.steps if "absent" not in story.allowed(entry_id, made, power_cut)]
    return wrong + [problem for problem in problems if problem[:4] in {entry_id[:4] for entry_id in known}]


def explore(calls, folder, seed=1, most=None):
    """`(states tried, [(calls made, after a power cut, what is wrong)])`."""
    story, tried, wrong = Story(calls), set(), []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
        at = Path(place) / "outbox"
        for made, power_cut, tree in disk.states(calls, [folder + name for name in FOLDERS], seed):
            key = (disk.digest(tree), frozenset((entry_id, *sorted(story.allowed(entry_id, made, power_cut)))
                                                for entry_id in story.steps))
            if key in tried:
                continue
            tried.add(key)
            build(tree, folder, at)
            wrong += [(made, power_cut, sentence) for sentence in judge(story, made, power_cut, at)]
            if most and len(tried) >= most:
                break
    return len(tried), wrong


def life(turns):
    """The calls of a life, and its folder."""
    place = Path(tempfile.mkdtemp())
    try:
        folder, marks = place / "outbox", place / "marks"
        calls = disk.record([sys.executable, "-EsS", LIFE, CHECKOUT, folder, marks, str(turns)], folder, marks,
                            place / "log")
        return calls, str(folder)
    finally:
        shutil.rmtree(place)


def main():
    parser = argparse.ArgumentParser(prog="crashes", description="Tries the outbox in every state after a crash.")
    parser.add_argument("--turns", type=int, default=6, help="how long a life (default: %(default)s)")
    parser.add_argument("--without", type=int, help="as if this sync, of all by number, had not been made")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    calls, folder = life(arguments.turns)
    syncs = [number for number, call in enumerate(calls) if call.kind == "sync"]
    if arguments.without is not None:
        del calls[syncs[arguments.without]]
    began = time.monotonic()
    tried, wrong = explore(calls, folder, arguments.seed)
    for made, power_cut, sentence in wrong[:20]:
        print(f"after {made} calls and a {'power cut' if power_cut else 'kill'}: {sentence}")
    print(f"{len(calls)} calls, {len(syncs)} syncs, {tried} states in {time.monotonic() - began:.0f} s, "
          f"{len(wrong)} violations")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
