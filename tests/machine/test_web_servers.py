"""The web servers as they are shipped: who is logged in, what nobody can forge, what the program can reach."""

import re

import pytest
import requests

import web
from host import CHATS
from web import DATA, DOMAIN, SITE

# Said by whoever sends a request: nothing of it may reach the program.
FORGED = "forged@example.com"
FORGED_HEADERS = dict.fromkeys((
    "Proxy", "Remote-User", "Remote_User", "REMOTE_USER", "X-Remote-User", "AUTH_TYPE", "X-Forwarded-User",
    "X-Forwarded-Email", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X_Forwarded_For", "Forwarded",
    "X-Auth-Request-User", "X-Auth-Request-Email", "X_Auth_Request_Email", "OIDC_CLAIM_email", "OIDC-CLAIM-email",
    "OIDC_CLAIM_email_verified", "OIDC-CLAIM-email-verified"), FORGED)
BASIC = ("mallory", "typed")
REFUSED = {
    "of another domain": ("alice@example.org", "domain"),
    "that only looks like alice": ("\N{CYRILLIC SMALL LETTER A}lice@example.com", "not the name of an account"),
    "with two domains": ("alice@example.com@example.org", "domain"),
    "of no account": ("mallory@example.com", "notify-add-analyst mallory"),
    "of the system": ("deploy@example.com", "account of the system"),
    "of no analyst": ("visitor@example.com", "notify-add-analyst visitor"),
}
OF_APACHE = pytest.mark.parametrize("server", ["apache"], indirect=True, scope="module")
OF_NGINX = pytest.mark.parametrize("server", ["nginx"], indirect=True, scope="module")


@pytest.fixture(scope="module", params=["apache", "nginx"])
def server(request, host, tmp_path_factory):
    host.run("useradd", "--no-create-home", "visitor", check=False)
    with web.apache(host, tmp_path_factory.mktemp("web")) if request.param == "apache" else web.nginx(host) as site:
        yield site


@pytest.fixture(scope="module")
def probed(server):
    """Environment and reach of the program while alice sends everything that could be taken for a login."""
    with server.probe(), server.visitor() as alice:
        assert server.log_in(alice, "alice").ok
        answer = alice.ask("POST", "/api/telegram/check?a=b", headers=FORGED_HEADERS | {"Origin": SITE}, auth=BASIC,
                           data="{}")
        assert answer.ok, answer.text
        return answer.json()


@pytest.mark.parametrize("user", CHATS)
def test_login_is_the_account(server, user):
    with server.visitor() as visitor:
        page = server.log_in(visitor, user)
        assert (page.status_code, page.url) == (200, f"{SITE}/telegram")
        assert user.title() in page.text
        status = visitor.ask("GET", "/api/telegram/status").json()
        assert status["linked"] and status["chat"].startswith(user.title())


@pytest.mark.parametrize("kind", REFUSED)
def test_login_of_nobody_here(server, kind):
    login, reason = REFUSED[kind]
    with server.visitor() as visitor:
        page = server.log_in(visitor, login)
        assert page.status_code == 403
        assert reason in page.text
        answer = visitor.ask("GET", "/api/telegram/status")
        assert answer.status_code == 403
        assert reason in answer.json()["error"]


@OF_APACHE
@pytest.mark.parametrize("claims", [{"email_verified": False}, {}], ids=["unverified", "unsaid"])
def test_address_that_nobody_verified(server, claims):
    server.provider.knows("claims-alice", email=f"alice@{DOMAIN}", **claims)
    with server.visitor() as visitor:
        page = visitor.log_in("claims-alice")
        assert page.status_code == 403
        assert "verified" in page.text


@OF_APACHE
def test_account_of_another_organisation(server):
    """The claims that say so reach the program: with `iss` filtered out nobody of the domain would get in at all."""
    with server.visitor() as visitor:
        for organisation, status in ((DOMAIN, 200), ("evil.example", 403)):
            server.provider.knows(organisation, email=f"alice@{DOMAIN}", email_verified=True, hd=organisation)
            visitor.cookies.clear()
            page = visitor.log_in(organisation)
            assert page.status_code == status
        assert "organisation" in page.text


@pytest.mark.parametrize(("method", "path", "headers", "status"), [
    ("GET", "/telegram", {}, 302),
    ("GET", "/telegram", {"Sec-Fetch-Mode": "navigate", "Accept": "text/html"}, 302),
    ("GET", "/telegram?fragment", {"Sec-Fetch-Mode": "cors"}, 401),
    ("GET", "/api/telegram/status", {}, 401),
    ("POST", "/api/telegram/unlink", {"Origin": SITE, "Content-Type": "application/json"}, 401),
    ("GET", "/telegram/webapp.0123456789abcdef.js", {"Sec-Fetch-Mode": "no-cors"}, 401),
])
@pytest.mark.parametrize("said", [{}, FORGED_HEADERS], ids=["nothing", "all"])
def test_without_login(server, method, path, headers, status, said):
    """A person is led to the login, a program is told; whatever they say of themselves."""
    answer = web.ask(method, SITE + path, verify=server.certificate, allow_redirects=False, headers=said | headers,
                     auth=BASIC if said else None)
    assert answer.status_code == status
    if status == 302:
        assert re.match(rf"{web.PROVIDER}/oauth2/authorize\?|{SITE}/oauth2/start\?", answer.headers["Location"])


@pytest.mark.parametrize("path", ["//telegram", "/telegram//", "/api//telegram/status", "/x/../telegram",
                                  "/telegram/%2e%2e/telegram", "/telegram%0a", "/TELEGRAM", "/telegram;x"])
def test_no_spelling_of_the_address_goes_round_the_login(server, path):
    with requests.Session() as session:
        session.trust_env = False
        request = session.prepare_request(requests.Request("GET", SITE, headers=FORGED_HEADERS, auth=BASIC))
        request.url = SITE + path  # as it is
        answer = session.send(request, verify=server.certificate, allow_redirects=False)
    assert answer.status_code in (302, 400, 401, 404)
    assert "telegram notifications" not in answer.text.lower()


def test_forged_headers_reach_nothing(server, probed):
    environment = probed["environment"]
    assert [name for name, value in environment.items() if "forged" in value or "mallory" in value] == []
    assert {"HTTP_PROXY", "HTTP_AUTHORIZATION"} & environment.keys() == set()
    assert environment["REMOTE_USER"] == f"alice@{DOMAIN}"
    assert environment["AUTH_TYPE"] == ("oauth2-proxy" if "nginx" in environment["SERVER_SOFTWARE"] else
                                        "openid-connect")
    assert environment["NOTIFY_SSO_DOMAINS"] == DOMAIN
    # The login's own cookies would let the program act as the person elsewhere.
    assert "mod_auth_openidc_session" not in str(probed) and "_oauth2_proxy" not in str(probed)


def test_program_is_told_what_was_asked(server, probed):
    environment = probed["environment"]
    assert environment["SCRIPT_NAME"] + environment["PATH_INFO"] == "/api/telegram/check"
    assert {name: environment.get(name) for name in (
        "REQUEST_METHOD", "QUERY_STRING", "HTTP_ORIGIN", "HTTP_HOST", "REQUEST_SCHEME", "HTTPS", "CONTENT_LENGTH")} == {
        "REQUEST_METHOD": "POST", "QUERY_STRING": "a=b", "HTTP_ORIGIN": SITE, "HTTP_HOST": "localhost",
        "REQUEST_SCHEME": "https", "HTTPS": "on", "CONTENT_LENGTH": "2"}


def test_program_reaches_the_two_files_and_the_page_s_socket(server, probed):
    """Neither the send API, in which it could send to anybody, nor what is accepted, the token, or a home."""
    assert "alice" in probed["files"][f"{DATA}/telegram_users.json"]
    closed = {"PermissionError", "FileNotFoundError"}
    for path in ("/data/notify-bot/polling.json", "/etc/notify-bot/telegram-bot-token",
                 "/etc/notify-bot/notify-bot.env", "/etc/notify-bot/openid-secrets.conf"):
        assert probed["files"][path] in closed
    for path in ("/data/notify-bot", "/home/alice", "/root"):
        assert probed["folders"][path] in closed
    assert (probed["send api"], probed["web socket"]) == ("PermissionError", True)


@OF_NGINX
def test_unit_shows_nothing_else(server, probed):
    assert probed["folders"]["/data"] == ["notifications"]
    assert {probed["folders"]["/opt"], probed["folders"]["/srv"]} == {"PermissionError"}
    assert probed["network"] in ("PermissionError", "OSError")
    assert probed["write"] == "OSError"
    status = dict(line.split(":", 1) for line in probed["status"].splitlines())
    assert {status[name].strip() for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")


@OF_NGINX
def test_debians_own_parameters_would_let_forgeries_pass(server):
    """Why examples/web/nginx.conf names every one: the same request through `include fastcgi_params`."""
    with server.probe():
        server.nginx_with(f"""
server {{
    listen 443 ssl;
    ssl_certificate {web.CERTIFICATE};
    ssl_certificate_key {web.KEY};
    location /telegram {{
        include fastcgi_params;
        fastcgi_param SCRIPT_FILENAME {web.PROGRAM};
        fastcgi_pass unix:/run/notify-bot/web-cgi.sock;
    }}
}}""")
        environment = web.ask("GET", f"{SITE}/telegram", headers=FORGED_HEADERS, auth=BASIC,
                              verify=server.certificate).json()["environment"]
    server.nginx()
    assert (environment["REMOTE_USER"], environment["HTTP_PROXY"]) == ("mallory", FORGED)
    assert environment["HTTP_X_AUTH_REQUEST_EMAIL"] == FORGED


@OF_APACHE
def test_apache_alone_would_let_forgeries_pass(server):
    """Why examples/web/apache.conf takes headers away: the same request without those lines."""
    text = server.host.path("/etc/apache2/sites-available/notify-bot.conf").read_text()
    with server.probe(), server.visitor() as alice:
        server.apache_with(re.sub("(?m)^ *RequestHeader .*$", "", text))
        server.log_in(alice, "alice")
        environment = alice.ask("GET", "/telegram", headers=FORGED_HEADERS, auth=BASIC).json()["environment"]
    server.apache_with(text)
    assert environment["HTTP_X_FORWARDED_HOST"] == environment["HTTP_REMOTE_USER"] == FORGED
    assert environment["REMOTE_USER"] == f"alice@{DOMAIN}"


@OF_APACHE
def test_the_issuer_is_sent_back_to_the_site_s_own_name(server):
    def location(**headers):
        return web.ask("GET", f"{SITE}/telegram", headers=headers, verify=server.certificate,
                       allow_redirects=False).headers.get("Location", "")

    assert "redirect_uri=https%3A%2F%2Flocalhost%2Ftelegram%2Flogin&" in location(**FORGED_HEADERS)
    assert location(Host="forged.example.com") == ""


@OF_NGINX
def test_unit_runs_no_other_program(server):
    server.host.write("/usr/share/other.py", "#!/bin/sh\necho 'Content-Type: text/plain'\necho\necho other\n", 0o755)
    server.nginx(notify_program="/usr/share/other.py")
    with server.visitor() as alice:
        assert server.log_in(alice, "alice").status_code == 403
    server.nginx()


@OF_NGINX
def test_nobody_but_the_web_server_may_say_who_is_logged_in(server):
    assert server.host.output("stat", "-c", "%a %U:%G", "/run/notify-bot/web-cgi.sock") == "660 root:www-data"
    assert server.host.request("alice", "GET", "/", socket="/run/notify-bot/web-cgi.sock")[0] == "PermissionError"


@OF_NGINX
def test_exposure(server):
    verdict = server.host.output("systemd-analyze", "security", "--no-pager", "notify-bot-web-cgi.service")
    assert float(re.search(r"exposure level for .*: ([0-9.]+)", verdict)[1]) <= 0.3, verdict


def test_only_the_page_itself_changes_something(server):
    with server.visitor() as alice:
        server.log_in(alice, "alice")
        # Some are refused before their body is read, which Apache must not take for a program that has failed.
        for headers in ({}, {"Origin": "https://evil.example.org"}, {"Origin": "null"},
                        {"Origin": SITE, "Sec-Fetch-Site": "cross-site"}, {"Sec_Fetch_Site": "same-origin"}):
            answer = alice.ask("POST", "/api/telegram/check", json={"code": "12"}, headers=headers)
            assert answer.status_code == 403, headers
        # It comes from the page, and is refused for what it says.
        assert alice.api("check", code="12").status_code == 400


def test_form_of_the_page_comes_through_with_its_cookie(server):
    with server.visitor() as alice:
        token = re.search('name="token" value="([0-9a-f]+)"', server.log_in(alice, "alice").text)[1]

        def post(**fields):
            return alice.ask("POST", "/telegram", data={"do": "check", "code": "12"} | fields, headers={"Origin": SITE})

        assert post(token=token[::-1]).status_code == 403
        answer = post(token=token)
        assert (answer.status_code, "six digits" in answer.text) == (400, True)


@pytest.mark.parametrize("size", [5000, 100_000])
def test_body_over_the_limit(server, size):
    with server.visitor() as alice:
        server.log_in(alice, "alice")
        assert alice.api("check", code="1" * size).status_code == 413


def test_without_tls_one_is_led_to_it(server):
    answer = web.ask("GET", "http://localhost/telegram", allow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (301, f"{SITE}/telegram")


def test_what_is_served_with_is_what_is_installed(server):
    """As examples, for another place of the program too; nothing of it is switched on."""
    installed = server.host.path("/usr/local/share/doc/notify-bot/examples/web")
    for path in (web.CHECKOUT / "examples/web").iterdir():
        assert (installed / path.name).read_text() == path.read_text()
    assert server.host.show("notify-bot-web-cgi.socket", "UnitFileState") == {"UnitFileState": "disabled"}
