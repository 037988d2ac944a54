"""The link page as a web server runs it: every request is a CGI process of its own, on files of the test.

The people are in a mount namespace of their own with another /etc/passwd, /etc/group and /etc/notify-bot, so that the
program asks the system about them as it always does.
"""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode

import segno

from live import CHECKOUT

sys.path.insert(0, str(CHECKOUT))
from common.links import Links  # noqa: E402

PROGRAM = CHECKOUT / "webapp_telegram.py"
GROUP = "dataread"
# carol has an account and is no analyst; daemon99 is one of the group, but no person.
PASSWD = """root:x:0:0::/root:/bin/sh
www-data:x:33:33::/var/www:/bin/sh
daemon99:x:999:999::/:/bin/sh
nobody:x:65534:65534::/:/bin/sh
alice:x:3001:3001::/home/alice:/bin/sh
bob:x:3002:4000::/home/bob:/bin/sh
carol:x:3003:3003::/home/carol:/bin/sh
"""
PEOPLE = [f"analyst{number}" for number in range(30)]
PASSWD += "".join(f"{name}:x:{5000 + number}:4000::/:/bin/sh\n" for number, name in enumerate(PEOPLE))
GROUPS = f"root:x:0:\nwww-data:x:33:\n{GROUP}:x:4000:alice,daemon99,nobody,root\ndata-ops:x:4001:www-data\n"
VOID = {"input", "meta", "link", "br", "path"}
PAGE_HEADERS = {"HTTP_ACCEPT": "text/html,application/xhtml+xml", "HTTP_SEC_FETCH_SITE": "same-origin"}


class Answer:
    """Answer of a CGI program: `status`, `headers` (names in lower case), `body`."""

    def __init__(self, output, errors=""):
        head, _, body = output.partition(b"\n\n") if b"\r\n\r\n" not in output else output.partition(b"\r\n\r\n")
        self.headers, self.errors = {}, errors
        for line in head.decode("latin-1").splitlines():
            name, _, value = line.partition(":")
            assert name.lower() not in self.headers, f"{name} twice"
            self.headers[name.lower()] = value.strip()
        self.status = int(self.headers.pop("status").split()[0])
        self.body = body

    @property
    def text(self):
        return self.body.decode()

    @property
    def json(self):
        assert self.headers["content-type"] == "application/json", self.body
        return json.loads(self.body)

    @property
    def error(self):
        """The sentence, as the API says it."""
        assert list(self.json) == ["error"]
        return self.json["error"]

    @property
    def page(self):
        return Page(self.text)


class Page(HTMLParser):
    """The words that are shown and the forms, by what they ask for."""

    def __init__(self, html):
        super().__init__()
        self.forms, self.visible, self.links = {}, [], []
        self._hidden, self._fields = [], {}
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in VOID:
            self._hidden.append(tag if "hidden" in attributes or tag in ("template", "title", "svg") else "")
        if tag == "form":
            self._fields = {"action": attributes["action"]}
        if tag == "input":
            self._fields[attributes["name"]] = attributes.get("value", "")
            if attributes["name"] == "do":
                self.forms.setdefault(attributes["value"], []).append(self._fields)
        if tag == "a":
            self.links.append(attributes.get("href"))

    def handle_endtag(self, tag):
        if tag not in VOID:
            self._hidden.pop()

    def handle_data(self, data):
        if not any(self._hidden):
            self.visible.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", "".join(self.visible)).strip()


class LinkPage:
    """A data directory with the link page on it. `as_whom` is a command that runs the program in its own way."""

    as_whom: tuple = ()

    def __init__(self, folder):
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir(exist_ok=True)
        self.links = Links(self.data)
        self.etc = folder / "notify-bot"
        self.etc.mkdir(exist_ok=True)
        self.namespace = self._people()

    def _people(self):
        (self.folder / "passwd").write_text(PASSWD)
        (self.folder / "group").write_text(GROUPS)
        (self.folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\n")
        # /etc/notify-bot need not be there to be mounted on, so it is made where nobody else sees it.
        script = """set -e
            cd "$1"; mkdir -p etc work; mount -t tmpfs tmpfs work; mkdir work/upper work/work
            mount -t overlay overlay -o "lowerdir=/etc,upperdir=work/upper,workdir=work/work" /etc
            cp passwd group nsswitch.conf /etc; mkdir -p /etc/notify-bot; mount --bind notify-bot /etc/notify-bot
            echo up; exec sleep infinity"""
        holder = subprocess.Popen(["unshare", "--mount", "sh", "-c", script, "sh", self.folder],
                                  stdout=subprocess.PIPE, text=True)
        assert holder.stdout.readline() == "up\n"
        return holder

    def close(self):
        self.namespace.kill()
        self.namespace.stdout.close()
        self.namespace.wait()

    def install_segno(self):
        """Put the library that the tests have where the system's Python looks for its own; here alone."""
        script = """set -e
            place=$(/usr/bin/python3 -c 'import site; print(site.getsitepackages()[0])')
            mount -t tmpfs tmpfs /usr/local/lib; mkdir -p "$place/segno"; mount --bind "$1" "$place/segno" """
        subprocess.run(["nsenter", "-t", str(self.namespace.pid), "--mount", "sh", "-c", script, "sh",
                        Path(segno.__file__).parent], check=True)

    def start(self, method, path, body=b"", user="alice", program=PROGRAM, **environment):
        """A process that answers one request; settings and headers are the environment, None takes one away."""
        path, _, query = path.partition("?")
        body = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        defaults = {
            "PATH": "/usr/bin:/bin", "GATEWAY_INTERFACE": "CGI/1.1", "SERVER_PROTOCOL": "HTTP/1.1",
            "SERVER_SOFTWARE": "tests", "REMOTE_ADDR": "127.0.0.1", "SERVER_NAME": "dash.example",
            "SERVER_PORT": "443", "HTTPS": "on", "HTTP_HOST": "dash.example", "REQUEST_METHOD": method,
            "SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": query, "REMOTE_USER": user, "AUTH_TYPE": "Basic",
            "CONTENT_LENGTH": str(len(body)), "NOTIFY_DATA_DIR": str(self.data), "NOTIFY_SITE_NAME": "testhost",
            "NOTIFY_WEB_SOCKET": str(self.folder / "web.sock")}
        if method == "POST":
            defaults |= {"CONTENT_TYPE": "application/json", "HTTP_ORIGIN": "https://dash.example"}
        environment = {name: value for name, value in (defaults | environment).items() if value is not None}
        process = subprocess.Popen(
            ["nsenter", "-t", str(self.namespace.pid), "--mount", *self.as_whom, program],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        return process, body

    def finish(self, started):
        process, body = started
        output, errors = process.communicate(body, timeout=60)
        errors = errors.decode(errors="replace")
        assert process.returncode == 0 and "Traceback" not in errors, errors
        return Answer(output, errors)

    def request(self, *arguments, **environment):
        return self.finish(self.start(*arguments, **environment))

    def at_once(self, requests):
        """The answers to many requests that run side by side; each is the arguments of `start`."""
        started = [self.start(*arguments, **environment) for arguments, environment in requests]
        return [self.finish(one) for one in started]

    def get(self, path, **environment):
        return self.request("GET", path, **environment)

    def api(self, action, body=None, **environment):
        return self.request("POST", f"/api/telegram/{action}", {} if body is None else body, **environment)

    def status(self, user="alice"):
        return self.get("/api/telegram/status", user=user).json

    def open(self, path="/telegram", user="alice", **environment):
        """The page as a browser opens it; `cookie` is what the browser keeps."""
        answer = self.get(path, user=user, **PAGE_HEADERS, **environment)
        answer.cookie = answer.headers.get("set-cookie", "").partition(";")[0]
        return answer

    def press(self, action, opened=None, user="alice", number=0, path="/telegram", **typed):
        """Send a form of the page that is `opened`, as a browser without JavaScript does."""
        opened = opened or self.open(path, user)
        fields = opened.page.forms[action][number] | typed
        answer = self.request("POST", fields.pop("action"), urlencode(fields).encode(), user=user,
                              HTTP_COOKIE=opened.cookie, CONTENT_TYPE="application/x-www-form-urlencoded",
                              **PAGE_HEADERS)
        answer.cookie = opened.cookie
        return answer

    def code(self, chat_id=42, name="Jana (@jana)"):
        return self.links.create_code(chat_id, name)

    def wrong_code(self):
        pending = json.loads(self.path("pending_codes.json").read_text()) if self.path("pending_codes.json").exists() \
            else {}
        return next(code for code in (f"{number:06d}" for number in range(100)) if code not in pending)

    def path(self, name):
        return Path(self.data, name)

    def wrong_codes(self):
        path = self.path("link_guesses.json")
        return json.loads(path.read_text()) if path.exists() else {}

