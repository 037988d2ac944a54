"""Documents checked against the code: names, figures, tables and the blocks that can be run here."""

import ast
import inspect
import json
import re
import shutil
import subprocess
import sys

import pytest

import notify_scripts
from bot import chat, http_server, pacing, polling, systemd
from common import links, log, script_output, settings
from documents import CHECKOUT, NAMES, blocks, code_spans, commands, prose, tables, text_of
from live import ME, Bot, Telegram, until

FOLDERS = ("", "bot/", "runner/", "webapp/", "common/")
SOURCES = {f"{folder}{path.name}": path.read_text() for folder in FOLDERS
           for path in sorted((CHECKOUT / folder).glob("*.py"))}
ALL_SOURCES = "\n".join(SOURCES.values())
ADMIN, GUIDE, ARCHITECTURE = "docs/telegram_bot.md", "docs/notifications.md", "docs/ARCHITECTURE.md"
PAGE = "docs/link_page.md"
SCRIPTS_UNIT = text_of("units/system/notify-scripts@.service")
CHAT_ID = 4242
# Folders of an installed service, with those of its outbox.
RUN_TIME_FOLDERS = {f"{folder}{name}/" for folder in ("", "outbox/")
                    for name in ("journal", "pictures", "failed", "sent", "corrupt")} | {"outbox/"}
READ = r'environment(?:\.get\(|\.pop\(|, )"((?:NOTIFY|TELEGRAM)_[A-Z_]+)"'


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(name))
    local = [target for target in targets if "://" not in target and "…" not in target]
    for target in local:
        assert (CHECKOUT / name).parent.joinpath(target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("name", NAMES)
def test_make_targets_are_there(name):
    makefile = text_of("Makefile")
    for target in re.findall(r"^(?:[#$] )?make ([a-z-]+)", "\n".join(block.text for block in blocks(name)), re.M) + [
            span.split()[1] for span in code_spans(prose(name)) if span.startswith("make ")]:
        assert re.search(rf"^([a-z ]+ )?{target}( [a-z ]+)?:", makefile, re.M), f"make {target}"


@pytest.mark.parametrize("name", NAMES)
def test_settings_named_are_read_and_modules_named_are_there(name):
    text = text_of(name)
    for setting in re.findall(r"\b(?:NOTIFY|TELEGRAM)_[A-Z_]+\b", text):
        assert f'"{setting}"' in ALL_SOURCES, setting
    for path in re.findall(r"`([\w/-]+(?:\.(?:py|html|toml)|/))`", text):
        places = [CHECKOUT / folder / path for folder in ("", "examples")]
        assert path.startswith("/") or path in RUN_TIME_FOLDERS or any(place.exists() for place in places), path


def test_the_administrator_is_told_every_setting():
    rows = {code_spans(row[0])[0]: row[1] for row in tables(ADMIN) if row[0].startswith(("`NOTIFY", "`TELEGRAM"))}
    assert set(rows) == set(re.findall(READ, inspect.getsource(settings.bot_settings) + inspect.getsource(systemd)))
    defaults = settings.bot_settings({})
    assert rows["TELEGRAM_API_URL"] == f"`{defaults.api_url}`"
    for setting, value in (("NOTIFY_DATA_DIR", defaults.data_dir), ("NOTIFY_SCRIPTS_DIR", defaults.scripts_dir),
                           ("NOTIFY_WS_SOCKET", defaults.ws_socket), ("NOTIFY_BOT_SOCKET", defaults.bot_socket),
                           ("NOTIFY_STATE_DIR", defaults.state_dir), ("NOTIFY_KEEP_SENT", defaults.keep_sent),
                           ("NOTIFY_KEEP_FAILED", defaults.keep_failed), ("NOTIFY_MAX_AGE", defaults.max_age),
                           ("NOTIFY_JOIN", int(defaults.join))):
        assert rows[setting] == f"`{value}`"


def test_the_administrator_is_told_every_setting_of_the_page():
    rows = {code_spans(row[0])[0] for row in tables(PAGE) if row[0].startswith("`NOTIFY")}
    assert rows == set(re.findall(READ, inspect.getsource(settings.page_settings)))


def test_the_analyst_is_told_every_command_and_field():
    guide = prose(GUIDE)
    named = {span[1:] for span in code_spans(guide) if re.fullmatch(r"/[a-z]+", span)}
    assert named == set(chat.COMMANDS)
    fields = [code_spans(row[0])[0] for row in tables(GUIDE) if row[0].startswith("`") and len(row) == 3]
    assert fields == list(script_output.Notification._fields)
    cooldowns = next(row for row in tables(GUIDE) if row[0] == "`cooldown`")[1]
    assert json.loads(code_spans(cooldowns)[-1]) == script_output.DEFAULT_COOLDOWN
    for example in code_spans(cooldowns):
        script_output.parse_cooldown(json.loads(example))


def _messages():
    """Every text in the sources, with a space where a value goes."""
    texts = []
    for source in SOURCES.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else " " for part in node.values))
    return [re.sub(r"%[sdr]|%\.1f", " ", text) for text in texts]


@pytest.mark.parametrize("name", [ADMIN, GUIDE])
def test_the_symptoms_are_what_the_programs_say(name):
    foreign = {"Permission denied", "Failed to connect to bus", "systemctl --user", "dataread", "refused"}
    messages = _messages()
    rows = [row for row in tables(name) if len(row) == 2 and "`" in row[0] and not row[0].startswith("`telegram_")]
    quotes = [span for row in rows for span in code_spans(row[0]) if not span.endswith((".json", "/"))]
    assert len(quotes) > 5
    for quote in set(quotes) - foreign:
        assert any(quote in text for text in messages), f"no program says {quote!r}"


FIGURES = [
    (GUIDE, "for at most {} seconds", notify_scripts.RUN_SECONDS),
    (GUIDE, "print at most {} MiB", notify_scripts.MAX_OUTPUT >> 20),
    (GUIDE, "more than {} scripts", notify_scripts.MAX_SCRIPTS),
    (ADMIN, "one of more than {}", notify_scripts.MAX_SCRIPTS),
    (GUIDE, "PNG or JPEG of up to {} MiB", notify_scripts.MAX_IMAGE >> 20),
    (GUIDE, "valid for {} minutes", {10: "ten"}[links.CODE_SECONDS // 60]),
    (GUIDE, "with at most {} GiB of memory", re.search(r"^MemoryMax=(\d+)G$", SCRIPTS_UNIT, re.M)[1]),
    (ADMIN, "codes of the last {} minutes", {10: "ten"}[links.CODE_SECONDS // 60]),
    (ADMIN, "one line a message, without its text; {} days", {3: "three"}[settings.bot_settings({}).keep_sent]),
    (ADMIN, "{} days", {30: "thirty"}[settings.bot_settings({}).keep_failed]),
    (ADMIN, "a copy of the log of at most {} MiB", 2 * log.LOG_COPY_BYTES >> 20),
    (ADMIN, "messages wait up to {}", {86400: "a day"}[settings.bot_settings({}).max_age]),
    (ARCHITECTURE, "each update being handled, {} at most", polling.MAX_HANDLERS),
    (ARCHITECTURE, "up to {} workers", pacing.MAX_IN_FLIGHT),
    (ARCHITECTURE, "each connection, {} at most", http_server.MAX_CONNECTIONS),
    (ARCHITECTURE, "{} for a user", http_server.MAX_CONNECTIONS_PER_USER),
]


@pytest.mark.parametrize(("name", "phrase", "value"), FIGURES)
def test_figures_are_those_of_the_code(name, phrase, value):
    words = re.sub(r"\s+", " ", text_of(name)).lower()
    assert phrase.format(value).lower() in words


def test_the_table_of_modules_is_the_tree():
    rows = [code_spans(row[0])[0] for row in tables(ARCHITECTURE) if len(row) == 2 and ".py`" in row[0]]
    assert sorted(rows) == sorted(name for name in SOURCES if not name.endswith("__init__.py"))


def test_bounds_are_set_where_the_table_says():
    section = text_of("docs/telegram_bot.md").partition("## Bounds")[2].partition("\n## ")[0]
    rows = [line.rstrip("|").rpartition("|")[2] for line in section.splitlines() if line.startswith("| ")][2:]
    modules = {name.rpartition("/")[2].removesuffix(".py"): source for name, source in SOURCES.items()}
    named = 0
    for row in rows:
        module = ""
        for name in re.findall("`([^`]+)`", row):
            module, _, constant = name.rpartition(".") if "." in name else (module, "", name)
            if constant.startswith("NOTIFY_"):
                continue
            assert re.search(rf"^(\w+, )*{constant}(, \w+)* = ", modules[module], re.M), name
            named += 1
    assert named >= 40


def test_the_readme_is_one_screen_with_a_picture():
    assert len(text_of("README.md").splitlines()) <= 60
    picture = CHECKOUT / "docs" / "chat.png"
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.stat().st_size < 150_000


def test_the_changelog_has_this_version():
    assert f"\n## {settings.version()}\n" in text_of("CHANGELOG.md")


@pytest.mark.parametrize("name", ["README.md", GUIDE])
def test_scripts_shown_keep_the_contract(name):
    scripts = [block for block in blocks(name, "python") if "requests_unixsocket" not in block.text]
    assert scripts
    for block in scripts:
        run = subprocess.run([sys.executable, "-I", "-c", block.text], capture_output=True, check=True, timeout=30)
        assert script_output.parse_output(run.stdout).notify


@pytest.fixture
def running(tmp_path):
    """A bot with the sandbox behind it, linked to whoever runs the tests."""
    telegram = Telegram(tmp_path)
    telegram.person(CHAT_ID)
    telegram.types(CHAT_ID, "hi")
    bot = Bot(tmp_path, telegram.url)
    bot.users(**{ME: CHAT_ID})
    bot.start().settle()
    yield bot, telegram
    assert bot.stop() == 0
    assert telegram.stop() == 0


@pytest.mark.needs("curl")
@pytest.mark.parametrize("name", [GUIDE, ADMIN])
def test_curl_commands_work(name, running, tmp_path):
    bot, telegram = running
    shutil.copy(CHECKOUT / "bot" / "sample_chart.png", tmp_path / "chart.png")
    lines = [command for block in blocks(name, "console") for _, command in commands(block) if "curl" in command]
    assert lines
    for line in lines:
        assert "/run/notify-bot/bot.sock" in line
        command = line.replace("/run/notify-bot/bot.sock", str(bot.socket_path)).replace("curl ", "curl -sS ")
        run = subprocess.run(["bash", "-ec", command], cwd=tmp_path, capture_output=True, text=True, timeout=30)
        assert run.returncode == 0, run
        assert "notify_bot_up 1" in run.stdout if "/metrics" in line else json.loads(run.stdout)["ok"] is True, run
    if name == GUIDE:
        until(lambda: telegram.texts(CHAT_ID)[-2:] == ["Training\ndone, loss 0.12", "the curve"], 10, telegram.texts)
        assert telegram.messages(CHAT_ID)[-1]["photo"]


def test_the_python_client_works(running, tmp_path):
    bot, telegram = running
    block, = [block for block in blocks(GUIDE, "python") if "requests_unixsocket" in block.text]
    url = bot.url.removeprefix("http+unix://")
    assert "%2Frun%2Fnotify-bot%2Fbot.sock" in block.text
    program = block.text.replace("%2Frun%2Fnotify-bot%2Fbot.sock", url)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert run.stdout.startswith("200 {'ok': True"), run
    assert telegram.texts(CHAT_ID)[-1] == "done"


def test_every_console_block_is_run_somewhere():
    """On the machine (test_docs_on_machine.py), or, with curl, here."""
    for name in NAMES:
        for block in blocks(name, "console"):
            assert "machine" in block.marks or all("curl" in command for _, command in commands(block)), block
            assert commands(block) and len(commands(block)) == len(block.text.splitlines()), block


