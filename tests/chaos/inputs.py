"""Hostile input, drawn by hypothesis: values, documents, bytes. A seed gives the same ones."""

import copy
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from live import png

NUMBERS = (0, -1, 1, 2 ** 31, 2 ** 63, -2 ** 63, 10 ** 30, 10 ** 400, 1.5, 1e308, float("inf"), float("nan"))
STRINGS = ("", " ", "\0", "\ud800", "é", "😀" * 3, "x" * 5000, "*", "[a](", "/start", "/status", "run:", "page:9" * 9,
           "../../etc/passwd", "2026-13-45T99:99:99Z", "a\nb", "%s%n", "{0}")
FIELDS = ("user", "text", "title", "parse_mode", "script", "silent", "buttons", "wait", "caption", "photo_path",
          "url", "chat_id", "id")
SCALARS = (st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.integers() | st.floats()
           | st.sampled_from(STRINGS) | st.text(max_size=20))
LISTS = st.lists(SCALARS, max_size=3)
VALUES = SCALARS | LISTS | st.dictionaries(st.sampled_from(FIELDS), SCALARS | LISTS, max_size=3)
TOKENS = (b"\r\n", b"\0", b"\xff\xfe", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1", b"--b",
          b'"', b"{" * 5000, b"9" * 30, b":", b" ", b'filename*=utf-8\'\'%ff', b"charset=utf-7;", b"=?utf-8?q?=ff?=")
FORM = (b'--b\r\nContent-Disposition: form-data; name="caption"\r\n\r\nhello\r\n--b\r\n'
        b'Content-Disposition: form-data; name="photo"; filename="a.png"\r\n\r\n%s\r\n--b--\r\n' % png(4, 4))
CORPUS = (
    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /queue HTTP/1.1\r\nHost: x\r\n\r\n",
    b'POST /send HTTP/1.1\r\nHost: x\r\nContent-Length: 26\r\n\r\n{"text": "m", "wait": 0.0}',
    b'POST /send HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nIdempotency-Key: k\r\nContent-Length: 23\r\n\r\n'
    b'{"text": "m", "wait":0}',
    b"POST /send_photo HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(FORM), FORM))
PATHS = (*[b"/send"] * 5, b"/send_photo", b"/queue", b"/queue/retry", b"/queue/drop")
REFUSALS = (
    (400, "Bad Request: x", {}), (400, "Bad Request: can't parse entities", {}), (409, "Conflict", {}),
    (400, "Bad Request: IMAGE_PROCESS_FAILED", {}), (413, "Request Entity Too Large", {}),
    (403, "Forbidden: bot was blocked by the user", {}), (429, "Too Many Requests", {"retry_after": 1}),
    (400, "Bad Request: group chat was upgraded to a supergroup chat", {"migrate_to_chat_id": -5001}))
BATCH = 1000
SELDOM = st.sampled_from((False, False, False, False, True))


def drawn(strategy, seed, count):
    """So many examples. They are not run as hypothesis' own tests, for what is made of one depends on those before."""
    examples = []

    @seeded(seed)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(strategy)
    def draw(example):
        examples.append(example)

    draw()
    return examples


def batches(seed, count, name, *arguments):
    """The examples of a strategy of this module, in lists. To draw takes as long as to try, so one list is drawn while
    the one before is being tried."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        drawing = None
        for start in range(0, count, BATCH):
            before = drawing
            drawing = other.submit(_batch, f"{seed} {start}", min(BATCH, count - start), name, arguments)
            if before:
                yield before.result()
        yield drawing.result()


def _batch(seed, count, name, arguments):
    return drawn(globals()[name](*arguments), seed, count)


def encoded(document):
    return json.dumps(document).encode()


def places(document):
    """Place of a value in a document: its container and its key, from the outside in."""
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        yield document, key
        yield from places(document[key])


@st.composite
def spoilt(draw, document):
    """The document with up to two values replaced, left out or put beside others."""
    box = [copy.deepcopy(document)]
    for _ in range(draw(st.integers(0, 2))):
        found = list(places(box))
        container, key = found[draw(st.integers(0, len(found) - 1))]
        change = draw(st.integers(0, 3))
        if change == 0 and container is not box:
            del container[key]
        elif change == 1 and isinstance(container, dict):
            container[draw(st.sampled_from(FIELDS))] = draw(VALUES)
        else:
            container[key] = draw(VALUES)
    return box[0]


@st.composite
def mangled(draw, data):
    """The bytes with up to two pieces changed, cut, doubled or put in."""
    data = bytearray(data)
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 40)))
        piece = draw(st.sampled_from((b"", bytes(data[start:end]) * 2, *TOKENS)) | st.binary(max_size=3))
        data[start:end] = piece
    return bytes(data[:draw(st.integers(0, len(data)))] if draw(SELDOM) else data)


@st.composite
def files(draw, document):
    """Content of a JSON file."""
    content = encoded(draw(spoilt(document)))
    return draw(mangled(content)) if draw(SELDOM) else content


@st.composite
def requests(draw, users):
    """Bytes for the bot's socket."""
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return draw(mangled(draw(st.sampled_from(CORPUS))))
    if kind == 1:
        return (b"POST /send_photo HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
                + _body(draw(mangled(FORM))))
    body = draw(files({"user": draw(st.sampled_from(users)), "text": "m", "wait": 0, "title": "t", "silent": True,
                       "parse_mode": "HTML", "buttons": [[{"text": "a", "url": "https://x.org"}]]}))
    return b"POST %s HTTP/1.1\r\nHost: x\r\n" % draw(st.sampled_from(PATHS)) + _body(body)


def _body(body):
    return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


@st.composite
def polls(draw, chats):
    """Result of getUpdates: now and then no list; in it some updates, still without an ID."""
    return draw(VALUES) if draw(st.integers(0, 19)) == 0 else [
        draw(VALUES) if draw(st.integers(0, 19)) == 0 else draw(_updates(chats))
        for _ in range(draw(st.integers(1, 4)))]


@st.composite
def _updates(draw, chats):
    person = {"id": draw(st.sampled_from(chats)), "first_name": "J", "username": "j"}
    message = {"message_id": 1, "chat": {**person, "type": "private"}, "from": person,
               "text": draw(st.sampled_from(("/start", "/status", "/whoami@x", "/stop", "hi", "/test")))}
    update = {"message": message} if draw(st.booleans()) else {
        "callback_query": {"id": "1", "data": draw(st.sampled_from(("run:1", "page:1", "stop:yes", "x"))),
                           "from": person, "message": message}}
    return draw(spoilt(update))


@st.composite
def answers(draw, result):
    """Of the Bot API to a method that has this result when all is well."""
    code, description, parameters = draw(st.sampled_from(REFUSALS))
    return draw(spoilt({"ok": draw(st.integers(0, 9)) < 9, "result": result, "error_code": code,
                        "description": description, "parameters": parameters}))
