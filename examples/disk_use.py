#!/usr/bin/env python3
"""Tells you when a disk is almost full, with a chart of all of them. Only the standard library is needed.

To use it, copy it to ~/user/notifications/ and change the values below. A disk is named by any folder on it.
See what it would send with: notify-runner --dry-run disk_use
"""

import base64
import json
import os
import shutil
import socket
import struct
import zlib
from pathlib import Path

DISKS = ["/", "/home", "/data"]
LIMIT_PERCENT = 90
COOLDOWN = "12h"
PICTURE = Path.home() / ".cache" / "disk_use.png"

WHITE, INK, GREY, TRACK, GREEN, AMBER, RED = range(7)
PALETTE = bytes.fromhex("ffffff 1f2933 7b8794 e9edf1 2fa36b f0a020 e5484d")
# The X11 font 6x13 (public domain), ASCII 32 to 126: 13 bytes a character, its rows, bits from left to right.
FONT = zlib.decompress(base64.b85decode(
    "c-m!Dt$M>S3=A|h95fsZ95f8nBLof#1{xX$1_m1L5e5qf_ZWeO)32Lt>X$UqN$Sa`beeuyQkxPx0C0l<I(;;fw)4c-*Gtlt1~Fx5yFm"
    "Fo^Lgy=)@_u>lrmdNk&@`nMlnun*wURtztyqLlE&7jKYWohL!eeUmm(pkY#=StddfgjhqVUEE8=u|#1JY9xi|ytJw`!F`FJ>jwUmq6q"
    "1EUZ)~%u={IGeA(Nb>qts}_K=M=+p9Ggg@j6R8)3gjHEeUxns*Xd&CT9yUrx|}GPGGJtJgytz1UH$HqQFGV`)jCUSv_%l)O|**ps%iW"
    "AdG4B4%(^1qt$Bm`c(isL)~%{3H+r}+5NjA5@z%_3=+l!grV$<8L~4L1(#Sv^3IiA&cDzBibz#<+-B9MC1&uK<8;owK2S5Ec>X71}7>"
    "2DL?{+#oQoS6hu1^S*#49t9Zpggkd}Uj)u~>{1UQ0h-T8(w+GsS5Zfmk6*Q-K&*?=q5o@#**=w{9kcr@2JpY`WUPYFs&~S)<h`>18&A"
    "o9P*-1CWN}`mjTqjB}L|e}lTer!P$ZlW#B2zbBDVg96K+(Cz~K07eiV5C"
))


def bar(rows, x, y, width, height, colour):
    """A filled box with round ends. `rows` are the pixels, each the number of a colour of the palette."""
    radius = height / 2
    for row in range(height):
        inset = round(radius - (radius**2 - (row + 0.5 - radius) ** 2) ** 0.5)
        rows[y + row][x + inset:x + width - inset] = bytes([colour]) * (width - 2 * inset)


def write(rows, x, y, text, colour, scale=2, right=False):
    x -= 6 * scale * len(text) if right else 0
    for place, character in enumerate(text.encode("ascii", "replace")):
        for row in range(13 * scale):
            bits = FONT[(character - 32) * 13 + row // scale]
            for column in range(6 * scale):
                if bits >> (7 - column // scale) & 1:
                    rows[y + row][x + place * 6 * scale + column] = colour


def save(rows, path):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">2I5B", len(rows[0]), len(rows), 8, 3, 0, 0, 0)) + chunk(b"PLTE", PALETTE)
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(b"\x89PNG\r\n\x1a\n" + head + pixels + chunk(b"IEND", b""))
    unfinished.replace(path)


def chart(disks):
    rows = [bytearray(900) for _ in range(110 + 92 * len(disks))]
    write(rows, 40, 30, f"Disk use of {socket.gethostname()[:30]}", INK, 3)
    for y, (name, percent, size, _) in zip(range(106, len(rows), 92), disks, strict=False):
        colour = RED if percent >= LIMIT_PERCENT else AMBER if percent >= LIMIT_PERCENT - 15 else GREEN
        write(rows, 40, y, name[:30], INK)
        write(rows, 860, y, f"{percent:.0f} % of {size / 1e9:,.1f} GB", GREY, right=True)
        bar(rows, 40, y + 34, 820, 24, TRACK)
        bar(rows, 40, y + 34, max(24, round(8.2 * percent)), 24, colour)
    save(rows, PICTURE)


disks, lines = {}, []
for name in DISKS:
    try:
        device, (_, used, free) = os.stat(name).st_dev, shutil.disk_usage(name)
        size = max(1, used + free)  # what is set aside for root alone does not count, as in df
        disks.setdefault(device, (name, 100 * used / size, size, free))  # two names of a disk are one
    except OSError as error:
        lines.append(f"`{name}` cannot be looked at: {error.strerror}.")
lines += [f"`{name}` is *{percent:.0f} % full*, {free / 1e9:,.1f} GB are free."
          for name, percent, _, free in disks.values() if percent >= LIMIT_PERCENT]
if disks and lines:
    chart(list(disks.values()))
print(json.dumps({
    "notify": bool(lines),
    "title": f"Disk use of {socket.gethostname()}",
    "message": "\n".join(lines),
    "image_path": str(PICTURE) if disks and lines else None,
    "cooldown": COOLDOWN,
}))
