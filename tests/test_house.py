"""Rules of the house: who imports whom, nothing but the standard library, linters."""

import ast
import graphlib
import re
import subprocess
import sys

import pytest

from machine import CHECKOUT

SRC = CHECKOUT / "src"
MODULES = {path.stem: path for path in SRC.glob("*.py")}
PROGRAMS = {"notify_bot", "notify_runner", "notify_scripts", "notify_sandbox", "webapp_telegram"}
# They know nothing of the rest of the house, but that JSON from outside is bounded.
LEAVES = {"bounded_json", "jsonstore", "markdown", "contract", "service", "http1", "refusals", "telegram_api",
          "notify_scripts"}
SANDBOX = {name for name in MODULES if "sandbox" in name}
SHELL = ("install.sh", "bin/notify-add-analyst", "tests/prepare.sh", ".ci/run")


def imports(path):
    """The top-level names of what a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relative to itself"
            yield node.module.partition(".")[0]


def ours(name):
    return set(imports(MODULES[name])) & MODULES.keys()


def test_imports_run_one_way():
    """In a circle nothing can be understood on its own. Raises CycleError, which names the circle."""
    order = list(graphlib.TopologicalSorter({name: ours(name) for name in MODULES}).static_order())
    assert len(order) == len(MODULES)


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_leaf_imports_nothing_of_ours(name):
    assert ours(name) <= {"bounded_json"}


def test_rooms_are_entered_through_their_doors():
    imported_by = {name: {other for other in MODULES if name in ours(other)} for name in MODULES}
    for name in PROGRAMS - {"notify_scripts"}:
        assert imported_by[name] == set()
    assert imported_by["chat"] == imported_by["sendapi"] == {"notify_bot"}
    assert ours("links") == {"clock", "jsonstore"}


def test_sandbox_is_apart():
    """It judges markup with the product's own reader, and has nothing else in common with what it tests."""
    for name in SANDBOX:
        assert ours(name) - SANDBOX <= {"markdown"}
    for name in MODULES.keys() - SANDBOX:
        assert not ours(name) & SANDBOX


@pytest.mark.parametrize("path", [*MODULES.values(), CHECKOUT / "demo.py", *(CHECKOUT / "examples").glob("*.py")],
                         ids=lambda path: path.name)
def test_standard_library_only(path):
    assert set(imports(path)) - MODULES.keys() <= sys.stdlib_module_names


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_program_depends_on_no_environment(name):
    """Neither PYTHONPATH nor site-packages nor the current directory may bring code into a service."""
    first = MODULES[name].read_text().splitlines()[0]
    assert first in ("#!/usr/bin/python3 -EsS", "#!/usr/bin/python3 -IS")
    assert MODULES[name].stat().st_mode & 0o111


@pytest.mark.parametrize("name", sorted(MODULES))
def test_errors_are_caught_by_name(name):
    """Who catches everything must raise it again."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "BaseException"
            broad = re.search(r"\b(Exception|BaseException)\b", caught)
            assert not broad or isinstance(node.body[-1], ast.Raise), f"line {node.lineno}: {caught}"


@pytest.mark.parametrize("path", sorted(MODULES.values()), ids=lambda path: path.name)
def test_module_can_be_read_in_one_sitting(path):
    # notify_scripts may import nothing of ours, and is one program with its library, so it is the longest.
    assert len(path.read_text().splitlines()) <= (750 if path.stem == "notify_scripts" else 450)
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_ruff_is_silent():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", CHECKOUT], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("shellcheck")
def test_shellcheck_is_silent():
    done = subprocess.run(["shellcheck", *SHELL], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("man")
@pytest.mark.parametrize("path", sorted((CHECKOUT / "man").iterdir()), ids=lambda path: path.name)
def test_manual_page_formats_without_a_warning(path):
    done = subprocess.run(["man", "--warnings", "--encoding=UTF-8", "--local-file", path], capture_output=True,
                          text=True, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "80",
                                          "MANROFFSEQ": ""})
    assert (done.returncode, done.stderr) == (0, "")
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS"):
        assert heading in done.stdout
