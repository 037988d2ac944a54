"""A disk of which the calls are known: what each prefix of them leaves, after a kill and after a power cut.

A kill keeps every call. A power cut keeps what fsync(2) has made durable: a file's data and length by syncing the file,
names by syncing their folder. Of the calls since then each may be kept or lost on its own, and a write may be torn.
"""

import hashlib
import itertools
import random
import re
import subprocess
from collections import namedtuple
from pathlib import Path

CALLS = "openat,read,write,pwrite64,lseek,fsync,fdatasync,rename,unlink,mkdir,ftruncate"
ALL_SUBSETS = 5  # of so many pending calls every subset is tried, of more those that miss a few
SAMPLES = 24
PAGE = 512

Call = namedtuple("Call", "kind path data")
Call.__doc__ = """A change below the folder: `kind` is create, truncate, write (`data`: offset and bytes), name (`data`:
the new path), unlink, mkdir, sync (of the file or folder `path`), or mark (`data`: the text)."""

_LINE = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+)(?:<(.*)>)?.*")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR = re.compile(r"(\d+)<((?:\\x[0-9a-f]{2})*)>")


def record(command, folder, marks, log):
    """The calls of a program below `folder`. What it writes to `marks` are marks between them."""
    subprocess.run(["strace", "-o", log, "-y", "-xx", "-s", "1000000", "-e", f"trace={CALLS}", *command], check=True)
    return list(_calls(Path(log).read_text().splitlines(), str(folder), str(marks)))


def _unescaped(text):
    return bytes.fromhex(text.replace("\\x", ""))


def _calls(lines, folder, marks):
    positions = {}
    for line in lines:
        if not (match := _LINE.fullmatch(line)) or match[3].startswith("-"):
            continue
        name, arguments, result = match[1], match[2], int(match[3])
        strings = [_unescaped(text) for text in _STRING.findall(arguments)]
        opened = _DESCRIPTOR.match(arguments)
        path = _unescaped(opened[2]).decode(errors="replace") if opened else strings[0].decode(errors="replace")
        if name == "openat":
            path = strings[0].decode(errors="replace")
            positions[result] = None if "O_APPEND" in arguments else 0
        if path == marks and name == "write":
            yield Call("mark", path, strings[0].decode())
        if not path.startswith(folder + "/") and path != folder or path == marks:
            continue
        number = int(opened[1]) if opened and name != "openat" else None
        if name == "openat":
            if "O_CREAT" in arguments:
                yield Call("create", path, None)
            if "O_TRUNC" in arguments:
                yield Call("truncate", path, 0)
        elif name == "write":
            yield Call("write", path, (positions.get(number), strings[0]))
            if positions.get(number) is not None:
                positions[number] += result
        elif name == "pwrite64":
            yield Call("write", path, (int(arguments.rpartition(", ")[2]), strings[0]))
        elif name == "lseek":
            positions[number] = result
        elif name == "read" and positions.get(number) is not None:
            positions[number] += result
        elif name == "ftruncate":
            yield Call("truncate", path, int(arguments.rpartition(", ")[2]))
        elif name in ("fsync", "fdatasync"):
            yield Call("sync", path, None)
        elif name == "rename":
            yield Call("name", path, strings[1].decode())
        elif name in ("unlink", "mkdir"):
            yield Call(name, path, None)


class Disk:
    """Files by their number, names by path; `pending` are the changes that are not durable, each with its file."""

    def __init__(self, folders):
        self.folders = set(folders)
        self.names, self.data = {}, {}
        self.durable_names, self.durable_data = {}, {}
        self.pending = []

    def apply(self, call):
        """Make a call."""
        if call.kind == "mkdir":
            self.folders.add(call.path)  # the service makes its folders before it accepts anything
        elif call.kind == "sync":
            self._sync(call.path)
        elif call.kind != "mark" and not (call.kind == "create" and call.path in self.names):
            change = self._resolve(call)
            if change:
                _change(self.names, self.data, change)
                self.pending.append(change)

    def _resolve(self, call):
        """The change with the number of its file in the place of what names it: `(kind, number, path, data)`."""
        if call.kind == "create":
            number = len(self.data)
            self.data[number], self.durable_data[number] = b"", b""
            return "link", number, call.path, None
        number = self.names.get(call.path)
        if number is None:
            return None
        if call.kind == "write" and call.data[0] is None:
            return "write", number, call.path, (len(self.data[number]), call.data[1])
        return call.kind, number, call.path, call.data

    def _sync(self, path):
        is_folder = path in self.folders
        number = None if is_folder else self.names.get(path)
        kept = []
        for change in self.pending:
            kind, of, name, data = change
            of_names = kind in ("link", "name", "unlink")
            if of_names and is_folder and str(Path(name).parent) == path or not of_names and of == number:
                _change(self.durable_names, self.durable_data, change)
            else:
                kept.append(change)
        self.pending = kept

    def after_kill(self):
        return {path: self.data[number] for path, number in self.names.items()}

    def after_power_cuts(self, chance):
        """Each tree that a power cut may leave."""
        count = len(self.pending)
        if count <= ALL_SUBSETS:
            subsets = list(itertools.product((False, True), repeat=count))
        else:
            subsets = [tuple(index < end for index in range(count)) for end in range(count + 1)]
            subsets += [tuple(index != lost for index in range(count)) for lost in range(count)]
            subsets += [tuple(index == kept for index in range(count)) for kept in range(count)]
            subsets += [tuple(chance.random() < 0.5 for _ in range(count)) for _ in range(SAMPLES)]
        for subset in subsets:
            kept = [change for change, is_kept in zip(self.pending, subset, strict=True) if is_kept]
            yield self._tree(kept)
            torn = next((change for change in reversed(kept) if change[0] == "write" and len(change[3][1]) > 1), None)
            if torn:
                yield self._tree([_torn(change) if change is torn else change for change in kept])

    def _tree(self, changes):
        names, data = dict(self.durable_names), dict(self.durable_data)
        for change in changes:
            _change(names, data, change)
        return {path: data[number] for path, number in names.items()}


def _change(names, data, change):
    kind, number, path, detail = change
    if kind == "link":
        names[path] = number
    elif kind == "name":
        if names.get(path) == number:
            del names[path]
        names[detail] = number
    elif kind == "unlink":
        if names.get(path) == number:
            del names[path]
    elif kind == "truncate":
        data[number] = data[number][:detail].ljust(detail, b"\0")
    elif kind == "write":
        start, written = detail
        before = data[number].ljust(start, b"\0")
        data[number] = before[:start] + written + before[start + len(written):]


def _torn(change):
    kind, number, path, (start, written) = change
    # At the end of a sector, in the middle of the write where it has none.
    end = min(len(written) // 2 + 1, max(1, PAGE - start % PAGE))
    return kind, number, path, (start, written[:end])


def digest(tree):
    """The same for trees that are the same."""
    found = hashlib.sha256()
    for path, data in sorted(tree.items()):
        found.update(repr((path, len(data))).encode() + data)
    return found.digest()


def states(calls, folders, seed):
    """`(number of calls made, after a power cut, tree)` of each crash."""
    disk, chance = Disk(folders), random.Random(seed)
    for number, call in enumerate(calls, 1):
        disk.apply(call)
        if call.kind == "mark":
            continue
        yield number, False, disk.after_kill()
        for tree in disk.after_power_cuts(chance):
            yield number, True, tree
