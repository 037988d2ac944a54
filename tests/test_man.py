"""The manual pages: they format, their SYNOPSIS is what --help prints, their EXIT STATUS is what the code returns."""

import os
import re
import subprocess

import pytest

from documents import CHECKOUT, code_spans, tables
from live import PYTHON

PAGES = sorted((CHECKOUT / "man").iterdir())
# The program of each page, and the files whose statuses it can end with.
PROGRAMS = {
    "notify-bot.8": ("notify_bot.py", "bot/*.py"),
    "notify-runner.1": ("notify_runner.py", "runner/*.py", "notify_scripts.py"),
    "notify-scripts.1": ("notify_scripts.py",),
    "notify-add-analyst.8": ("bin/notify-add-analyst",),
}


def section(page, heading):
    """The lines of a section as `man` shows them, without the indentation."""
    done = subprocess.run(["man", "--encoding=UTF-8", "--local-file", CHECKOUT / "man" / page], capture_output=True,
                          text=True, check=True, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "200",
                                                      "MANROFFSEQ": ""})
    body = done.stdout.partition(f"\n{heading}\n")[2]
    return [line.strip() for line in re.split(r"\n(?=\S)", body)[0].splitlines() if line.strip()]


def statuses_of(page):
    return {int(line.split()[0]) for line in section(page, "EXIT STATUS") if re.match(r"\d", line)}


def named_in(pattern):
    """The exit statuses that files name: EX_ constants of sysexits(3), or numbers in a shell script."""
    found = set()
    for path in CHECKOUT.glob(pattern):
        text = path.read_text()
        if path.suffix == ".py":
            found |= {getattr(os, name) for name in re.findall(r"\bos\.(EX_[A-Z]+)\b", text)}
        else:
            found |= {int(number) for number in re.findall(r"\b(?:fail |exit |failed=)(\d\d)\b", text)} | {0}
    return found


def test_every_program_has_a_page():
    assert {page.name for page in PAGES} == set(PROGRAMS)


@pytest.mark.needs("man")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_page_formats_without_a_warning(path):
    done = subprocess.run(["man", "--warnings", "--encoding=UTF-8", "--local-file", path], capture_output=True,
                          text=True, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "80",
                                          "MANROFFSEQ": ""})
    assert (done.returncode, done.stderr) == (0, "")
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS"):
        assert heading in done.stdout


@pytest.mark.needs("man")
@pytest.mark.parametrize("page", PROGRAMS)
def test_synopsis_is_the_usage_that_help_prints(page):
    program = CHECKOUT / PROGRAMS[page][0]
    command = [PYTHON, "-EsS", program] if program.suffix == ".py" else [program]
    told = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, timeout=20).stdout
    usage = re.search(r"^usage: (.*?)(\n\n|\Z)", told, re.M | re.S)[1]
    assert [line.strip() for line in usage.splitlines()] == section(page, "SYNOPSIS")


@pytest.mark.needs("man")
@pytest.mark.parametrize("page", PROGRAMS)
def test_exit_statuses_are_those_of_the_code(page):
    program, *rest = PROGRAMS[page]
    most = set().union(*map(named_in, (program, *rest)))
    least = named_in(program) if program != "notify_scripts.py" else set()  # it also answers with them on its socket
    assert least - {0} <= statuses_of(page) <= most | {0}


@pytest.mark.needs("man")
def test_the_table_of_exit_statuses_is_that_of_the_pages():
    rows = [row for row in tables("docs/telegram_bot.md") if re.match(r"\d+ `EX_", row[0])]
    for row in rows:
        assert int(row[0].split()[0]) == getattr(os, code_spans(row[0])[0])
    shown = {page: {int(row[0].split()[0]) for row in rows if page.partition(".")[0] in code_spans(row[2])}
             for page in PROGRAMS}
    assert shown == {page: statuses_of(page) for page in PROGRAMS}
