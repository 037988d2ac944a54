"""The arguments of a Bot API call, from wherever a client may put them: the query, a form, JSON, a multipart form."""

from __future__ import annotations

import json
import urllib.parse
from email.message import Message
from email.parser import HeaderParser

from telegram.methods import Args


def read_form(query: str, content_type: str, body: bytes) -> Args:
    """Every value becomes text, objects their JSON. What cannot be read is ignored, as the Bot API server does."""
    texts = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    files = {}
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        texts.update(_json(body))
    elif kind == "application/x-www-form-urlencoded":
        texts.update(urllib.parse.parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
    elif kind == "multipart/form-data":
        _multipart(content_type, body, texts, files)
    return Args(texts, files)


def _json(body: bytes) -> dict:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items() if value is not None}


def _multipart(content_type: str, body: bytes, texts: dict, files: dict) -> None:
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary()
    if not boundary:
        return
    delimiter = b"\r\n--" + boundary.encode("utf-8", "replace")
    for part in (b"\r\n" + body).split(delimiter)[1:-1]:
        head, separator, content = part.partition(b"\r\n\r\n")
        headers = HeaderParser().parsestr(head.decode("utf-8", "replace").lstrip("\r\n"))
        name = headers.get_param("name", header="content-disposition")
        if not separator or not isinstance(name, str):
            continue
        filename = headers.get_filename()
        if filename is None:
            texts[name] = content.decode("utf-8", "replace")
        else:
            files[name] = (filename.rpartition("/")[2] or "file", content)
