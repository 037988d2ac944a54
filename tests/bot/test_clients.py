"""The send API as other people's clients speak to it: names of files in UTF-8, and bodies in chunks."""

import asyncio
import http.client
import io
import os
import shutil
import socket
import subprocess

import aiohttp
import httpx
import pytest
import requests_unixsocket

from live import ME, Bot, Telegram, png
from machine import CHECKOUT

CHAT = 4300
NAME = "grün 图.png"
RIBBON = png(4000, 20)  # no photo for Telegram, so it arrives as a file, which has a name
NODE = CHECKOUT / "tests" / "support" / "node"
# Go's mime/multipart writes a form so, and net/http sends a pipe in chunks.
GO_FORM = ('--2d5a\r\nContent-Disposition: form-data; name="caption"\r\n\r\ngo\r\n--2d5a\r\n'
           'Content-Disposition: form-data; name="photo"; filename="{}"\r\n'
           'Content-Type: application/octet-stream\r\n\r\n')
GO_HEAD = (b"POST /send_photo HTTP/1.1\r\nHost: localhost\r\nUser-Agent: Go-http-client/1.1\r\n"
           b"Transfer-Encoding: chunked\r\nContent-Type: multipart/form-data; boundary=2d5a\r\n"
           b"Accept-Encoding: gzip\r\n\r\n")


@pytest.fixture(scope="module")
def telegram(tmp_path_factory):
    telegram = Telegram(tmp_path_factory.mktemp("sandbox"))
    telegram.person(CHAT)
    telegram.types(CHAT, "hi")
    yield telegram
    assert telegram.stop() == 0


@pytest.fixture(scope="module")
def bot(tmp_path_factory, telegram):
    bot = Bot(tmp_path_factory.mktemp("clients"), telegram.url)
    bot.users(**{ME: CHAT})
    bot.start()
    yield bot
    assert "Traceback" not in bot.log
    assert bot.stop() == 0


def with_requests(bot, path, name):
    with requests_unixsocket.Session() as session:
        return session.post(bot.url + "/send_photo", files={"photo": (name, RIBBON)},
                            data={"caption": "requests"}).status_code


def httpx_client(bot):
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(bot.socket_path)), base_url="http://localhost",
                        timeout=30)


def with_httpx(bot, path, name):
    with httpx_client(bot) as client:
        return client.post("/send_photo", files={"photo": (name, RIBBON)}, data={"caption": "httpx"}).status_code


def by_aiohttp(bot, path, **body):
    async def post():
        async with (aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(bot.socket_path))) as session,
                    session.post(f"http://localhost{path}", **body) as answer):
            return answer.status
    return asyncio.run(post())


def with_aiohttp(bot, path, name):
    form = aiohttp.FormData({"caption": "aiohttp"})
    form.add_field("photo", io.BytesIO(RIBBON), filename=name)
    return by_aiohttp(bot, "/send_photo", data=form)


def with_aiohttp_unquoted(bot, path, name):
    form = aiohttp.FormData({"caption": "aiohttp"}, quote_fields=False)
    form.add_field("photo", RIBBON, filename=name)
    return by_aiohttp(bot, "/send_photo", data=form)


def curl(bot, *arguments, data=b""):
    done = subprocess.run(["curl", "--silent", "--show-error", "--max-time", "30", "--unix-socket", bot.socket_path,
                           "--write-out", "%{http_code}", "--output", os.devnull, *arguments], input=data,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def with_curl(bot, path, name):
    shutil.copy(path, path.with_name(name))
    quoted = str(path.with_name(name)).replace('"', r'\"')
    return curl(bot, "--form", f'photo=@"{quoted}"', "--form", "caption=curl", "http://localhost/send_photo")


def node(bot, *arguments):
    done = subprocess.run(["node", NODE / "send.mjs", bot.socket_path, *arguments], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def with_undici(bot, path, name):
    return node(bot, "undici-form", path, name)


def with_form_data(bot, path, name):
    return node(bot, "form-data", path, name)


def with_go(bot, path, name):
    form = GO_FORM.format(name.replace('"', r"\"")).encode() + RIBBON + b"\r\n--2d5a--\r\n"
    with bot.connect() as connection:
        connection.sendall(GO_HEAD + b"%x\r\n%s\r\n0\r\n\r\n" % (len(form), form))
        return int(connection.recv(65536).split()[1])


def with_extended_name(bot, path, name):
    """RFC 8187, as urllib3 wrote it before version 2, beside a name for those that do not know it."""
    form = (f"--b\r\nContent-Disposition: form-data; name=\"photo\"; filename=\"x.png\"; filename*=utf-8''"
            f"{httpx.URL('http://x/', params={'n': name}).query[2:].decode().replace('+', '%20')}\r\n\r\n"
            ).encode() + RIBBON + b"\r\n--b--\r\n"
    return bot.post("/send_photo", data=form, headers={"Content-Type": 'multipart/form-data; boundary="b"'}).status_code


def of(*clients):
    """Parameters of a test; those written for node need npm."""
    def marks(client):
        return pytest.mark.needs("npm") if "node" in client.__code__.co_names else ()
    return [pytest.param(client, id=client.__name__, marks=marks(client)) for client in clients]


CLIENTS = (with_requests, with_httpx, with_aiohttp, with_aiohttp_unquoted, with_curl, with_undici, with_form_data,
           with_go, with_extended_name)


@pytest.mark.parametrize("client", of(*CLIENTS))
def test_the_name_of_a_file_arrives_as_it_was(bot, telegram, tmp_path, client):
    (tmp_path / "file").write_bytes(RIBBON)
    assert client(bot, tmp_path / "file", NAME) == 200
    documents = [message["document"] for message in telegram.messages(CHAT) if "document" in message]
    assert documents[-1]["file_name"] == NAME


@pytest.mark.parametrize("client", of(*(client for client in CLIENTS if client is not with_form_data)))
def test_quotes_and_percent_signs_in_a_name_end_nothing(bot, telegram, tmp_path, client):
    """A quote cannot be in a name at Telegram; form-data writes it as it is, so the name ends there."""
    (tmp_path / "file").write_bytes(RIBBON)
    assert client(bot, tmp_path / "file", 'a "b" 50%25 c.png') == 200
    assert telegram.messages(CHAT)[-1]["document"]["file_name"] == "a b 50%25 c.png"


def text_by_requests(bot):
    with requests_unixsocket.Session() as session:
        return session.post(bot.url + "/send", data=iter([b'{"text": ', b'"requests"}'])).status_code


def text_by_httpx(bot):
    with httpx_client(bot) as client:
        return client.post("/send", content=iter([b'{"text": ', b'"httpx"}'])).status_code


def text_by_aiohttp(bot):
    async def pieces():
        yield b'{"text": '
        yield b'"aiohttp"}'
    return by_aiohttp(bot, "/send", data=pieces())


def text_by_http_client(bot):
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(bot.socket_path))
    connection.request("POST", "/send", iter([b'{"text": ', b'"http_client"}']))
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def text_by_curl(bot):
    return curl(bot, "--upload-file", "-", "--request", "POST", "http://localhost/send", data=b'{"text": "curl"}')


def text_by_undici_stream(bot):
    return node(bot, "undici-stream")


def text_by_node_stream(bot):
    return node(bot, "node-stream")


@pytest.mark.parametrize("client", of(text_by_requests, text_by_httpx, text_by_aiohttp, text_by_http_client,
                                      text_by_curl, text_by_undici_stream, text_by_node_stream))
def test_a_text_in_chunks_arrives(bot, telegram, client):
    assert client(bot) == 200
    assert telegram.texts(CHAT)[-1] == client.__name__.removeprefix("text_by_").replace("_stream", "-stream")


@pytest.mark.parametrize("parts", [("photo", "photo"), ("photo", "caption", "caption")])
def test_a_part_that_is_there_twice_is_refused(bot, parts):
    form = b"".join(b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (part.encode(), RIBBON[:40])
                    for part in parts) + b"--b--\r\n"
    answer = bot.post("/send_photo", data=form.replace(RIBBON[:40], b"x"),
                      headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert (answer.status_code, answer.json()["error"]) == (400, f"{parts[-1]} is there twice")
