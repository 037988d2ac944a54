"""The examples are run as an analyst would: copied, their values changed, and judged by the contract."""

import ast
import os
import re
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from common import markdown, script_output

EXAMPLES = Path(__file__).parents[1] / "examples"
ALL = sorted(EXAMPLES.glob("*.py"))


class Analyst:
    """A home with a folder of scripts."""

    def __init__(self, home):
        self.home = home
        self.scripts = home / "user" / "notifications"
        self.scripts.mkdir(parents=True)

    def run(self, example, **values) -> script_output.Notification:
        """Output of an example, with the values at its top replaced."""
        source = (EXAMPLES / f"{example}.py").read_text()
        for name, value in values.items():
            source, count = re.subn(rf"^{name} = .*$", lambda _, n=name, v=value: f"{n} = {v}", source, flags=re.M)
            assert count == 1, f"{example} has no value {name} at its top"
        script = self.scripts / f"{example}.py"
        script.write_text(source)
        environment = {"HOME": str(self.home), "PATH": os.environ["PATH"], "LC_ALL": "C"}
        run = subprocess.run([sys.executable, "-I", script], env=environment, cwd=self.home, capture_output=True,
                             timeout=30, check=True)
        assert run.stderr == b""
        found = script_output.parse_output(run.stdout)
        markdown.parse(found.message)
        return found


@pytest.fixture
def analyst(tmp_path):
    return Analyst(tmp_path)


@pytest.mark.parametrize("example", ALL, ids=lambda path: path.stem)
def test_an_example_is_short_and_stands_alone(example):
    source = example.read_text()
    assert len(source.splitlines()) < 100
    assert os.access(example, os.X_OK)
    tree = ast.parse(source)
    imports = {name.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import)
               for name in node.names}
    imports |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imports <= sys.stdlib_module_names
    assert f"notify-runner --dry-run {example.stem}" in ast.get_docstring(tree)


@pytest.mark.parametrize("example", ALL, ids=lambda path: path.stem)
def test_an_example_as_it_is_keeps_the_contract_in_an_empty_home(analyst, example):
    analyst.run(example.stem)


def test_there_are_three_examples():
    assert [path.stem for path in ALL] == ["csv_threshold", "data_freshness", "disk_use"]


def _touch(path, hours_ago):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("data")
    then = time.time() - hours_ago * 3600
    os.utime(path, (then, then))


def test_fresh_data_is_no_news(analyst):
    _touch(analyst.home / "server/old/a.csv", 100)
    _touch(analyst.home / "server/new/b.csv", 1)
    assert not analyst.run("data_freshness").notify


def test_stale_data_names_its_newest_file(analyst):
    _touch(analyst.home / "server/old/a.csv", 100)
    _touch(analyst.home / "server/new/b_[1]`x`.csv", 48)
    (analyst.home / "server/gone").symlink_to("nowhere")
    found = analyst.run("data_freshness")
    plain, _ = markdown.parse(found.message)
    assert found.notify
    assert "48 hours" in plain
    assert "b_[1]'x'.csv" in plain
    assert found.cooldown == 6 * 3600


def test_one_file_can_be_watched(analyst):
    _touch(analyst.home / "export.csv", 5)
    watched = 'Path.home() / "export.csv"'
    assert analyst.run("data_freshness", WATCHED=watched, MAX_AGE_HOURS=4).notify
    assert not analyst.run("data_freshness", WATCHED=watched, MAX_AGE_HOURS=6).notify


def test_a_folder_that_is_missing_or_empty_is_said_so(analyst):
    assert "is not there" in analyst.run("data_freshness").message
    (analyst.home / "server").mkdir()
    assert "no file" in analyst.run("data_freshness").message


def _csv(analyst, text, encoding="utf-8"):
    path = analyst.home / "server" / "sales.csv"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding=encoding)


@pytest.mark.parametrize(("last", "limits", "notify"), [
    ("79999.5", {}, True),
    ("80000", {}, False),
    ("120", {"LOWEST": None, "HIGHEST": 100}, True),
    ("100", {"LOWEST": None, "HIGHEST": 100}, False),
    ("-3", {"LOWEST": 0, "HIGHEST": 100}, True),
])
def test_the_last_row_is_held_against_the_limits(analyst, last, limits, notify):
    _csv(analyst, f"day,net_sales\n2026-01-30,90000\n2026-01-31,{last}\n")
    found = analyst.run("csv_threshold", **limits)
    assert found.notify is notify
    assert found.data == {"figure": float(last)}


def test_the_figure_and_the_one_before_are_in_the_message(analyst):
    _csv(analyst, "day;net_sales\n2026-01-30;9000000\n2026-01-31;61500.25\n", encoding="utf-8-sig")
    found = analyst.run("csv_threshold", DELIMITER='";"')
    plain, _ = markdown.parse(found.message)
    assert plain == "net_sales is 61,500.25, under the limit of 80,000.\nThe row before it had 9,000,000."


@pytest.mark.parametrize(("text", "said"), [
    (None, "is not there"),
    ("", "has no column"),
    ("day,sales_net\n1,2\n", "day, sales_net"),
    ("day,net_sales\n", "no rows"),
    ("day,net_sales\n1,n/a\n", "Row 1 of sales.csv has n/a"),
    ("day,net_sales\n1,nan\n", "Row 1 of sales.csv has nan"),
    ("day,net_sales\n1,5\n2\n", "Row 2 of sales.csv has nothing"),
    ("day,net_sales\n1,\udcff\n", "cannot be read"),
])
def test_a_csv_file_that_gives_no_figure_is_said_so(analyst, text, said):
    if text is not None:
        _csv(analyst, "")
        (analyst.home / "server/sales.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    found = analyst.run("csv_threshold")
    plain, _ = markdown.parse(found.message)
    assert found.notify
    assert said in plain
    assert found.data == {"figure": None}


def _pixels(png: bytes):
    """(rows of palette indices, palette as hex) of a PNG with a palette of 8 bits; every checksum is checked."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, position = {}, 8
    while position < len(png):
        length, name = struct.unpack_from(">I4s", png, position)
        data = png[position + 8:position + 8 + length]
        assert zlib.crc32(name + data) == struct.unpack_from(">I", png, position + 8 + length)[0]
        chunks[name] = data
        position += 12 + length
    assert list(chunks) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    width, height, *kind = struct.unpack(">2I5B", chunks[b"IHDR"])
    assert kind == [8, 3, 0, 0, 0]
    raw = zlib.decompress(chunks[b"IDAT"])
    assert len(raw) == height * (width + 1)
    rows = [raw[start + 1:start + 1 + width] for start in range(0, len(raw), width + 1)]
    assert all(raw[start] == 0 for start in range(0, len(raw), width + 1))
    palette = chunks[b"PLTE"]
    return rows, [palette[index:index + 3].hex() for index in range(0, len(palette), 3)]


def test_disk_use_draws_a_bar_as_long_as_the_disk_is_full(analyst):
    found = analyst.run("disk_use", DISKS='["/"]', LIMIT_PERCENT=0)
    assert found.notify
    percent = int(re.search(r"is \*(\d+) % full", found.message)[1])
    rows, palette = _pixels(Path(found.image_path).read_bytes())
    middle = rows[106 + 34 + 12]
    red, track = palette.index("e5484d"), palette.index("e9edf1")
    assert set(middle) == {0, red, track} or percent == 100
    assert middle.count(red) == pytest.approx(max(24, 8.2 * percent), abs=5)
    assert middle.count(red) + middle.count(track) == 820
    assert palette.index("1f2933") in rows[50], "the heading is written"


def test_disk_use_counts_a_disk_once_and_names_what_is_missing(analyst):
    found = analyst.run("disk_use", DISKS='["/", "/.", "/no/such/disk"]', LIMIT_PERCENT=101)
    assert found.message == "`/no/such/disk` cannot be looked at: No such file or directory."
    rows, _ = _pixels(Path(found.image_path).read_bytes())
    assert len(rows) == 110 + 92


def test_disk_use_says_and_draws_nothing_while_there_is_room(analyst):
    found = analyst.run("disk_use", DISKS='["/"]', LIMIT_PERCENT=101)
    assert not found.notify
    assert list(analyst.home.rglob("*.png")) == []


def test_disk_use_without_any_disk_has_no_picture(analyst):
    found = analyst.run("disk_use", DISKS='["/no/such/disk"]')
    assert found.notify
    assert found.image_path == ""


def test_disk_use_leaves_only_its_picture(analyst):
    for _ in range(2):
        analyst.run("disk_use", DISKS='["/"]', LIMIT_PERCENT=0)
    assert [path.name for path in (analyst.home / ".cache").iterdir()] == ["disk_use.png"]


def test_the_sample_chart_is_a_small_png():
    picture = (EXAMPLES.parent / "bot" / "sample_chart.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) <= 40_000
    assert struct.unpack_from(">2I", picture, 16) == (900, 500)
