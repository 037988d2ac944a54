"""The link page under what nobody should send: from browsers, and from whatever answers on the bot's socket."""

import contextlib
import json
import socket
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from link_page import PAGE_HEADERS, LinkPage

pytestmark = pytest.mark.root
FORM = "application/x-www-form-urlencoded"
JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4))
CODES = st.from_regex("[0-9]{6}", fullmatch=True) | st.text(max_size=12) | JSON
HEADER = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=60)
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def page(tmp_path):
    with contextlib.closing(LinkPage(tmp_path)) as page:
        page.links.redeem(page.code(43, "Bob"), "bob", 3002)
        yield page


def holds(page, answer):
    """Whatever was asked: an answer that is whole, and bob's link is as it was. `finish` has seen no traceback."""
    assert answer.status in (200, 303, 400, 401, 403, 404, 405, 413, 415, 429, 503)
    if answer.body and answer.headers.get("content-type") == "application/json":
        assert answer.json
        assert answer.status == 200 or answer.error
    assert page.links.of_user("bob").chat_id == 43
    assert page.links.all().keys() == {"bob"}


@FEW
@given(action=st.sampled_from(["verify", "check", "unlink", "test", "run", "invite"]), body=st.binary(max_size=300))
def test_bytes_as_json(page, action, body):
    holds(page, page.request("POST", f"/api/telegram/{action}", body))


@FEW
@given(action=st.sampled_from(["verify", "check", "run"]), body=JSON | st.fixed_dictionaries(
    {}, optional={"code": CODES, "name": CODES, "user": st.just("bob")}))
def test_documents_as_json(page, action, body):
    page.path("link_guesses.json").unlink(missing_ok=True)
    body = json.dumps(body).encode()
    holds(page, page.request("POST", f"/api/telegram/{action}", body))


@FEW
@given(body=st.binary(max_size=200) | st.text("tokendcrify=&%+0123456789", max_size=200).map(str.encode),
       known=st.booleans())
def test_bytes_as_a_form(page, body, known):
    cookie = "__Host-notify_form=" + "0" * 32
    body = (b"token=" + b"0" * 32 + b"&" if known else b"") + body
    holds(page, page.request("POST", "/telegram", body, CONTENT_TYPE=FORM, HTTP_COOKIE=cookie, **PAGE_HEADERS))


@FEW
@given(path=HEADER, query=HEADER, method=st.sampled_from(["GET", "POST", "HEAD", "X"]),
       base=st.sampled_from(["/telegram", "/api/telegram/", "/api/telegram/status", "", "/telegram/webapp."]))
def test_addresses(page, path, query, method, base):
    holds(page, page.request(method, base, b"", SCRIPT_NAME=base, PATH_INFO=path, QUERY_STRING=query))


@FEW
@given(headers=st.dictionaries(st.sampled_from(
    ["HTTP_ACCEPT", "HTTP_COOKIE", "HTTP_ORIGIN", "HTTP_HOST", "HTTP_SEC_FETCH_SITE", "CONTENT_TYPE", "CONTENT_LENGTH",
     "REMOTE_USER", "AUTH_TYPE", "HTTPS", "OIDC_CLAIM_email_verified", "NOTIFY_SSO_DOMAINS", "QUERY_STRING"]), HEADER))
def test_headers(page, headers):
    if headers.get("REMOTE_USER") == "bob":
        return
    for method in ("GET", "POST"):
        holds(page, page.request(method, "/telegram", b"", **headers))
        holds(page, page.request("POST", "/api/telegram/unlink", b"{}", **headers))


@FEW
@given(codes=JSON | st.dictionaries(st.just("123456"), st.fixed_dictionaries({}, optional={
    "chat_id": JSON, "created_at": JSON, "chat_name": JSON})), users=JSON | st.dictionaries(st.just("alice"), JSON),
    guesses=JSON | st.dictionaries(st.just("alice"), JSON))
def test_files_of_other_software(tmp_path_factory, page, codes, users, guesses):
    for name, document in (("pending_codes", codes), ("telegram_users", users), ("link_guesses", guesses)):
        page.path(f"{name}.json").write_text(json.dumps(document))
    for answer in (page.get("/api/telegram/status"), page.open(), page.api("check", {"code": "123456"}),
                   page.api("verify", {"code": "123456"}), page.open(), page.api("unlink")):
        assert answer.status in (200, 400, 429, 503)
    for name in ("pending_codes", "telegram_users", "link_guesses"):
        page.path(f"{name}.json").unlink()


class Other:
    """A stand-in on the bot's socket that answers with some bytes; None leaves the connection open and silent."""

    def __init__(self, path, answer):
        self.answer, self.asked = answer, []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        kept = []
        while True:
            connection, _ = self._listener.accept()
            data = connection.recv(65536)
            if data == b"end":
                break
            self.asked.append(data)
            if self.answer is None:
                kept.append(connection)
                continue
            with contextlib.suppress(OSError):
                connection.sendall(self.answer)
            connection.close()
        for one in (connection, *kept, self._listener):
            one.close()

    def close(self):
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self._listener.getsockname())
            last.sendall(b"end")
            self._thread.join()


def http(status, document, more=""):
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n{more}\r\n".encode() + data


@pytest.mark.parametrize("answer", [
    b"", b"\r\n\r\n", b"nonsense", http(200, b"nonsense"), http(200, []), http(200, {"ok": True})[:-1], http("x", {}),
    http(200, {}) + b"more", http(500, {"ok": False, "error": "x"}), http(400, {"ok": False, "error": "x"}),
    http(200, b"[" * 100_000), http(200, {"x": "y" * (2 << 20)}), b"HTTP/1.1 200 OK\r\n\r\n{}", b"\xff" * 1000,
    b"SSH-2.0-x\r\nContent-Length: 2\r\n\r\n{}",
], ids=range(15))
def test_an_answer_that_is_none_is_a_bot_that_is_away(page, answer):
    with contextlib.closing(Other(page.folder / "web.sock", answer)):
        for action in ("test", "invite", "run"):
            asked = page.api(action, {"name": "x.py"})
            assert asked.status == 503 and "not answering" in asked.error
        opened = page.open()
        assert opened.status == 200 and page.api("verify", {"code": page.code()}).status == 200


def test_a_bot_that_hangs_holds_nobody_for_long(page):
    with contextlib.closing(Other(page.folder / "web.sock", None)):
        answer = page.api("invite")
    assert answer.status == 503 and "not answering" in answer.error


@pytest.mark.parametrize("url", [None, 5, "", "javascript:alert(1)", "http://t.me/x", "https://t.me.evil.example/",
                                 "https://evil.example/?https://t.me/"])
def test_an_invite_leads_to_telegram_or_nowhere(page, url):
    with contextlib.closing(Other(page.folder / "web.sock", http(200, {"ok": True, "url": url, "expires": 5}))):
        assert page.api("invite").status == 503


@pytest.mark.parametrize(("status", "more"), [(404, ""), (409, ""), (429, "Retry-After: 7\r\n"), (502, ""),
                                              (503, "Retry-After: 5\r\n")])
def test_what_the_bot_refuses_is_passed_on(page, status, more):
    refused = http(status, {"ok": False, "error": "Because <b>."}, more)
    with contextlib.closing(Other(page.folder / "web.sock", refused)) as bot:
        for action in ("test", "run", "invite"):
            answer = page.api(action, {"name": "x.py", "user": "bob", "chat_id": 43})
            assert (answer.status, answer.error) == (status, "Because <b>.")
            assert answer.headers.get("retry-after") == (more.split()[1] if more else None)
        page.links.redeem(page.code(), "alice", 3001)
        answer = page.press("test")
        assert answer.status == status and "Because <b>." in answer.page.words
    asked = [json.loads(data.partition(b"\r\n\r\n")[2]) for data in bot.asked]
    assert asked[:3] == [{"user": "alice"}, {"user": "alice", "name": "x.py"}, {"user": "alice"}]


@FEW
@given(data=st.data())
def test_a_card_of_any_content_is_text(page, data):
    """The shapes are the bot's, the words are anybody's."""
    text = st.text(max_size=20) | st.sampled_from(["<script>x</script>", '"><img src=x>', "{user}", "\ud800"])
    time = st.none() | st.integers() | st.floats()
    card = data.draw(st.fixed_dictionaries({
        "ok": st.just(True), "bot": st.none() | st.just("my_bot"), "health": st.none() | text,
        "scripts_error": st.none() | text,
        "scripts": st.lists(st.fixed_dictionaries(
            {"name": text, "schedule": st.none() | text, "last_run": time, "next_run": time, "running": st.booleans(),
             "can_run": st.booleans(), "problem": st.none() | text}), max_size=3),
        "notifications": st.lists(st.fixed_dictionaries(
            {"at": time, "title": st.none() | text, "script": st.none() | text, "reason": st.none() | text,
             "state": st.sampled_from(["delivered", "queued", "failed"])}), max_size=3)}))
    path = page.folder / "web.sock"
    path.unlink(missing_ok=True)
    with contextlib.closing(Other(path, http(200, card))):
        for user in ("alice", "bob"):
            answer = page.open(user=user)
            assert answer.status == 200 and "<script>x" not in answer.text and "<img" not in answer.text
            assert "Logged in as" in answer.page.words
