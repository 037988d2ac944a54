"""Faults of the disk and of the clock for a process, by `faults.c`, which is built when it is needed."""

import mmap
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")
ORDERS = struct.Struct("=qiii4x")  # struct orders


class Faults:
    """`environment` is for the process; orders take effect at once."""

    def __init__(self, folder, below):
        library, orders = folder / "faults.so", folder / "orders"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-w", "-o", library, SOURCE, "-ldl"], check=True)
        orders.write_bytes(bytes(ORDERS.size))
        self.environment = {"LD_PRELOAD": str(library), "CHAOS_FAULTS": str(orders), "CHAOS_FOLDER": str(below)}
        with open(orders, "r+b") as file:
            self._mapped = mmap.mmap(file.fileno(), ORDERS.size)

    def order(self, clock=0, sync=0, sync_names=0, change=0):
        """The time of day is off by `clock` seconds; the others are errors (errno, 0 for none): of syncing files, of
        syncing directories, of what changes something below the folder."""
        self._mapped[:] = ORDERS.pack(clock, sync, sync_names, change)

    def close(self):
        self._mapped.close()
