"""The project as an administrator has it: installed on the booted machine, the sandbox in Telegram's place."""

import json
import shutil

from live import TOKEN
from machine import CHECKOUT, PROJECT, Machine, until

SANDBOX_PORT = 8081
# The chats are made before the bot starts at boot: to a sandbox without them, which it is after a reboot, everybody
# would be gone.
SANDBOX_UNIT = f"""[Unit]
Before=notify-bot.service

[Service]
ExecStart=/usr/bin/python3 -EsS {PROJECT}/tests/telegram --port {SANDBOX_PORT} --token ${{TOKEN}}
ExecStartPost=/usr/bin/python3 /etc/sandbox-chats.py
EnvironmentFile=/etc/sandbox.env
DynamicUser=yes

[Install]
WantedBy=multi-user.target
"""
CHATS = {"alice": 1001, "bob": 1002}
MAKE_CHATS = f"""
import json, time, urllib.error, urllib.request
deadline = time.monotonic() + 20
def call(name, body):
    request = urllib.request.Request("http://127.0.0.1:{SANDBOX_PORT}/sandbox/" + name, json.dumps(body).encode(),
                                     {{"Content-Type": "application/json"}})
    while True:
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
for user, chat in {CHATS}.items():
    call("chats", {{"id": chat, "first_name": user.title(), "username": user}})
    call("unblock", {{"chat_id": chat}})
"""
CALL = """
import json, sys, urllib.request
method, url, body = json.load(sys.stdin)
request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(),
                                 {"Content-Type": "application/json"}, method=method)
print(urllib.request.urlopen(request, timeout=30).read().decode())
"""
SEND = """
import http.client, json, socket, sys
path, method, url, body = json.load(sys.stdin)
class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(path)
try:
    connection = Connection("localhost")
    connection.request(method, url, None if body is None else json.dumps(body))
    answer = connection.getresponse()
    print(json.dumps([answer.status, json.loads(answer.read())]))
except OSError as error:
    print(json.dumps([type(error).__name__, None]))
"""
REDEEM = """
import sys
sys.path.insert(0, "/usr/local/lib/notify-bot")
from pathlib import Path
from common.links import Links, uid_of
Links(Path("/data/notifications")).redeem(sys.argv[1], sys.argv[2], uid_of(sys.argv[2]))
"""
BOT_SOCKET = "/data/notifications/bot.sock"


class Host(Machine):
    """A machine on which the project is installed with `install`."""

    def __init__(self):
        super().__init__()
        self.copy_checkout()

    def make(self, *arguments, **options):
        return self.output("make", "--no-print-directory", "-C", PROJECT, *arguments, timeout=120, **options)

    def install(self):
        """Install as the administrator's guide says, for alice and bob, and link their chats."""
        self.make("install")
        self.write("/etc/hosts", "127.0.0.1 localhost\n")
        self.write("/etc/sandbox.env", f"TOKEN={TOKEN}\n", 0o600)
        self.write("/etc/sandbox-chats.py", MAKE_CHATS)
        self.write("/etc/systemd/system/telegram-sandbox.service", SANDBOX_UNIT)
        self.write("/etc/notify-bot/telegram-bot-token", TOKEN + "\n", 0o600)
        self.write("/etc/notify-bot/notify-bot.env",
                   f"TELEGRAM_API_URL=http://127.0.0.1:{SANDBOX_PORT}\nNOTIFY_SITE_NAME=testhost\n", 0o600)
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "enable", "--now", "telegram-sandbox.service")
        self.run("systemctl", "restart", "notify-bot.service")
        for user in CHATS:
            self.run("notify-add-analyst", "--create", user)
            self.link(user)

    def restart_bot(self):
        """Restart the service; starts by tests do not count for its limit."""
        self.run("systemctl", "reset-failed", "notify-bot.service")
        self.run("systemctl", "restart", "notify-bot.service")

    def link(self, user):
        """Link `user` as a person does: /start in the chat, the code typed into the page of the web server."""
        self.types(user, "/start")
        code = self.wait_for(user, "Your code is ").split()[3].strip("`")
        self.python(REDEEM, code, user, user="www-data")
        self.wait_for(user, "This chat is now linked")

    def types(self, user, text):
        self.control("POST", "messages", {"chat_id": CHATS[user], "text": text})

    def messages(self, user):
        """Messages of the bot to `user`, oldest first."""
        answer = self.control("GET", f"messages?chat_id={CHATS[user]}")
        return [message for message in answer["messages"] if message["from"]["is_bot"]]

    def texts(self, user):
        return [message.get("text", message.get("caption", "")) for message in self.messages(user)]

    def wait_for(self, user, part, seconds=20):
        """The text of the first message to `user` with `part` in it."""
        return until(lambda: next((text for text in self.texts(user) if part in text), None), seconds,
                     f"{part!r} arrives at {user}")

    def press(self, user, label):
        """Press the button with that label under the newest message that has one."""
        for message in reversed(self.messages(user)):
            for row in message.get("reply_markup", {}).get("inline_keyboard", []):
                for button in row:
                    if button["text"] == label:
                        return self.control("POST", "press", {"chat_id": CHATS[user], "text": label,
                                                              "message_id": message["message_id"]})
        raise AssertionError(f"{user} sees no button {label!r}")

    def control(self, method, name, body=None):
        url = f"http://127.0.0.1:{SANDBOX_PORT}/sandbox/{name}"
        return json.loads(self.output("python3", "-c", CALL, input=json.dumps([method, url, body])))

    def request(self, user, method, path, body=None, socket=BOT_SOCKET):
        """`[status, body]` of a request to the bot, made by `user`; the status is an error's name where none came."""
        return json.loads(self.output("python3", "-c", SEND, user=user,
                                      input=json.dumps([socket, method, path, body])))

    def send(self, caller, text, **fields):
        return self.request(caller, "POST", "/send", {"text": text, **fields})

    def script(self, user, name, text):
        """Put a script into the folder of `user`, which the account's own manager may not have made yet."""
        self.run("mkdir", "-p", f"/home/{user}/user/notifications", user=user)
        self.write(f"/home/{user}/user/notifications/{name}", text, 0o644, user)

    def make_venv(self, user):
        """A ~/.venv with what analysts import."""
        self.run("python3", "-m", "venv", "--without-pip", f"/home/{user}/.venv", user=user)
        shutil.copytree(CHECKOUT / ".venv-test/analyst", self.path(f"/home/{user}/.venv/lib/python3.11/site-packages"),
                        dirs_exist_ok=True)

    def user_systemctl(self, user, *arguments):
        return self.output("systemctl", "--user", *arguments, user=user)

    def show(self, unit, *properties):
        """Values of properties of a system unit, by name."""
        shown = self.output("systemctl", "show", unit, *(f"--property={name}" for name in properties))
        return dict(line.split("=", 1) for line in shown.splitlines())
