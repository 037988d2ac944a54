"""Login on the link page: set by the web server, and by nothing that a client can send."""

import contextlib
import json

import pytest

from link_page import LinkPage

pytestmark = pytest.mark.root
OPENID = {"AUTH_TYPE": "openid-connect", "NOTIFY_SSO_DOMAINS": "example.com, other.example",
          "OIDC_CLAIM_iss": "https://login.example"}
VERIFIED = OPENID | {"OIDC_CLAIM_email_verified": "1"}


@pytest.fixture
def page(tmp_path):
    with contextlib.closing(LinkPage(tmp_path)) as page:
        yield page


def answer_to(page, user, **environment):
    return page.get("/api/telegram/status", user=user, **environment)


def who(page, login, **environment):
    """As whom the page knows a login; None where it refuses it with 403 and advice."""
    answer = page.get("/telegram", user=login, HTTP_ACCEPT="text/html", **environment)
    assert answer.status in (200, 403)
    if answer.status == 403:
        assert "administrator" in answer.text or "provider" in answer.text or "person" in answer.text
        return None
    return answer.page.words.split("Logged in as ")[1].split(" on ")[0]


@pytest.mark.parametrize("forged", [
    {"HTTP_X_FORWARDED_USER": "alice"}, {"HTTP_X_FORWARDED_EMAIL": "alice@example.com"},
    {"HTTP_X_FORWARDED_PREFERRED_USERNAME": "alice"}, {"HTTP_REMOTE_USER": "alice", "HTTP_AUTH_TYPE": "Basic"},
    {"HTTP_X_REMOTE_USER": "alice"}, {"HTTP_AUTHORIZATION": "Basic YWxpY2U6eA=="},
    {"HTTP_OIDC_CLAIM_EMAIL": "alice@example.com", "HTTP_OIDC_CLAIM_EMAIL_VERIFIED": "1"},
    {"OIDC_CLAIM_email": "alice@example.com", "OIDC_CLAIM_email_verified": "1", "OIDC_CLAIM_sub": "alice"},
    {"HTTP_PROXY": "http://alice@evil.example"}, {"HTTP_REMOTE-USER": "alice"}, {"REMOTE_IDENT": "alice"},
    {"HTTP_COOKIE": "REMOTE_USER=alice; user=alice"}, {"REDIRECT_REMOTE_USER": "alice"}, {"USER": "alice"},
], ids=lambda forged: next(iter(forged)))
def test_nothing_else_is_a_login(page, forged):
    """Without a login it is none; of bob, who has one, it makes nobody else."""
    for half in ({"REMOTE_USER": None, "AUTH_TYPE": None}, {"AUTH_TYPE": None}, {"AUTH_TYPE": ""}):
        answer = answer_to(page, **({"user": "alice"} | half | forged))
        assert answer.status == 401 and "logged in" in answer.error
    assert answer_to(page, "", **forged).status == 401
    assert who(page, "bob", **forged) == "bob"
    assert answer_to(page, "carol", **forged).status == 403


def test_a_name_in_the_body_or_the_address_changes_nobody_else(page):
    sent = {"code": page.code(), "user": "bob", "username": "bob", "REMOTE_USER": "bob", "login": "bob"}
    assert page.request("POST", "/api/telegram/verify?user=bob&REMOTE_USER=bob", sent).status == 200
    assert (page.status("alice")["linked"], page.status("bob")["linked"]) == (True, False)
    page.links.redeem(page.code(43), "bob", 3002)
    page.api("unlink", {"user": "bob"})
    assert (page.status("alice")["linked"], page.status("bob")["linked"]) == (False, True)


def test_a_plain_name_is_taken_as_it_is(page):
    assert who(page, "alice", AUTH_TYPE="Negotiate") == "alice"  # of the group by /etc/group
    assert who(page, "bob", AUTH_TYPE="Basic") == "bob"  # by /etc/passwd
    assert who(page, "alice", **OPENID) == "alice"  # no address, so there is nothing to verify


@pytest.mark.parametrize("login", [
    "carol", "mallory", "root", "daemon99", "nobody", "ALICE", "Alice", "alice ", " alice", "alice\n",
    "alice\x01", "alice\x7f", "alice/../bob", "../alice", "alice:x", "-alice", "al ice", "EXAMPLE\\alice",
    "alice@", "@example.com", "@", "alice,bob", "\u0430lice", "alice\u200b", "\uff41lice", "ali\u0441e", "alice\u0301",
    "x" * 5000, "3001", "alice@example.com@evil.example", "alice@evil.example@example.com", "alice@evil.example",
    "alice@sub.example.com", "alice@example.com.evil.example",
    "alice@example.co", "alice@example.com.", "alice@xexample.com", "alice@exam\u0440le.com", "alice+x@example.com",
    "alice%40example.com", "alice@example.com\n", "mallory@example.com", "carol@example.com", "root@example.com",
], ids=ascii)
def test_who_is_no_analyst_is_refused(page, login):
    assert who(page, login, **VERIFIED) is None
    assert answer_to(page, login, **VERIFIED).status == 403


@pytest.mark.parametrize(("login", "domains"), [
    ("alice@example.com", "example.com"), ("alice@EXAMPLE.Com", "example.com"), ("alice@example.com", "EXAMPLE.COM"),
    ("alice@example.com", "other.example example.com"), ("alice@example.com", "other.example,example.com"),
    ("Alice@Example.com", "example.com"),
])
def test_an_address_of_our_domain_logs_in_by_its_name(page, login, domains):
    assert who(page, login, **VERIFIED | {"NOTIFY_SSO_DOMAINS": domains}) == "alice"


def test_no_domain_is_ours_unless_it_is_named(page):
    for domains in (None, "", " , "):
        assert who(page, "alice@example.com", **VERIFIED | {"NOTIFY_SSO_DOMAINS": domains}) is None
        assert who(page, "alice@", **VERIFIED | {"NOTIFY_SSO_DOMAINS": domains}) is None


def test_the_kelvin_sign_is_no_k(page):
    assert who(page, "alice@k.example", **VERIFIED | {"NOTIFY_SSO_DOMAINS": "k.example"}) == "alice"
    assert who(page, "alice@\u212a.example", **VERIFIED | {"NOTIFY_SSO_DOMAINS": "k.example"}) is None
    assert who(page, "alice@k.example", **VERIFIED | {"NOTIFY_SSO_DOMAINS": "\u212a.example"}) is None


@pytest.mark.parametrize("kind", ["openid-connect", "OpenID-Connect", "oauth20", "auth-openidc"])
@pytest.mark.parametrize("claim", [None, "", "0", "false", "False", "null", "no", "2", "verified"])
def test_an_address_that_was_not_verified_is_nobody(page, kind, claim):
    environment = OPENID | {"AUTH_TYPE": kind, "OIDC_CLAIM_email_verified": claim,
                            "HTTP_OIDC_CLAIM_EMAIL_VERIFIED": "1", "OIDC_CLAIM_email": "alice@example.com"}
    assert who(page, "alice@example.com", **environment) is None
    (page.etc / "usernames.json").write_text('{"alice@example.com": "alice"}')
    assert who(page, "alice@example.com", **environment) is None
    assert who(page, "alice@example.com", **environment | {"OIDC_CLAIM_email_verified": "true"}) == "alice"


def test_another_kind_of_login_need_not_say_verified_but_must_not_deny_it(page):
    ours = {"AUTH_TYPE": "oauth2-proxy", "NOTIFY_SSO_DOMAINS": "example.com"}
    assert who(page, "alice@example.com", **ours) == "alice"
    assert who(page, "alice@example.com", OIDC_CLAIM_email_verified="0", **ours) is None


def test_exceptions_win(page):
    (page.etc / "usernames.json").write_text(json.dumps({
        "jana.novak@partner.example": "alice", "bob@example.com": "alice", "janek": "bob",
        "j\u00e4na@x.example": "alice",
        "gone@example.com": None, "evil@example.com": "../alice", "list@example.com": ["alice"],
        "c@example.com": "carol"}))
    for login, name in {"jana.novak@partner.example": "alice", "Jana.Novak@PARTNER.example": "alice",
                        "bob@example.com": "alice", "janek": "bob",
        "j\u00e4na@x.example": "alice",
                        "gone@example.com": None, "evil@example.com": None, "list@example.com": None,
                        "c@example.com": None, "bob": "bob"}.items():
        assert who(page, login, **VERIFIED) == name, login


@pytest.mark.parametrize(("key", "login", "name"), [
    ("Jana.Novak@Corp.example", "jana.novak@corp.example", "alice"),
    ("jana.novak@corp.example", "JANA.NOVAK@CORP.EXAMPLE", "alice"),
    ("CORP\\Jana", "corp\\jana", "alice"),
    ("J\u00e4na@Corp.example", "j\u00e4na@corp.example", "alice"),
    # A to Z alone: neither the Kelvin sign nor a letter whose small form depends on the language is another's.
    ("\u212aarl@corp.example", "karl@corp.example", None), ("karl@corp.example", "\u212aarl@corp.example", None),
    ("ir\u0130s@corp.example", "iris@corp.example", None), ("iris@corp.example", "ir\u0131s@corp.example", None),
    ("J\u00c4na@corp.example", "j\u00e4na@corp.example", None), ("\ud800", "karl@corp.example", None),
], ids=ascii)
def test_exceptions_are_compared_without_case(page, key, login, name):
    (page.etc / "usernames.json").write_text(json.dumps({key: "alice"}))
    assert who(page, login, **VERIFIED) == name


def test_an_exception_s_account_is_taken_as_it_is_written(page):
    (page.etc / "usernames.json").write_text('{"jana@corp.example": "Alice", "BOB": null}')
    assert "no account Alice " in answer_to(page, "jana@corp.example", **VERIFIED).error
    # Where accounts come from a directory that knows no case, BOB and Bob are bob: all of them are shut out.
    assert {who(page, login) for login in ("BOB", "bob", "Bob")} == {None}


def test_two_spellings_of_one_login_are_an_error_that_names_them(page):
    (page.etc / "usernames.json").write_text('{"Jana@corp.example": "alice", "x": "bob", "jana@Corp.example": "bob"}')
    for login in ("jana@corp.example", "Jana@corp.example", "alice"):
        answer = answer_to(page, login, **VERIFIED)
        assert answer.status == 503 and "jana" not in answer.text.lower()
        assert all(word in answer.errors for word in ("usernames.json", "Jana@corp.example", "jana@Corp.example"))


@pytest.mark.parametrize("issuer", ["https://accounts.google.com", "accounts.google.com"])
def test_an_address_of_ours_at_google_counts_only_in_an_account_of_ours(page, issuer):
    """Anybody can register an account at Google with an address that they can read, or once could."""
    google = VERIFIED | {"OIDC_CLAIM_iss": issuer, "HTTP_OIDC_CLAIM_HD": "example.com"}
    (page.etc / "usernames.json").write_text('{"a@example.com": "alice", "alice@gmail.com": "alice"}')
    for hd in (None, "", "evil.example", "sub.example.com", "example.com.evil.example", "example.com,other.example",
               "exam\u0440le.com", "null"):
        assert who(page, "alice@example.com", **google, OIDC_CLAIM_hd=hd) is None
        assert who(page, "a@example.com", **google, OIDC_CLAIM_hd=hd) is None
    for hd in ("example.com", "EXAMPLE.com", "other.example"):  # the organisation's first domain may be another of ours
        assert who(page, "alice@example.com", **google, OIDC_CLAIM_hd=hd) == "alice"
        assert who(page, "a@example.com", **google, OIDC_CLAIM_hd=hd) == "alice"
    # Of another domain, the administrator has named this very address.
    assert who(page, "alice@gmail.com", **google) == "alice"


def test_another_provider_need_not_name_an_organisation_but_must_not_name_another(page):
    for ours in (VERIFIED, {"AUTH_TYPE": "oauth2-proxy", "NOTIFY_SSO_DOMAINS": "example.com"}):
        assert who(page, "alice@example.com", **ours) == "alice"
        assert who(page, "alice@example.com", OIDC_CLAIM_hd="example.com", **ours) == "alice"
        assert who(page, "alice@example.com", OIDC_CLAIM_hd="evil.example", **ours) is None


def test_an_address_of_ours_from_no_provider_is_nobody(page):
    """Where the claim is filtered out the account could be Google's, and nobody would see that it is not ours."""
    for issuer in (None, ""):
        assert who(page, "alice@example.com", **VERIFIED | {"OIDC_CLAIM_iss": issuer}) is None


@pytest.mark.parametrize("content", ["", "[]", "nonsense", '{"a": '])
def test_exceptions_that_cannot_be_read_let_nobody_in(page, content):
    (page.etc / "usernames.json").write_text(content)
    answer = answer_to(page, "alice")
    assert answer.status == 503 and "usernames.json" in answer.errors and "usernames.json" not in answer.text


def test_the_group_can_be_another(page):
    assert who(page, "alice", NOTIFY_ANALYST_GROUP="data-ops") is None
    assert who(page, "carol", NOTIFY_ANALYST_GROUP="nosuchgroup") is None


def test_a_refusal_says_what_to_ask_for(page):
    def refusal(login, **environment):
        return answer_to(page, login, **environment).error
    assert "notify-add-analyst carol" in refusal("carol")
    assert "notify-add-analyst mallory" in refusal("mallory")
    assert "NOTIFY_SSO_DOMAINS" in refusal("alice@evil.example")
    assert "usernames.json" in refusal("EXAMPLE\\alice")
    assert "e-mail address was verified" in refusal("alice@example.com", **OPENID)
    assert "system" in refusal("daemon99")
    google = VERIFIED | {"OIDC_CLAIM_iss": "https://accounts.google.com"}
    assert "organisation gave you" in refusal("alice@example.com", **google)
    assert "claims iss and hd" in refusal("alice@example.com", **VERIFIED | {"OIDC_CLAIM_iss": None})


def test_a_refusal_is_a_page_for_a_browser_and_cannot_be_made_to_carry_markup(page):
    for path in ("/telegram", "/api/telegram/status"):
        answer = page.get(path, user="<script>alert(1)</script>", HTTP_ACCEPT="text/html")
        assert answer.status == 403 and answer.headers["content-type"].startswith("text/html")
        assert "alert(1)" not in answer.text
        words = page.get(path, user="", HTTP_ACCEPT="text/html").page.words
        assert words.startswith("Telegram notifications Unauthorized")
