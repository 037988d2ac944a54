"""The rows of the benchmark. Each function measures some, and gives a Figure for each.

In every round the service, what it is compared with, and the floor come right after one another, so that a noisy
neighbour meets all of them; a ratio is the median of the ratios of the rounds.
"""

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import namedtuple

import load
from processes import AS_ANALYST, PYTHON, VENV_PYTHON, Account, Server, Service, Telegram, floor, floor_result

CLIENTS = (1, 8, 32)
WAIT_SECONDS = 30
CHATS = 200

Figure = namedtuple("Figure", "name unit ours floor comparison targets")
Figure.__doc__ = """A row: `ours`, `floor` and `comparison` hold a value for each round, or none. `targets` is a list of
(against, limit): at most so many times `floor` or `comparison`, or `value`: at most that. More is better where `unit`
is "/s"."""


def figure(name, unit, rounds, targets=()):
    """A Figure of rounds, each of which is (ours, floor, comparison) with None for what there is not."""
    ours, floors, comparison = ([value for value in column if value is not None]
                                for column in zip(*rounds, strict=True))
    return Figure(name, unit, ours, floors, comparison, list(targets))


def percentile(values, percent):
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def start(plan, place):
    """Cold start through socket activation: from the start of the process to its first answered request."""
    modules = place.standard_modules()

    def first_answer(server):
        with server:
            return server.first_answer() * 1e3

    with Telegram(place, 1) as telegram:
        return [figure("cold start to the first answer", "ms", [
            (first_answer(Service(place, telegram, "bot", ready=False)),
             first_answer(Server(place.new("bare"), floor("bare", *modules), ready=False)),
             first_answer(Service(place, telegram, "comparison", ready=False)))
            for _ in range(3 * plan.rounds)], [("floor", 1.5)])]


def imports(plan, place):
    """A process that imports the modules and ends."""
    def seconds(python, code):
        begin = time.perf_counter()
        subprocess.run([python, "-EsSc" if python == PYTHON else "-Ec", code], check=True)
        return (time.perf_counter() - begin) * 1e3

    ours = f"import sys; sys.path.insert(0, {str(place.modules)!r}); import notify_bot"
    standard = "import " + ", ".join(place.standard_modules())
    return [figure("imports", "ms", [(seconds(PYTHON, ours), seconds(PYTHON, standard),
                                      seconds(VENV_PYTHON, "from aiohttp import ClientSession, web"))
                                     for _ in range(3 * plan.rounds)])]


def memory(plan, place):
    """Resident memory at rest, and after many messages, which 8 clients sent and waited for."""
    rest, grown, growth = [], [], []
    modules = place.standard_modules()
    for _ in range(plan.rounds):
        with Server(place.new("bare"), floor("bare", *modules)) as bare:
            least = bare.memory() / 1e6
        with Telegram(place, CHATS) as telegram:
            rest.append((_at_rest(plan, Service(place, telegram, "bot")), least,
                         _at_rest(plan, Service(place, telegram, "comparison"))))
            ours, comparison = (_grown(plan, Service(place, telegram, kind, "unpaced"))
                                for kind in ("bot", "comparison"))
        grown.append((ours[1], least, comparison[1]))
        growth.append((ours[1] / ours[0], None, comparison[1] / comparison[0]))
    return [figure("memory at rest", "MB", rest, [("floor", 1.25)]),
            figure(f"memory after {plan.messages:,} messages", "MB", grown),
            figure(f"growth from {plan.messages // 10:,} to {plan.messages:,} messages", "x", growth,
                   [("value", 1.05)])]


def _at_rest(plan, service):
    """Megabytes."""
    with service:
        time.sleep(plan.rest_seconds)
        return service.memory() / 1e6


def _grown(plan, service):
    """Megabytes after a tenth of the messages, and after all."""
    found = []
    with service:
        for count in (plan.messages // 10, plan.messages - plan.messages // 10):
            service.send(count, 8, WAIT_SECONDS)
            found.append(service.memory())
    return [value / 1e6 for value in found]


def cpu(plan, place):
    """Processor time of a message: accepted, stored, delivered."""
    ways = {"at Telegram's pace": ("paced", plan.paced, 0), "one by one": ("unpaced", plan.count, WAIT_SECONDS)}
    rounds, parts = {way: [] for way in ways}, {"request": [], "call": [], "append": []}
    with Telegram(place, CHATS) as telegram:
        for _ in range(plan.rounds):
            floors = {"request": _cpu_of_request(plan, place), "call": telegram.calls(plan.count)["cpu"] * 1e3,
                      "append": floor_result("append", place.new("lines"), plan.count, 1)["cpu"] * 1e3}
            for name, value in floors.items():
                parts[name].append((None, value, None))
            for way, (pace, count, wait) in ways.items():
                ours, comparison = (_cpu_of_message(telegram, Service(place, telegram, kind, pace), count, wait)
                                    for kind in ("bot", "comparison"))
                rounds[way].append((ours, sum(floors.values()), comparison))
    targets = [("floor", 2.5), ("comparison", 1.5)]
    return [*(figure(f"CPU of a message, {way}", "ms", found, targets) for way, found in rounds.items()),
            *(figure(f"  of the floor: one {name}", "ms", found) for name, found in parts.items())]


def _cpu_of_message(telegram, service, count, wait):
    with service:
        service.send(20, 1, WAIT_SECONDS)
        begin, sent = service.cpu(), telegram.stats()["sent"]
        service.send(count, 1, wait)
        telegram.wait_for(sent + count)
        return (service.cpu() - begin) / count * 1e3


def _cpu_of_request(plan, place):
    with Server(place.new("server"), floor("server")) as server:
        begin = server.cpu()
        request = load.post("/send", {"user": "u1", "text": "message 1", "wait": 0})
        load.run(server.path, 1, [request] * plan.count)
        return (server.cpu() - begin) / plan.count * 1e3


def latency(plan, place):
    """Time until a message is accepted, and until it is delivered, as its client waits.

    Accepted: as the service runs, so at Telegram's pace behind it. Delivered: as fast as it can."""
    figures = []
    with Telegram(place, CHATS) as telegram:
        for clients in CLIENTS:
            accepted, delivered = [], []
            for _ in range(plan.rounds):
                appends = floor_result("append", place.new("lines"), plan.count, clients)["seconds"]
                calls = telegram.calls(plan.count // 4)["seconds"]
                ours, comparison = ([_latencies(Service(place, telegram, kind, pace), plan.count, clients, wait)
                                     for pace, wait in (("paced", 0), ("unpaced", WAIT_SECONDS))]
                                    for kind in ("bot", "comparison"))
                accepted.append((ours[0], appends, comparison[0]))
                delivered.append((ours[1], [sum(pair) for pair in zip(appends, calls, strict=False)], comparison[1]))
            figures += _percentiles(f"accepted, {clients} at once", accepted, (4, 10))
            figures += _percentiles(f"delivered, {clients} at once", delivered)
    return figures


def _latencies(service, count, clients, wait):
    """The queue is not drained afterwards: at Telegram's pace that would take a minute."""
    with service:
        service.send(20, clients, WAIT_SECONDS)
        return service.send(count, clients, wait).latencies


def _percentiles(name, rounds, limits=()):
    """Two Figures. The floor of both is its median: the append's own time, not its worst."""
    for index, percent in enumerate((50, 99)):
        yield figure(f"{name}: p{percent}", "ms", [
            (percentile(ours, percent) * 1e3, percentile(floors, 50) * 1e3, percentile(comparison, percent) * 1e3)
            for ours, floors, comparison in rounds], [("floor", limits[index])] if limits else [])


def health(plan, place):
    """GET /health on kept connections."""
    def rate(server, clients):
        with server:
            load.run(server.path, clients, load.for_seconds(load.get("/health"), plan.seconds / 4))
            done = load.run(server.path, clients, load.for_seconds(load.get("/health"), plan.seconds))
            return len(done.latencies) / done.seconds

    with Telegram(place, 1) as telegram:
        return [figure(f"GET /health, {clients} at once", "/s", [
            (rate(Service(place, telegram, "bot"), clients),
             rate(Server(place.new("server"), floor("server")), clients),
             rate(Service(place, telegram, "comparison"), clients)) for _ in range(plan.rounds)])
            for clients in CLIENTS]


BURST, BURST_CHATS = 600, 60
LEAST_SECONDS = BURST_CHATS / 30  # a call for each chat, 30 a second
QUIET_SECONDS = 3


def burst(plan, place):
    """600 texts to 60 chats by 60 clients under Telegram's limits: all in a chat, without a refusal?"""
    rounds = [[_burst(place, kind) for kind in ("bot", "comparison")] for _ in range(min(3, plan.rounds))]

    def column(index, floors=None):
        return [(ours[index], floors, comparison[index]) for ours, comparison in rounds]

    return [figure("burst of 600 to 60 chats", "s", column(0, LEAST_SECONDS), [("floor", 2.0)]),
            figure("  refusals by Telegram", "", column(1), [("value", 0)]),
            figure("  lost", "", column(2), [("value", 0)])]


def _burst(place, kind):
    """Seconds, refusals, losses."""
    with Telegram(place, BURST_CHATS, "telegram") as telegram, \
            Service(place, telegram, kind, "paced", joins=True) as service:
        begin = time.perf_counter()
        service.send(BURST, BURST_CHATS, 0)
        seconds = telegram.quiet_since(QUIET_SECONDS) - begin
        refusals = telegram.stats()["refusals"].get("sendMessage", {})
        return seconds, sum(refusals.values()), BURST - telegram.texts()


SCRIPTS = 50


def runner(plan, place):
    """One pass over 50 scripts that have nothing to say. The floor: 50 starts of the interpreter, over the cores."""
    home = place.new("home")
    folder = home / "user/notifications"
    folder.mkdir(parents=True)
    for number in range(SCRIPTS):
        (folder / f"s{number}.py").write_text('print(\'{"notify": false}\')\n')
    for path in (home, home / "user", folder, *folder.iterdir()):
        if AS_ANALYST:
            os.chown(path, AS_ANALYST["user"], AS_ANALYST["group"])
    cores, scripts = len(os.sched_getaffinity(0)), [str(path) for path in folder.iterdir()]
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "NOTIFY_HOME": str(home), "NOTIFY_ANALYST_GROUP": "",
                   "NOTIFY_BOT_SOCKET": str(place.folder / "no.sock")}

    def seconds(command, **options):
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
                       cwd="/", **AS_ANALYST, **options)
        return time.perf_counter() - begin

    found = []
    for _ in range(2 * plan.rounds):
        alone = statistics.median(seconds([PYTHON, scripts[0]]) for _ in range(11))
        by_xargs = seconds(["xargs", "-P", str(cores), "-n", "1", PYTHON], input="\n".join(scripts), text=True)
        found.append((seconds([PYTHON, "-EsS", place.modules / "notify_runner.py"]), alone * SCRIPTS / cores, by_xargs))
    shutil.rmtree(home)
    return [figure("a pass over 50 silent scripts", "s", [(ours, least, None) for ours, least, _ in found],
                   [("floor", 1.3)]),
            figure("  the same over xargs -P", "s", [(ours, by_xargs, None) for ours, _, by_xargs in found])]


LINKED = (10, 1_000, 30_000)  # the most that jsonstore reads
TURNS = 25


def linked(plan, place):
    """POST /send with more and more users, taken in turns. The floor of a row is the one with 10."""
    rounds = {kind: [] for kind in ("bot", "comparison")}
    with Telegram(place, LINKED[0]) as telegram:
        for kind, found in rounds.items():
            services = []
            try:
                services += [Service(place, telegram, kind, "unpaced", linked=count) for count in LINKED]
                for service in services:
                    service.send(plan.count // 4, 1, WAIT_SECONDS)
                found += [_median_latencies(services, plan.count // 4) for _ in range(plan.rounds)]
            finally:
                for service in services:
                    service.stop()
    return [figure(f"POST /send with {count:,} linked users", "ms", [
        (ours[index], ours[0] if index else None, comparison[index])
        for ours, comparison in zip(*rounds.values(), strict=True)], [("floor", 1.2)] if index else [])
        for index, count in enumerate(LINKED)]


def _median_latencies(services, count):
    """Of each service, in milliseconds; in many short turns, because what else runs changes within seconds."""
    latencies = [[] for _ in services]
    for _ in range(TURNS):
        for service, found in zip(services, latencies, strict=True):
            found += service.send(count // TURNS, 1, WAIT_SECONDS).latencies
    return [statistics.median(found) * 1e3 for found in latencies]


def page(plan, place):
    """A request to the link page, a CGI process each. The floor: Python's start with the same standard modules."""
    figures = []
    with Telegram(place, 1) as telegram, Service(place, telegram, "bot") as service, \
            contextlib.closing(Account(place.new("account"))) as account:
        for path in ("/api/telegram/status", "/telegram"):
            environment = {"PATH": os.environ["PATH"], "REQUEST_METHOD": "GET", "PATH_INFO": path, "AUTH_TYPE": "Basic",
                           "REMOTE_USER": account.name, "NOTIFY_ANALYST_GROUP": account.group, "HTTP_HOST": "x",
                           "SERVER_NAME": "x", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1",
                           "NOTIFY_DATA_DIR": str(service.folder),
                           "NOTIFY_WEB_SOCKET": str(service.folder / "web.sock")}
            program = place.modules / "webapp_telegram.py"
            names = _standard_imports([*account.run, PYTHON, "-EsS", "-X", "importtime", program], environment)
            code = f"for name in {names}:\n try: __import__(name)\n except ImportError: pass"
            bare = [*account.run, PYTHON, "-EsSc", code]
            rounds = [(_milliseconds([*account.run, program], environment), _milliseconds(bare, environment), None)
                      for _ in range(9 * plan.rounds)]
            figures.append(figure(f"GET {path}, a process", "ms", rounds, [("floor", 1.5)]))
    return figures


def _standard_imports(command, environment):
    """Names of the standard modules that a CGI program imported, or tried to, before it answered with 200."""
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    if not done.stdout.startswith("Status: 200 "):
        raise RuntimeError(done.stdout[:2000] + done.stderr[-2000:])
    names = (line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:"))
    return sorted({name for name in names if name.partition(".")[0] in sys.stdlib_module_names} - {"sitecustomize"})


def _milliseconds(command, environment):
    begin = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - begin) * 1e3


ROWS = {"start": start, "imports": imports, "memory": memory, "cpu": cpu, "latency": latency, "health": health,
        "burst": burst, "runner": runner, "linked": linked, "page": page}

