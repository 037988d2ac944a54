"""Rules of the house: the import law, nothing but the standard library, prose, linters."""

import ast
import graphlib
import re
import subprocess
import sys

import pytest

from machine import CHECKOUT

# What each place may import of ours. A program is a place of its own.
LAW = {
    "notify_bot": {"bot", "common"},
    "notify_runner": {"runner", "common", "notify_scripts"},
    "notify_scripts": set(),
    "webapp_telegram": {"webapp", "common"},
    "bot": {"bot", "common"},
    "runner": {"runner", "common", "notify_scripts"},
    "webapp": {"webapp", "common"},
    "common": {"common"},
}
PROGRAMS = sorted(CHECKOUT.glob("*.py"))
PRODUCT = PROGRAMS + sorted(path for place in LAW for path in (CHECKOUT / place).glob("*.py"))
STAND_IN = sorted((CHECKOUT / "tests/telegram").glob("*.py"))
HELPERS = sorted(path for folder in ("support", "machine") for path in (CHECKOUT / "tests" / folder).glob("*.py"))
BENCH = sorted((CHECKOUT / "bench").glob("*.py"))
EXAMPLES = sorted((CHECKOUT / "examples").glob("*.py"))
SHELL = ("install.sh", "bin/notify-add-analyst", "tests/prepare.sh", ".ci/run")
NO_FIRST_WORD = {"what", "who", "whoever", "how", "whether", "by", "that", "where", "when"}


def name_of(path):
    return str(path.relative_to(CHECKOUT))


def each(paths):
    """A test for each file, named after it."""
    return pytest.mark.parametrize("path", paths, ids=name_of)


def place_of(path):
    return path.relative_to(CHECKOUT).parts[0].removesuffix(".py")


def imports(path):
    """The full names of what a file imports, wherever in it: "bot.outbox" for `from bot import outbox` too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relative to itself"
            yield from ([f"{node.module}.{alias.name}" for alias in node.names] if node.module in LAW
                        else [node.module])


def imported_places(path):
    return {name.partition(".")[0] for name in imports(path)}


@each(PRODUCT)
def test_the_import_law(path):
    assert imported_places(path) <= LAW[place_of(path)] | sys.stdlib_module_names


def test_the_bot_has_no_circles():
    """Raises CycleError, which names the circle."""
    modules = {f"bot.{path.stem}": path for path in PRODUCT if place_of(path) == "bot"}
    list(graphlib.TopologicalSorter({name: set(imports(path)) & modules.keys()
                                     for name, path in modules.items()}).static_order())


@each([path for path in STAND_IN if not path.name.startswith(("test_", "demo"))])
def test_the_stand_in_has_only_markdown_of_the_product(path):
    names = {name for name in imports(path) if name.partition(".")[0] in LAW}
    assert {".".join(name.split(".")[:2]) for name in names} <= {"common.markdown"}


@each(EXAMPLES)
def test_examples_import_the_standard_library_only(path):
    assert imported_places(path) <= sys.stdlib_module_names


@each(PROGRAMS)
def test_program_depends_on_no_environment(path):
    """Neither PYTHONPATH nor site-packages nor the current directory may bring code into a service."""
    assert path.read_text().splitlines()[0] in ("#!/usr/bin/python3 -EsS", "#!/usr/bin/python3 -IS")
    assert path.stat().st_mode & 0o111


@each(PRODUCT)
def test_errors_are_caught_by_name(path):
    """A handler of everything must raise it again."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "BaseException"
            broad = re.search(r"\b(Exception|BaseException)\b", caught)
            assert not broad or isinstance(node.body[-1], ast.Raise), f"line {node.lineno}: {caught}"


@each(PRODUCT)
def test_module_can_be_read_in_one_sitting(path):
    # notify_scripts imports nothing of ours and is a program and its library, so it is the longest.
    assert len(path.read_text().splitlines()) <= (750 if path.stem == "notify_scripts" else 450)


def docstrings(tree):
    """`(line, text)` of every docstring, that of a named tuple included."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).endswith(".__doc__"):
            yield node.lineno, ast.literal_eval(node.value)


@each(PRODUCT + STAND_IN + HELPERS + BENCH)
def test_docstrings_begin_with_a_noun_or_a_verb(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert [(line, text) for line, text in docstrings(tree)
            if re.match(r"\W*(\w*)", text)[1].lower() in NO_FIRST_WORD] == []


def test_ruff_is_silent():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", CHECKOUT], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("shellcheck")
def test_shellcheck_is_silent():
    done = subprocess.run(["shellcheck", *SHELL], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
