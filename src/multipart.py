"""multipart/form-data (RFC 7578) from a file on disk: the fields, and one picture copied out of it.

The form is mapped, not read: a picture of 50 MiB costs no memory of its own.
"""

from __future__ import annotations

import email.message
import email.parser
import mmap

MAX_PARTS = 32
MAX_PART_HEADER = 8 << 10
COPY_BYTES = 1 << 20


class FormError(Exception):
    """The form is not what its Content-Type says; the message says where."""


def is_form(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def unpack(content_type: str, form, photo, max_text: int) -> tuple[dict, str | None]:
    """The text fields, and the file name of the part `photo`, whose bytes are written to `photo`; None without one.

    `form` and `photo` are binary files. The text of all fields is at most `max_text` bytes.
    """
    header = email.message.Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary()
    if not boundary or len(boundary) > 200 or not boundary.isascii():
        raise FormError("the Content-Type has no boundary")
    form.flush()
    try:
        with mmap.mmap(form.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _unpack(data, b"--" + boundary.encode(), photo, max_text)
    except ValueError as error:
        raise FormError(f"the form is empty or broken: {error}") from error


def _unpack(data, delimiter: bytes, photo, max_text: int) -> tuple[dict, str | None]:
    fields, photo_name = {}, None
    for disposition, start, end in _parts(data, delimiter):
        name = disposition.get_param("name", header="content-disposition")
        if not isinstance(name, str):
            raise FormError("a part has no name")
        if name == "photo":
            photo_name = disposition.get_filename() or "photo"
            photo.seek(0)
            photo.truncate()
            for position in range(start, end, COPY_BYTES):
                photo.write(data[position:min(position + COPY_BYTES, end)])
            continue
        max_text -= end - start
        if max_text < 0:
            raise FormError("the fields beside the photo are too long")
        try:
            fields[name] = data[start:end].decode()
        except UnicodeDecodeError:
            raise FormError(f"{name} is not UTF-8") from None
    return fields, photo_name


def _parts(data, delimiter: bytes):
    """Each part: its header, and where its content starts and ends."""
    position = data.find(delimiter)
    if position != 0 and (position < 0 or data[position - 2:position] != b"\r\n"):
        raise FormError("the form does not begin with its boundary")
    for _ in range(MAX_PARTS):
        position += len(delimiter)
        if data[position:position + 2] == b"--":
            return
        header_end = data.find(b"\r\n\r\n", position, position + MAX_PART_HEADER)
        end = data.find(b"\r\n" + delimiter, header_end + 4)
        if header_end < 0 or end < 0:
            raise FormError("a part of the form has no end")
        header = email.parser.BytesHeaderParser().parsebytes(data[position:header_end].lstrip() + b"\r\n\r\n")
        yield header, header_end + 4, end
        position = end + 2
    raise FormError(f"the form has over {MAX_PARTS} parts")
