"""The link page under real web servers on the booted machine, with a real login, seen from inside its network."""

import contextlib
import http.server
import re
import secrets
import subprocess
import sys
import threading
from urllib.parse import parse_qs, urlsplit

import requests

from host import SANDBOX_PORT
from live import Telegram
from machine import CHECKOUT, until

SITE = "https://localhost"
DOMAIN = "example.com"
PROVIDER_PORT, OAUTH2_PROXY_PORT = 9400, 4180
# Another site than the page's, as the real one is: the browser knows them by their names.
PROVIDER = f"http://127.0.0.1:{PROVIDER_PORT}"
CERTIFICATE, KEY = "/etc/ssl/notify-test.pem", "/etc/ssl/private/notify-test.key"
DATA = "/data/notifications"
PROGRAM = "/usr/local/lib/notify-bot/webapp_telegram.py"


class Chats(Telegram):
    """The machine's sandbox, over the network instead of from within."""

    def __init__(self):
        self.url = f"http://127.0.0.1:{SANDBOX_PORT}"

    def wait_for_text(self, chat_id, part, seconds=20):
        return until(lambda: next((text for text in reversed(self.texts(chat_id)) if part in text), None), seconds,
                     f"{part!r} arrives in chat {chat_id}")

    def code(self, chat_id):
        """The code that the bot gives for a /start; what it has to say of something else may come before."""
        count = len(self.messages(chat_id))
        self.types(chat_id, "/start")
        found = until(lambda: re.search(r"Your code is ([0-9]{6})\b", "\n".join(self.texts(chat_id)[count:])), 20,
                      f"a code arrives in chat {chat_id}")
        return found[1]

    def press(self, chat_id, label):
        """Press the button with that label under the newest message that has one."""
        for message in reversed(self.messages(chat_id)):
            rows = message.get("reply_markup", {}).get("inline_keyboard", [])
            if any(button["text"] == label for row in rows for button in row):
                return self.control("press", chat_id=chat_id, text=label, message_id=message["message_id"])
        raise AssertionError(f"chat {chat_id} has no button {label!r}")


class Provider:
    """oidc-provider-mock: an OpenID provider where who logs in says who they are, with the claims set here."""

    def __init__(self, folder):
        with open(folder / "provider.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "oidc_provider_mock", "--port", str(PROVIDER_PORT), "--require-nonce", "true"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait(self):
        def answers():
            assert self._process.poll() is None, "the OpenID provider has ended"
            with contextlib.suppress(requests.ConnectionError):
                return ask("GET", f"{PROVIDER}/.well-known/openid-configuration").ok
        until(answers, 20, "the OpenID provider answers")
        return self

    def knows(self, subject, **claims):
        assert ask("PUT", f"{PROVIDER}/users/{subject}", json=claims).ok

    def stop(self):
        self._process.terminate()
        self._process.wait(10)


class Oauth2Proxy(http.server.ThreadingHTTPServer):
    """A stand-in for oauth2-proxy, which Debian does not have: what it documents of its endpoints for auth_request.

    /oauth2/auth answers 202 with X-Auth-Request-User, -Email and -Preferred-Username (--set-xauthrequest), or 401.
    /oauth2/start?rd=PATH logs in; here whoever `next_login` says, at once.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", OAUTH2_PROXY_PORT), _Oauth2ProxyHandler)
        self.sessions = {}
        self.next_login = None
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def stop(self):
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Oauth2ProxyHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        url = urlsplit(self.path)
        if url.path == "/oauth2/auth":
            self._auth()
        elif url.path == "/oauth2/start":
            self._start(parse_qs(url.query)["rd"][0])
        else:
            self.send_error(404)

    def _auth(self):
        cookies = re.findall(r"_oauth2_proxy=(\w+)", self.headers.get("Cookie", ""))
        email = self.server.sessions.get(cookies[0]) if cookies else None
        self.send_response(202 if email else 401)
        if email:
            self.send_header("X-Auth-Request-User", "1075469")
            # As Go writes a string into a header: its bytes.
            email = email.encode().decode("latin-1")
            self.send_header("X-Auth-Request-Email", email)
            self.send_header("X-Auth-Request-Preferred-Username", email.partition("@")[0])
        self.end_headers()

    def _start(self, destination):
        # As oauth2-proxy does: nowhere but to this site.
        assert re.match("/[^/]", destination)
        session = secrets.token_hex(16)
        self.server.sessions[session] = self.server.next_login
        self.send_response(302)
        self.send_header("Set-Cookie", f"_oauth2_proxy={session}; Path=/; HttpOnly; Secure")
        self.send_header("Location", destination)
        self.end_headers()

    def log_message(self, *_):
        pass


def filled_in(name, **values):
    """A configuration of examples/web/ with the values of a site, by directive, and no other change."""
    text = (CHECKOUT / "examples/web" / name).read_text()
    for directive, value in values.items():
        pattern = rf"^(\s*(?:Define |set \$)?{directive}\s+)(?:\"[^\"]*\"|[^\s;]+)(;?)$"
        text, count = re.subn(pattern, lambda match, value=value: match[1] + value + match[2], text, flags=re.M)
        assert count, f"{name} has no {directive} to fill in"
    return text


def ask(method, url, **options):
    """A request of somebody without a history, to where it says, whatever proxy the environment names."""
    with requests.Session() as session:
        session.trust_env = False
        return session.request(method, url, timeout=30, **options)


class Visitor(requests.Session):
    """Somebody with a browser's cookies, and none of its other habits."""

    def __init__(self, certificate):
        super().__init__()
        self.trust_env = False
        self.verify = certificate

    def ask(self, method, path, **options):
        return self.request(method, SITE + path, timeout=30, **options)

    def api(self, action, **sent):
        """A POST as the page's own JavaScript makes it."""
        return self.ask("POST", f"/api/telegram/{action}", json=sent, headers={"Origin": SITE})

    def log_in(self, subject):
        """The page that a person gets after typing `subject` at the OpenID provider."""
        form = self.ask("GET", "/telegram")
        assert form.url.startswith(f"{PROVIDER}/oauth2/authorize"), form.url
        return self.post(form.url, data={"sub": subject}, timeout=30)


FOLDERS = ("/data", DATA, "/data/notify-bot", "/home/alice", "/root", "/opt", "/srv")
FILES = (f"{DATA}/telegram_users.json", "/data/notify-bot/polling.json", "/etc/notify-bot/telegram-bot-token",
         "/etc/notify-bot/notify-bot.env", "/etc/notify-bot/openid-secrets.conf")
# In the place of the link page: what it would be given and could reach.
PROBE = f"""#!/usr/bin/python3 -EsS
SANDBOX_PORT, FOLDERS, FILES = {SANDBOX_PORT}, {FOLDERS}, {FILES}
""" + """
import json, os, socket, sys
def outcome(call, *arguments):
    try:
        return call(*arguments) or True
    except OSError as error:
        return type(error).__name__
def connect(family, address):
    with socket.socket(family) as connection:
        connection.settimeout(2)
        connection.connect(address)
sys.stdin.buffer.read(int(os.environ.get("CONTENT_LENGTH") or 0))
print("Content-Type: application/json\\n")
print(json.dumps({
    "environment": dict(os.environ), "groups": os.getgroups(), "status": open("/proc/self/status").read(),
    "network": outcome(connect, socket.AF_INET, ("127.0.0.1", SANDBOX_PORT)),
    "send api": outcome(connect, socket.AF_UNIX, "/run/notify-bot/bot.sock"),
    "web socket": outcome(connect, socket.AF_UNIX, "/run/notify-bot/web.sock"),
    "folders": {path: outcome(os.listdir, path) for path in FOLDERS},
    "files": {path: outcome(lambda: open(path).read()) for path in FILES},
    "write": outcome(lambda: os.close(os.open("/usr/local/x", os.O_CREAT | os.O_WRONLY))),
}))
"""
SERVICES = ("apache2.service", "notify-bot-web-cgi.service")


class Site:
    """The machine with one of the two web servers at a time, on the ports that they have everywhere."""

    def __init__(self, host):
        self.host = host
        self.chats = Chats()
        host.run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days",
                 "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-addext",
                 "basicConstraints=critical,CA:FALSE", "-keyout", KEY, "-out", CERTIFICATE)
        self.certificate = str(host.path(CERTIFICATE))
        self.provider = self.oauth2_proxy = None

    def visitor(self):
        return Visitor(self.certificate)

    def analyst(self, name, chat_id):
        """An account that is an analyst, with a chat that is not linked."""
        self.host.run("notify-add-analyst", "--create", name)
        self.chats.person(chat_id, name.title(), name)

    def apache(self, **values):
        """Serve with Apache, configured as examples/web/apache.conf says."""
        host = self.host
        host.write("/etc/notify-bot/openid-secrets.conf",
                   f"OIDCClientSecret of-the-client\nOIDCCryptoPassphrase {secrets.token_hex(32)}\n", 0o600)
        self.apache_with(filled_in("apache.conf", **{
            "NOTIFY_HOST": "localhost", "NOTIFY_CERTIFICATE": CERTIFICATE, "NOTIFY_KEY": KEY, "NOTIFY_DOMAINS": DOMAIN,
            "NOTIFY_CLIENT": "notify-bot",
            "NOTIFY_ISSUER": f"{PROVIDER}/.well-known/openid-configuration"} | values))

    def apache_with(self, configuration):
        self.host.write("/etc/apache2/sites-available/notify-bot.conf", configuration)
        self.host.write("/etc/systemd/system/apache2.service.d/notify-bot.conf",
                        (CHECKOUT / "examples/web/apache2.service.conf").read_text())
        self.host.run("systemctl", "daemon-reload")
        self.host.run("a2enmod", "--quiet", "ssl", "headers", "cgid", "auth_openidc")
        self.host.run("a2ensite", "--quiet", "notify-bot")
        self.host.run("systemctl", "restart", "apache2.service")

    def nginx(self, **values):
        """Serve with nginx, configured as examples/web/nginx.conf says."""
        self.nginx_with(filled_in("nginx.conf", **{
            "server_name": "localhost", "ssl_certificate": CERTIFICATE, "ssl_certificate_key": KEY,
            "notify_domains": DOMAIN} | values))

    def nginx_with(self, configuration):
        self.host.write("/etc/nginx/sites-enabled/notify-bot.conf", configuration)
        self.host.run("systemctl", "start", "notify-bot-web-cgi.socket")
        self.host.run("systemctl", "restart", "nginx.service")

    def stop(self):
        self.host.run("systemctl", "stop", "apache2.service", "nginx.service", "notify-bot-web-cgi.socket",
                      "notify-bot-web-cgi.service")

    def log_in(self, visitor, login):
        """The page that `visitor` sees after a login as NAME or NAME@DOMAIN, behind either server."""
        address = login if "@" in login else f"{login}@{DOMAIN}"
        if self.oauth2_proxy:
            self.oauth2_proxy.next_login = address
            return visitor.ask("GET", "/telegram")
        self.provider.knows(login, email=address, email_verified=True)
        return visitor.log_in(login)

    @contextlib.contextmanager
    def probe(self):
        """Meanwhile the program that the servers are configured to run tells what it was given and can reach."""
        self.host.write("/usr/share/probe.py", PROBE, 0o755)
        for name in SERVICES:
            self.host.write(f"/etc/systemd/system/{name}.d/probe.conf",
                            f"[Service]\nBindReadOnlyPaths=/usr/share/probe.py:{PROGRAM}\n")
        self._reload()
        try:
            yield
        finally:
            for name in SERVICES:
                self.host.path(f"/etc/systemd/system/{name}.d/probe.conf").unlink()
            self._reload()

    def _reload(self):
        self.host.run("systemctl", "daemon-reload")
        self.host.run("systemctl", "try-restart", *SERVICES)


@contextlib.contextmanager
def apache(host, folder):
    """The machine behind Apache, and this thread in its network; analysts log in as NAME at the OpenID provider."""
    with host.network():
        site = Site(host)
        site.provider = Provider(folder)
        try:
            site.provider.wait()
            site.apache()
            yield site
        finally:
            site.stop()
            site.provider.stop()


@contextlib.contextmanager
def nginx(host):
    """The machine behind nginx, and this thread in its network."""
    with host.network():
        site = Site(host)
        site.oauth2_proxy = Oauth2Proxy()
        try:
            site.nginx()
            yield site
        finally:
            site.stop()
            site.oauth2_proxy.stop()
