"""The link page's addresses and its page, each request a CGI process of its own."""

import contextlib
import json
import re
from urllib.parse import urlencode

import pytest
import segno

from common.links import CODE_SECONDS
from link_page import PAGE_HEADERS, LinkPage
from live import Bot, Telegram, until

pytestmark = pytest.mark.root
ACTIONS = ["verify", "check", "unlink", "invite", "test", "run"]
FORM = "application/x-www-form-urlencoded"
HERE, THERE = "https://dash.example", "https://evil.example"


@pytest.fixture
def page(tmp_path):
    with contextlib.closing(LinkPage(tmp_path)) as page:
        yield page


@pytest.fixture
def bot(page):
    """A bot on the same files, with Jana in the sandbox."""
    telegram = Telegram(page.folder)
    telegram.person(42, "Jana", "jana")
    telegram.types(42, "hi")  # a bot writes to nobody who has not written to it
    bot = Bot(page.folder, telegram.url, NOTIFY_WEB_SOCKET=str(page.folder / "web.sock"))
    bot.within = ("nsenter", "-t", str(page.namespace.pid), "--mount")  # where the page's people have accounts
    bot.start().settle()
    bot.telegram = telegram
    yield bot
    assert bot.stop() in (0, None)
    assert telegram.stop() == 0


def test_a_code_is_checked_and_links_and_is_used_up(page):
    code = page.code()
    for _ in range(2):
        answer = page.api("check", {"code": code})
        assert (answer.status, answer.json) == (200, {"chat": "Jana (@jana)"})
    assert page.status() == {"linked": False}
    answer = page.api("verify", {"code": code})
    assert (answer.status, answer.json) == (200, {"ok": True, "message": "Linked to Jana (@jana)."})
    status = page.status()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", status.pop("linked_at"))
    assert status == {"linked": True, "chat": "Jana (@jana)", "blocked": None}
    for action in ("check", "verify"):
        answer = page.api(action, {"code": code}, user="bob")
        assert answer.status == 400 and "not valid" in answer.error
    assert not page.status("bob")["linked"]


def test_an_expired_code_is_said_to_be(page):
    code = page.links.create_code(42, "Jana", now=page.path(".").stat().st_mtime - CODE_SECONDS)
    assert "expired" in page.api("verify", {"code": code}).error
    assert not page.status()["linked"]


def test_unlink_is_harmless_without_a_link(page):
    page.api("verify", {"code": page.code()})
    for message in ("Disconnected.", "Nothing was linked."):
        answer = page.api("unlink")
        assert (answer.status, answer.json) == (200, {"ok": True, "message": message})
        assert page.status() == {"linked": False}


def test_an_empty_body_is_an_empty_object(page):
    assert page.request("POST", "/api/telegram/unlink", b"").status == 200


def test_a_chat_without_a_name_has_words_all_the_same(page):
    page.path("pending_codes.json").write_text(json.dumps(
        {"111111": {"chat_id": 5, "created_at": page.path(".").stat().st_mtime}}))
    assert page.api("check", {"code": "111111"}).json == {"chat": "a chat without a name"}
    assert page.api("verify", {"code": "111111"}).json["message"] == "Linked to a chat without a name."
    assert "Connected to your chat" in page.open().page.words


def test_blocked_is_said_with_the_way_out(page):
    page.api("verify", {"code": page.code()})
    page.links.mark_blocked(page.links.of_user("alice"), "Forbidden: bot was blocked by the user")
    assert page.status()["blocked"] == "Forbidden: bot was blocked by the user"
    words = page.open().page.words
    assert "does not deliver to this chat any more" in words and "unblock the bot" in words
    assert "Forbidden: bot was blocked by the user" in words


@pytest.mark.parametrize(("path", "methods"), [
    ("/telegram", "GET, HEAD, POST"), ("/api/telegram/status", "GET, HEAD"),
    *((f"/api/telegram/{action}", "POST") for action in ACTIONS)])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "get", ""])
def test_a_wrong_method_is_told_the_right_ones(page, path, methods, method):
    if method in methods.split(", "):
        return
    answer = page.request(method, path)
    assert (answer.status, answer.headers["allow"]) == (405, methods)


@pytest.mark.parametrize("path", ["", "/", "/telegramm", "/api/telegram", "/api/telegram/", "/api/telegram/nosuch",
                                  "/api/telegram/status/x", "/api/telegram/../telegram/status", "/telegram/status",
                                  "/telegram/webapp.css", "/telegram/webapp.0000000000000000.css", "/telegram/webapp.",
                                  "/telegram/webapp.x.py", "/telegram/webapp.../../links.py", "/api/telegram/ACTIONS"])
def test_an_unknown_address_is_none(page, path):
    for user in ("alice", ""):
        assert page.get(path, user=user).status == 404
        assert page.request("POST", path, {}, user=user).status == 404 or path.startswith("/telegram/webapp")


def test_a_browser_is_answered_in_html_and_the_api_in_json(page):
    for path, accept, kind in (("/api/telegram/nosuch", None, "application/json"),
                               ("/api/telegram/nosuch", "*/*", "application/json"),
                               ("/api/telegram/nosuch", "text/html,*/*;q=0.8", "text/html; charset=utf-8"),
                               ("/telegram/nosuch", None, "text/html; charset=utf-8"),
                               ("/telegram/nosuch", "text/html", "text/html; charset=utf-8")):
        answer = page.get(path, HTTP_ACCEPT=accept)
        assert (answer.status, answer.headers["content-type"]) == (404, kind)
        if kind == "application/json":
            assert answer.error
        else:
            assert "nothing at this address" in answer.page.words


@pytest.mark.parametrize(("script", "rest"), [
    ("", "/telegram"), ("/telegram", ""), ("/telegram", None), ("/telegram/", ""), ("/", "telegram"),
    ("", "/telegram/"), ("/", "/telegram")])
def test_the_page_is_found_however_it_is_mounted(page, script, rest):
    answer = page.get("", SCRIPT_NAME=script, PATH_INFO=rest)
    assert answer.status == 200 and "Telegram notifications" in answer.page.words


@pytest.mark.parametrize(("script", "rest"), [("", "/api/telegram/status"), ("/api/telegram", "/status"),
                                              ("/api/telegram/", "/status"), ("/api", "/telegram/status"),
                                              ("/api/telegram/status", "")])
def test_the_api_is_found_however_it_is_mounted(page, script, rest):
    assert page.get("", SCRIPT_NAME=script, PATH_INFO=rest).json == {"linked": False}


@pytest.mark.parametrize("action", ACTIONS)
def test_the_api_takes_json_alone(page, action):
    for kind in (None, "", "text/plain", FORM, "multipart/form-data; boundary=x", "application/jsonp", "text/json",
                 "application/json-seq", "application/x-json, application/json"):
        answer = page.api(action, {"code": "123456"}, CONTENT_TYPE=kind)
        assert answer.status == 415 and "application/json" in answer.error
    assert page.wrong_codes() == {}


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/json ;x=y"])
def test_json_may_have_parameters(page, kind):
    assert page.api("unlink", CONTENT_TYPE=kind).status == 200


@pytest.mark.parametrize("body", [b"nonsense", b"{", b"[]", b"null", b"1", b'"x"', b"[" * 4000, b"\xff\xfe",
                                  b"1" * 4096, b'{"code": "123456"} x', b"\x00"])
def test_a_body_that_is_no_object_is_400(page, body):
    answer = page.request("POST", "/api/telegram/verify", body)
    assert answer.status == 400 and "JSON" in answer.error


def test_a_body_over_4_kib_is_not_read(page):
    exact = json.dumps({"code": page.code(), "x": ""}).encode()
    exact = exact.replace(b'""', b'"' + b"x" * (4096 - len(exact)) + b'"')
    assert len(exact) == 4096 and page.request("POST", "/api/telegram/check", exact).status == 200
    for body in (exact + b" ", exact + b" " * 100_000):
        answer = page.request("POST", "/api/telegram/verify", body)
        assert answer.status == 413 and "4096" in answer.error
    for length in ("99999999999", "1" * 5000):
        assert page.request("POST", "/api/telegram/verify", b"{}", CONTENT_LENGTH=length).status == 413


@pytest.mark.parametrize("length", ["-1", "+2", "2 ", "0x2", "2.0", "\u0662", "\udcb2", "1_0", "x", "3"])
def test_a_length_that_is_none_is_400(page, length):
    assert page.request("POST", "/api/telegram/unlink", b"{}", CONTENT_LENGTH=length).status == 400


@pytest.mark.parametrize("name", ["telegram_users.json", "pending_codes.json", "link_guesses.json"])
@pytest.mark.parametrize("content", ["", "nonsense", "[]", '{"alice": '])
def test_a_store_that_cannot_be_read_is_503_and_is_left_alone(page, name, content):
    code = page.code()
    page.path(name).write_text(content)
    answer = page.api("verify", {"code": code})
    assert answer.status == 503 and name in answer.errors
    assert "/" not in answer.error and str(page.data) not in answer.text
    if name == "telegram_users.json":
        assert page.get("/api/telegram/status").status == 503
        answer = page.open()
        assert answer.status == 503 and "administrator" in answer.page.words and name in answer.errors
    assert page.path(name).read_text() == content


def test_a_store_of_somebody_else_is_503(page):
    page.code()
    page.data.chmod(0o700)
    page.as_whom = ("setpriv", "--reuid=33", "--regid=33", "--clear-groups")
    page.folder.chmod(0o755)
    assert page.get("/api/telegram/status").status == 503
    assert page.api("verify", {"code": "123456"}).status == 503


# Same-origin requests, as browsers mark them.
ORIGINS = [
    ({"HTTP_ORIGIN": HERE}, True), ({"HTTP_SEC_FETCH_SITE": "same-origin"}, True),
    ({"HTTP_ORIGIN": HERE, "HTTP_SEC_FETCH_SITE": "same-origin"}, True),
    ({"HTTP_ORIGIN": "HTTPS://DASH.example"}, True), ({"HTTP_ORIGIN": HERE, "HTTP_HOST": "dash.example:443"}, True),
    ({"HTTP_ORIGIN": HERE + ":8443", "HTTP_HOST": "dash.example:8443"}, True),
    ({"HTTP_ORIGIN": "http://dash.example", "HTTPS": None}, True), ({}, False),
    ({"HTTP_REFERER": HERE + "/telegram"}, False),
    *(({"HTTP_SEC_FETCH_SITE": site}, False) for site in ("cross-site", "same-site", "none", "x", "same-origin, none")),
    *(({"HTTP_ORIGIN": HERE, "HTTP_SEC_FETCH_SITE": site}, False) for site in ("cross-site", "same-site", "none")),
    *(({"HTTP_ORIGIN": origin} | site, False) for origin in (
        THERE, "null", "http://dash.example", HERE + ":8443", HERE + "/", HERE + ".evil.example", "dash.example",
        "https://sub.dash.example", f"{HERE}, {THERE}", "https://dash.example@evil.example", " ")
      for site in ({}, {"HTTP_SEC_FETCH_SITE": "same-origin"})
      if not (origin == "null" and site)),
    ({"HTTP_ORIGIN": "null", "HTTP_SEC_FETCH_SITE": "same-site"}, False),
    ({"HTTP_ORIGIN": HERE, "HTTP_HOST": "evil.example"}, False),
    ({"HTTP_ORIGIN": "https://", "HTTP_HOST": None}, False),
    ({"HTTP_ORIGIN": THERE, "HTTP_X_FORWARDED_HOST": "evil.example"}, False),
    ({"HTTP_ORIGIN": HERE, "HTTP_X_REQUESTED_WITH": "XMLHttpRequest", "HTTP_SEC_FETCH_SITE": "cross-site"}, False),
]


@pytest.mark.parametrize(("headers", "allowed"), ORIGINS, ids=[str(headers) for headers, _ in ORIGINS])
def test_only_the_page_itself_may_ask(page, headers, allowed):
    headers = {"HTTP_ORIGIN": None} | headers
    page.api("verify", {"code": page.code()})
    opened = page.open(HTTPS=headers.get("HTTPS", "on"))
    fields = opened.page.forms["unlink"][0]
    form = urlencode({name: fields[name] for name in ("token", "do")}).encode()
    answer = page.request("POST", "/telegram", form, CONTENT_TYPE=FORM, HTTP_COOKIE=opened.cookie, **headers)
    assert answer.status == (303 if allowed else 403), answer.text
    assert page.status()["linked"] is not allowed
    assert page.api("verify", {"code": page.code()}, **headers).status == (200 if allowed else 403)


@pytest.mark.parametrize("action", ACTIONS)
def test_no_action_is_open_to_other_sites(page, action):
    for headers in ({"HTTP_SEC_FETCH_SITE": "cross-site"}, {"HTTP_ORIGIN": THERE}, {"HTTP_ORIGIN": None}):
        assert page.api(action, {"code": page.wrong_code()}, **headers).status == 403
    assert page.wrong_codes() == {}


def test_origin_null_counts_only_for_the_form_and_only_beside_sec_fetch_site(page):
    """Headers of Chromium with a form under `Referrer-Policy: no-referrer`; fetch(2) never does."""
    page.api("verify", {"code": page.code()})
    opened = page.open()
    headers = {"HTTP_ORIGIN": "null", "HTTP_SEC_FETCH_SITE": "same-origin"}
    assert page.api("unlink", **headers).status == 403
    form = urlencode(opened.page.forms["unlink"][0]).encode()
    for more, status in (({"HTTP_SEC_FETCH_SITE": None}, 403), ({"HTTP_SEC_FETCH_SITE": "cross-site"}, 403), ({}, 303)):
        answer = page.request("POST", "/telegram", form, CONTENT_TYPE=FORM, HTTP_COOKIE=opened.cookie, **headers | more)
        assert answer.status == status
    assert not page.status()["linked"]


def test_a_form_needs_the_token_of_its_browser(page):
    page.api("verify", {"code": page.code()})
    mine, other = page.open(), page.open(user="bob")
    token, cookie = mine.page.forms["unlink"][0]["token"], mine.cookie
    assert re.fullmatch("__Host-notify_form=[0-9a-f]{32}", cookie) and cookie.endswith(token)
    assert mine.headers["set-cookie"].endswith("; Path=/; HttpOnly; SameSite=Strict; Secure")

    def unlink(token, cookie):
        fields = {"do": "unlink"} | ({} if token is None else {"token": token})
        return page.request("POST", "/telegram", urlencode(fields).encode(), CONTENT_TYPE=FORM, HTTP_COOKIE=cookie,
                            **PAGE_HEADERS).status
    for sent, kept in ((token, None), (token, ""), (None, cookie), ("", cookie), ("", "__Host-notify_form="),
                       (token[:-1], cookie), (token, other.cookie), (other.page.forms["check"][0]["token"], cookie),
                       ("x", "__Host-notify_form=x"), ("ž", cookie), (token, cookie.replace("__Host-", "")),
                       (token, f"x{cookie}")):
        assert unlink(sent, kept) == 403
    assert page.status()["linked"]
    assert unlink(token, f"a=b; {cookie}; c=d") == 303
    assert not page.status()["linked"]


def test_the_token_stays_while_the_browser_keeps_it(page):
    opened = page.open()
    again = page.get("/telegram", HTTP_COOKIE=opened.cookie)
    assert "set-cookie" not in again.headers
    assert again.page.forms["check"][0]["token"] == opened.page.forms["check"][0]["token"]
    plain = page.open(HTTPS=None)
    assert plain.cookie.startswith("notify_form=") and plain.headers["set-cookie"].endswith("SameSite=Strict")


def test_a_form_that_is_none_of_ours_is_refused(page):
    opened = page.open()
    token = opened.page.forms["check"][0]["token"]
    for body, kind, status in ((b"x", "text/plain", 415), (b"{}", "application/json", 415), (b"x" * 4097, FORM, 413),
                               (b"\xff", FORM, 400), (b"&".join([b"a=b"] * 30), FORM, 400),
                               (f"token={token}".encode(), FORM, 400), (f"token={token}&do=x".encode(), FORM, 400),
                               (f"token={token}&do=check".encode(), FORM, 400)):
        answer = page.request("POST", "/telegram", body, CONTENT_TYPE=kind, HTTP_COOKIE=opened.cookie, **PAGE_HEADERS)
        assert answer.status == status and answer.headers["content-type"].startswith("text/html")


def test_the_page_links_without_javascript(page):
    answer = page.press("check", code=page.wrong_code())
    assert answer.status == 400 and "This code is not valid" in answer.page.words
    code = page.code()
    asked = page.press("check", code=f" {code[:3]} {code[3:]}\t")
    assert asked.status == 200 and "Link to Jana (@jana)?" in asked.page.words
    assert "Code from the bot" not in asked.page.words and "/telegram" in asked.page.links
    assert not page.status()["linked"]
    done = page.press("verify", asked)
    assert (done.status, done.headers["location"]) == (303, "/telegram?done=verify")
    words = page.open(done.headers["location"]).page.words
    assert "Your chat is connected." in words and "Connected to Jana (@jana)" in words and " since " in words
    done = page.press("unlink")
    assert page.open(done.headers["location"]).page.words.count("Disconnected.") == 1
    assert page.open("/telegram?done=nosuch").page.words == page.open().page.words


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{user}",
                                  "' onclick='x", "&lt;b&gt;", "Jana \u202e", "a\nb", "\ud800"])
def test_what_others_wrote_is_text_on_the_page(page, name):
    code = page.code(name=name)
    asked = page.press("check", code=code)
    shown = name.encode("utf-8", "replace").decode()
    assert re.sub(r"\s+", " ", f"Link to {shown}?").strip() in asked.page.words
    assert page.api("check", {"code": code}).json == {"chat": name}
    page.press("verify", asked)
    opened = page.open()
    assert re.sub(r"\s+", " ", f"Connected to {shown}").strip() in opened.page.words
    assert "<script>a" not in opened.text and "<img" not in opened.text and 'onclick' not in opened.text.replace(
        "&#x27; onclick", "")
    answer = page.get("/telegram", NOTIFY_SITE_NAME=name.replace("\ud800", ""), NOTIFY_SITE_URL="javascript:alert(1)")
    assert "<script>a" not in answer.text and "javascript:" not in answer.text


def test_the_way_back_to_the_dashboard(page):
    assert "https://dash.example/x" in page.get("/telegram", NOTIFY_SITE_URL="https://dash.example/x").page.links
    assert "https://dash.example/x" not in page.get("/telegram?embed", NOTIFY_SITE_URL="https://dash.example/x").text


def test_every_answer_is_guarded(page):
    answers = [page.open(), page.get("/telegram?fragment"), page.get("/api/telegram/status"), page.get("/nosuch"),
               page.api("unlink"), page.api("verify", {"code": "123456"}), page.get("/telegram", user=""),
               page.get("/telegram", user="carol"), page.request("PUT", "/telegram")]
    for answer in answers:
        headers = answer.headers
        assert headers["cache-control"] == "no-store" and headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert (policy["default-src"], policy["script-src"], policy["style-src"]) == ("'none'", "'self'", "'self'")
        assert policy["frame-ancestors"] == policy["form-action"] == "'self'" and "unsafe" not in str(policy)
        assert int(headers["content-length"]) == len(answer.body)
    embedded = page.get("/telegram?embed", NOTIFY_FRAME_ANCESTORS="https://a.example https://b.example")
    assert embedded.headers["content-security-policy"].endswith("frame-ancestors https://a.example https://b.example")


def test_the_markup_has_nothing_that_its_policy_forbids(page):
    page.api("verify", {"code": page.code()})
    for path in ("/telegram", "/telegram?embed", "/telegram?fragment"):
        text = page.get(path).text
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?! src=)|javascript:", text)
        for url in re.findall(r'(?:src|href)="([^"]*)"', text):
            assert re.fullmatch(r"/telegram(\?embed|/webapp\.[0-9a-f]{16}\.(css|js))?|data:,", url), url


def test_style_and_behaviour_are_kept_for_a_year_under_the_name_of_their_content(page):
    names = re.findall(r'"(/telegram/webapp\.[0-9a-f]{16}\.(css|js))"', page.open().text)
    assert [kind for _, kind in names] == ["css", "js"]
    for name, kind in names:
        answer = page.get(name, user="", AUTH_TYPE=None)
        assert answer.status == 200 and answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["content-type"] == {"css": "text/css", "js": "text/javascript"}[kind] + "; charset=utf-8"
        assert "://" not in answer.text and "@import" not in answer.text


def test_a_fragment_is_the_card_of_the_page(page):
    page.api("verify", {"code": page.code()})
    opened = page.open()
    fragment = page.get("/telegram?fragment", HTTP_COOKIE=opened.cookie)
    assert fragment.text in opened.text and "<html" not in fragment.text
    embedded = page.get("/telegram?embed&fragment", HTTP_COOKIE=opened.cookie)
    assert embedded.text == fragment.text.replace('"/telegram"', '"/telegram?embed"')


def test_an_embedded_card_stays_embedded(page):
    asked = page.press("check", path="/telegram?embed", code=page.code())
    assert 'class="embedded"' in asked.text
    done = page.press("verify", asked)
    assert done.headers["location"] == "/telegram?embed&done=verify"
    opened = page.open(done.headers["location"])
    assert 'class="embedded"' in opened.text and "Your chat is connected." in opened.page.words


def test_head_is_get_without_the_body(page):
    for path in ("/telegram", "/api/telegram/status"):
        head, get = page.request("HEAD", path), page.get(path)
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", get.headers["content-length"])


def test_without_the_bot_codes_and_status_work_and_the_rest_says_why(page):
    opened = page.open()
    assert "not answering just now" in opened.page.words and "invite" not in opened.page.forms
    assert page.api("verify", {"code": page.code()}).status == 200
    assert "not answering just now" in page.open().page.words
    for action in ("test", "run", "invite"):
        answer = page.api(action, {"name": "disk.py"})
        assert answer.status == 503 and "not answering" in answer.error and int(answer.headers["retry-after"]) > 0
        assert "web.sock" in answer.errors
    answer = page.press("test")
    assert answer.status == 503 and "not answering" in answer.page.words and "Connected to" in answer.page.words


def test_with_the_bot_a_test_arrives_and_is_shown(page, bot):
    page.api("verify", {"code": page.code()})
    answer = page.api("test")
    assert (answer.status, answer.json) == (200, {"ok": True, "queued": False,
                                                  "message": "The test message is in your chat."})
    until(lambda: any("ample" in text for text in bot.telegram.texts(42)), what="the test arrives")
    opened = page.open()
    assert "Recent notifications" in opened.page.words and "just now" in opened.page.words
    assert page.press("test", opened).headers["location"] == "/telegram?done=test"
    assert page.api("test", user="bob").status == 404
    assert page.api("run", {"name": "nosuch.py"}).status in (404, 503)
    for name in (None, 5, "", ["x"]):
        answer = page.api("run", {"name": name})
        assert answer.status == 400 and "name" in answer.error


def test_an_invite_has_a_qr_code_where_the_host_has_the_library(page, bot):
    until(lambda: "invite" in page.open().page.forms, what="the bot's name is known")
    assert page.api("invite").json["qr"] is None
    assert 'id="qr" hidden' in page.press("invite").text
    page.install_segno()
    answer = page.api("invite").json
    drawn = segno.make_qr(answer["url"], error="m").svg_inline(border=4, omitsize=True)
    assert answer["qr"].startswith('<svg role="img" ') and "<title>QR code of" in answer["qr"]
    assert re.search(r' d="(M4[^"]*)"', answer["qr"])[1] == re.search(r' d="(M4[^"]*)"', drawn)[1]
    pressed = page.press("invite").text
    assert 'id="qr" ><svg role="img" ' in pressed and " style=" not in pressed


def test_an_invite_is_confirmed_in_the_chat(page, bot):
    until(lambda: "invite" in page.open().page.forms, what="the bot's name is known")
    answer = page.api("invite")
    assert answer.status == 200 and answer.json["url"].startswith("https://t.me/sandbox_notify_bot?start=")
    pressed = page.press("invite")
    assert pressed.status == 200
    url = next(link for link in pressed.page.links if link and "start=" in link)
    assert url != answer.json["url"]
    before = len(bot.telegram.messages(42))
    bot.telegram.types(42, "/start " + url.partition("=")[2])
    message = bot.telegram.wait_for(42, before + 1)[-1]
    assert "alice" in message["text"]
    bot.telegram.control("press", chat_id=42, message_id=message["message_id"], text="Yes, link")
    until(lambda: page.status()["linked"], what="the chat links")
    assert "Connected to Jana" in page.open().page.words
