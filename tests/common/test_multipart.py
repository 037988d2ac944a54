"""Forms: written, sent and read back; the clients of the world are in tests/bot/test_clients.py."""

import io
import os

import pytest

from common import multipart
from common.problem import Problem

PICTURE = b"\x89PNG\r\n\x1a\n--\r\n" + os.urandom(600_000)


def read_back(tmp_path, body, headers, max_text=1000):
    with open(tmp_path / "form", "wb+") as form:
        form.write(body)
        picture = io.BytesIO()
        fields, name = multipart.unpack(headers["Content-Type"], form, picture, max_text)
    return fields, name, picture.getvalue()


@pytest.mark.parametrize("is_file", [False, True])
def test_a_form_comes_back_as_it_was(tmp_path, is_file):
    content = PICTURE
    if is_file:
        (tmp_path / "picture").write_bytes(PICTURE)
        content = open(tmp_path / "picture", "rb")
    pieces, headers = multipart.pack({"caption": "ü *m*\r\n--", "wait": 0, "buttons": [["a", "ž"]]},
                                     {"photo": ("chart.png", content)})
    body = b"".join(pieces)
    assert headers["Content-Length"] == str(len(body))
    fields, name, picture = read_back(tmp_path, body, headers)
    assert fields == {"caption": "ü *m*\r\n--", "wait": "0", "buttons": '[["a", "\\u017e"]]'}
    assert (name, picture) == ("chart.png", PICTURE)
    if is_file:
        content.close()


def test_a_file_is_read_while_it_is_sent(tmp_path):
    with open(tmp_path / "picture", "wb+") as file:
        os.truncate(file.fileno(), 64 << 20)
        pieces, headers = multipart.pack({}, {"photo": ("x", file)})
        assert file.tell() == 0
        assert max(map(len, pieces)) <= multipart.COPY_BYTES
    assert int(headers["Content-Length"]) > 64 << 20


def test_a_file_name_cannot_end_its_header(tmp_path):
    pieces, headers = multipart.pack({}, {"photo": ('a"\r\nb\\.png', b"x")})
    assert read_back(tmp_path, b"".join(pieces), headers)[1:] == ("a___b_.png", b"x")


@pytest.mark.parametrize("content_type, body, reason", [
    ("multipart/form-data", b"x", "no boundary"), ("multipart/form-data; boundary=b", b"", "empty"),
    ("multipart/form-data; boundary=b", b"--b\r\n", "no end"), ("multipart/form-data; boundary=b", b"x", "begin")])
def test_a_broken_form_is_a_problem_of_the_client(tmp_path, content_type, body, reason):
    with pytest.raises(Problem, match=reason) as caught:
        read_back(tmp_path, body, {"Content-Type": content_type})
    assert caught.value.status == 400
