"""Imports of a request to the link page; their cost is for `make bench BENCH_ARGS=page`."""

import contextlib
import re

import pytest

from link_page import CHECKOUT, LinkPage

pytestmark = pytest.mark.root


@pytest.fixture
def page(tmp_path):
    with contextlib.closing(LinkPage(tmp_path)) as page:
        page.links.redeem(page.code(), "alice", 3001)
        yield page


def imported_by(page, request):
    """The imports of a process, tried ones too, in their order."""
    program = page.folder / "imports.py"
    program.write_text(f"#!/bin/sh\nexec /usr/bin/python3 -EsS -X importtime {CHECKOUT}/webapp_telegram.py\n")
    program.chmod(0o755)
    start = page.start
    page.start = lambda *arguments, **environment: start(*arguments, program=program, **environment)
    try:
        errors = request().errors
    finally:
        del page.start
    return re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", errors, re.M)


def test_status_loads_nothing_that_only_the_bot_needs(page):
    names = imported_by(page, lambda: page.get("/api/telegram/status"))
    assert "common.links" in names
    assert not {"socket", "common.http_client", "webapp.page", "http.client", "segno", "site"} & set(names)
