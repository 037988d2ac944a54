"""Ways to Telegram: TLS with a CA of the host's own, and a real proxy with and without a password."""

import datetime
import ipaddress
import json
import socket
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bot import connections
from bot.telegram import TelegramAPI, TelegramUnreachable
from common.problem import Problem
from live import until

PASSWORD = "s3cret-of-the-proxy"
TOKEN = "123:SECRETTOKEN"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A key and a certificate for 127.0.0.1 in one file; it is its own CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "telegram")])
    now = datetime.datetime.now(datetime.UTC)
    made = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(1).not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
            .add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256()))
    path = tmp_path_factory.mktemp("ca") / "telegram.pem"
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                       serialization.NoEncryption())
                     + made.public_bytes(serialization.Encoding.PEM))
    return path


class Telegram:
    """Answers every call with its path; counts connections and what proxies said."""

    def __init__(self, certificate=None):
        self.vias, self.paths, self.connections = [], [], 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(handler):
                self.connections += 1
                super().setup()

            def do_POST(handler):
                handler.rfile.read(int(handler.headers["Content-Length"]))
                self.vias.append(handler.headers.get("Via"))
                self.paths.append(handler.path)
                assert "Proxy-Authorization" not in handler.headers
                body = json.dumps({"ok": True, "result": handler.path.rpartition("/")[2]}).encode()
                handler.send_response(200)
                handler.send_header("Content-Length", str(len(body)))
                handler.end_headers()
                handler.wfile.write(body)

            def log_message(handler, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads, self._server.block_on_close = True, False
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def stop(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Proxy:
    """tinyproxy; `log` is what it says of each request."""

    def __init__(self, folder, login=""):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._log = folder / "tinyproxy.log"
        config = folder / "tinyproxy.conf"
        config.write_text(f"Port {self.port}\nListen 127.0.0.1\nTimeout 20\nLogLevel Connect\nMaxClients 20\n"
                          f'LogFile "{self._log}"\n' + (f"BasicAuth {login}\n" if login else ""))
        self._process = subprocess.Popen(["tinyproxy", "-d", "-c", config], stdout=subprocess.DEVNULL,
                                         stderr=subprocess.DEVNULL)
        until(self._answers)

    def _answers(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    @property
    def log(self):
        return self._log.read_text()

    def stop(self):
        self._process.terminate()
        self._process.wait(10)


@pytest.fixture(autouse=True)
def no_proxy_of_this_host(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(params=["http", "https"])
def telegram(request, monkeypatch, certificate):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    telegram = Telegram(certificate if request.param == "https" else None)
    yield telegram
    telegram.stop()


@pytest.fixture
def api(telegram):
    """Made at its first call, with the proxies that are set then."""
    made = []

    class Late:
        def call(self, *arguments):
            made[:] = made or [TelegramAPI(TOKEN, telegram.url)]
            return made[0].call(*arguments)

    yield Late()
    for api in made:
        api.close()


def use(monkeypatch, port, login=""):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://{login}{'@' if login else ''}127.0.0.1:{port}")


@pytest.fixture
def proxy(tmp_path):
    proxy = Proxy(tmp_path, f"bot {PASSWORD}")
    yield proxy
    proxy.stop()


def test_a_connection_is_kept(api, telegram):
    assert [api.call("getMe"), api.call("sendMessage", {"text": "x" * 100_000})] == ["getMe", "sendMessage"]
    assert telegram.connections == 1 and telegram.paths[0] == f"/bot{TOKEN}/getMe"


def test_a_certificate_of_nobody_known_is_refused(certificate, monkeypatch):
    telegram, api = Telegram(certificate), None
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    try:
        api = TelegramAPI(TOKEN, telegram.url)
        with pytest.raises(TelegramUnreachable, match="certificate verify failed") as raised:
            api.call("getMe")
        assert not raised.value.unknown and telegram.paths == []
    finally:
        telegram.stop()


@pytest.mark.needs("tinyproxy")
def test_a_proxy_without_a_password(api, telegram, tmp_path, monkeypatch):
    proxy = Proxy(tmp_path)
    try:
        use(monkeypatch, proxy.port)
        assert [api.call("getMe"), api.call("getMe")] == ["getMe"] * 2
        assert telegram.paths == [f"/bot{TOKEN}/getMe"] * 2
        until(lambda: "127.0.0.1" in proxy.log and "Established connection" in proxy.log)
        # Through the tunnel of https nobody sees the calls, and the token.
        assert ("SECRETTOKEN" in proxy.log) == telegram.url.startswith("http:")
    finally:
        proxy.stop()


@pytest.mark.needs("tinyproxy")
def test_a_proxy_with_a_password(api, telegram, proxy, monkeypatch):
    use(monkeypatch, proxy.port, f"bot:{PASSWORD}")
    assert api.call("getMe") == "getMe" and api.call("sendMessage", {"text": "x"}) == "sendMessage"
    assert telegram.vias[0] if telegram.url.startswith("http:") else telegram.vias == [None, None]


@pytest.mark.needs("tinyproxy")
@pytest.mark.parametrize("login", ["", "bot:wrong-password"])
def test_a_wrong_password_says_what_to_do(api, telegram, proxy, login, monkeypatch):
    use(monkeypatch, proxy.port, login)
    # tinyproxy answers and closes before it has read a request of http, and the kernel may throw its answer away.
    is_tunnel = telegram.url.startswith("https:")
    meant = "put the right ones into https_proxy or http_proxy" + ("" if is_tunnel else "|Connection reset by peer")
    with pytest.raises(TelegramUnreachable, match=meant) as raised:
        api.call("sendMessage", {"text": "x"})
    assert not (raised.value.unknown and is_tunnel) and telegram.paths == []
    assert "wrong-password" not in repr(raised.value) and "SECRETTOKEN" not in repr(raised.value)


@pytest.mark.needs("tinyproxy")
def test_a_host_of_no_proxy_is_asked_directly(api, telegram, proxy, monkeypatch):
    use(monkeypatch, proxy.port, "bot:wrong-password")
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    assert api.call("getMe") == "getMe"


def test_each_call_through_a_proxy_of_http_has_a_connection(monkeypatch):
    """It may close one without saying so, and the fate of the next call would be unknown."""
    proxy = Telegram()  # whoever is asked with a whole URL is a proxy
    use(monkeypatch, proxy.url.rpartition(":")[2])
    api = TelegramAPI(TOKEN, "http://telegram.example")
    try:
        assert [api.call("getMe"), api.call("getMe")] == ["getMe", "getMe"]
        assert proxy.connections == 2 and proxy.paths == [f"http://telegram.example/bot{TOKEN}/getMe"] * 2
    finally:
        api.close()
        proxy.stop()


def test_a_proxy_that_is_down_sent_nothing(api, telegram, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    use(monkeypatch, port, f"bot:{PASSWORD}")
    with pytest.raises(TelegramUnreachable, match="cannot connect") as raised:
        api.call("getMe")
    assert not raised.value.unknown and PASSWORD not in repr(raised.value)


@pytest.mark.parametrize("proxy", ["http:/bot:s3cret@proxy:3128", "http://bot:s3cret@proxy:31x8",
                                   "socks5://bot:s3cret@proxy:1080", "http://bot:s3cret@proxy:99999", "//"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_none_stops_the_start_and_is_not_quoted(scheme, proxy, monkeypatch):
    monkeypatch.setenv(f"{scheme}_proxy", proxy)
    with pytest.raises(Problem, match=f"{scheme}_proxy is not the URL of an HTTP proxy") as raised:
        TelegramAPI(TOKEN, f"{scheme}://api.telegram.org")
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:99x", "https://telegram:123456"])
def test_an_address_without_a_port_that_is_one_stops_the_start(url):
    with pytest.raises(Problem, match="TELEGRAM_API_URL"):
        TelegramAPI(TOKEN, url)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 403 Filtered\r\nContent-Length: 0\r\n\r\n", b"", b"junk\r\n\r\n", b"H"])
def test_a_proxy_that_opens_no_tunnel_sent_nothing(certificate, answer, monkeypatch):
    """Not even one that answers nothing whole, or bit by bit."""
    monkeypatch.setattr(connections, "CONNECT_SECONDS", 0.5)
    stop = threading.Event()

    def serve(listener):
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)
            while answer == b"H" and not stop.wait(0.1):
                try:
                    connection.sendall(b"H")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        use(monkeypatch, listener.getsockname()[1], f"bot:{PASSWORD}")
        api = TelegramAPI(TOKEN, "https://192.0.2.1")
        with pytest.raises(TelegramUnreachable, match="cannot connect") as raised:
            api.call("getMe")
        stop.set()
        thread.join()
    assert not raised.value.unknown and PASSWORD not in repr(raised.value)
