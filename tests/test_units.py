"""The units, accounts, folders and the sudo rule, judged by the programs that read them."""

import configparser
import re

import pytest

from bot import http_server, pacing, page_api, polling, scripts
from common.settings import bot_settings
from machine import CHECKOUT

UNITS = sorted(path for folder in ("system", "user") for path in (CHECKOUT / "units" / folder).iterdir())
SYSTEM = [path.name.replace("@", "@alice") for path in UNITS if path.parent.name == "system"]
USER = [path.name.replace("@", "@sales") for path in UNITS if path.parent.name == "user"]


class Unit(configparser.RawConfigParser):
    """A unit file; of a setting that is given more than once the last one counts."""

    def __init__(self, path):
        super().__init__(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
        self.optionxform = str
        self.read_string(path.read_text())


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_unit_names_its_documentation(path):
    pages = Unit(path)["Unit"]["Documentation"].split()
    manuals = {page.name for page in (CHECKOUT / "man").iterdir()}
    for name, section in re.findall(r"man:([a-z-]+)\((\d)\)", " ".join(pages)):
        assert f"{name}.{section}" in manuals
    assert pages


def test_programs_of_units_exist():
    for path in UNITS:
        command = Unit(path)["Service"]["ExecStart"].split()[0] if path.suffix == ".service" else None
        # Debian's: fcgiwrap, where nginx serves the link page, and what makes the analysts' folders.
        if command and command not in ("/usr/sbin/fcgiwrap", "/usr/bin/mkdir"):
            assert command.startswith("/usr/local/lib/notify-bot/")
            assert (CHECKOUT / command.rpartition("/")[2]).exists()


def test_bot_reads_its_settings_where_the_design_says():
    text = (CHECKOUT / "units/system/notify-bot.service").read_text()
    assert re.findall(r"^EnvironmentFile=(.*)$", text, re.MULTILINE) == [
        "-/opt/data-analyst/.env", "-/etc/notify-bot/notify-bot.env"]
    # The sockets are where the service, started by hand, would make them, and where clients look.
    defaults = bot_settings({})
    for unit, path in (("notify-bot.socket", defaults.bot_socket), ("notify-bot-web.socket", defaults.web_socket)):
        assert Unit(CHECKOUT / "units/system" / unit)["Socket"]["ListenStream"] == str(path)


def test_an_administrator_may_restart_right_after_the_sockets_gave_up():
    """The limit of the service counts the starts that the sockets triggered, too."""
    units = [Unit(path) for path in UNITS if path.name in ("notify-bot.socket", "notify-bot-web.socket")]
    service = Unit(CHECKOUT / "units/system/notify-bot.service")["Unit"]
    triggered = sum(int(unit["Socket"]["TriggerLimitBurst"]) for unit in units)
    assert len(units) == 2 and triggered < int(service["StartLimitBurst"])
    assert {service["StartLimitIntervalSec"], *(unit["Socket"]["TriggerLimitIntervalSec"] for unit in units)} == {"10s"}


def test_all_threads_fit_into_the_limit_of_tasks():
    most = (http_server.Server.max_connections + page_api.WebServer.max_connections + polling.MAX_HANDLERS
            + scripts.MAX_RUNS + pacing.MAX_IN_FLIGHT + 10)
    assert most <= int(Unit(CHECKOUT / "units/system/notify-bot.service")["Service"]["TasksMax"])


@pytest.mark.parametrize("unit", SYSTEM)
def test_verify_is_silent_for_the_system(host, unit):
    done = host.run("systemd-analyze", "verify", unit, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("unit", USER)
def test_verify_is_silent_for_users(host, unit):
    done = host.run("systemd-analyze", "--user", "verify", unit, user="alice", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("unit", "most"), [("notify-bot.service", 1.4), ("notify-scripts@alice.service", 2.5)])
def test_exposure(host, unit, most):
    verdict = host.output("systemd-analyze", "security", "--no-pager", unit).splitlines()[-1]
    assert float(re.search(r"exposure level for .*: ([0-9.]+)", verdict)[1]) <= most


def test_one_script_that_takes_too_much_memory_does_not_end_the_others(host):
    """As the managers understood the units. Without cgroup2, as in a container, they would not hear of such a kill."""
    assert host.show("notify-scripts@alice.service", "OOMPolicy") == {"OOMPolicy": "continue"}
    for unit in ("notify-runner.service", "notify-runner@sales.service"):
        assert host.user_systemctl("alice", "show", "--property=OOMPolicy", unit) == "OOMPolicy=continue"


def test_the_manager_has_nothing_to_complain_of(host):
    """A setting it does not know is only logged, and is then no protection."""
    host.run("systemctl", "daemon-reload")
    entries = host.journal().splitlines()
    assert len(entries) > 20
    assert [entry for entry in entries if re.search(r"/notify-.*\.(service|socket|timer):[0-9]+: ", entry)] == []


def test_sudo_rule_is_legal(host):
    assert "parsed OK" in host.output("visudo", "-c")


def test_bot_sees_nothing_but_its_own(host):
    """Restrictions of the unit, seen from inside it."""
    pid = host.show("notify-bot.service", "MainPID")["MainPID"]

    def inside(*command):
        return host.run("nsenter", "-t", pid, "-m", "--", *command, check=False)

    assert "user" in host.output("ls", "/home/alice")
    assert inside("ls", "/home/alice").returncode != 0
    assert "Read-only" in inside("touch", "/etc/notify-bot/x").stderr
    assert "Read-only" in inside("touch", "/usr/local/lib/notify-bot/x").stderr
    assert inside("touch", "/data/notifications/x").returncode == 0
    host.run("rm", "/data/notifications/x")
    status = dict(line.split(":", 1) for line in host.output("cat", f"/proc/{pid}/status").splitlines())
    assert {name: status[name].strip() for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs")} == {
        "CapEff": "0" * 16, "CapPrm": "0" * 16, "CapBnd": "0" * 16, "CapAmb": "0" * 16, "NoNewPrivs": "1"}
    # 2: a system-call filter is in force.
    assert status["Seccomp"].strip() == "2"
