"""multipart/form-data (RFC 7578): a reader of forms with one picture, and a writer.

Files are mapped or read in pieces: a picture of 50 MiB costs no memory of its own.
"""

from __future__ import annotations

import json
import mmap
import os
import re
from urllib.parse import unquote

from common.problem import Problem

MAX_PARTS = 32
MAX_PART_HEADER = 8 << 10
COPY_BYTES = 256 << 10

_PARAMETER = re.compile(r""";[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:"((?:[^"\\]|\\.)*)"|([^;"\s]+))[ \t]*""")
_ALL_QUOTED = re.compile("(?:[0-9A-Za-z_.~-]|%[0-9A-F]{2})+")


def is_form(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def unpack(content_type: str, form, photo, max_text: int) -> tuple[dict, str | None]:
    """The text fields, and the file name of the part `photo`, whose bytes are written to `photo`; None without one.

    `form` and `photo` are binary files. The text of all fields is at most `max_text` bytes. Raises Problem.
    """
    boundary = _parameters(content_type).get("boundary")
    if not boundary or len(boundary) > 200 or not boundary.isascii():
        raise Problem(400, "the Content-Type has no boundary")
    form.flush()
    try:
        with mmap.mmap(form.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _unpack(data, b"--" + boundary.encode(), photo, max_text)
    except ValueError as error:
        raise Problem(400, f"the form is empty or broken: {error}") from error


def pack(fields: dict, files: dict) -> tuple:
    """The form as an iterable of bytes, and its headers.

    `fields` go as text, those that are no strings as JSON. `files`: `{name: (file name, bytes or binary file)}`.
    """
    boundary = os.urandom(16).hex()
    pieces = []
    for name, value in fields.items():
        text = value if isinstance(value, str) else json.dumps(value)
        pieces.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode())
    for name, (file_name, content) in files.items():
        safe = "".join("_" if char in '"\\' or not char.isprintable() else char for char in file_name)
        pieces += [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{safe}"\r\n'
                   "Content-Type: application/octet-stream\r\n\r\n".encode(), content, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode())
    length = sum(len(piece) if isinstance(piece, bytes) else os.fstat(piece.fileno()).st_size for piece in pieces)
    return _body(pieces), {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Length": str(length)}


def _body(pieces: list):
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
            continue
        while data := piece.read(COPY_BYTES):
            yield data


def _unpack(data, delimiter: bytes, photo, max_text: int) -> tuple[dict, str | None]:
    fields, photo_name = {}, None
    for header, start, end in _parts(data, delimiter):
        disposition = _disposition(header)
        name = disposition.get("name")
        if name is None:
            raise Problem(400, "a part has no name")
        if name in fields or name == "photo" and photo_name is not None:
            raise Problem(400, f"{name[:80]} is there twice")
        if name == "photo":
            photo_name = _file_name(disposition)
            for position in range(start, end, COPY_BYTES):
                photo.write(data[position:min(position + COPY_BYTES, end)])
            continue
        max_text -= end - start
        if max_text < 0:
            raise Problem(400, "the fields beside the photo are too long")
        try:
            fields[name] = data[start:end].decode()
        except UnicodeDecodeError:
            raise Problem(400, f"{name} is not UTF-8") from None
    return fields, photo_name


def _parts(data, delimiter: bytes):
    """For each part, the bytes of its header, and the start and end of its content."""
    position = data.find(delimiter)
    if position != 0 and (position < 0 or data[position - 2:position] != b"\r\n"):
        raise Problem(400, "the form does not begin with its boundary")
    for _ in range(MAX_PARTS):
        position += len(delimiter)
        if data[position:position + 2] == b"--":
            return
        header_end = data.find(b"\r\n\r\n", position, position + MAX_PART_HEADER)
        end = data.find(b"\r\n" + delimiter, header_end + 4)
        if header_end < 0 or end < 0:
            raise Problem(400, "a part of the form has no end")
        yield data[position:header_end], header_end + 4, end
        position = end + 2
    raise Problem(400, f"the form has over {MAX_PARTS} parts")


def _disposition(header: bytes) -> dict[str, str]:
    for line in header.decode("utf-8", "replace").split("\r\n"):
        name, _, value = line.partition(":")
        if name.lower() == "content-disposition":
            return _parameters(value)
    return {}


def _parameters(value: str) -> dict[str, str]:
    """The parameters of a header's value, the first of each name in lower case, up to a defect."""
    found, position = {}, value.find(";")
    while position >= 0 and (match := _PARAMETER.match(value, position)):
        quoted = match[2]
        # Only these two are escaped (RFC 9110, 5.6.4): a browser writes the backslash of a name as it is.
        text = match[3] if quoted is None else re.sub(r'\\(["\\])', r"\1", quoted)
        found.setdefault(match[1].lower(), text)
        position = match.end()
    return found


def _file_name(disposition: dict[str, str]) -> str:
    """The name of a file as its owner knows it; "photo" without one.

    Clients differ: `filename*` (RFC 8187), all of it percent-encoded (aiohttp), or only quotes and line ends (HTML).
    """
    charset, _, extended = disposition.get("filename*", "").partition("'")
    name = disposition.get("filename", "")
    if charset.lower() == "utf-8":
        name = unquote(extended.partition("'")[2])
    elif _ALL_QUOTED.fullmatch(name):
        name = unquote(name)
    else:
        name = re.sub("%(22|0D|0A)", lambda match: chr(int(match[1], 16)), name)
    return name or "photo"
